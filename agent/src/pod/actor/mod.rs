//! The one task that owns a pod: takes in what happens, asks `decide` what to do, starts it, and tells the status.
//!
//! Only this task writes the pod's [`Observed`]. Operations run beside it and report by message, so a slow pull or a hanging
//! hook never keeps it from hearing that the pod was deleted.

mod act;
mod hear;
mod probes;
mod resize;
mod tell;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_runtime::Exit as RuntimeExit;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};

use super::backoff::Mono;
use super::decide::{Action, decide};
use super::observed::{Observed, Sandbox, Stop, Volumes};
use super::ops::{self, SandboxInfo, StartFailure, Started, VolumePaths, VolumesInfo};
use super::plan::PodPlan;
use super::status::pod_of;
use crate::deps::Deps;
use crate::events::{PodEvents, Severity};
use crate::handle::PodView;
use crate::probe::{self, Verdict};
use crate::server::status::StatusWriter;

/// What a pod's actor hears.
pub enum Msg {
    /// The pod in the API is new or changed.
    Desired(Arc<Pod>),
    /// The pod as the API has it, also when only its status changed.
    ServerHas(Arc<Pod>),
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
    Recorded(Result<(), String>),
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
    tear_down_failures: u32,
    gone: bool,
    finishing: bool,
    finished: bool,
    /// The pod's object is newer than what `view` shows.
    renewed: bool,
    deadline: Option<Mono>,
    /// The last record could not be stored, and when that is tried again.
    unrecorded: bool,
    record_at: Option<Mono>,
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
        tear_down_failures: 0,
        gone: false,
        finishing: false,
        finished: false,
        renewed: false,
        deadline: None,
        unrecorded: false,
        record_at: None,
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
        let mut clock = self.deps.clock.subscribe();
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
                // What waits for a moment of the wall clock is decided again.
                Ok(()) = clock.changed() => {}
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
                if self.record_at.is_some_and(|at| now >= at) {
                    self.record();
                }
                let deadline = self.deadline.filter(|_| self.seen.stop.is_none());
                let times = [d.wake_at, deadline, self.renewal(now), self.record_at];
                return times.into_iter().flatten().min();
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
}
