//! What the keeper's forked children do: create a container, exec in one, make a sandbox's namespaces.
//!
//! libcontainer changes its caller's working directory, dumpable flag and OOM score: only a short-lived, single-threaded process can bear
//! that. The keeper has one thread, so a plain fork of it is such a process, and spares the program start that a re-exec would cost.
//! Children report through a packet socket and never return.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, fork};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::process::{self, Failure, ProcessPlan};
use crate::proto::{ExecPlan, SandboxPlan};
use crate::sys::{caps, fd, mount, process as sys_process, socket};

/// From a child to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildMessage {
    /// A terminal's master is beside it.
    Terminal,
    /// The process that the child was to make.
    Process { pid: i32 },
    /// The first error that libcontainer has logged.
    Detail { text: String },
    /// `program`: the program is to blame, not the box.
    Failed { program: bool, text: String },
}

/// A container's root filesystem: `rootfs.json` in its run directory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    pub layers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Some mount is to propagate to the host: the root is then mounted in the host's mount namespace.
    pub shared: bool,
    /// No device file in the image or made later works: for containers that have no business with devices.
    pub nodev: bool,
    /// Mount propagation to set in the container, as flags of mount(2): libcontainer leaves that of bind mounts as the host has it.
    #[serde(default)]
    pub propagation: Vec<(PathBuf, u64)>,
    /// uid on the host that root of the container has, for the ownership of its standard streams.
    pub root_uid: u32,
}

/// Names in a container's run directory.
pub(crate) const PROCESS_FILE: &str = "process.json";
pub(crate) const ROOT_FILE: &str = "rootfs.json";
pub(crate) const ROOT_DIRECTORY: &str = "rootfs";
/// libcontainer's own state, below the run directory.
pub(crate) const OCI_DIRECTORY: &str = "oci";
/// libcontainer calls every container by this name: its directory is below the container's own.
pub(crate) const OCI_NAME: &str = "c";

/// Forks a child, in a version 2 cgroup if one is given, that has only the given standard streams and `keep`, and runs `body` there.
///
/// # Safety
/// The calling process must have a single thread.
pub(super) unsafe fn spawn(
    stdio: [RawFd; 3],
    keep: &[RawFd],
    nofile: libc::rlimit,
    group: Option<BorrowedFd<'_>>,
    body: impl FnOnce(),
) -> io::Result<i32> {
    // SAFETY: one thread, says the caller, so the child may do what it likes.
    match unsafe { sys_process::fork_into(group) }? {
        child @ 1.. => Ok(child),
        _ => {
            for (target, source) in stdio.into_iter().enumerate() {
                // SAFETY: integers only; sources are above 2, says Keeper::new.
                unsafe { libc::dup2(source, target as RawFd) };
            }
            fd::close_all_but(&mut keep.to_vec());
            sys_process::reset_signals();
            // SAFETY: the structure lives across the call; integers only.
            unsafe {
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const nofile);
                libc::umask(0o022);
            }
            body();
            // SAFETY: ends the child without running the keeper's destructors.
            unsafe { libc::_exit(0) }
        }
    }
}

pub(super) fn tell(result: RawFd, message: &ChildMessage) {
    // SAFETY: the descriptor is open for the whole life of this child.
    let result = unsafe { BorrowedFd::borrow_raw(result) };
    if let Ok(bytes) = serde_json::to_vec(message) {
        let _ = socket::send(result, &bytes, &[]);
    }
}

