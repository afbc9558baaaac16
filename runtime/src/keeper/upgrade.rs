//! The keeper replaces itself: `execve` keeps the process, so its children, descriptors and locks stay; its memory goes through a memfd.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::epoll::EpollFlags;
use serde::{Deserialize, Serialize};

use super::container::{Container, Subscriber};
use super::{Client, Exec, Keeper, KeeperConfig, Source, report};
use crate::proto::{Life, Record, Reply, WireErrorKind};
use crate::sys::fd;

/// Everything that the next program needs; descriptors by number. Fields are only ever added, with `#[serde(default)]`.
#[derive(Serialize, Deserialize)]
struct Handover {
    config: KeeperConfig,
    listener: RawFd,
    lock: RawFd,
    nofile: (u64, u64),
    next: u64,
    /// Who asked: client and request.
    asked: (u64, u64),
    /// Number, socket, keeps a stash.
    clients: Vec<(u64, RawFd, bool)>,
    containers: Vec<Passed>,
    /// Number, pid, client.
    execs: Vec<(u64, i32, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Passed {
    index: u32,
    record: Record,
    life: Life,
    is_child: bool,
    pidfd: Option<RawFd>,
    stdin: Option<RawFd>,
    outputs: [Option<RawFd>; 2],
    partial: [Vec<u8>; 2],
    #[serde(default)]
    seen: [usize; 2],
    error: Option<RawFd>,
    subscribers: Vec<(u64, [Option<RawFd>; 2])>,
}

impl Keeper {
    /// Carries out a wanted upgrade as soon as nothing is under way. Returns only if there is none or it failed.
    pub(super) fn try_upgrade(&mut self) {
        if self.upgrade.is_none() || !self.pending.is_empty() {
            return;
        }
        if self.containers.values().any(|c| c.starting.is_some()) {
            return;
        }
        let Some((client, seq, program)) = self.upgrade.take() else {
            return;
        };
        // Clients that do not keep up will connect again.
        let behind: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| !c.queue.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in behind {
            self.drop_client(id);
        }
        let handover = self.hand_over((client, seq));
        let error = become_program(&program, &handover);
        handover.keep_over_exec(false);
        report(&format!("upgrade to {program} failed: {error}"));
        let text = format!("upgrade to {program}: {error}");
        self.refuse(client, seq, WireErrorKind::Invalid, text);
    }

    // 32-bit systems have narrower limits.
    #[allow(clippy::unnecessary_cast)]
    fn hand_over(&self, asked: (u64, u64)) -> Handover {
        let raw = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
        let containers = self
            .containers
            .iter()
            .map(|(index, c)| Passed {
                index: *index,
                record: c.record.clone(),
                life: c.life.clone(),
                is_child: c.is_child,
                pidfd: raw(&c.pidfd),
                stdin: raw(&c.stdin),
                outputs: [raw(&c.outputs[0]), raw(&c.outputs[1])],
                partial: c.partial.clone(),
                seen: c.seen,
                error: raw(&c.error),
                subscribers: c
                    .subscribers
                    .iter()
                    .map(|s| (s.id, [raw(&s.fds[0]), raw(&s.fds[1])]))
                    .collect(),
            })
            .collect();
        Handover {
            config: self.config.clone(),
            listener: self.listener.as_raw_fd(),
            lock: self.lock.as_raw_fd(),
            nofile: (self.nofile.rlim_cur as u64, self.nofile.rlim_max as u64),
            next: self.next,
            asked,
            clients: self
                .clients
                .iter()
                .map(|(id, c)| (*id, c.socket.as_raw_fd(), c.stash))
                .collect(),
            containers,
            execs: self
                .execs
                .iter()
                .map(|(id, e)| (*id, e.pid, e.client))
                .collect(),
        }
    }
}

impl Handover {
    fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.listener, self.lock];
        all.extend(self.clients.iter().map(|(_, fd, _)| *fd));
        for c in &self.containers {
            let own = [c.pidfd, c.stdin, c.error, c.outputs[0], c.outputs[1]];
            all.extend(own.into_iter().flatten());
            all.extend(c.subscribers.iter().flat_map(|(_, fds)| fds).flatten());
        }
        all
    }

