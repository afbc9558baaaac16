//! [`Runtime`]: what the agent calls. Asynchronous; every method may be called from any task.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::cgroup::Cgroups;
use crate::error::{Error, IoContext, Result};
use crate::files::Place;
use crate::host::Host;
use crate::keeper::KeeperConfig;
use crate::link::{Link, raw};
use crate::proto::{ExecPlan, Life, Op, Record, Reply};
use crate::session::{AttachInput, AttachSession, ExecSession};
use crate::spec::{ContainerSpec, ExecSpec, Resources, Sandbox, SandboxSpec};
use crate::status::{ContainerEvent, ContainerState, ContainerStatus, Stats};
use crate::stream::FdStream;
use crate::supervise::{self, Shared, exit_of};
use crate::sys::{fd, process};

/// Where the runtime keeps things. `Default` is a box's own installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Survives reboots: writable layers, bundles, exit records.
    pub state_dir: PathBuf,
    /// A tmpfs: sockets, pinned namespaces. At most 90 bytes long (socket paths are short).
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

/// How long a request waits for a keeper that is being started again.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);

/// A handle to the box's containers. Cheap to clone. Dropping the last one leaves containers and keeper running.
#[derive(Debug, Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    place: Arc<Place>,
}

impl Runtime {
    /// Connects to the living keeper or starts one (and adopts the containers of one that died). Makes the calling process a
    /// child sub-reaper (`PR_SET_CHILD_SUBREAPER`), so that containers survive their keeper.
    pub async fn open(config: RuntimeConfig) -> Result<Runtime> {
        process::become_subreaper().context(|| "become a child sub-reaper".into())?;
        // We hold copies of every container's descriptors; the containers keep the limit that we were started with.
        let files =
            process::raise_open_files().context(|| "raise the limit of open files".into())?;
        let keeper = KeeperConfig {
            state_dir: config.state_dir,
            run_dir: config.run_dir,
            #[allow(clippy::unnecessary_cast)] // 32-bit systems have narrower limits.
            open_files: Some(files.rlim_cur as u64),
        };
        let root = config.cgroup_root;
        let place = Arc::new(Place::open(keeper.clone(), root)?);
        let shared = Arc::new(Shared::new(keeper, config.helper));
        let mut link = supervise::renew(&shared).await;
        if link.is_err() {
            // The keeper that we found may have been about to end.
            link = supervise::renew(&shared).await;
        }
        let link = link?;
        shared.link.send_replace(Some(Arc::clone(&link)));
        tokio::spawn(supervise::run(Arc::downgrade(&shared), link));
        Ok(Runtime { shared, place })
    }

