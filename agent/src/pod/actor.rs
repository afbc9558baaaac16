//! The one task that owns a pod: takes in what happens, asks `decide` what to do, starts it, and tells the status.
//!
//! Only this task writes the pod's [`Observed`]. Operations run beside it and report by message, so a slow pull or a hanging
//! hook never keeps it from hearing that the pod was deleted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_runtime::Exit as RuntimeExit;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};

use super::backoff::Mono;
use super::decide::{Action, decide, phase};
use super::observed::{Busy, Exit, Kill, Observed, Run, Sandbox, Stop, Volumes, Waiting};
use super::ops::{
    self, SandboxInfo, StartFailure, StartRequest, Started, StopRequest, VolumePaths, VolumesInfo,
};
use super::plan::{PodPlan, RestartPolicy};
use super::record::Record;
use super::status::{Context, pod_of, pod_status};
use crate::container::termination;
use crate::deps::Deps;
use crate::events::{PodEvents, Severity};
use crate::handle::{ContainerKind, ContainerView, PodView};
use crate::probe::{self, ProbeKind, ProbeSpec, Verdict};
use crate::server::status::StatusWriter;

/// What a pod's actor hears.
pub enum Msg {
    /// The pod in the API is new or changed.
    Desired(Arc<Pod>),
    /// The pod is no longer in the API; its last state said how long it may take to end.
    Gone {
        grace: Option<Duration>,
    },
    /// A container of this pod has ended.
    Exited {
        id: String,
        exit: RuntimeExit,
        started_at: Option<Timestamp>,
    },
    /// A ConfigMap or Secret that the pod uses changed.
    ObjectsChanged,
    /// The pod must end as Failed.
    Fail {
        reason: String,
        message: String,
        grace: Option<Duration>,
    },
    Volumes(Result<VolumesInfo, (String, String)>),
    Refreshed(Result<VolumesInfo, (String, String)>),
    Sandbox(Result<SandboxInfo, String>),
    Started {
        index: usize,
        result: Result<Started, StartFailure>,
    },
    PostStart {
        index: usize,
        id: String,
        result: Result<(), String>,
    },
    Stopped {
        index: usize,
        id: String,
    },
    Probe(Verdict),
    TornDown(Result<(), String>),
    Deleted,
}

/// What the rest of the agent holds of a pod.
#[derive(Clone)]
pub struct ActorHandle {
    pub messages: mpsc::UnboundedSender<Msg>,
    pub view: Arc<Mutex<Arc<PodView>>>,
}

impl ActorHandle {
    pub fn tell(&self, msg: Msg) {
        // An actor that has ended has nothing left to hear.
        let _ = self.messages.send(msg);
    }

