//! What is known about one pod right now. Written only by the pod's actor; read by `decide` and `status`.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backoff::{Backoff, Mono};
use super::plan::PodPlan;
use crate::handle::ContainerKind;

/// How an instance of a container ended. Kept durably: it becomes `state.terminated` and `lastState.terminated`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Runtime id; empty when the instance never came to be.
    pub id: String,
    pub code: i32,
    pub signal: Option<i32>,
    /// Completed, Error, OOMKilled, StartError, ContainerCannotRun, ContainerStatusUnknown.
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// Why a container waits, as `state.waiting` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub enum Run {
    /// Never started in this sandbox.
    #[default]
    None,
    Running {
        id: String,
        started_at: Timestamp,
    },
    Exited(Exit),
}

/// The operation under way on a container; at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    Starting,
    Stopping,
}

/// Why a running container must stop although the pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Text of the `Killing` event.
    pub message: String,
    /// The probe's own grace period; `None`: the pod's.
    pub grace: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
pub struct ContainerState {
    pub run: Run,
    pub busy: Option<Busy>,
    /// Instances started after the first.
    pub restarts: u32,
    /// Instances ever created: numbers the log files and runtime ids.
    pub attempts: u32,
    /// How the instance before the current one ended.
    pub last: Option<Exit>,
    /// Set when the last attempt to start failed.
    pub waiting: Option<Waiting>,
    /// What `waiting` becomes later (ErrImagePull turns into ImagePullBackOff).
    pub waiting_then: Option<(Mono, Waiting)>,
    /// No further attempt to start before this time.
    pub retry_at: Option<Mono>,
    pub pull_backoff: Backoff,
    pub crash_backoff: Backoff,
    /// When the current exit happened, on the monotonic clock.
    pub exited_at: Option<Mono>,
    /// The BackOff event for the current exit was told.
    pub backoff_told: bool,
    /// postStart is done.
    pub hooked: bool,
    /// postStart is done and the startup probe (if any) has succeeded.
    pub started: bool,
    /// The readiness probe's verdict; true without one.
    pub ready: bool,
    pub kill: Option<Kill>,
    /// As the image was written when the current instance started.
    pub image: String,
    /// Digest reference of the image that runs.
    pub image_id: String,
}

impl ContainerState {
    pub fn running(&self) -> bool {
        matches!(self.run, Run::Running { .. })
    }

    pub fn exit(&self) -> Option<&Exit> {
        match &self.run {
            Run::Exited(e) => Some(e),
            _ => None,
        }
    }

    pub fn id(&self) -> Option<&str> {
        match &self.run {
            Run::None => None,
            Run::Running { id, .. } => Some(id),
            Run::Exited(e) => Some(e.id.as_str()).filter(|s| !s.is_empty()),
        }
    }

    /// Takes note of the end of the current instance.
    pub fn exited(&mut self, exit: Exit, now: Mono) {
        self.run = Run::Exited(exit);
        self.busy = None;
        self.started = false;
        self.ready = false;
        self.kill = None;
        self.waiting = None;
        self.waiting_then = None;
        self.retry_at = None;
        self.exited_at = Some(now);
        self.backoff_told = false;
    }

    /// When the next instance may start, by the crash back-off.
    pub fn restart_at(&self, now: Mono) -> Mono {
        self.exited_at.unwrap_or_default() + self.crash_backoff.delay(now)
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub enum Sandbox {
    #[default]
    Absent,
    Creating,
    Ready {
        ips: Vec<IpAddr>,
    },
    Removing,
    /// Torn down for good.
    Removed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Volumes {
    #[default]
    Absent,
    Preparing,
    Ready,
}

/// Why the whole pod must end.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// Deleted in the API (or removed there while we were away): ends by removing the pod.
    Deleted,
    /// The pod ends as Failed with this reason and message and stays in the API.
    Failed { reason: String, message: String },
}

#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub sandbox: Sandbox,
    pub volumes: Volumes,
    /// No further attempt at the sandbox or the volumes before this time.
    pub retry_sandbox_at: Option<Mono>,
    pub retry_volumes_at: Option<Mono>,
    /// Parallel to `PodPlan::containers`.
    pub containers: Vec<ContainerState>,
    /// All init containers have once completed in this sandbox.
    pub initialized: bool,
    pub stop: Option<Stop>,
    /// SIGKILL for whatever still runs then. Set with `stop`.
    pub stop_by: Option<Mono>,
    /// Everything is stopped and torn down; only the API has to hear of it.
    pub cleaned: bool,
}

impl Observed {
    pub fn new(plan: &PodPlan) -> Self {
        let mut o = Self::default();
        o.fit(plan);
        o
    }

    /// Makes room for containers that were added (ephemeral ones); existing ones keep their state.
    pub fn fit(&mut self, plan: &PodPlan) {
        while self.containers.len() < plan.containers.len() {
            let c = &plan.containers[self.containers.len()];
            self.containers.push(ContainerState {
                image: c.image.clone(),
                ready: false,
                ..Default::default()
            });
        }
    }

    /// Notes that initialisation is complete, once it is.
    pub fn advance(&mut self, plan: &PodPlan) {
        let complete = plan
            .containers
            .iter()
            .zip(&self.containers)
            .all(|(c, s)| match c.kind {
                ContainerKind::Init => s.exit().is_some_and(|e| e.code == 0) && s.busy.is_none(),
                ContainerKind::Sidecar => s.running() && s.started,
                ContainerKind::Regular | ContainerKind::Ephemeral => true,
            });
        self.initialized |= complete && matches!(self.sandbox, Sandbox::Ready { .. });
    }

    /// The sandbox is gone (reboot, crash): what ran in it runs no more, and initialisation begins anew.
    pub fn sandbox_lost(&mut self, plan: &PodPlan) {
        self.sandbox = Sandbox::Absent;
        self.initialized = false;
        for (c, s) in plan.containers.iter().zip(&mut self.containers) {
            if c.kind == ContainerKind::Init
                && let Run::Exited(exit) = std::mem::take(&mut s.run)
            {
                s.last = Some(exit);
            }
        }
    }
}