    fn keep_over_exec(&self, keep: bool) {
        for fd in self.descriptors() {
            let _ = fd::set_cloexec(fd, !keep);
        }
    }
}

fn become_program(program: &str, handover: &Handover) -> io::Error {
    let exec = || -> io::Result<()> {
        // SAFETY: a constant name; the result is a new descriptor or an error.
        let memory = unsafe { libc::memfd_create(c"keeper".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let mut memory = unsafe { File::from_raw_fd(memory) };
        memory.write_all(&serde_json::to_vec(handover)?)?;
        let path = CString::new(program)?;
        let number = CString::new(memory.as_raw_fd().to_string())?;
        handover.keep_over_exec(true);
        fd::set_cloexec(memory.as_raw_fd(), false)?;
        let args = [&path, c"keeper", c"--resume", &number];
        let env: Vec<CString> = Vec::new();
        nix::unistd::execve(&path, &args, &env)?;
        Ok(())
    };
    match exec() {
        Ok(()) => io::Error::other("execve returned"),
        Err(e) => e,
    }
}

/// The new program takes over from the memfd `number`.
pub(super) fn resume(number: &str) -> io::Result<Keeper> {
    let number: RawFd = number
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "--resume takes a number"))?;
    // SAFETY: all descriptors here were left open for us by our former self, and nobody else in this process knows them.
    let take = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
    let mut memory = File::from(take(number));
    let mut bytes = Vec::new();
    memory.rewind()?;
    memory.read_to_end(&mut bytes)?;
    let handover: Handover = serde_json::from_slice(&bytes)?;
    handover.keep_over_exec(false);
    let nofile = libc::rlimit {
        rlim_cur: handover.nofile.0 as libc::rlim_t,
        rlim_max: handover.nofile.1 as libc::rlim_t,
    };
    let (mut keeper, _) = Keeper::assemble(
        handover.config,
        take(handover.lock),
        take(handover.listener),
        nofile,
    )?;
    keeper.next = handover.next;
    for (id, fd, stash) in handover.clients {
        let client = Client {
            socket: take(fd),
            stash,
            queue: VecDeque::new(),
        };
        keeper.watch(fd, Source::Client(id), EpollFlags::EPOLLIN)?;
        keeper.clients.insert(id, client);
    }
    for passed in handover.containers {
        let mut container = Container::new(passed.record, passed.life);
        container.is_child = passed.is_child;
        container.pidfd = passed.pidfd.map(take);
        container.stdin = passed.stdin.map(take);
        container.outputs = passed.outputs.map(|fd| fd.map(take));
        container.partial = passed.partial;
        container.seen = passed.seen;
        container.error = passed.error.map(take);
        for (id, fds) in passed.subscribers {
            let fds = fds.map(|fd| fd.map(take));
            container.subscribers.push(Subscriber::new(id, fds));
        }
        keeper.insert(passed.index, container)?;
        keeper.watch_subscribers(passed.index)?;
    }
    for (id, pid, client) in handover.execs {
        keeper.execs.insert(id, Exec { pid, client });
    }
    let (client, seq) = handover.asked;
    keeper.reply(client, seq, Ok(Reply::Done));
    Ok(keeper)
}

impl Keeper {
    fn watch_subscribers(&mut self, index: u32) -> io::Result<()> {
        let Some(container) = self.containers.get(&index) else {
            return Ok(());
        };
        let all: Vec<(RawFd, u64)> = container
            .subscribers
            .iter()
            .flat_map(|s| s.fds.iter().flatten().map(|fd| (fd.as_raw_fd(), s.id)))
            .collect();
        for (fd, id) in all {
            self.watch(fd, Source::Subscriber(index, id), EpollFlags::empty())?;
        }
        Ok(())
    }
}
