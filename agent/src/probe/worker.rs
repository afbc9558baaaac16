//! Asks one probe at its times and tells the pod's actor when the verdict changes.

use std::net::IpAddr;
use std::time::Duration;

use amphipod_runtime::Runtime;

use super::{Check, Outcome, ProbeKind, ProbeSpec, Tracker, ask_network, exec};
use crate::events::{PodEvents, Severity};

/// A changed verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub container: usize,
    /// The instance that was asked.
    pub id: String,
    pub kind: ProbeKind,
    pub ok: bool,
    pub grace: Option<Duration>,
}

/// A running probe. Dropping it ends it.
pub struct Worker {
    pub kind: ProbeKind,
    task: tokio::task::AbortHandle,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Everything a probe needs.
pub struct Subject {
    pub container: usize,
    pub name: String,
    pub id: String,
    pub ip: IpAddr,
    pub runtime: Runtime,
    pub events: PodEvents,
    /// How long the container has run already (after a restart of the agent: its initial delay has passed).
    pub age: Duration,
}

/// Starts asking. `tell` hears changed verdicts; it is called from the probe's own task.
pub fn spawn(spec: ProbeSpec, subject: Subject, tell: impl Fn(Verdict) + Send + 'static) -> Worker {
    let kind = spec.kind;
    let task = tokio::spawn(run(spec, subject, tell)).abort_handle();
    Worker { kind, task }
}

async fn run(spec: ProbeSpec, s: Subject, tell: impl Fn(Verdict)) {
    let mut tracker = Tracker::new(&spec);
    let delay = spec.initial_delay.saturating_sub(s.age);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    } else if s.age > Duration::from_secs(2) {
        // The agent was restarted: do not ask everything at the same moment.
        tokio::time::sleep(spec.period.mul_f64(
            f64::from(u16::from_str_radix(&s.id[..s.id.len().min(4)], 16).unwrap_or(0)) / 65536.0,
        ))
        .await;
    }
    let mut next = tokio::time::Instant::now();
    loop {
        let outcome = attempt(&spec, &s).await;
        let ok = match outcome {
            Outcome::Success => Some(true),
            Outcome::Failure(why) => {
                s.events.tell(
                    Severity::Warning,
                    "Unhealthy",
                    Some(&s.name),
                    format!("{} probe failed: {why}", spec.kind.as_str()),
                );
                Some(false)
            }
            Outcome::Error(why) => {
                let text = format!(
                    "{} probe errored and resulted in unknown state: {why}",
                    spec.kind.as_str()
                );
                s.events
                    .tell(Severity::Warning, "Unhealthy", Some(&s.name), text);
                None
            }
        };
        if let Some(ok) = ok
            && let Some(ok) = tracker.add(ok)
        {
            tell(Verdict {
                container: s.container,
                id: s.id.clone(),
                kind: spec.kind,
                ok,
                grace: spec.grace,
            });
            if spec.kind == ProbeKind::Startup || (spec.kind == ProbeKind::Liveness && !ok) {
                return;
            }
        }
        next += spec.period;
        let now = tokio::time::Instant::now();
        if next < now {
            next = now + spec.period;
        }
        tokio::time::sleep_until(next).await;
    }
}

async fn attempt(spec: &ProbeSpec, s: &Subject) -> Outcome {
    match &spec.check {
        Check::Exec(command) => exec::probe(&s.runtime, &s.id, command, spec.timeout).await,
        check => ask_network(check, s.ip, spec.timeout).await,
    }
}
