//! [`Runtime`]: what the agent calls. Asynchronous; every method may be called from any task.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::error::{Error, Result};
use crate::session::{AttachSession, ExecSession};
use crate::spec::{ContainerSpec, ExecSpec, Resources, Sandbox, SandboxSpec};
use crate::status::{ContainerEvent, ContainerStatus, Stats};

/// Where the runtime keeps things. `Default` is a box's own installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Survives reboots: writable layers, bundles, exit records.
    pub state_dir: PathBuf,
    /// A tmpfs: sockets, pinned namespaces. Keep it short (socket paths).
    pub run_dir: PathBuf,
    /// The group below which all pods' groups are, absolute inside the hierarchies, e.g. `/kubepods`. Made when missing, never removed.
    pub cgroup_root: String,
    /// The program to run as keeper; it must call [`crate::run_hidden_command`] first thing in `main`.
    pub helper: PathBuf,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        RuntimeConfig {
            state_dir: "/var/lib/amphipod/runtime".into(),
            run_dir: "/run/amphipod".into(),
            cgroup_root: "/kubepods".into(),
            helper: "/proc/self/exe".into(),
        }
    }
}

/// A handle to the box's containers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    #[allow(dead_code)]
    inner: Arc<RuntimeConfig>,
}

#[allow(unused_variables)]
impl Runtime {
    /// Connects to the living keeper or starts one (and adopts the containers of one that died). Makes the calling process a
    /// child sub-reaper (`PR_SET_CHILD_SUBREAPER`), so that containers survive their keeper.
    pub async fn open(config: RuntimeConfig) -> Result<Runtime> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Everything that happens from now on. A slow receiver gets `Lagged`: then list again.
    pub fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        broadcast::channel(1).1
    }

    /// Makes namespaces and the pod's cgroup; brings `lo` up; no process stays behind, except with [`crate::PidMode::Pod`].
    /// Fails with [`Error::AlreadyExists`] if it exists: then ask [`Runtime::sandbox`].
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        Err(Error::Keeper("not yet".into()))
    }

    pub async fn sandbox(&self, id: &str) -> Result<Sandbox> {
        Err(Error::Keeper("not yet".into()))
    }

    pub async fn list_sandboxes(&self) -> Result<Vec<Sandbox>> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Removes a sandbox and, killing them, its containers. No error if there is none.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Changes the limits of a pod's cgroup.
    pub async fn update_sandbox_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Makes a cgroup below [`RuntimeConfig::cgroup_root`] (e.g. `burstable`; empty = the root itself) if it is missing and sets its limits.
    pub async fn ensure_cgroup(&self, path: &str, resources: &Resources) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Creates a container: root filesystem mounted, process waiting for [`Runtime::start_container`]. Nothing is left behind if it
    /// fails.
    pub async fn create_container(&self, spec: &ContainerSpec) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Lets the created process run its program. Fails with [`Error::Exec`] if the kernel refuses the program.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Sends a signal to the container's first process. No error if it has exited.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// The number of the signal that stops this container politely ([`ContainerSpec::stop_signal`], else SIGTERM).
    pub async fn stop_signal(&self, id: &str) -> Result<i32> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Kills what is left in the container's cgroup and removes everything but its logs. No error if there is no such container.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    pub async fn container(&self, id: &str) -> Result<ContainerStatus> {
        Err(Error::Keeper("not yet".into()))
    }

    pub async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Runs a process in a running container: `kubectl exec`, exec probes, lifecycle hooks.
    pub async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Connects to the container's streams: copies of its output from now on, its input if it has one.
    pub async fn attach(&self, id: &str) -> Result<AttachSession> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Moves the current log aside and opens a new file at the same path; for callers that rotate themselves.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Changes a running container's limits in place (in-place pod resize).
    pub async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    pub async fn stats(&self, id: &str) -> Result<Stats> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Figures of the pod's cgroup.
    pub async fn sandbox_stats(&self, id: &str) -> Result<Stats> {
        Err(Error::Keeper("not yet".into()))
    }

    /// Figures of any cgroup below the root (empty = the root).
    pub async fn cgroup_stats(&self, path: &str) -> Result<Stats> {
        Err(Error::Keeper("not yet".into()))
    }

    /// The directory that holds the container's writable layer, for ephemeral-storage accounting.
    pub fn writable_layer(&self, id: &str) -> PathBuf {
        PathBuf::new()
    }

    /// Replaces the keeper by a new program in place (`execve`): no child, log line or exit code is lost.
    pub async fn upgrade_keeper(&self, program: &Path) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    /// The keeper's process id.
    pub fn keeper_pid(&self) -> i32 {
        0
    }

    pub(crate) async fn kill_exec(&self, exec_id: u64, signal: i32) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }

    pub(crate) async fn end_stdin(&self, id: &str) -> Result<()> {
        Err(Error::Keeper("not yet".into()))
    }
}
