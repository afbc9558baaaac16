//! Processes: pidfds, identity, fork.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only; the result is a new descriptor (close-on-exec) or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// pidfd_send_signal(2); a process that has gone is no error.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed: as kill(2).
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

/// The wait status of a process that somebody else has reaped: `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` (Linux 6.15). `None` if it was not
/// reaped yet or the kernel is too old.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xFF, 11, struct pidfd_info), in its first published size of 64 bytes.
    const PIDFD_GET_INFO: u64 = 0xC040_FF0B;
    const { assert!(size_of::<PidfdInfo>() == 64) };
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the structure has the size that the request number names.
    let rc = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (rc == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// When a process started, in clock ticks since boot; together with its pid it names a process for good: proc_pid_stat(5), field 22.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses and may hold anything.
    let after_name = &stat[stat.rfind(')')? + 2..];
    after_name.split(' ').nth(19)?.parse().ok()
}

/// fork(2), with `group` right into that version 2 cgroup: moving a process later costs an RCU grace period, tens of milliseconds on some
/// machines. 0 in the child. Where the kernel cannot (before 5.7), an ordinary fork.
///
/// # Safety
/// The calling process must have a single thread.
pub(crate) unsafe fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        descriptors_and_tids: [u64; 3],
        exit_signal: u64,
        stack_tls_and_more: [u64; 5],
        cgroup: u64,
    }
    if let Some(group) = group {
        let args = CloneArgs {
            flags: CLONE_INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: group.as_raw_fd() as u64,
            ..CloneArgs::default()
        };
        // SAFETY: as fork(2): no shared memory, no new stack, and one thread, says the caller.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        if pid >= 0 {
            return Ok(pid as i32);
        }
    }
    // SAFETY: one thread, says the caller.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// State, parent and session of a process: proc_pid_stat(5), fields 3, 4 and 6.
fn relations(pid: i32) -> Option<(char, i32, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some((state, parent, session))
}

pub(crate) fn is_child(pid: i32) -> bool {
    relations(pid).is_some_and(|(_, parent, _)| parent == std::process::id() as i32)
}

/// A look that reaps nothing.
fn has_ended_child() -> bool {
    // SAFETY: siginfo_t is plain data for which zero is valid, and lives across the call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_ALL, 0, &raw mut info, flags) == 0 && info.si_pid() != 0
    }
}

/// Children of ours that wait to be reaped and are not of our session.
pub(crate) fn ended_children_of_other_sessions() -> Vec<i32> {
    if !has_ended_child() {
        return Vec::new();
    }
    let me = std::process::id() as i32;
    let own_session = relations(me).map_or(0, |(_, _, session)| session);
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| {
            relations(pid).is_some_and(|(state, parent, session)| {
                state == 'Z' && parent == me && session != own_session
            })
        })
        .collect()
}

/// Waits for a process that is not our child; its status, if the kernel tells it to us.
pub(crate) async fn wait_stranger(pid: i32) -> Option<i32> {
    let pidfd = pidfd_open(pid).ok()?;
    // SAFETY: an OwnedFd tells the same open descriptor until dropped.
    let pidfd = unsafe { tokio::io::unix::AsyncFd::register(pidfd) }.ok()?;
    loop {
        let mut ready = pidfd.readable().await.ok()?;
        if let Some(status) = pidfd_exit_status(std::os::fd::AsFd::as_fd(pidfd.get_ref())) {
            return Some(status);
        }
        // It has ended but is not reaped yet: that is the next edge. Or nobody will ever know.
        relations(pid)?;
        ready.clear_ready();
    }
}

/// Is this very process still there (zombies count)?
pub(crate) fn is_same(pid: i32, ticks: u64) -> bool {
    pid > 0 && start_ticks(pid) == Some(ticks)
}

/// A code as shells tell it, and the signal if one killed the process.
pub(crate) fn decode_status(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

/// prctl(PR_SET_CHILD_SUBREAPER).
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: integers only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the limit of open files as far as it goes; gives the soft limit from before.
pub(crate) fn raise_open_files() -> io::Result<libc::rlimit> {
    // SAFETY: rlimit is plain data; both calls get a structure that lives across them.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            rlim_max: limit.rlim_max,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised);
        Ok(limit)
    }
}

/// Undoes what a Rust program or the keeper does to signals, before somebody else's program runs: all unblocked, all default.
pub(crate) fn reset_signals() {
    // An all-zero structure is SIG_DFL; longer than any architecture's. By system call, since C libraries keep two signals for themselves,
    // which may have been ignored long before us.
    let default = [0u64; 8];
    for signal in 1..=64 {
        // SAFETY: the structure lives across the call, and SIG_DFL installs no code. SIGKILL and SIGSTOP are refused, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8,
            )
        };
    }
    let none = nix::sys::signal::SigSet::empty();
    let _ =
        nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let me = std::process::id() as i32;
        let ticks = start_ticks(me).unwrap();
        assert!(is_same(me, ticks));
        assert!(!is_same(me, ticks + 1));
        assert!(!is_same(0, ticks));
    }

    #[test]
    fn the_status_of_a_reaped_process_is_known_from_its_pidfd() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x; exit 7"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        assert_eq!(pidfd_exit_status(pidfd.as_fd()), None);
        drop(child.stdin.take());
        child.wait().unwrap();
        // Kernels before 6.15 cannot tell.
        if let Some(status) = pidfd_exit_status(pidfd.as_fd()) {
            assert_eq!(decode_status(status), (7, None));
        }
    }
}