fn failed(result: RawFd, program: bool, text: impl Into<String>) {
    tell(
        result,
        &ChildMessage::Failed {
            program,
            text: text.into(),
        },
    );
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Failure> {
    fs::read(path)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(|e| Failure(format!("read {}: {e}", path.display())))
}

/// Creates a container from its run directory. `error` is written to if the program cannot be run after the start.
pub(super) fn create(run: &Path, result: RawFd, error: RawFd) {
    super::detail::forward_first_error(result);
    match try_create(run, result, error) {
        Ok(pid) => tell(result, &ChildMessage::Process { pid }),
        Err(failure) => failed(result, false, failure.0),
    }
}

fn try_create(run: &Path, result: RawFd, error: RawFd) -> Result<i32, Failure> {
    let plan: ProcessPlan = read_json(&run.join(PROCESS_FILE))?;
    let root: RootPlan = read_json(&run.join(ROOT_FILE))?;
    let filter = process::read_filter(&plan)?;
    process::own_stdio(plan.uid + root.root_uid);
    mount_root(run, &root)?;
    let confine = Confine {
        filter: Arc::new(filter),
        result,
        error,
        plan: Arc::new(plan),
        propagation: Arc::new(root.propagation),
    };
    let container = ContainerBuilder::new(OCI_NAME.into(), SyscallType::default())
        .with_executor(confine)
        .with_root_path(run.join(OCI_DIRECTORY))
        .map(|b| b.as_init(run))
        .and_then(|b| {
            b.with_systemd(false)
                .as_sibling(true)
                .with_detach(true)
                .build()
        })
        .map_err(|e| Failure(chain(&e)))?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| Failure("libcontainer made no process".into()))
}

/// Mounts the overlay where only the container will see it: in a mount namespace of our own, from which libcontainer makes the
/// container's. So nothing is left to unmount when the container ends, however it ends.
fn mount_root(run: &Path, root: &RootPlan) -> Result<(), Failure> {
    let what = |e: io::Error| Failure(format!("mount root filesystem: {e}"));
    if !root.shared {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| what(e.into()))?;
        mount::propagation(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SLAVE).map_err(what)?;
    }
    let target = run.join(ROOT_DIRECTORY);
    let shelf = run.join("layers");
    let overlay = |volatile| mount::Overlay {
        layers: &root.layers,
        upper: &root.upper,
        work: &root.work,
        volatile,
    };
    // Kernels before 5.10 have no volatile overlays.
    overlay(true)
        .mount(&target, &shelf)
        .or_else(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => overlay(false).mount(&target, &shelf),
            _ => Err(e),
        })
        .map_err(what)?;
    if root.nodev {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NODEV;
        mount::propagation(&target, flags).map_err(what)?;
    }
    Ok(())
}

/// All that libcontainer knows of an error: its own texts are shallow.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Our last steps, in libcontainer's place for them: `validate` runs before the process waits for its start, `exec` after.
#[derive(Clone)]
struct Confine {
    plan: Arc<ProcessPlan>,
    filter: Arc<Vec<u8>>,
    propagation: Arc<Vec<(PathBuf, u64)>>,
    result: RawFd,
    error: RawFd,
}

impl Confine {
    fn prepare(&self) -> Result<(), Failure> {
        for (path, flags) in self.propagation.iter() {
            let flags = MsFlags::from_bits_truncate(*flags as libc::c_ulong);
            mount::propagation(path, flags).map_err(|e| {
                let text = process::errno_text(&e);
                Failure(format!(
                    "set mount propagation of {}: {text}",
                    path.display()
                ))
            })?;
        }
        process::set_groups(&self.plan.groups)?;
        process::enter_cwd(&self.plan.cwd)?;
        if self.plan.terminal {
            process::set_up_terminal(self.result, self.plan.uid, true)?;
        }
        Ok(())
    }
}

impl Executor for Confine {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let checked = self
            .prepare()
            .and_then(|()| process::find_program(&self.plan.args, &self.plan.env));
        checked.map(drop).map_err(|failure| {
            failed(self.result, true, failure.0.clone());
            ExecutorValidationError::ArgValidationError(failure.0)
        })
    }

    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve, in its own order.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let mut plan = (*self.plan).clone();
        process::add_home(&mut plan.env, plan.uid);
        let failure = match process::find_program(&plan.args, &plan.env) {
            Ok(program) => process::confine_and_exec(&plan, &self.filter, &program),
            Err(failure) => failure,
        };
        // SAFETY: the descriptor is open for the whole life of this process.
        let error = unsafe { BorrowedFd::borrow_raw(self.error) };
        let _ = nix::unistd::write(error, failure.0.as_bytes());
        // SAFETY: ends the process; 128 is what the kubelet shows for a container that could not start.
        unsafe { libc::_exit(128) }
    }
}

