//! The pod's status, told to the database, the server and the node API when it says anything new.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{Actor, Msg};
use crate::handle::{ContainerView, PodView};
use crate::pod::backoff::Mono;
use crate::pod::observed::Run;
use crate::pod::record::Record;
use crate::pod::status::{Context, pod_of, pod_status};

/// How long after a failed attempt what is known of a pod is stored again.
const RECORD_AGAIN: Duration = Duration::from_secs(10);

impl Actor {
    pub(super) fn compute(&self) -> PodStatus {
        let node = self.deps.node();
        let cx = Context {
            host_ips: &node.host_ips,
            now: self.deps.now(),
            time: Timestamp::now(),
        };
        pod_status(&self.pod, &self.plan, &self.seen, &self.status, &cx)
    }

    /// Tells the status if it says anything new: to the database, the server and the node API.
    pub(super) fn publish(&mut self) {
        let status = self.compute();
        if self.told.as_ref() == Some(&status) {
            if std::mem::take(&mut self.renewed) {
                self.show(status);
            }
            return;
        }
        self.renewed = false;
        self.status = status.clone();
        self.told = Some(status.clone());
        self.record();
        if !self.gone {
            self.writer.tell(Arc::new(status.clone()));
        }
        self.show(status);
    }

    /// Stores what a restart of the agent must know. What could not be stored is tried again: on a disk that takes writes again, nothing
    /// else may happen to this pod for days.
    pub(super) fn record(&mut self) {
        self.record_at = None;
        let record = Record::of(&self.plan, &self.seen, &self.status);
        let Ok(body) = serde_json::to_string(&record) else {
            return;
        };
        let stored = self.deps.store.put_record(self.uid.clone(), body);
        let (sender, failed_before) = (self.sender.clone(), self.unrecorded);
        tokio::spawn(async move {
            let result = stored.await.map_err(|error| format!("{error:#}"));
            if failed_before || result.is_err() {
                let _ = sender.send(Msg::Recorded(result));
            }
        });
    }

    pub(super) fn recorded(&mut self, result: Result<(), String>, now: Mono) {
        let failed_before = std::mem::replace(&mut self.unrecorded, result.is_err());
        if let Err(error) = result {
            self.record_at = Some(now + RECORD_AGAIN);
            if !failed_before {
                tracing::warn!(
                    pod = pod_of(&self.pod),
                    error,
                    "a pod's state is kept in memory only; free or repair the disk"
                );
            }
        }
    }

    pub(super) fn show(&self, status: PodStatus) {
        let mut pod = (*self.pod).clone();
        let m = &pod.metadata;
        let logs = self.deps.log_dir(
            m.namespace.as_deref().unwrap_or_default(),
            m.name.as_deref().unwrap_or_default(),
            &self.uid,
        );
        // What others say of the pod (readiness gates) stands beside what we say.
        let mut status = status;
        let others = pod
            .status
            .take()
            .and_then(|s| s.conditions)
            .unwrap_or_default();
        let mine = status.conditions.get_or_insert_default();
        for other in others {
            if !mine.iter().any(|c| c.type_ == other.type_) {
                mine.push(other);
            }
        }
        pod.status = Some(status);
        let containers = self
            .plan
            .containers
            .iter()
            .zip(&self.seen.containers)
            .enumerate()
            .map(|(index, (c, s))| {
                let spec = self.container(index);
                let log = |attempt: Option<u32>| {
                    attempt.map(|n| logs.join(&c.name).join(format!("{n}.log")))
                };
                ContainerView {
                    name: c.name.clone(),
                    kind: c.kind,
                    id: s.id().map(str::to_string),
                    previous_id: s.last.as_ref().map(|e| e.id.clone()),
                    running: s.running(),
                    log_path: log(s.attempts.checked_sub(1)),
                    previous_log_path: log(s.attempts.checked_sub(2)),
                    tty: spec.as_ref().and_then(|c| c.tty) == Some(true),
                    stdin: spec.as_ref().and_then(|c| c.stdin) == Some(true),
                    restart_count: s.restarts,
                    waiting_reason: match (&s.run, &s.waiting) {
                        (Run::None, None) => Some("ContainerCreating".into()),
                        (_, w) => w.as_ref().map(|w| w.reason.clone()),
                    },
                }
            });
        let view = PodView {
            uid: self.uid.clone(),
            netns: self.netns.clone(),
            ip: self.ips().first().copied(),
            containers: containers.collect(),
            pod: Arc::new(pod),
        };
        *self.view.lock().unwrap_or_else(|e| e.into_inner()) = Arc::new(view);
    }
}