    /// Everything that happens from now on. A slow receiver gets `Lagged`: then list again.
    pub fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.shared.events.subscribe()
    }

    async fn link(&self) -> Result<Arc<Link>> {
        let mut link = self.shared.link.subscribe();
        let there = tokio::time::timeout(KEEPER_PATIENCE, link.wait_for(Option::is_some)).await;
        match there {
            Ok(Ok(link)) => link.clone(),
            _ => None,
        }
        .ok_or_else(|| Error::Keeper("it is being started again".into()))
    }

    async fn call(&self, op: Op) -> Result<Reply> {
        Ok(self.link().await?.call(op, &[]).await?.0)
    }

    /// Runs file work on a worker thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.place);
        tokio::task::spawn_blocking(move || work(&place))
            .await
            .unwrap_or_else(|e| Err(Error::Create(format!("worker failed: {e}"))))
    }

    /// Makes namespaces and the pod's cgroup; brings `lo` up; no process stays behind, except with [`crate::PidMode::Pod`].
    /// Fails with [`Error::AlreadyExists`] if it exists: then ask [`Runtime::sandbox`].
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        let wanted = spec.clone();
        let prepared = self
            .blocking(move |place| place.prepare_sandbox(&wanted))
            .await;
        let made = match prepared {
            Err(e @ (Error::AlreadyExists(_) | Error::Invalid(_))) => return Err(e),
            Err(e) => Err(e),
            Ok(plan) => self.call(Op::CreateSandbox(plan)).await,
        };
        let spec = spec.clone();
        self.blocking(move |place| {
            let finished = match made {
                Ok(Reply::Sandbox { pid }) => place.finish_sandbox(&spec, pid),
                Ok(_) => Err(Error::Keeper("unexpected reply".into())),
                Err(e) => Err(e),
            };
            if finished.is_err() {
                let cgroup = place.cgroup(&spec.cgroup.path).ok();
                // The first error is the one to tell.
                let _ = place.remove_sandbox(&spec.id, cgroup.as_deref());
            }
            finished
        })
        .await
    }

    pub async fn sandbox(&self, id: &str) -> Result<Sandbox> {
        let id = id.to_string();
        self.blocking(move |place| Ok(place.sandbox(&id)?.sandbox))
            .await
    }

    pub async fn list_sandboxes(&self) -> Result<Vec<Sandbox>> {
        self.blocking(|place| Ok(place.sandboxes().into_iter().map(|r| r.sandbox).collect()))
            .await
    }

    /// Removes a sandbox and, killing them, its containers. No error if there is none.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let inside: Vec<ContainerStatus> = self.list_containers().await?;
        let removals = inside
            .iter()
            .filter(|c| c.sandbox == id)
            .map(|c| self.remove_container(&c.id));
        for removed in futures_util::future::join_all(removals).await {
            removed?;
        }
        let id = id.to_string();
        self.blocking(move |place| {
            let cgroup = place.sandbox(&id).map(|r| r.sandbox.cgroup_path).ok();
            place.remove_sandbox(&id, cgroup.as_deref())
        })
        .await
    }

    /// Changes the limits of a pod's cgroup.
    pub async fn update_sandbox_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let (id, resources) = (id.to_string(), resources.clone());
        self.blocking(move |place| {
            let cgroup = place.sandbox(&id)?.sandbox.cgroup_path;
            place.cgroups.apply(&cgroup, &resources)
        })
        .await
    }

    /// Makes a cgroup below [`RuntimeConfig::cgroup_root`] (e.g. `burstable`; empty = the root itself) if it is missing and sets its limits.
    pub async fn ensure_cgroup(&self, path: &str, resources: &Resources) -> Result<()> {
        let (path, resources) = (path.to_string(), resources.clone());
        self.blocking(move |place| {
            let cgroup = place.cgroup(&path)?;
            place.cgroups.ensure(&cgroup)?;
            place.cgroups.apply(&cgroup, &resources)
        })
        .await
    }

    /// Removes a cgroup below the root with all below it, killing what is in there. No error if there is none.
    pub async fn remove_cgroup(&self, path: &str) -> Result<()> {
        let path = path.to_string();
        self.blocking(move |place| place.cgroups.remove(&place.cgroup(&path)?))
            .await
    }

    /// Creates a container: root filesystem mounted, process waiting for [`Runtime::start_container`]. Nothing is left behind if it
    /// fails.
    pub async fn create_container(&self, spec: &ContainerSpec) -> Result<()> {
        let wanted = spec.clone();
        let prepared = self
            .blocking(move |place| place.prepare_container(&wanted))
            .await;
        let created = match prepared {
            Err(e @ (Error::AlreadyExists(_) | Error::SandboxNotFound(_))) => return Err(e),
            Err(e) => Err(e),
            Ok(record) => self.call(Op::Create { record }).await,
        };
        let Err(error) = created else { return Ok(()) };
        if !matches!(error, Error::AlreadyExists(_)) {
            let spec = spec.clone();
            let cleaned = self
                .blocking(move |place| {
                    let cgroup = place
                        .sandbox(&spec.sandbox)
                        .map(|s| format!("{}/{}", s.sandbox.cgroup_path, spec.id));
                    place.remove_container(&spec.id, cgroup.ok().as_deref())
                })
                .await;
            if let Err(e) = cleaned {
                tracing::warn!(error = %e, "a failed container left something behind");
            }
        }
        Err(error)
    }

    /// Lets the created process run its program. Fails with [`Error::Exec`] if the kernel refuses the program; the container then
    /// exits with code 128. Tells when it started, as [`Runtime::container`] will.
    pub async fn start_container(&self, id: &str) -> Result<jiff::Timestamp> {
        let started = match self.call(Op::Start { id: id.into() }).await {
            Ok(Reply::Started { at }) => Ok(time(at)),
            Ok(_) => Ok(jiff::Timestamp::now()),
            Err(error) => Err(error),
        };
        let id = id.to_string();
        self.blocking(move |place| {
            place.trim_container(&id);
            started
        })
        .await
    }

    /// Sends a signal to the container's first process. No error if it has exited.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let id = id.into();
        self.call(Op::Kill { id, signal }).await.map(drop)
    }

    /// The number of the signal that stops this container politely ([`ContainerSpec::stop_signal`], else SIGTERM).
    pub async fn stop_signal(&self, id: &str) -> Result<i32> {
        let id = id.to_string();
        self.blocking(move |place| Ok(place.record(&id)?.stop_signal))
            .await
    }

    /// Kills what is left in the container's cgroup and removes everything but its logs. No error if there is no such container.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        match self.call(Op::Remove { id: id.into() }).await {
            Ok(_) | Err(Error::ContainerNotFound(_)) => {}
            Err(e) => return Err(e),
        }
        let id = id.to_string();
        self.blocking(move |place| {
            let cgroup = place.record(&id).map(|r| r.cgroup).ok();
            place.remove_container(&id, cgroup.as_deref())
        })
        .await
    }

    pub async fn container(&self, id: &str) -> Result<ContainerStatus> {
        match self.call(Op::Get { id: id.into() }).await? {
            Reply::Container { record, life } => Ok(status(&record, &life)),
            _ => Err(Error::Keeper("unexpected reply".into())),
        }
    }

    pub async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        let replies = self.link().await?.call_many(Op::List).await?;
        Ok(replies
            .iter()
            .filter_map(|reply| match reply {
                Reply::Container { record, life } => Some(status(record, life)),
                _ => None,
            })
            .collect())
    }

    /// Containers whose removal was cut short: the keeper has forgotten them, their files are there. `known` is what [`Runtime::list_containers`]
    /// said. One that was made since looks the same, so this is for the start.
    pub async fn half_removed(&self, known: &[ContainerStatus]) -> Result<Vec<String>> {
        let known: HashSet<String> = known.iter().map(|c| c.id.clone()).collect();
        self.blocking(move |place| {
            let entries = std::fs::read_dir(place.keeper.containers())
                .into_iter()
                .flatten()
                .flatten();
            let ids = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            Ok(ids.filter(|id| !known.contains(id)).collect())
        })
        .await
    }

    /// Runs a process in a running container: `kubectl exec`, exec probes, lifecycle hooks.
    pub async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession> {
        let what = || "make pipes for a command".to_string();
        let plan = ExecPlan {
            args: spec.args.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            user: spec
                .user
                .as_ref()
                .map(|u| (u.uid, u.gid, u.additional_gids.clone())),
            tty: spec.tty,
        };
        let mut theirs: Vec<OwnedFd> = Vec::new();
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if !spec.tty {
            if spec.stdin {
                let (r, w) = fd::pipe().context(what)?;
                theirs.push(r);
                stdin = Some(FdStream::new(w).context(what)?);
            } else {
                let null = OpenOptions::new().read(true).open("/dev/null");
                theirs.push(null.context(what)?.into());
            }
            for ours in [&mut stdout, &mut stderr] {
                let (r, w) = fd::pipe().context(what)?;
                theirs.push(w);
                *ours = Some(FdStream::new(r).context(what)?);
            }
        }
        let op = Op::Exec {
            id: id.into(),
            plan,
        };
        let (reply, mut fds) = self.link().await?.call(op, &raw(&theirs)).await?;
        // Ours would keep the streams open after the process has ended.
        drop(theirs);
        let Reply::Exec { exec_id, pid } = reply else {
            return Err(Error::Keeper("unexpected reply".into()));
        };
        let tty = match fds.pop() {
            Some(master) => Some(FdStream::new(master).context(what)?),
            None => None,
        };
        if let Some(master) = &tty {
            stdin = spec.stdin.then(|| master.clone());
            stdout = Some(master.clone());
        }
        let (exit, timed_out) = self
            .shared
            .take_exec(exec_id)
            .ok_or_else(|| Error::Keeper("connection lost during a request".into()))?;
        let session = ExecSession {
            stdin,
            stdout,
            stderr,
            tty,
            pid,
            exec_id,
            runtime: self.clone(),
            exit,
        };
        if let Some(limit) = spec.timeout {
            let (mut exit, runtime) = (session.exit.clone(), self.clone());
            tokio::spawn(async move {
                let ended = exit.wait_for(Option::is_some);
                if tokio::time::timeout(limit, ended).await.is_err() {
                    timed_out.store(true, Ordering::Release);
                    if let Err(e) = runtime.kill_exec(exec_id, libc::SIGKILL).await {
                        tracing::warn!(error = %e, "a command that took too long was not killed");
                    }
                }
            });
        }
        Ok(session)
    }

    /// Connects to the container's streams: copies of its output from now on, its input if it has one.
    pub async fn attach(&self, id: &str) -> Result<AttachSession> {
        let what = || "make pipes to attach".to_string();
        let name = id.to_string();
        let record = self.blocking(move |place| place.record(&name)).await?;
        let mut theirs: Vec<OwnedFd> = Vec::new();
        let mut stream = || -> Result<FdStream> {
            let (r, w) = fd::pipe().context(what)?;
            theirs.push(w);
            FdStream::new(r).context(what)
        };
        let stdout = stream()?;
        let stderr = match record.terminal {
            true => None,
            false => Some(stream()?),
        };
        let op = Op::Attach { id: id.into() };
        let (_, mut fds) = self.link().await?.call(op, &raw(&theirs)).await?;
        drop(theirs);
        let input = match fds.pop() {
            Some(input) => Some(FdStream::new(input).context(what)?),
            None => None,
        };
        let stdin = input
            .clone()
            .filter(|_| record.stdin)
            .map(|stream| AttachInput {
                stream,
                container: id.to_string(),
                runtime: self.clone(),
            });
        Ok(AttachSession {
            stdin,
            stdout,
            stderr,
            tty: input.filter(|_| record.terminal),
        })
    }

    /// Moves the current log aside and opens a new file at the same path; for callers that rotate themselves.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        self.call(Op::ReopenLog { id: id.into() }).await.map(drop)
    }

    /// Changes a running container's limits in place (in-place pod resize).
    pub async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        let (id, resources) = (id.to_string(), resources.clone());
        self.blocking(move |place| {
            let cgroup = place.record(&id)?.cgroup;
            place.cgroups.apply(&cgroup, &resources)
        })
        .await
    }

    pub async fn stats(&self, id: &str) -> Result<Stats> {
        let id = id.to_string();
        self.blocking(move |place| Ok(place.cgroups.stats(&place.record(&id)?.cgroup)))
            .await
    }

    /// Figures of the pod's cgroup.
    pub async fn sandbox_stats(&self, id: &str) -> Result<Stats> {
        let id = id.to_string();
        self.blocking(move |place| {
            Ok(place
                .cgroups
                .stats(&place.sandbox(&id)?.sandbox.cgroup_path))
        })
        .await
    }

    /// Figures of any cgroup below the root (empty = the root).
    pub async fn cgroup_stats(&self, path: &str) -> Result<Stats> {
        let path = path.to_string();
        self.blocking(move |place| Ok(place.cgroups.stats(&place.cgroup(&path)?)))
            .await
    }

    /// The directory that holds the container's writable layer, for ephemeral-storage accounting.
    pub fn writable_layer(&self, id: &str) -> PathBuf {
        self.place.keeper.container_state(id).join("upper")
    }

    /// Replaces the keeper by a new program in place (`execve`): no child, log line or exit code is lost.
    pub async fn upgrade_keeper(&self, program: &Path) -> Result<()> {
        let program = program.to_string_lossy().into_owned();
        self.call(Op::Upgrade { program }).await.map(drop)
    }

    /// Does the keeper run another program than this process? After an update it does: then [`Runtime::upgrade_keeper`].
    pub fn keeper_is_outdated(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let file =
            |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|m| (m.dev(), m.ino()));
        match (file(&self.keeper_pid().to_string()), file("self")) {
            (Ok(keeper), Ok(own)) => keeper != own,
            _ => false,
        }
    }

    /// Ends the keeper, for an uninstallation. Refused while containers run.
    pub async fn stop_keeper(self) -> Result<()> {
        let all = self.list_containers().await?;
        let ended = |c: &ContainerStatus| matches!(c.state, ContainerState::Exited { .. });
        if !all.iter().all(ended) {
            return Err(Error::State("containers are running".into()));
        }
        let link = self.link().await?;
        self.shared.closing.store(true, Ordering::Release);
        let what = || "stop the container keeper".to_string();
        process::pidfd_kill(link.pidfd.get_ref().as_fd(), libc::SIGTERM).context(what)?;
        link.pidfd.readable().await.context(what)?.retain_ready();
        Ok(())
    }

    /// The keeper's process id; 0 while there is none.
    pub fn keeper_pid(&self) -> i32 {
        self.shared.link.borrow().as_ref().map_or(0, |l| l.pid)
    }

    pub(crate) async fn kill_exec(&self, exec_id: u64, signal: i32) -> Result<()> {
        self.call(Op::KillExec { exec_id, signal }).await.map(drop)
    }

    pub(crate) fn forget_exec(&self, exec_id: u64) {
        self.shared.forget_exec(exec_id);
    }

    pub(crate) async fn end_stdin(&self, id: &str) -> Result<()> {
        self.call(Op::EndStdin { id: id.into() }).await.map(drop)
    }
}

