//! Probes of the pod's containers: which run now, and what their verdicts mean.

use std::time::Duration;

use jiff::Timestamp;

use super::{Actor, Msg};
use crate::events::Severity;
use crate::handle::ContainerKind;
use crate::pod::observed::{Kill, Run};
use crate::probe::{self, ProbeKind, ProbeSpec, Verdict};

impl Actor {
    pub(super) fn verdict(&mut self, v: Verdict) {
        let Some(c) = self.plan.containers.get(v.container) else {
            return;
        };
        let s = &mut self.seen.containers[v.container];
        if s.id() != Some(&v.id) || !s.running() {
            return;
        }
        let kill = |probe: &str| Kill {
            message: format!(
                "Container {} failed {probe} probe, will be restarted",
                c.name
            ),
            grace: v.grace,
        };
        match (v.kind, v.ok) {
            (ProbeKind::Startup, true) => {
                s.started = true;
                s.ready = !c.readiness_probe;
            }
            (ProbeKind::Startup, false) if s.kill.is_none() => s.kill = Some(kill("startup")),
            (ProbeKind::Liveness, false) if s.kill.is_none() => s.kill = Some(kill("liveness")),
            (ProbeKind::Readiness, ok) => s.ready = ok,
            _ => {}
        }
    }

    /// Starts the probes that should run now.
    pub(super) fn watch_probes(&mut self) {
        if self.seen.stop.is_some() {
            return;
        }
        let Some(ip) = self.ips().first().copied() else {
            return;
        };
        for index in 0..self.plan.containers.len() {
            let s = &self.seen.containers[index];
            let (Run::Running { id, started_at }, None) = (&s.run, s.busy) else {
                continue;
            };
            if !s.hooked && !s.started {
                continue;
            }
            let kinds: &[ProbeKind] = if s.started {
                &[ProbeKind::Liveness, ProbeKind::Readiness]
            } else {
                &[ProbeKind::Startup]
            };
            let missing: Vec<ProbeKind> = kinds
                .iter()
                .copied()
                .filter(|k| !self.probes.iter().any(|(i, w)| *i == index && w.kind == *k))
                .collect();
            if missing.is_empty() {
                continue;
            }
            let plan = &self.plan.containers[index];
            if plan.kind == ContainerKind::Init || plan.kind == ContainerKind::Ephemeral {
                continue;
            }
            let (id, age) = (id.clone(), Timestamp::now().duration_since(*started_at));
            let Some(container) = self.container(index) else {
                continue;
            };
            for kind in missing {
                let spec = match ProbeSpec::of(kind, &container) {
                    None => continue,
                    Some(Ok(spec)) => spec,
                    Some(Err(why)) => {
                        let text = format!(
                            "{} probe errored and resulted in unknown state: {why}",
                            kind.as_str()
                        );
                        self.events.tell(
                            Severity::Warning,
                            "Unhealthy",
                            Some(&container.name),
                            text,
                        );
                        continue;
                    }
                };
                let subject = probe::Subject {
                    container: index,
                    name: container.name.clone(),
                    id: id.clone(),
                    ip,
                    runtime: self.deps.runtime.clone(),
                    events: self.events.clone(),
                    age: Duration::from_secs(age.as_secs().max(0) as u64),
                };
                let sender = self.sender.clone();
                let worker = probe::spawn(spec, subject, move |v| {
                    let _ = sender.send(Msg::Probe(v));
                });
                self.probes.push((index, worker));
            }
            // A startup probe that has said yes is over.
            if self.seen.containers[index].started {
                self.probes
                    .retain(|(i, w)| *i != index || w.kind != ProbeKind::Startup);
            }
        }
    }
}
