//! Takes in what happens: the pod in the API, reports of operations, exits, deletions.

use std::sync::Arc;
use std::time::Duration;

use amphipod_runtime::Exit as RuntimeExit;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Actor, Msg};
use crate::container::termination;
use crate::events::Severity;
use crate::pod::backoff::Mono;
use crate::pod::observed::{Busy, Exit, Kill, Run, Sandbox, Stop, Volumes, Waiting};
use crate::pod::ops::{self, StartFailure, Started};
use crate::pod::plan::PodPlan;
use crate::pod::record::Record;
use crate::pod::status::pod_of;
use crate::probe::ProbeKind;

impl Actor {
    pub(super) fn desired(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.pod, pod);
        self.renewed = true;
        self.plan = PodPlan::of(&self.pod);
        self.seen.fit(&self.plan);
        self.events = self.deps.events.pod(&self.pod);
        if old.spec != self.pod.spec {
            self.deps
                .objects
                .uses(&self.uid, &crate::server::objects::references(&self.pod));
        }
        self.resize(&old);
        let labels = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
        if labels(&old) != labels(&self.pod) {
            self.retry_configuration();
            self.refresh_volumes();
        }
        let spec = self.pod.spec.as_ref();
        self.deadline = spec.and_then(|s| s.active_deadline_seconds).map(|limit| {
            let started = self
                .status
                .start_time
                .as_ref()
                .map_or_else(Timestamp::now, |t| t.0);
            let active = Timestamp::now().duration_since(started).as_secs().max(0);
            self.deps.now() + Duration::from_secs((limit - active).max(0) as u64)
        });
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self
                .pod
                .metadata
                .deletion_grace_period_seconds
                .map(|s| Duration::from_secs(s.max(1) as u64));
            self.stop(Stop::Deleted, grace);
        }
    }

    /// Ends the pod as a whole. A deletion wins over a failure; a shorter grace wins over a longer one.
    pub(super) fn stop(&mut self, stop: Stop, grace: Option<Duration>) {
        let by = self.deps.now() + grace.unwrap_or(self.plan.grace);
        if self.seen.stop.is_none() || stop == Stop::Deleted {
            self.seen.stop = Some(stop);
        }
        self.seen.stop_by = Some(self.seen.stop_by.map_or(by, |old| old.min(by)));
        self.stopping.send_replace(true);
        self.stop_by.send_replace(self.seen.stop_by);
        self.probes.retain(|(_, w)| w.kind == ProbeKind::Readiness);
    }

    pub(super) fn handle(&mut self, msg: Msg) {
        let now = self.deps.now();
        match msg {
            Msg::Desired(pod) => self.desired(pod),
            Msg::ServerHas(pod) => self.writer.server_has(pod),
            Msg::Gone { grace } => {
                self.gone = true;
                self.stop(Stop::Deleted, grace.map(|g| g.max(Duration::from_secs(1))));
            }
            Msg::Fail {
                reason,
                message,
                grace,
            } => self.stop(Stop::Failed { reason, message }, grace),
            Msg::ObjectsChanged => {
                self.seen.retry_volumes_at = None;
                self.retry_configuration();
                self.refresh_volumes();
            }
            Msg::Volumes(result) => match result {
                Ok(info) => {
                    self.volume_failures = 0;
                    self.paths = Arc::new(info.paths);
                    self.renew_at = info.renew_at;
                    self.seen.volumes = Volumes::Ready;
                }
                Err((volume, why)) => {
                    self.seen.volumes = Volumes::Absent;
                    let delay = Duration::from_millis(500 << self.volume_failures.min(8))
                        .min(Duration::from_secs(122));
                    self.volume_failures += 1;
                    self.seen.retry_volumes_at = Some(now + delay);
                    self.failed_mount(&volume, &why);
                }
            },
            Msg::Refreshed(result) => {
                self.refreshing = false;
                match result {
                    Ok(info) => self.renew_at = info.renew_at,
                    Err((volume, why)) => {
                        self.renew_at = Some(Timestamp::now().as_second() + 60);
                        self.failed_mount(&volume, &why);
                    }
                }
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh_volumes();
                }
            }
            Msg::Sandbox(result) => match result {
                Ok(info) => {
                    self.sandbox_failures = 0;
                    self.netns = info.netns;
                    self.seen.sandbox = Sandbox::Ready { ips: info.ips };
                }
                Err(why) => {
                    self.seen.sandbox = Sandbox::Absent;
                    let delay = Duration::from_secs(1 << self.sandbox_failures.min(6));
                    self.sandbox_failures += 1;
                    self.seen.retry_sandbox_at = Some(now + delay);
                    self.events.tell(
                        Severity::Warning,
                        "FailedCreatePodSandBox",
                        None,
                        format!("Failed to create pod sandbox: {why}"),
                    );
                }
            },
            Msg::Started { index, result } => self.started(index, result, now),
            Msg::PostStart { index, id, result } => self.post_started(index, &id, result),
            Msg::Exited {
                id,
                exit,
                started_at,
            } => self.exited(&id, &exit, started_at, now),
            Msg::Stopped { index, id } => {
                let s = &mut self.seen.containers[index];
                if s.id() == Some(&id) && s.running() {
                    // The end of the stop operation without an exit: the container is gone altogether.
                    let exit = Exit {
                        id,
                        code: 137,
                        signal: None,
                        reason: "ContainerStatusUnknown".into(),
                        message: "The container could not be located when the pod was terminated"
                            .into(),
                        started_at: None,
                        finished_at: Some(Timestamp::now()),
                    };
                    s.exited(exit, now);
                } else if s.busy == Some(Busy::Stopping) {
                    s.busy = None;
                }
            }
            Msg::Probe(verdict) => self.verdict(verdict),
            Msg::TornDown(result) => match result {
                Ok(()) => {
                    self.seen.sandbox = Sandbox::Removed;
                    self.seen.volumes = Volumes::Absent;
                    self.seen.cleaned = true;
                    self.netns = None;
                }
                Err(why) => {
                    // Told when it begins: what keeps it is most likely a disk, and a matter of hours.
                    if self.tear_down_failures == 0 {
                        tracing::warn!(
                            pod = pod_of(&self.pod),
                            why,
                            "could not tear a pod down; it is tried again and again"
                        );
                    }
                    self.events.tell(
                        Severity::Warning,
                        "FailedKillPod",
                        None,
                        format!("error killing pod: {why}"),
                    );
                    let delay = Duration::from_secs(2 << self.tear_down_failures.min(5));
                    self.tear_down_failures += 1;
                    let sender = self.sender.clone();
                    let work = ops::tear_down(self.deps.clone(), self.pod.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = sender.send(Msg::TornDown(work.await));
                    });
                }
            },
            Msg::Recorded(result) => self.recorded(result, now),
            Msg::Deleted => self.finished = true,
        }
    }

    /// What could not be configured may be now: what it refers to has changed.
    fn retry_configuration(&mut self) {
        for s in &mut self.seen.containers {
            let waits = s.waiting.as_ref();
            if waits.is_some_and(|w| w.reason == "CreateContainerConfigError") {
                s.retry_at = None;
            }
        }
    }

    pub(super) fn failed_mount(&self, volume: &str, why: &str) {
        let text = if volume.is_empty() {
            why.to_string()
        } else {
            format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}")
        };
        self.events
            .tell(Severity::Warning, "FailedMount", None, text);
    }

    pub(super) fn started(
        &mut self,
        index: usize,
        result: Result<Started, StartFailure>,
        now: Mono,
    ) {
        let container = self.container(index);
        let image = self.plan.containers[index].image.clone();
        let s = &mut self.seen.containers[index];
        s.busy = None;
        match result {
            Ok(started) => {
                if let Run::Exited(e) = std::mem::take(&mut s.run) {
                    s.last = Some(e);
                }
                s.run = Run::Running {
                    id: started.id.clone(),
                    started_at: started.started_at,
                };
                s.restarts = s.attempts;
                s.attempts += 1;
                s.waiting = None;
                s.waiting_then = None;
                s.pull_backoff.reset();
                s.image = image;
                s.image_id = started.image_id;
                s.started = false;
                s.ready = false;
                let hook = container
                    .as_ref()
                    .and_then(|c| c.lifecycle.as_ref())
                    .and_then(|l| l.post_start.clone());
                match (hook, container) {
                    (Some(hook), Some(container)) => {
                        // Not busy: a deletion must be able to stop the container while its hook hangs.
                        let (deps, id, ip) = (
                            self.deps.clone(),
                            started.id.clone(),
                            self.ips().first().copied(),
                        );
                        let work = async move {
                            crate::container::hooks::run(&hook, &container, &deps.runtime, &id, ip)
                                .await
                        };
                        let id = started.id;
                        self.spawn(work, move |result| Msg::PostStart { index, id, result });
                    }
                    _ => self.post_started(index, &started.id, Ok(())),
                }
                if let Some(at) = self
                    .early
                    .iter()
                    .position(|(id, _)| self.seen.containers[index].id() == Some(id))
                {
                    let (id, exit) = self.early.swap_remove(at);
                    self.exited(&id, &exit, None, now);
                }
            }
            Err(StartFailure::Cancelled) => {}
            Err(StartFailure::Image(failure)) => {
                let delay = s.pull_backoff.bump(now);
                s.retry_at = Some(now + delay);
                if failure.waiting.reason == "ErrImagePull" {
                    let message = format!(
                        "Back-off pulling image \"{image}\": ErrImagePull: {}",
                        failure.waiting.message
                    );
                    s.waiting_then = Some((
                        now + (delay / 2).min(Duration::from_secs(5)),
                        Waiting {
                            reason: "ImagePullBackOff".into(),
                            message,
                        },
                    ));
                }
                s.waiting = Some(failure.waiting);
            }
            Err(StartFailure::Config(why)) => {
                s.retry_at = Some(now + s.pull_backoff.bump(now));
                s.waiting = Some(Waiting {
                    reason: "CreateContainerConfigError".into(),
                    message: why,
                });
            }
            Err(StartFailure::Create(why)) => {
                s.retry_at = Some(now + s.pull_backoff.bump(now));
                s.waiting = Some(Waiting {
                    reason: "CreateContainerError".into(),
                    message: why,
                });
            }
            Err(StartFailure::Start { id, message }) => {
                if let Run::Exited(e) = std::mem::take(&mut s.run) {
                    s.last = Some(e);
                }
                s.restarts = s.attempts;
                s.attempts += 1;
                s.image = image;
                let at = Some(Timestamp::now());
                let exit = Exit {
                    id,
                    code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message,
                    started_at: Some(Timestamp::UNIX_EPOCH),
                    finished_at: at,
                };
                s.exited(exit, now);
            }
        }
    }

    /// postStart is done (or there was none).
    pub(super) fn post_started(&mut self, index: usize, id: &str, result: Result<(), String>) {
        let startup = self.plan.containers[index].startup_probe;
        let readiness = self.plan.containers[index].readiness_probe;
        let name = self.plan.containers[index].name.clone();
        let s = &mut self.seen.containers[index];
        if s.id() != Some(id) || !s.running() {
            return;
        }
        match result {
            Ok(()) => {
                s.hooked = true;
                s.started = !startup;
                s.ready = s.started && !readiness;
            }
            Err(why) => {
                tracing::debug!(container = name, why, "postStart hook failed");
                self.events.tell(
                    Severity::Warning,
                    "FailedPostStartHook",
                    Some(&name),
                    "PostStartHook failed".into(),
                );
                s.kill = Some(Kill {
                    message: "FailedPostStartHook".into(),
                    grace: None,
                });
            }
        }
    }

    pub(super) fn exited(
        &mut self,
        id: &str,
        exit: &RuntimeExit,
        started_at: Option<Timestamp>,
        now: Mono,
    ) {
        let Some(index) = self
            .seen
            .containers
            .iter()
            .position(|s| s.running() && s.id() == Some(id))
        else {
            if self
                .seen
                .containers
                .iter()
                .any(|s| s.busy == Some(Busy::Starting))
            {
                self.early.push((id.to_string(), exit.clone()));
            }
            return;
        };
        self.deps
            .owners
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .remove(id);
        let spec = self.container(index);
        let name = self.plan.containers[index].name.clone();
        let m = &self.pod.metadata;
        let (namespace, pod) = (
            m.namespace.as_deref().unwrap_or_default(),
            m.name.as_deref().unwrap_or_default(),
        );
        let s = &mut self.seen.containers[index];
        let log = self
            .deps
            .log_dir(namespace, pod, &self.uid)
            .join(&name)
            .join(format!("{}.log", s.attempts.saturating_sub(1)));
        let file = ops::termination_log(&self.deps, &self.uid, &name, id);
        let fallback = spec
            .as_ref()
            .and_then(|c| c.termination_message_policy.as_deref())
            == Some("FallbackToLogsOnError");
        let message = termination::message(&file, &log, fallback, exit.code != 0);
        let _ = std::fs::remove_file(&file);
        let began = match &s.run {
            Run::Running { started_at, .. } => Some(*started_at),
            _ => started_at,
        };
        s.exited(termination::describe(id, exit, began, message), now);
        s.hooked = false;
        self.probes.retain(|(i, _)| *i != index);
        self.ended(index).notify_waiters();
        // The record keeps how it ended; the runtime need not keep the rest. In this order: no exit code is ever lost.
        let status = self.compute();
        let record = Record::of(&self.plan, &self.seen, &status);
        let (deps, uid, id) = (self.deps.clone(), self.uid.clone(), id.to_string());
        tokio::spawn(async move {
            let Ok(body) = serde_json::to_string(&record) else {
                return;
            };
            if deps.store.put_record(uid, body).await.is_ok()
                && let Err(error) = deps.runtime.remove_container(&id).await
            {
                tracing::debug!(id, %error, "a dead container stays until its pod goes");
            }
        });
    }
}
