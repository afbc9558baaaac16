//! What the agent remembers of a pod across restarts, and how it is put together again with what the keeper says. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use serde::{Deserialize, Serialize};

use super::backoff::Mono;
use super::decide::outcome;
use super::observed::{Exit, Observed, Run, Stop};
use super::plan::PodPlan;
use crate::handle::ContainerKind;

/// Stored with the pod whenever its status changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    pub status: PodStatus,
    pub containers: BTreeMap<String, ContainerRecord>,
    pub initialized: bool,
    pub deleted: bool,
    /// Reason and message of a pod that failed as a whole.
    pub failed: Option<(String, String)>,
    pub cleaned: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub attempts: u32,
    pub id: Option<String>,
    pub started: bool,
    pub ready: bool,
    pub exit: Option<Exit>,
    pub last: Option<Exit>,
    pub image: String,
    pub image_id: String,
}

/// An instance that the runtime knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub container: String,
    pub attempt: u32,
    pub id: String,
    pub state: FoundState,
    pub image: String,
    pub image_id: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FoundState {
    /// Made, never started: useless.
    Created,
    Running {
        started_at: Timestamp,
    },
    Exited(Exit),
}

impl Record {
    /// The addresses of a pod that will run again, from its record as it is stored.
    pub fn addresses(stored: &str) -> Vec<IpAddr> {
        let Ok(record) = serde_json::from_str::<Record>(stored) else {
            return Vec::new();
        };
        let ended = matches!(record.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ips = record.status.pod_ips.into_iter().flatten();
        ips.filter(|_| !ended)
            .filter_map(|ip| ip.ip.parse().ok())
            .collect()
    }

    pub fn of(plan: &PodPlan, seen: &Observed, status: &PodStatus) -> Record {
        let containers = plan.containers.iter().zip(&seen.containers).map(|(c, s)| {
            let record = ContainerRecord {
                attempts: s.attempts,
                id: s.id().map(str::to_string),
                started: s.started,
                ready: s.ready,
                exit: s.exit().cloned(),
                last: s.last.clone(),
                image: s.image.clone(),
                image_id: s.image_id.clone(),
            };
            (c.name.clone(), record)
        });
        Record {
            status: status.clone(),
            containers: containers.collect(),
            initialized: seen.initialized,
            deleted: seen.stop == Some(Stop::Deleted),
            failed: match &seen.stop {
                Some(Stop::Failed { reason, message }) => Some((reason.clone(), message.clone())),
                _ => None,
            },
            cleaned: seen.cleaned,
        }
    }

    /// What is known after a restart of the agent (or of the box: then `sandbox` is false).
    pub fn restore(
        &self,
        plan: &PodPlan,
        found: &[Found],
        sandbox: bool,
        now: Mono,
        time: Timestamp,
    ) -> Observed {
        let mut seen = Observed::new(plan);
        // Without a record (a lost database), a regular container tells that initialisation was through.
        let begun = |f: &Found| {
            let plan = plan.containers.iter().find(|c| c.name == f.container);
            plan.is_some_and(|c| c.kind == ContainerKind::Regular)
        };
        seen.initialized = sandbox && (self.initialized || found.iter().any(begun));
        seen.cleaned = self.cleaned;
        seen.stop = match &self.failed {
            _ if self.deleted => Some(Stop::Deleted),
            Some((reason, message)) => Some(Stop::Failed {
                reason: reason.clone(),
                message: message.clone(),
            }),
            None => None,
        };
        for (c, s) in plan.containers.iter().zip(&mut seen.containers) {
            let none = ContainerRecord::default();
            let known = self.containers.get(&c.name).unwrap_or(&none);
            let newest = found
                .iter()
                .filter(|f| f.container == c.name && f.state != FoundState::Created)
                .max_by_key(|f| f.attempt);
            s.attempts = known.attempts;
            s.last = known.last.clone();
            s.image = if known.image.is_empty() {
                c.image.clone()
            } else {
                known.image.clone()
            };
            s.image_id = known.image_id.clone();
            if let Some(f) = newest {
                if f.attempt + 1 > known.attempts && known.exit.is_some() {
                    // An instance that was started just before the agent ended.
                    s.last = known.exit.clone();
                }
                s.attempts = s.attempts.max(f.attempt + 1);
                if !f.image.is_empty() {
                    s.image = f.image.clone();
                }
                if !f.image_id.is_empty() {
                    s.image_id = f.image_id.clone();
                }
                match &f.state {
                    FoundState::Running { started_at } => {
                        s.run = Run::Running {
                            id: f.id.clone(),
                            started_at: *started_at,
                        };
                        let same = known.id.as_deref() == Some(f.id.as_str());
                        s.started = if same {
                            known.started
                        } else {
                            !c.startup_probe
                        };
                        s.ready = same && known.ready;
                        s.hooked = true;
                    }
                    FoundState::Exited(e) => {
                        let told = known.exit.clone().filter(|k| k.id == f.id);
                        s.exited(told.unwrap_or_else(|| e.clone()), now);
                    }
                    FoundState::Created => {}
                }
            } else if let Some(exit) = &known.exit {
                s.exited(exit.clone(), now);
            } else if let Some(id) = &known.id {
                s.exited(lost(id, time), now);
            }
            s.restarts = s.attempts.saturating_sub(1);
        }
        if !sandbox && !seen.cleaned && outcome(plan, &seen).is_none() {
            seen.sandbox_lost(plan);
        }
        seen
    }
}

/// An instance of which nothing is left.
fn lost(id: &str, time: Timestamp) -> Exit {
    Exit {
        id: id.to_string(),
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was terminated".into(),
        started_at: None,
        finished_at: Some(time),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn plan() -> PodPlan {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "image": "i"}]}}))
                .unwrap();
        PodPlan::of(&pod)
    }

    fn found(attempt: u32, state: FoundState) -> Found {
        Found {
            container: "a".into(),
            attempt,
            id: format!("id{attempt}"),
            state,
            image: "i".into(),
            image_id: "d".into(),
        }
    }

    fn exit(id: &str, code: i32) -> Exit {
        Exit {
            id: id.into(),
            code,
            signal: None,
            reason: "Error".into(),
            message: "told".into(),
            started_at: None,
            finished_at: None,
        }
    }

    fn record(attempts: u32, id: &str, exit: Option<Exit>) -> Record {
        let c = ContainerRecord {
            attempts,
            id: Some(id.into()),
            started: true,
            ready: true,
            exit,
            ..Default::default()
        };
        Record {
            containers: [("a".to_string(), c)].into(),
            initialized: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_running_container_stays_as_it_was() {
        let running = found(
            1,
            FoundState::Running {
                started_at: Timestamp::UNIX_EPOCH,
            },
        );
        let seen = record(2, "id1", None).restore(
            &plan(),
            &[running],
            true,
            Mono::ZERO,
            Timestamp::UNIX_EPOCH,
        );
        let s = &seen.containers[0];
        assert!(s.running() && s.started && s.ready && seen.initialized);
        assert_eq!((s.attempts, s.restarts), (2, 1));
    }

    #[test]
    fn what_ended_while_the_agent_was_away_is_told() {
        let ended = found(0, FoundState::Exited(exit("id0", 3)));
        let seen = record(1, "id0", None).restore(
            &plan(),
            &[ended],
            true,
            Mono::ZERO,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(seen.containers[0].exit().unwrap().code, 3);
    }

    #[test]
    fn an_exit_that_was_recorded_outlives_its_container() {
        let seen = record(1, "id0", Some(exit("id0", 4))).restore(
            &plan(),
            &[],
            false,
            Mono::ZERO,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(seen.containers[0].exit().unwrap().code, 4);
        assert!(!seen.initialized, "the sandbox is gone");
    }

    #[test]
    fn a_container_without_trace_is_told_as_unknown() {
        let seen =
            record(1, "id0", None).restore(&plan(), &[], false, Mono::ZERO, Timestamp::UNIX_EPOCH);
        assert_eq!(
            seen.containers[0].exit().unwrap().reason,
            "ContainerStatusUnknown"
        );
    }

    #[test]
    fn a_container_that_was_made_but_never_started_does_not_count() {
        let seen = Record::default().restore(
            &plan(),
            &[found(0, FoundState::Created)],
            true,
            Mono::ZERO,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(seen.containers[0].run, Run::None);
        assert_eq!(seen.containers[0].attempts, 0);
    }
}
