//! What a pod does next: a pure function of what is wanted and what is known.
//!
//! ```text
//!            volumes ─┐
//!  Absent ─▶          ├─▶ init containers, in order ─▶ regular containers ─▶ all ended for good ─┐
//!            sandbox ─┘    (a sidecar counts when            ▲   │                               │
//!                           it has started)                  └───┘ crash back-off                │
//!                                                                                                ▼
//!  deleted / evicted / deadline ────────────────────▶ stop regular containers ─▶ stop sidecars, last first
//!                                                                                                │
//!                                          tell the API (and delete there) ◀─ tear down sandbox, volumes
//! ```
//!
//! The kubelet's rules: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>.

use std::time::Duration;

use super::backoff::Mono;
use super::observed::{Busy, Observed, Run, Sandbox, Stop, Volumes, Waiting};
use super::plan::{ContainerPlan, PodPlan, RestartPolicy};
use crate::handle::ContainerKind;

/// One thing to do. Each is started once: the actor marks the matching part of [`Observed`] busy before it acts.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox,
    /// Pull the image if need be, create, start, run postStart.
    Start {
        index: usize,
    },
    /// Run preStop, signal, wait, kill. `grace` `None`: until the pod's deadline, or the pod's grace period.
    Stop {
        index: usize,
        grace: Option<Duration>,
        message: String,
    },
    /// Replace the container's waiting reason.
    ShowWaiting {
        index: usize,
        waiting: Waiting,
    },
    /// Tell of a crash back-off (an event) once.
    TellBackoff {
        index: usize,
    },
    /// Everything has stopped: remove network, sandbox, volumes.
    TearDown,
    /// The pod is over: final status, then (if deleted) removal from the API and from disk.
    Finish,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    pub actions: Vec<Action>,
    /// Decide again no later than this.
    pub wake_at: Option<Mono>,
}

