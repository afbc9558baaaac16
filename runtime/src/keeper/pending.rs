//! Work that forked children do: starting it, hearing of it, and what becomes of it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::epoll::EpollFlags;

use super::children::{self, ChildMessage};
use super::container::Container;
use super::logs::Stream;
use super::{Exec, Keeper, Pending, Source, Work, report};
use crate::proto::{
    Event, ExecPlan, Life, Message, Record, Reply, SandboxPlan, WireError, WireErrorKind,
};
use crate::sys::{fd, process as sys_process, socket};

impl Keeper {
    /// Forks `body` with a result socket, to be heard of later.
    pub(super) fn fork(
        &mut self,
        client: u64,
        seq: u64,
        work: Work,
        stdio: [RawFd; 3],
        keep: &[RawFd],
        body: impl FnOnce(RawFd),
    ) {
        let ends = socket::pair();
        let (ours, theirs) = match ends {
            Ok(ends) => ends,
            Err(e) => return self.refuse(client, seq, WireErrorKind::Create, e.to_string()),
        };
        let result = theirs.as_raw_fd();
        let mut kept = keep.to_vec();
        kept.push(result);
        let group = match &work {
            Work::Exec { group } => group.as_ref().map(AsFd::as_fd),
            _ => None,
        };
        // SAFETY: the keeper has one thread.
        let forked = unsafe {
            children::spawn(stdio, &kept, self.nofile, group, || {
                // Unwinding must not reach the keeper's loop in this copy of it.
                let _ = catch_unwind(AssertUnwindSafe(|| body(result)));
            })
        };
        drop(theirs);
        let child = match forked {
            Ok(child) => child,
            Err(e) => return self.refuse(client, seq, WireErrorKind::Create, format!("fork: {e}")),
        };
        let fd = ours.as_raw_fd();
        let _ = fd::set_nonblocking(ours.as_fd(), true);
        let _ = self.watch(fd, Source::Child, EpollFlags::EPOLLIN);
        let pending = Pending {
            socket: ours,
            child,
            client,
            seq,
            work,
            terminal: None,
            pid: None,
            failure: None,
            detail: None,
        };
        self.pending.insert(fd, pending);
    }

    pub(super) fn create_sandbox(&mut self, client: u64, seq: u64, plan: SandboxPlan) {
        let null = self.dev_null.as_raw_fd();
        self.fork(client, seq, Work::Sandbox, [null; 3], &[], |result| {
            children::sandbox(&plan, result);
        });
    }

    pub(super) fn create(&mut self, client: u64, seq: u64, record: Record) {
        let creating = self.pending.values().any(|p| match &p.work {
            Work::Create(c) => c.record.id == record.id,
            _ => false,
        });
        if creating || self.ids.contains_key(&record.id) {
            return self.refuse(client, seq, WireErrorKind::Exists, record.id);
        }
        let mut container = Container::new(record, Life::default());
        let null = self.dev_null.as_raw_fd();
        let streams = Streams::new(&container.record);
        let mut streams = match streams {
            Ok(streams) => streams,
            Err(e) => return self.refuse(client, seq, WireErrorKind::Create, format!("pipe: {e}")),
        };
        container.is_child = true;
        container.stdin = streams.stdin.take();
        container.outputs = std::mem::take(&mut streams.outputs);
        container.error = streams.error.take();
        let run = self.config.container_run(&container.record.id);
        let theirs = |fd: &Option<OwnedFd>| fd.as_ref().map_or(null, AsRawFd::as_raw_fd);
        let [stdin, stdout, stderr, error] = &streams.theirs;
        let stdio = [theirs(stdin), theirs(stdout), theirs(stderr)];
        let error = theirs(error);
        let work = Work::Create(Box::new(container));
        self.fork(client, seq, work, stdio, &[error], |result| {
            children::create(&run, result, error);
        });
    }