/// Runs one more process in the container whose first process is `init`.
pub(super) fn exec(
    run: &Path,
    init: i32,
    pidfd: RawFd,
    cgroups: &Cgroups,
    exec: ExecPlan,
    result: RawFd,
) {
    if let Err((program, failure)) = try_exec(run, init, pidfd, cgroups, exec, result) {
        failed(result, program, failure.0);
    }
}

fn try_exec(
    run: &Path,
    init: i32,
    pidfd: RawFd,
    cgroups: &Cgroups,
    exec: ExecPlan,
    result: RawFd,
) -> Result<(), (bool, Failure)> {
    let box_fault = |f: Failure| (false, f);
    let os = |what: &'static str| {
        move |e: io::Error| {
            (
                false,
                Failure(format!("{what}: {}", process::errno_text(&e))),
            )
        }
    };
    let base: ProcessPlan = read_json(&run.join(PROCESS_FILE)).map_err(box_fault)?;
    let plan = merge(base, exec);
    let filter = process::read_filter(&plan).map_err(box_fault)?;
    if let Some(score) = plan.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(os("set oom score"))?;
    }
    process::own_stdio(plan.uid);
    cgroups.join_process(init).map_err(os("join cgroup"))?;
    // Nobody in the container may look into us while we are between both worlds.
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let user_namespace = fs::read_link(format!("/proc/{init}/ns/user")).ok()
        != fs::read_link("/proc/self/ns/user").ok();
    let mut namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if user_namespace {
        namespaces |= libc::CLONE_NEWUSER;
    }
    // SAFETY: integers only.
    if unsafe { libc::setns(pidfd, namespaces) } != 0 {
        let error = io::Error::last_os_error();
        return Err(os("enter the container's namespaces")(error));
    }
    // A PID namespace holds only children of the one who enters. Our child becomes the keeper's when we are gone: it is the sub-reaper.
    // SAFETY: one thread.
    match unsafe { fork() }.map_err(|e| os("fork")(e.into()))? {
        ForkResult::Parent { child } => {
            let pid = child.as_raw();
            tell(result, &ChildMessage::Process { pid });
            Ok(())
        }
        ForkResult::Child => {
            let failure = become_program(plan, &filter, result);
            failed(result, true, failure.0);
            // SAFETY: ends the process.
            unsafe { libc::_exit(126) }
        }
    }
}

fn become_program(mut plan: ProcessPlan, filter: &[u8], result: RawFd) -> Failure {
    let mut prepare = || -> Result<CString, Failure> {
        let _ = nix::unistd::setsid();
        process::enter_cwd(&plan.cwd)?;
        if plan.terminal {
            process::set_up_terminal(result, plan.uid, false)?;
        }
        process::set_groups(&plan.groups)?;
        process::add_home(&mut plan.env, plan.uid);
        process::become_user(plan.uid, plan.gid)?;
        process::find_program(&plan.args, &plan.env)
    };
    match prepare() {
        Ok(program) => process::confine_and_exec(&plan, filter, &program),
        Err(failure) => failure,
    }
}

/// The container's own process, changed by what the exec asks for.
fn merge(mut plan: ProcessPlan, exec: ExecPlan) -> ProcessPlan {
    plan.args = exec.args;
    for entry in exec.env {
        let name = entry
            .split_inclusive('=')
            .next()
            .unwrap_or(&entry)
            .to_string();
        plan.env.retain(|e| !e.starts_with(&name));
        plan.env.push(entry);
    }
    if let Some(cwd) = exec.cwd {
        plan.cwd = cwd;
    }
    if let Some((uid, gid, groups)) = exec.user {
        (plan.uid, plan.gid, plan.groups) = (uid, gid, groups);
    }
    plan.terminal = exec.tty;
    if exec.tty && !plan.env.iter().any(|e| e.starts_with("TERM=")) {
        plan.env.push("TERM=xterm".into());
    }
    plan
}

/// Makes the namespaces of a sandbox and pins them by bind mounts.
pub(super) fn sandbox(plan: &SandboxPlan, result: RawFd) {
    match try_sandbox(plan, result) {
        Ok(pid) => tell(result, &ChildMessage::Process { pid }),
        Err(failure) => failed(result, false, failure.0),
    }
}

