//! `amphipod-box DIR NAME`: a simulated edge machine, for whole-system tests.
//!
//! A box is one process tree in its own PID, network, mount, UTS and IPC namespaces, with its own `/var/lib/amphipod`,
//! `/var/log/pods`, `/etc/amphipod` and `/run` (so that the program under test runs with its default paths), and with
//! control groups below `/NAME` only. Its "disk" is DIR, which survives the box: starting another box on the same DIR
//! is a reboot.
//!
//! Two processes make it: this one stays outside and is the power supply; its child is PID 1 inside. The power supply
//! prints the host PID of PID 1 on standard output and then reads standard input. At the end of that input (the test
//! finished, panicked or was killed) it cuts the power: SIGKILL to PID 1, upon which the kernel kills every process
//! inside at once and takes the namespaces down. It then removes the control groups that the box left behind, and the
//! disk too, unless a byte was read before the end: that is how a test says that it will switch the box on again.
//!
//! Nothing here needs the project's own code: a box must be able to judge it.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe, sethostname, setsid};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(name)) = (args.next(), args.next()) else {
        bail!("usage: amphipod-box DIR NAME");
    };
    let dir = PathBuf::from(dir);
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        bail!("a box's name is letters, digits and hyphens, not {name:?}");
    }
    // A signal to the test and all it started (Ctrl-C, timeout(1)) must not end the power supply before it has cut the power. It
    // cannot fail but for a leader of a group, as which a shell starts it, and that has a group of its own.
    let _ = setsid();
    let outside = fs::File::open("/proc/self/ns/mnt").context("opening the mount namespace")?;
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("making the box's namespaces (are you root?)")?;
    let (ready, ready_in_child) = pipe().context("making a pipe")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("forking PID 1")? {
        ForkResult::Child => {
            drop(ready);
            // Should the power supply be killed, the power is off, too.
            let outcome = prctl::set_pdeathsig(Signal::SIGKILL)
                .context("binding the box to its power supply")
                .and_then(|()| become_pid_one(&dir, &name));
            let message = outcome
                .as_ref()
                .err()
                .map(|e| format!("{e:#}"))
                .unwrap_or_default();
            let mut pipe = fs::File::from(ready_in_child);
            let _ = pipe.write_all(message.as_bytes());
            drop(pipe);
            outcome?;
            reap_forever()
        }
        ForkResult::Parent { child } => {
            drop(ready_in_child);
            // As a member of the box's mount namespace this process would keep it, and every mount on the disk, alive.
            setns(&outside, CloneFlags::CLONE_NEWNS).context("going back outside")?;
            let mut message = String::new();
            fs::File::from(ready).read_to_string(&mut message)?;
            let mut keep_disk = true;
            if message.is_empty() {
                println!("{child}");
                std::io::stdout().flush()?;
                keep_disk = wait_for_power_cut();
            }
            power_off(child, &name);
            if !keep_disk {
                remove_disk(&dir);
            }
            if message.is_empty() {
                Ok(())
            } else {
                bail!(message)
            }
        }
    }
}

/// Sets up the mounts and the loopback interface of the box; runs as PID 1 of the new namespaces.
fn become_pid_one(dir: &Path, name: &str) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mounting /proc")?;
    for (part, target) in [
        ("lib", "/var/lib/amphipod"),
        ("pods", "/var/log/pods"),
        ("containers", "/var/log/containers"),
        ("etc", "/etc/amphipod"),
    ] {
        let source = dir.join(part);
        fs::create_dir_all(&source).with_context(|| format!("creating {}", source.display()))?;
        fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
        mount(Some(&source), target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("mounting {} on {target}", source.display()))?;
    }
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("mounting /run")?;
    // An empty resolver configuration: a box reaches nothing but what its test gave it.
    let resolv = dir.join("resolv.conf");
    fs::write(&resolv, "# no name server in a box\n")?;
    mount(
        Some(&resolv),
        "/etc/resolv.conf",
        none,
        MsFlags::MS_BIND,
        none,
    )
    .context("mounting resolv.conf")?;
    sethostname(name).context("setting the host name")?;
    loopback_up().context("setting lo up")
}

/// Sets `lo` up by ioctl (netdevice(7)), so that the box needs no other program.
fn loopback_up() -> Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, its name is NUL-terminated by the zeroed rest, and the kernel only reads it.
    let status = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request
            .ifr_name
            .iter_mut()
            .zip(CString::new("lo")?.as_bytes())
        {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request)
    };
    nix::errno::Errno::result(status)?;
    Ok(())
}

/// PID 1 adopts every orphan inside and reaps it, as an init would.
fn reap_forever() -> Result<()> {
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    child_ended.thread_block().context("blocking SIGCHLD")?;
    for fd in 0..3 {
        // A reader of the power supply's output must see its end when the power supply ends, not when the box does.
        // SAFETY: nothing in this process uses the standard streams from here on.
        unsafe { libc::close(fd) };
    }
    loop {
        while waitpid(None, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
        child_ended.wait().context("waiting for a child")?;
    }
}

/// Returns when standard input ends: whether a byte was read, which means that the disk is kept.
fn wait_for_power_cut() -> bool {
    let mut keep_disk = false;
    let mut byte = [0u8; 1];
    while matches!(std::io::stdin().read(&mut byte), Ok(1)) {
        keep_disk = true;
    }
    keep_disk
}

/// Kills PID 1 (and so everything inside) and removes the box's control groups.
fn power_off(child: Pid, name: &str) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    let pure_v2 = PathBuf::from("/sys/fs/cgroup").join(name);
    for group in hierarchies
        .flatten()
        .map(|h| h.path().join(name))
        .chain([pure_v2])
    {
        // A group of processes that were just killed can be busy for a moment.
        for _ in 0..50 {
            remove_group(&group);
            if !group.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Removes the disk of a box that is off. A mount of the box can outlive its last process by a moment.
fn remove_disk(dir: &Path) {
    let mut removed = Ok(());
    for _ in 0..50 {
        removed = match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => return,
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    if let Err(e) = removed {
        eprintln!("removing {}: {e}", dir.display());
    }
}

/// Removes a control group and all below it, depth first.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