    pub(super) fn exec(
        &mut self,
        client: u64,
        seq: u64,
        id: &str,
        plan: ExecPlan,
        fds: Vec<OwnedFd>,
    ) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let container = &self.containers[&index];
        let running = container.life.exit.is_none() && container.life.started_at != 0;
        let (true, Some(pidfd)) = (running, &container.pidfd) else {
            let text = format!("container {id} is not running");
            return self.refuse(client, seq, WireErrorKind::State, text);
        };
        let wanted = if plan.tty { 0 } else { 3 };
        if fds.len() != wanted {
            return self.refuse(
                client,
                seq,
                WireErrorKind::Invalid,
                "wrong number of descriptors",
            );
        }
        let null = self.dev_null.as_raw_fd();
        let stdio = match fds.as_slice() {
            [a, b, c] => [a.as_raw_fd(), b.as_raw_fd(), c.as_raw_fd()],
            _ => [null; 3],
        };
        let pidfd = pidfd.as_raw_fd();
        let init = container.life.pid;
        let run = self.config.container_run(id);
        let cgroups = self.cgroups.clone();
        let group = self.cgroups.open_of(init);
        self.fork(
            client,
            seq,
            Work::Exec { group },
            stdio,
            &[pidfd],
            |result| {
                children::exec(&run, init, pidfd, &cgroups, plan, result);
            },
        );
    }

    /// A forked child has something to say, or has closed its socket.
    pub(super) fn hear_child(&mut self, fd: RawFd) {
        loop {
            let Some(pending) = self.pending.get_mut(&fd) else {
                return;
            };
            let (n, fds) = match socket::recv(pending.socket.as_fd(), &mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok((0, _)) | Err(_) => return self.conclude(fd),
                Ok(message) => message,
            };
            match serde_json::from_slice(&self.buffer[..n]) {
                Ok(ChildMessage::Terminal) => pending.terminal = fds.into_iter().next(),
                Ok(ChildMessage::Process { pid }) => {
                    pending.pid = Some(pid);
                    // An exec has still to become its program: the end of the socket tells.
                    if !matches!(pending.work, Work::Exec { .. }) {
                        return self.conclude(fd);
                    }
                }
                Ok(ChildMessage::Detail { text }) => drop(pending.detail.get_or_insert(text)),
                Ok(ChildMessage::Failed { program, text }) => {
                    let kind = if program {
                        WireErrorKind::Exec
                    } else {
                        WireErrorKind::Create
                    };
                    // The first is the cause, what follows its consequences.
                    pending.failure.get_or_insert(WireError::new(kind, text));
                }
                Err(e) => report(&format!("a child said what nobody understands: {e}")),
            }
        }
    }

    /// The forked child itself has ended. An exec's process may go on.
    pub(super) fn child_ended(&mut self, fd: RawFd) {
        self.hear_child(fd);
        let ended = self
            .pending
            .get(&fd)
            .is_some_and(|p| p.failure.is_some() || p.pid.is_none());
        if ended {
            self.conclude(fd);
        }
    }

    pub(super) fn conclude(&mut self, fd: RawFd) {
        let Some(pending) = self.pending.remove(&fd) else {
            return;
        };
        self.unwatch(fd);
        let Pending {
            client,
            seq,
            work,
            terminal,
            pid,
            failure,
            detail,
            ..
        } = pending;
        let pid = match (failure, pid) {
            (None, Some(pid)) => pid,
            (failure, _) => {
                let unknown = || WireError::new(WireErrorKind::Create, "the runtime's child died");
                let mut failure = failure.unwrap_or_else(unknown);
                if let (WireErrorKind::Create, Some(detail)) = (failure.kind, detail) {
                    failure.text = format!("{}: {detail}", failure.text);
                }
                return self.reply(client, seq, Err(failure));
            }
        };
        match work {
            Work::Sandbox => self.reply(client, seq, Ok(Reply::Sandbox { pid })),
            Work::Exec { .. } => self.exec_runs(client, seq, pid, terminal),
            Work::Create(container) => self.created(client, seq, *container, pid, terminal),
        }
    }

    pub(super) fn exec_runs(&mut self, client: u64, seq: u64, pid: i32, terminal: Option<OwnedFd>) {
        let exec_id = self.fresh();
        let message = Message::Reply {
            seq,
            result: Ok(Reply::Exec { exec_id, pid }),
        };
        let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
        self.send(client, &message, &fds);
        if let Some(at) = self.early.iter().position(|(p, _)| *p == pid) {
            let (_, status) = self.early.swap_remove(at);
            self.send(client, &Message::ExecExited { exec_id, status }, &[]);
        } else {
            self.execs.insert(exec_id, Exec { pid, client });
        }
    }

    pub(super) fn created(
        &mut self,
        client: u64,
        seq: u64,
        mut container: Container,
        pid: i32,
        terminal: Option<OwnedFd>,
    ) {
        container.life = Life {
            pid,
            ticks: sys_process::start_ticks(pid).unwrap_or(0),
            started_at: 0,
            exit: None,
            cursor: self.free_cursor(),
        };
        for stream in Stream::BOTH {
            if let Some(cursor) = self.cursors.of(container.life.cursor, stream) {
                cursor.done();
            }
        }
        // Not reaped by us yet, so the number is its own.
        container.pidfd = sys_process::pidfd_open(pid).ok();
        if let Some(master) = terminal {
            let _ = fd::set_nonblocking(master.as_fd(), true);
            container.outputs[0] = Some(master);
        }
        self.save_life(&container);
        let id = container.record.id.clone();
        let index = self.fresh() as u32;
        if let Err(e) = self.insert(index, container) {
            report(&format!("container {id}: {e}"));
        }
        if let Some(at) = self.early.iter().position(|(p, _)| *p == pid) {
            let (_, status) = self.early.swap_remove(at);
            self.note_exit(index, status, false);
        }
        let stashing: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| c.stash)
            .map(|(id, _)| *id)
            .collect();
        for stash in stashing {
            self.send_stash(stash, index);
        }
        self.reply(client, seq, Ok(Reply::Done));
        self.broadcast(Event::Created { id });
    }

    /// The lowest number that no container has.
    pub(super) fn free_cursor(&self) -> u32 {
        let used: BTreeSet<u32> = self.containers.values().map(|c| c.life.cursor).collect();
        (1..).find(|n| !used.contains(n)).unwrap_or(0)
    }
}