impl Decision {
    fn wake(&mut self, at: Mono) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// Whether the pod has come to its own end, and how: `Some(true)` succeeded, `Some(false)` failed.
pub fn outcome(plan: &PodPlan, seen: &Observed) -> Option<bool> {
    let mut all_ok = true;
    for (c, s) in plan.containers.iter().zip(&seen.containers) {
        match c.kind {
            ContainerKind::Init => {
                if let Some(e) = s.exit()
                    && e.code != 0
                    && !c.restarts_after(e.code)
                    && !seen.initialized
                {
                    return Some(false);
                }
            }
            ContainerKind::Regular => match s.exit() {
                Some(e) if !c.restarts_after(e.code) => all_ok &= e.code == 0,
                _ => return None,
            },
            ContainerKind::Sidecar | ContainerKind::Ephemeral => {}
        }
    }
    // Never empty: a pod has at least one regular container.
    Some(all_ok)
}

/// Decides the next steps of one pod.
pub fn decide(plan: &PodPlan, seen: &Observed, now: Mono) -> Decision {
    let mut d = Decision::default();
    if seen.cleaned {
        d.actions.push(Action::Finish);
        return d;
    }
    if seen.stop.is_some() || outcome(plan, seen).is_some() {
        wind_down(plan, seen, &mut d);
        return d;
    }
    if !foundation(seen, now, &mut d) {
        return d;
    }
    let initialized = init_containers(plan, seen, now, &mut d);
    for (index, c) in plan.containers.iter().enumerate() {
        match c.kind {
            ContainerKind::Regular if initialized => keep_running(c, seen, index, now, &mut d),
            ContainerKind::Ephemeral if initialized && seen.containers[index].run == Run::None => {
                start(seen, index, now, &mut d)
            }
            _ => {}
        }
    }
    d
}

/// Sandbox and volumes, made at the same time. True once both are there.
fn foundation(seen: &Observed, now: Mono, d: &mut Decision) -> bool {
    if seen.volumes == Volumes::Absent {
        due(seen.retry_volumes_at, now, d).then(|| d.actions.push(Action::PrepareVolumes));
    }
    if seen.sandbox == Sandbox::Absent {
        due(seen.retry_sandbox_at, now, d).then(|| d.actions.push(Action::CreateSandbox));
    }
    seen.volumes == Volumes::Ready && matches!(seen.sandbox, Sandbox::Ready { .. })
}

/// Brings init containers and sidecars up in order. True once regular containers may run.
fn init_containers(plan: &PodPlan, seen: &Observed, now: Mono, d: &mut Decision) -> bool {
    for (index, c) in plan.containers.iter().enumerate() {
        let s = &seen.containers[index];
        match c.kind {
            ContainerKind::Sidecar => {
                keep_running(c, seen, index, now, d);
                let up = s.running() && s.started;
                if !seen.initialized && !up {
                    return false;
                }
            }
            ContainerKind::Init if !seen.initialized => {
                if s.exit().is_some_and(|e| e.code == 0) && s.busy.is_none() {
                    continue;
                }
                keep_running(c, seen, index, now, d);
                return false;
            }
            _ => {}
        }
    }
    true
}

/// Starts a container that should run, restarts one that may, stops one that must.
fn keep_running(c: &ContainerPlan, seen: &Observed, index: usize, now: Mono, d: &mut Decision) {
    let s = &seen.containers[index];
    if s.busy.is_some() {
        return;
    }
    match &s.run {
        Run::None => start(seen, index, now, d),
        Run::Running { .. } => {
            if let Some(kill) = &s.kill {
                d.actions.push(Action::Stop {
                    index,
                    grace: kill.grace,
                    message: kill.message.clone(),
                });
            } else if s.image != c.image {
                let message = format!("Container {} definition changed, will be restarted", c.name);
                d.actions.push(Action::Stop {
                    index,
                    grace: None,
                    message,
                });
            }
        }
        Run::Exited(e) => {
            if !c.restarts_after(e.code) && s.image == c.image {
                return;
            }
            let at = s.restart_at(now);
            if now < at {
                if !s.backoff_told {
                    d.actions.push(Action::TellBackoff { index });
                }
                d.wake(at);
            } else {
                start(seen, index, now, d);
            }
        }
    }
}

fn start(seen: &Observed, index: usize, now: Mono, d: &mut Decision) {
    let s = &seen.containers[index];
    if s.busy.is_some() {
        return;
    }
    if let Some((at, waiting)) = &s.waiting_then {
        if now >= *at {
            d.actions.push(Action::ShowWaiting {
                index,
                waiting: waiting.clone(),
            });
        } else {
            d.wake(*at);
        }
    }
    if due(s.retry_at, now, d) {
        d.actions.push(Action::Start { index });
    }
}

fn due(at: Option<Mono>, now: Mono, d: &mut Decision) -> bool {
    match at {
        Some(at) if now < at => {
            d.wake(at);
            false
        }
        _ => true,
    }
}

/// Stops what runs: regular and init containers together, then sidecars one by one from the last, then tears down.
fn wind_down(plan: &PodPlan, seen: &Observed, d: &mut Decision) {
    let mut waits = false;
    let stop = |index: usize, d: &mut Decision| -> bool {
        let s = &seen.containers[index];
        if s.busy == Some(Busy::Starting) && !s.running() {
            return true; // the start operation hears of the stop and ends soon
        }
        if s.running() {
            if s.busy != Some(Busy::Stopping) {
                let message = format!("Stopping container {}", plan.containers[index].name);
                d.actions.push(Action::Stop {
                    index,
                    grace: None,
                    message,
                });
            }
            return true;
        }
        false
    };
    for (index, c) in plan.containers.iter().enumerate() {
        if c.kind != ContainerKind::Sidecar {
            waits |= stop(index, d);
        }
    }
    for (index, c) in plan.containers.iter().enumerate().rev() {
        if c.kind == ContainerKind::Sidecar {
            if waits {
                break;
            }
            waits |= stop(index, d);
        }
    }
    if waits || seen.volumes == Volumes::Preparing {
        return;
    }
    match seen.sandbox {
        Sandbox::Creating | Sandbox::Removing => {}
        Sandbox::Absent | Sandbox::Ready { .. } | Sandbox::Removed => {
            d.actions.push(Action::TearDown)
        }
    }
}

/// The phase that the states amount to (`status.phase`).
pub fn phase(plan: &PodPlan, seen: &Observed) -> &'static str {
    if let Some(Stop::Failed { .. }) = seen.stop {
        return "Failed";
    }
    let (mut pending_init, mut failed_init) = (false, false);
    let (mut running, mut waiting, mut stopped, mut succeeded, mut total) = (0, 0, 0, 0, 0);
    for (c, s) in plan.containers.iter().zip(&seen.containers) {
        match c.kind {
            ContainerKind::Init if !seen.initialized => match (s.exit(), &s.last) {
                (Some(e), _) if e.code == 0 => {}
                (Some(_), _) => failed_init = true,
                _ => pending_init = true,
            },
            ContainerKind::Sidecar if !seen.initialized => pending_init |= !s.started,
            ContainerKind::Regular => {
                total += 1;
                match &s.run {
                    Run::Running { .. } => running += 1,
                    Run::Exited(e) => {
                        stopped += 1;
                        succeeded += usize::from(e.code == 0);
                    }
                    Run::None if s.last.is_some() => stopped += 1,
                    Run::None => waiting += 1,
                }
            }
            _ => {}
        }
    }
    if failed_init && plan.policy == RestartPolicy::Never {
        return "Failed";
    }
    let over = outcome(plan, seen).is_some() || (seen.stop.is_some() && seen.cleaned);
    if over && running == 0 {
        return match (stopped == total && stopped == succeeded, stopped + waiting) {
            (true, n) if n > 0 => "Succeeded",
            _ => "Failed",
        };
    }
    if pending_init || failed_init || waiting > 0 {
        return "Pending";
    }
    if running > 0 || stopped > 0 {
        "Running"
    } else {
        "Pending"
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