    pub fn view(&self) -> Arc<PodView> {
        self.view.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// How a pod comes to an actor.
pub struct Begin {
    pub pod: Arc<Pod>,
    pub seen: Observed,
    /// The status told last, by us or in the API.
    pub status: PodStatus,
    /// The pod has not been in the API when we last heard: end it, tell nobody.
    pub gone: bool,
}

pub struct Actor {
    deps: Arc<Deps>,
    pod: Arc<Pod>,
    plan: PodPlan,
    seen: Observed,
    uid: String,
    status: PodStatus,
    told: Option<PodStatus>,
    writer: StatusWriter,
    events: PodEvents,
    messages: mpsc::UnboundedReceiver<Msg>,
    sender: mpsc::UnboundedSender<Msg>,
    view: Arc<Mutex<Arc<PodView>>>,
    paths: Arc<VolumePaths>,
    netns: Option<std::path::PathBuf>,
    renew_at: Option<i64>,
    refreshing: bool,
    refresh_again: bool,
    probes: Vec<(usize, probe::Worker)>,
    /// Exits heard before the start that they belong to had reported.
    early: Vec<(String, RuntimeExit)>,
    ended: Vec<Arc<Notify>>,
    stopping: watch::Sender<bool>,
    stop_by: watch::Sender<Option<Mono>>,
    sandbox_failures: u32,
    volume_failures: u32,
    gone: bool,
    finishing: bool,
    finished: bool,
    deadline: Option<Mono>,
}

/// Starts the actor of a pod. `on_end` is called when nothing is left of the pod.
pub fn spawn(deps: Arc<Deps>, begin: Begin, on_end: impl FnOnce() + Send + 'static) -> ActorHandle {
    let (sender, messages) = mpsc::unbounded_channel();
    let pod = begin.pod;
    let plan = PodPlan::of(&pod);
    let m = &pod.metadata;
    let uid = m.uid.clone().unwrap_or_default();
    let (namespace, name) = (
        m.namespace.clone().unwrap_or_default(),
        m.name.clone().unwrap_or_default(),
    );
    let in_api = pod.status.clone().unwrap_or_default();
    let writer = deps.status.writer(&namespace, &name, &uid, &in_api);
    let empty = PodView {
        pod: pod.clone(),
        uid: uid.clone(),
        netns: None,
        ip: None,
        containers: vec![],
    };
    let view = Arc::new(Mutex::new(Arc::new(empty)));
    let handle = ActorHandle {
        messages: sender.clone(),
        view: view.clone(),
    };
    let events = deps.events.pod(&pod);
    let actor = Actor {
        pod,
        plan,
        seen: begin.seen,
        uid,
        status: begin.status,
        told: None,
        writer,
        events,
        messages,
        sender,
        view,
        paths: Arc::default(),
        netns: None,
        renew_at: None,
        refreshing: false,
        refresh_again: false,
        probes: vec![],
        early: vec![],
        ended: vec![],
        stopping: watch::channel(false).0,
        stop_by: watch::channel(None).0,
        sandbox_failures: 0,
        volume_failures: 0,
        gone: false,
        finishing: false,
        finished: false,
        deadline: None,
        deps,
    };
    let gone = begin.gone;
    tokio::spawn(async move {
        actor.run(gone).await;
        on_end();
    });
    handle
}

impl Actor {
    async fn run(mut self, gone: bool) {
        self.deps
            .objects
            .uses(&self.uid, &crate::server::objects::references(&self.pod));
        self.desired(self.pod.clone());
        if let Some(stop) = self.seen.stop.take() {
            self.stop(stop, None);
        }
        if gone {
            self.handle(Msg::Gone { grace: None });
        }
        loop {
            let wake = self.step();
            if self.finished {
                break;
            }
            let now = self.deps.now();
            let sleep = tokio::time::sleep(wake.unwrap_or(now).saturating_sub(now));
            tokio::select! {
                Some(msg) = self.messages.recv() => self.handle(msg),
                () = sleep, if wake.is_some() => {}
            }
            while let Ok(msg) = self.messages.try_recv() {
                self.handle(msg);
            }
        }
        self.deps.objects.uses(&self.uid, &Default::default());
        // The database forgets last: whatever is cut short here is done again at the next start.
        ops::forget(self.deps.clone(), self.pod.clone()).await;
        if let Err(error) = self.deps.store.remove_pod(self.uid.clone()).await {
            tracing::warn!(
                pod = pod_of(&self.pod),
                error = format!("{error:#}"),
                "a deleted pod could not be removed from the database"
            );
        }
    }

    /// Decides and acts until there is nothing more to do now; when to look again.
    fn step(&mut self) -> Option<Mono> {
        loop {
            self.seen.advance(&self.plan);
            let now = self.deps.now();
            if let Some(at) = self.deadline
                && now >= at
                && self.seen.stop.is_none()
            {
                self.deadline = None;
                let message =
                    "Pod was active on the node longer than the specified deadline".to_string();
                self.events
                    .tell(Severity::Normal, "DeadlineExceeded", None, message.clone());
                self.stop(
                    Stop::Failed {
                        reason: "DeadlineExceeded".into(),
                        message,
                    },
                    None,
                );
            }
            let d = decide(&self.plan, &self.seen, now);
            let acted = !d.actions.is_empty() && d.actions != [Action::Finish];
            for action in d.actions {
                self.act(action, now);
            }
            if !acted {
                self.watch_probes();
                self.publish();
                let deadline = self.deadline.filter(|_| self.seen.stop.is_none());
                let renewal = self.renewal(now);
                return [d.wake_at, deadline, renewal].into_iter().flatten().min();
            }
        }
    }

    /// When tokens must be renewed, on the monotonic clock; starts the renewal if that is now.
    fn renewal(&mut self, now: Mono) -> Option<Mono> {
        let at = self.renew_at?;
        if self.seen.stop.is_some() || self.seen.volumes != Volumes::Ready {
            return None;
        }
        let left = at - Timestamp::now().as_second();
        if left <= 0 {
            self.renew_at = None;
            self.refresh_volumes();
            return None;
        }
        // At most an hour: the wall clock may jump meanwhile.
        Some(now + Duration::from_secs((left as u64).min(3600)))
    }

    fn spawn<F>(&self, work: F, report: impl FnOnce(F::Output) -> Msg + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let _ = sender.send(report(work.await));
        });
    }

    fn container(&self, index: usize) -> Option<Container> {
        let spec = self.pod.spec.as_ref()?;
        let name = &self.plan.containers.get(index)?.name;
        let plain = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .find(|c| &c.name == name)
            .cloned();
        plain.or_else(|| {
            let e = spec
                .ephemeral_containers
                .iter()
                .flatten()
                .find(|c| &c.name == name)?;
            let mut v = serde_json::to_value(e).ok()?;
            v.as_object_mut()?.remove("targetContainerName");
            serde_json::from_value(v).ok()
        })
    }

    fn ips(&self) -> Vec<IpAddr> {
        match &self.seen.sandbox {
            _ if self.plan.host_network => self.deps.node().host_ips,
            Sandbox::Ready { ips } => ips.clone(),
            _ => vec![],
        }
    }