impl Place {
    fn open(keeper: KeeperConfig, cgroup_root: String) -> Result<Self> {
        for directory in [&keeper.state_dir, &keeper.run_dir] {
            let what = || format!("make {}", directory.display());
            std::fs::create_dir_all(directory).context(what)?;
            std::fs::set_permissions(
                directory,
                std::os::unix::fs::PermissionsExt::from_mode(0o700),
            )
            .context(what)?;
        }
        let cgroups = Cgroups::detect()?;
        let host = Host::detect(&cgroups)?;
        cgroups.ensure(&cgroup_root)?;
        Ok(Place {
            keeper,
            cgroup_root,
            cgroups,
            host,
        })
    }
}

/// From nanoseconds since the epoch.
fn time(ns: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(ns.into()).unwrap_or_default()
}

fn status(record: &Record, life: &Life) -> ContainerStatus {
    let started = (life.started_at != 0).then(|| time(life.started_at));
    let state = match (&life.exit, started) {
        (Some(exit), started_at) => ContainerState::Exited {
            started_at,
            exit: exit_of(exit),
        },
        (None, Some(started_at)) => ContainerState::Running {
            pid: life.pid,
            started_at,
        },
        (None, None) => ContainerState::Created,
    };
    ContainerStatus {
        id: record.id.clone(),
        sandbox: record.sandbox.clone(),
        labels: serde_json::from_str(record.labels.get()).unwrap_or_default(),
        created_at: time(record.created_at),
        state,
    }
}