/// The pipes of a container to be made.
struct Streams {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    error: Option<OwnedFd>,
    /// The container's ends: stdin, stdout, stderr, error.
    theirs: [Option<OwnedFd>; 4],
}

impl Streams {
    fn new(record: &Record) -> io::Result<Self> {
        let mut streams = Streams {
            stdin: None,
            outputs: [None, None],
            error: None,
            theirs: [None, None, None, None],
        };
        if record.stdin && !record.terminal {
            let (theirs, ours) = fd::pipe()?;
            fd::set_nonblocking(ours.as_fd(), true)?;
            streams.stdin = Some(ours);
            // With `stdin_once` the container is to see the end when we close ours.
            streams.theirs[0] = Some(match record.stdin_once {
                true => theirs,
                false => fd::both_ways(&theirs)?,
            });
        }
        if !record.terminal {
            for slot in 0..2 {
                let (end, theirs) = fd::pipe()?;
                streams.outputs[slot] = Some(fd::both_ways(&end)?);
                // If keeper and agent die together, the container waits for the next keeper instead of dying of SIGPIPE.
                streams.theirs[slot + 1] = Some(fd::both_ways(&theirs)?);
            }
        }
        let (ours, theirs) = fd::pipe()?;
        streams.error = Some(ours);
        streams.theirs[3] = Some(theirs);
        Ok(streams)
    }
}