fn try_sandbox(plan: &SandboxPlan, result: RawFd) -> Result<i32, Failure> {
    let os = |what: &str| {
        let what = what.to_string();
        move |e: io::Error| Failure(format!("{what}: {}", process::errno_text(&e)))
    };
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, plan.net);
    flags.set(CloneFlags::CLONE_NEWIPC, plan.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.uts);
    flags.set(CloneFlags::CLONE_NEWPID, plan.pid);
    unshare(flags).map_err(|e| os("make the pod's namespaces")(e.into()))?;
    if plan.uts {
        nix::unistd::sethostname(&plan.hostname).map_err(|e| os("set the host name")(e.into()))?;
    }
    if plan.net {
        raise_loopback().map_err(os("bring up lo"))?;
    }
    for (name, value) in &plan.sysctls {
        if name.split(['.', '/']).any(str::is_empty) {
            return Err(Failure(format!("sysctl {name:?}: not a name")));
        }
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).map_err(os(&format!("set sysctl {name}={value}")))?;
    }
    let directory = Path::new(&plan.directory);
    let pins = [(plan.net, "net"), (plan.ipc, "ipc"), (plan.uts, "uts")];
    for (_, name) in pins.iter().filter(|(wanted, _)| *wanted) {
        let source = format!("/proc/self/ns/{name}");
        mount::bind(Path::new(&source), &directory.join(name))
            .map_err(os(&format!("pin the {name} namespace")))?;
    }
    if !plan.pid {
        return Ok(0);
    }
    // SAFETY: one thread.
    match unsafe { fork() }.map_err(|e| os("fork the pod's init")(e.into()))? {
        ForkResult::Parent { child } => {
            let pid = child.as_raw();
            let source = format!("/proc/{pid}/ns/pid");
            mount::bind(Path::new(&source), &directory.join("pid"))
                .map_err(os("pin the pid namespace"))?;
            Ok(pid)
        }
        ForkResult::Child => pod_init(result),
    }
}

fn raise_loopback() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    let rc = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// PID 1 of a shared PID namespace: reaps, and does nothing else. It sees an empty, read-only root and has no capabilities and no
/// dumpable memory, since the pod's containers see it in their /proc.
fn pod_init(result: RawFd) -> ! {
    let setup = || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount::propagation(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        let root = Path::new("/tmp");
        let root = if root.is_dir() { root } else { Path::new("/") };
        mount::tmpfs(
            root,
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            "size=0k,mode=755",
        )?;
        std::env::set_current_dir(root)?;
        nix::unistd::pivot_root(".", ".")?;
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
        std::env::set_current_dir("/")?;
        // SAFETY: integers only.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"pod-init".as_ptr(), 0, 0, 0);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        }
        let _ = nix::unistd::setsid();
        caps::restrict_to(0)
    };
    if let Err(e) = setup() {
        failed(result, false, format!("set up the pod's init: {e}"));
        // SAFETY: ends the process.
        unsafe { libc::_exit(1) }
    }
    // SAFETY: integers only; the descriptor is ours.
    unsafe { libc::close(result) };
    let mut child_signal = nix::sys::signal::SigSet::empty();
    child_signal.add(nix::sys::signal::Signal::SIGCHLD);
    let _ = child_signal.thread_block();
    loop {
        // SAFETY: a null status is allowed.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        let _ = child_signal.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_overrides_what_it_names_and_keeps_the_rest() {
        let base = ProcessPlan {
            env: vec!["A=1".into(), "AB=2".into()],
            cwd: "/x".into(),
            uid: 5,
            capabilities: 7,
            ..ProcessPlan::default()
        };
        let exec = ExecPlan {
            args: vec!["id".into()],
            env: vec!["A=3".into()],
            tty: true,
            ..ExecPlan::default()
        };
        let merged = merge(base, exec);
        assert_eq!(merged.env, ["AB=2", "A=3", "TERM=xterm"]);
        assert_eq!(
            (merged.cwd.as_str(), merged.uid, merged.capabilities),
            ("/x", 5, 7)
        );
        assert!(merged.terminal);
    }
}
