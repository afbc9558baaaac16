//! `amphipod-clock FILE PROGRAM ARGUMENT...`: runs a program, and all that it starts, with another wall clock than the machine's.
//!
//! FILE holds the difference in seconds, a little-endian i64, and may be rewritten at any time: the clock jumps. The machine's own
//! clock is not touched, and clocks that only go forward (CLOCK_MONOTONIC) are not either, as when a real clock is set.
//!
//! The program's questions for the time are answered by a process beside it (seccomp_unotify(2)). PROGRAM must ask the kernel: a
//! static program finds the vDSO by the names of its functions, so that a copy with other names asks
//! ([`amphipod_tests::EdgeBox::give_clock`] makes one).

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::unistd::{ForkResult, fork, setsid};

// seccomp_unotify(2); asm-generic/ioctl.h
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const NOTIF_ID_VALID: libc::c_ulong = 0x4008_2102;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(file), Some(program)) = (args.next(), args.next()) else {
        bail!("usage: amphipod-clock FILE PROGRAM ARGUMENT...");
    };
    let offset = File::open(&file).with_context(|| format!("opening {}", file.display()))?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .context("making a socket pair")?;
    // The clock is nobody's child but init's: the program reaps what is its own, and may be killed without it.
    // SAFETY: this process has one thread, so its children may do anything.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            // SAFETY: as above.
            if let ForkResult::Child = unsafe { fork() }.context("forking")? {
                drop(ours);
                let _ = setsid();
                answer(&receive(&theirs)?, &offset);
            }
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).context("waiting for the clock")?;
        }
    }
    drop(theirs);
    let listener = filter().context("installing the filter")?;
    let fds = [listener.as_raw_fd()];
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .context("handing over the filter")?;
    drop(listener);
    Err(Command::new(&program).args(args).exec())
        .with_context(|| format!("starting {}", program.display()))
}

/// Installs a filter that stops at questions for the wall clock, and gives the descriptor on which they are answered.
fn filter() -> Result<OwnedFd> {
    const LD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let number = |call: libc::c_long| call as u32;
    let mut program = [
        // struct seccomp_data: the number at 0, the low half of the first argument at 16.
        step(LD, 0, 0, 0),
        #[cfg(target_arch = "x86_64")]
        step(JEQ, number(libc::SYS_time), 6, 0),
        #[cfg(not(target_arch = "x86_64"))]
        step(JEQ, u32::MAX, 6, 0),
        step(JEQ, number(libc::SYS_gettimeofday), 5, 0),
        step(JEQ, number(libc::SYS_clock_gettime), 0, 3),
        step(LD, 16, 0, 0),
        step(JEQ, libc::CLOCK_REALTIME as u32, 2, 0),
        step(JEQ, libc::CLOCK_REALTIME_COARSE as u32, 1, 0),
        step(RET, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RET, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    let fd = nix::errno::Errno::result(fd)? as RawFd;
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn receive(from: &OwnedFd) -> Result<OwnedFd> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .context("taking over the filter")?;
    for part in message.cmsgs().context("taking over the filter")? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel just made it for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    bail!("no descriptor came");
}

/// Answers questions for the time until nobody is left to ask.
fn answer(listener: &OwnedFd, offset: &File) {
    let fd = listener.as_raw_fd();
    loop {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        let polled = unsafe { libc::poll(&mut poll, 1, -1) };
        if polled < 0 {
            continue;
        }
        if poll.revents & libc::POLLIN == 0 {
            return;
        }
        // SAFETY: plain data, which must be zero for the kernel.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a seccomp_notif.
        if unsafe { libc::ioctl(fd, NOTIF_RECV, &mut asked) } < 0 {
            continue;
        }
        let mut bytes = [0; 8];
        let _ = offset.read_exact_at(&mut bytes, 0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let seconds = now.as_secs() as i64 + i64::from_le_bytes(bytes);
        let call = libc::c_long::from(asked.data.nr);
        let (place, rest) = if call == libc::SYS_clock_gettime {
            (asked.data.args[1], i64::from(now.subsec_nanos()))
        } else {
            (asked.data.args[0], i64::from(now.subsec_micros()))
        };
        #[cfg(target_arch = "x86_64")]
        let is_time = call == libc::SYS_time;
        #[cfg(not(target_arch = "x86_64"))]
        let is_time = false;
        let mut told = seconds.to_ne_bytes().to_vec();
        if !is_time {
            told.extend(rest.to_ne_bytes());
        }
        // SAFETY: reads the id only. It says whether the asker still waits: its memory is its own.
        let waits = unsafe { libc::ioctl(fd, NOTIF_ID_VALID, &asked.id) } == 0;
        let mut response = libc::seccomp_notif_resp {
            id: asked.id,
            val: if is_time { seconds } else { 0 },
            error: 0,
            flags: 0,
        };
        if waits && place != 0 {
            let written = File::options()
                .write(true)
                .open(format!("/proc/{}/mem", asked.pid))
                .and_then(|memory| memory.write_all_at(&told, place));
            if written.is_err() {
                response.error = -libc::EFAULT;
            }
        }
        // SAFETY: the kernel reads a seccomp_notif_resp. Who no longer waits needs no answer.
        unsafe { libc::ioctl(fd, NOTIF_SEND, &mut response) };
    }
}
