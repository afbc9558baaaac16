//! File descriptors: flags, pipes, whole-process clean-up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Sets or clears O_NONBLOCK on the open file description.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let raw = fd.as_raw_fd();
    let mut flags = OFlag::from_bits_retain(fcntl(raw, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(raw, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Sets or clears close-on-exec.
pub(crate) fn set_cloexec(fd: RawFd, on: bool) -> io::Result<()> {
    let flags = if on {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// A close-on-exec pipe: (read end, write end), both blocking.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// The same end of a pipe, but open for both directions: who holds it is reader and writer at once, so that the pipe lives, and nobody gets
/// SIGPIPE, while no other process has the other end.
pub(crate) fn both_ways(end: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)?;
    Ok(file.into())
}

/// Closes every descriptor from 3 on that is not in `keep`. Only for freshly forked children, which own nothing that would notice.
pub(crate) fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut first: u32 = 3;
    for &fd in keep.iter() {
        let Ok(fd) = u32::try_from(fd) else { continue };
        if fd < first {
            continue;
        }
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closing descriptors cannot touch memory; the caller promises that nothing else uses them.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if rc != 0 {
        // Before Linux 5.9.
        let last = last.min(65_536);
        for fd in first..=last {
            // SAFETY: as above.
            unsafe { libc::close(fd as RawFd) };
        }
    }
}