    fn act(&mut self, action: Action, now: Mono) {
        let (deps, pod) = (self.deps.clone(), self.pod.clone());
        match action {
            Action::PrepareVolumes => {
                self.seen.volumes = Volumes::Preparing;
                self.spawn(ops::prepare_volumes(deps, pod, true), Msg::Volumes);
            }
            Action::CreateSandbox => {
                self.seen.sandbox = Sandbox::Creating;
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
    fn finish(&mut self) {
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

    fn start(&mut self, index: usize, now: Mono) {
        let Some(container) = self.container(index) else {
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

    fn stop_container(
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

    fn ended(&mut self, index: usize) -> Arc<Notify> {
        while self.ended.len() <= index {
            self.ended.push(Arc::default());
        }
        self.ended[index].clone()
    }

    /// Ends the pod as a whole. A deletion wins over a failure; a shorter grace wins over a longer one.
    fn stop(&mut self, stop: Stop, grace: Option<Duration>) {
        let by = self.deps.now() + grace.unwrap_or(self.plan.grace);
        if self.seen.stop.is_none() || stop == Stop::Deleted {
            self.seen.stop = Some(stop);
        }
        self.seen.stop_by = Some(self.seen.stop_by.map_or(by, |old| old.min(by)));
        self.stopping.send_replace(true);
        self.stop_by.send_replace(self.seen.stop_by);
        self.probes.retain(|(_, w)| w.kind == ProbeKind::Readiness);
    }

    fn desired(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.pod, pod);
        self.plan = PodPlan::of(&self.pod);
        self.seen.fit(&self.plan);
        self.events = self.deps.events.pod(&self.pod);
        if old.spec != self.pod.spec {
            self.deps
                .objects
                .uses(&self.uid, &crate::server::objects::references(&self.pod));
        }
        let labels = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
        if labels(&old) != labels(&self.pod) {
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

    fn refresh_volumes(&mut self) {
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

    fn handle(&mut self, msg: Msg) {
        let now = self.deps.now();
        match msg {
            Msg::Desired(pod) => self.desired(pod),
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
                for s in &mut self.seen.containers {
                    if s.waiting
                        .as_ref()
                        .is_some_and(|w| w.reason == "CreateContainerConfigError")
                    {
                        s.retry_at = None;
                    }
                }
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
                    tracing::warn!(
                        pod = pod_of(&self.pod),
                        why,
                        "could not tear a pod down; trying again"
                    );
                    self.events.tell(
                        Severity::Warning,
                        "FailedKillPod",
                        None,
                        format!("error killing pod: {why}"),
                    );
                    let sender = self.sender.clone();
                    let work = ops::tear_down(self.deps.clone(), self.pod.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(2)).await;
                        let _ = sender.send(Msg::TornDown(work.await));
                    });
                }
            },
            Msg::Deleted => self.finished = true,
        }
    }

    fn failed_mount(&self, volume: &str, why: &str) {
        let text = if volume.is_empty() {
            why.to_string()
        } else {
            format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}")
        };
        self.events
            .tell(Severity::Warning, "FailedMount", None, text);
    }

    fn started(&mut self, index: usize, result: Result<Started, StartFailure>, now: Mono) {
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
    fn post_started(&mut self, index: usize, id: &str, result: Result<(), String>) {
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

    fn exited(&mut self, id: &str, exit: &RuntimeExit, started_at: Option<Timestamp>, now: Mono) {
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
        let dirs = self.deps.pod_dirs(&self.uid);
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
        let file = dirs
            .disk
            .join("containers")
            .join(&name)
            .join(&id[..id.len().min(8)]);
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

    fn verdict(&mut self, v: Verdict) {
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
    fn watch_probes(&mut self) {
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

    fn compute(&self) -> PodStatus {
        let node = self.deps.node();
        let cx = Context {
            host_ips: &node.host_ips,
            now: self.deps.now(),
            time: Timestamp::now(),
        };
        pod_status(&self.pod, &self.plan, &self.seen, &self.status, &cx)
    }

    /// Tells the status if it says anything new: to the database, the server and the node API.
    fn publish(&mut self) {
        let status = self.compute();
        if self.told.as_ref() == Some(&status) {
            return;
        }
        self.status = status.clone();
        self.told = Some(status.clone());
        let record = Record::of(&self.plan, &self.seen, &status);
        let (store, uid) = (self.deps.store.clone(), self.uid.clone());
        if let Ok(body) = serde_json::to_string(&record) {
            tokio::spawn(async move {
                if let Err(error) = store.put_record(uid, body).await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "a pod's state is kept in memory only; free or repair the disk"
                    );
                }
            });
        }
        if !self.gone {
            self.writer.tell(Arc::new(status.clone()));
        }
        self.show(status);
    }

    fn show(&self, status: PodStatus) {
        let mut pod = (*self.pod).clone();
        let m = &pod.metadata;
        let logs = self.deps.log_dir(
            m.namespace.as_deref().unwrap_or_default(),
            m.name.as_deref().unwrap_or_default(),
            &self.uid,
        );
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

/// Whether a pod still holds resources of the node.
pub fn is_over(pod: &Pod, seen: &Observed) -> bool {
    let plan = PodPlan::of(pod);
    let over = matches!(phase(&plan, seen), "Succeeded" | "Failed");
    over && plan.policy != RestartPolicy::Always || seen.cleaned
}
