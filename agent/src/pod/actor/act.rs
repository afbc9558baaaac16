//! Turns what `decide` says into operations. Each marks the part of the state that it concerns before it starts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Actor, Msg};
use crate::events::Severity;
use crate::pod::backoff::Mono;
use crate::pod::decide::Action;
use crate::pod::observed::{Busy, Run, Sandbox, Stop, Volumes};
use crate::pod::ops::{self, StartRequest, StopRequest};
use crate::pod::status::pod_of;
use crate::probe::ProbeKind;

impl Actor {
    pub(super) fn act(&mut self, action: Action, now: Mono) {
        let (deps, pod) = (self.deps.clone(), self.pod.clone());
        match action {
            Action::PrepareVolumes => {
                self.seen.volumes = Volumes::Preparing;
                self.spawn(ops::prepare_volumes(deps, pod, true), Msg::Volumes);
            }
            Action::CreateSandbox => {
                self.seen.sandbox = Sandbox::Creating;
                let ran = self.seen.containers.iter().any(|s| s.attempts > 0);
                if ran && !self.seen.containers.iter().any(|s| s.running()) {
                    let text = "Pod sandbox changed, it will be killed and re-created.".to_string();
                    self.events
                        .tell(Severity::Normal, "SandboxChanged", None, text);
                }
                self.spawn(ops::create_sandbox(deps, pod), Msg::Sandbox);
            }
            Action::Start { index } => self.start(index, now),
            Action::Stop {
                index,
                grace,
                message,
            } => self.stop_container(index, grace, message, now),
            Action::ShowWaiting { index, waiting } => {
                let s = &mut self.seen.containers[index];
                s.waiting_then = None;
                let name = self.plan.containers[index].name.clone();
                if waiting.reason == "ImagePullBackOff" {
                    let text = format!(
                        "Back-off pulling image \"{}\"",
                        self.plan.containers[index].image
                    );
                    self.events
                        .tell(Severity::Normal, "BackOff", Some(&name), text);
                    self.events.tell(
                        Severity::Warning,
                        "Failed",
                        Some(&name),
                        format!("Error: {}", waiting.reason),
                    );
                }
                s.waiting = Some(waiting);
            }
            Action::TellBackoff { index } => {
                self.seen.containers[index].backoff_told = true;
                let name = &self.plan.containers[index].name;
                let text = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    pod_of(&self.pod)
                );
                self.events
                    .tell(Severity::Warning, "BackOff", Some(name), text);
            }
            Action::TearDown => {
                self.seen.sandbox = Sandbox::Removing;
                self.spawn(ops::tear_down(deps, pod), Msg::TornDown);
            }
            Action::Finish => self.finish(),
        }
    }

    /// The pod is over. A deleted one is then removed from the API, and from here; any other stays until it is deleted.
    pub(super) fn finish(&mut self) {
        if self.gone {
            self.finished = true;
        } else if self.seen.stop == Some(Stop::Deleted) && !self.finishing {
            self.finishing = true;
            self.publish();
            self.writer.delete();
            let deleted = self.writer.deleted();
            self.spawn(async move { deleted.notified().await }, |()| Msg::Deleted);
        }
    }

    pub(super) fn start(&mut self, index: usize, now: Mono) {
        let Some(container) = self.container(index) else {
            // Never so: the plan is made from the same spec. Without a time to look again, this would be asked for ever.
            self.seen.containers[index].retry_at = Some(now + Duration::from_secs(60));
            return;
        };
        let s = &mut self.seen.containers[index];
        if s.exit().is_some() {
            s.crash_backoff.bump(now);
        }
        s.busy = Some(Busy::Starting);
        s.retry_at = None;
        let request = StartRequest {
            attempt: s.attempts,
            pod: self.pod.clone(),
            container,
            ips: self.ips(),
            paths: self.paths.clone(),
            events: self.events.clone(),
        };
        let work = ops::start(self.deps.clone(), request, self.stopping.subscribe());
        self.spawn(work, move |result| Msg::Started { index, result });
    }

    pub(super) fn stop_container(
        &mut self,
        index: usize,
        grace: Option<Duration>,
        message: String,
        now: Mono,
    ) {
        let container = self.container(index);
        let ip = self.ips().first().copied();
        let Run::Running { id, .. } = &self.seen.containers[index].run else {
            return;
        };
        let id = id.clone();
        let deadline = match (grace, self.seen.stop_by) {
            (Some(g), _) => now + g,
            (None, Some(by)) => by,
            (None, None) => now + self.plan.grace,
        };
        let request = StopRequest {
            name: self.plan.containers[index].name.clone(),
            container,
            id: id.clone(),
            ip,
            message,
            deadline,
            pod_deadline: self.stop_by.subscribe(),
            ended: self.ended(index),
            events: self.events.clone(),
        };
        self.seen.containers[index].busy = Some(Busy::Stopping);
        self.probes
            .retain(|(i, w)| *i != index || w.kind == ProbeKind::Readiness);
        self.spawn(ops::stop(self.deps.clone(), request), move |()| {
            Msg::Stopped { index, id }
        });
    }

    pub(super) fn ended(&mut self, index: usize) -> Arc<Notify> {
        while self.ended.len() <= index {
            self.ended.push(Arc::default());
        }
        self.ended[index].clone()
    }

    pub(super) fn refresh_volumes(&mut self) {
        if self.seen.volumes != Volumes::Ready || self.seen.stop.is_some() {
            return;
        }
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        self.spawn(
            ops::prepare_volumes(self.deps.clone(), self.pod.clone(), false),
            Msg::Refreshed,
        );
    }
}
