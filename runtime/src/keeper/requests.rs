//! What clients ask of the keeper, and how forked children answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::epoll::EpollFlags;

use super::children::{self, ChildMessage};
use super::container::{Container, Subscriber};
use super::logs::Stream;
use super::{
    Exec, Keeper, OCI_DIRECTORY, OCI_NAME, PROTOCOL_VERSION, Pending, Source, Work, now_ns, report,
};
use crate::proto::{
    Event, ExecPlan, Held, Life, Message, Op, Record, Reply, Request, SandboxPlan, WireError,
    WireErrorKind,
};
use crate::sys::{fd, process as sys_process, socket};

impl Keeper {
    pub(super) fn handle(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let seq = request.seq;
        match request.op {
            Op::Hello { stash } => self.hello(client, seq, stash),
            Op::Adopt { id, held } => self.adopt(client, seq, &id, held, fds),
            Op::AdoptDone => self.adopt_done(client, seq),
            Op::Reaped { pid, status } => {
                self.ended(pid, status);
                self.reply(client, seq, Ok(Reply::Done));
            }
            Op::CreateSandbox(plan) => self.create_sandbox(client, seq, plan),
            Op::Create { record } => self.create(client, seq, record),
            Op::Start { id } => self.start_container(client, seq, &id),
            Op::Kill { id, signal } => self.kill(client, seq, &id, signal),
            Op::Remove { id } => self.remove(client, seq, &id),
            Op::Get { id } => {
                if let Some(container) = self.find(client, seq, &id) {
                    let reply = describe(&self.containers[&container]);
                    self.reply(client, seq, Ok(reply));
                }
            }
            Op::List => {
                let all: Vec<Reply> = self.containers.values().map(describe).collect();
                for reply in all {
                    self.reply(client, seq, Ok(reply));
                }
                self.reply(client, seq, Ok(Reply::Done));
            }
            Op::Exec { id, plan } => self.exec(client, seq, &id, plan, fds),
            Op::KillExec { exec_id, signal } => {
                if let Some(exec) = self.execs.get(&exec_id) {
                    // Its own session and group, so what it has started goes with it. We are its parent: the number is still its own.
                    // SAFETY: integers only.
                    unsafe {
                        libc::kill(-exec.pid, signal);
                        libc::kill(exec.pid, signal);
                    }
                }
                self.reply(client, seq, Ok(Reply::Done));
            }
            Op::Attach { id } => self.attach(client, seq, &id, fds),
            Op::EndStdin { id } => self.end_stdin(client, seq, &id),
            Op::ReopenLog { id } => self.rotate_log(client, seq, &id),
            Op::Upgrade { program } => match &self.upgrade {
                Some(_) => {
                    self.refuse(client, seq, WireErrorKind::State, "an upgrade is under way")
                }
                None => self.upgrade = Some((client, seq, program)),
            },
        }
    }

    /// The container's index, or the client is told that there is none.
    fn find(&mut self, client: u64, seq: u64, id: &str) -> Option<u32> {
        let found = self.ids.get(id).copied();
        if found.is_none() {
            self.refuse(client, seq, WireErrorKind::NotFound, id);
        }
        found
    }

    fn hello(&mut self, client: u64, seq: u64, stash: bool) {
        if let Some(c) = self.clients.get_mut(&client) {
            c.stash = stash;
        }
        let pid = std::process::id() as i32;
        let version = PROTOCOL_VERSION;
        self.reply(client, seq, Ok(Reply::Hello { pid, version }));
        if stash {
            let all: Vec<u32> = self.containers.keys().copied().collect();
            for index in all {
                self.send_stash(client, index);
            }
        }
    }

    fn adopt(&mut self, client: u64, seq: u64, id: &str, held: Held, fds: Vec<OwnedFd>) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        if fds.len() != held.count() {
            return self.refuse(
                client,
                seq,
                WireErrorKind::Invalid,
                "wrong number of descriptors",
            );
        }
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        if container.life.exit.is_none() && !container.is_child {
            let mut fds = fds.into_iter();
            let mut next = |there: bool| if there { fds.next() } else { None };
            let pidfd = next(held.pidfd);
            container.stdin = next(held.stdin).or(container.stdin.take());
            for (slot, there) in [held.stdout, held.stderr].into_iter().enumerate() {
                container.outputs[slot] = next(there).or(container.outputs[slot].take());
            }
            container.error = next(held.error);
            if container.pidfd.is_none() {
                // It ended before we came; its status may be there.
                container.pidfd = pidfd;
                self.adopted_ended(index);
            }
            self.take_outputs(index);
        }
        self.reply(client, seq, Ok(Reply::Done));
    }

    /// Goes on with the output of an adopted container.
    fn take_outputs(&mut self, index: u32) {
        self.recover_log(index);
        for stream in Stream::BOTH {
            self.watch_output(index, stream);
        }
    }

    /// What nobody has handed over is looked for in the processes themselves.
    fn adopt_done(&mut self, client: u64, seq: u64) {
        let orphans: Vec<u32> = self
            .containers
            .iter()
            .filter(|(_, c)| c.life.exit.is_none() && !c.is_child && !c.record.terminal)
            .filter(|(_, c)| c.pidfd.is_some() && c.outputs.iter().all(Option::is_none))
            .map(|(index, _)| *index)
            .collect();
        for index in orphans {
            if let Some(container) = self.containers.get_mut(&index) {
                let pid = container.life.pid;
                for slot in 0..2 {
                    container.outputs[slot] = reopen_pipe(pid, slot + 1);
                }
                if container.record.stdin && container.stdin.is_none() {
                    container.stdin = reopen_pipe(pid, 0);
                }
            }
            self.take_outputs(index);
        }
        // Who is gone and was not told about will not be told about.
        let gone: Vec<u32> = self
            .containers
            .iter()
            .filter(|(_, c)| c.life.exit.is_none() && !c.is_child && c.pidfd.is_none())
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.note_lost(index);
        }
        self.reply(client, seq, Ok(Reply::Done));
    }

    /// Forks `body` with a result socket, to be heard of later.
    fn fork(
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

    fn create_sandbox(&mut self, client: u64, seq: u64, plan: SandboxPlan) {
        let null = self.dev_null.as_raw_fd();
        self.fork(client, seq, Work::Sandbox, [null; 3], &[], |result| {
            children::sandbox(&plan, result);
        });
    }

    fn create(&mut self, client: u64, seq: u64, record: Record) {
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

    fn exec(&mut self, client: u64, seq: u64, id: &str, plan: ExecPlan, fds: Vec<OwnedFd>) {
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
        self.fork(client, seq, Work::Exec { group }, stdio, &[pidfd], |result| {
            children::exec(&run, init, pidfd, &cgroups, plan, result);
        });
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

    fn conclude(&mut self, fd: RawFd) {
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

    fn exec_runs(&mut self, client: u64, seq: u64, pid: i32, terminal: Option<OwnedFd>) {
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

    fn created(
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
    fn free_cursor(&self) -> u32 {
        let used: BTreeSet<u32> = self.containers.values().map(|c| c.life.cursor).collect();
        (1..).find(|n| !used.contains(n)).unwrap_or(0)
    }

    fn start_container(&mut self, client: u64, seq: u64, id: &str) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let notify = self
            .config
            .container_run(id)
            .join(OCI_DIRECTORY)
            .join(OCI_NAME);
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let life = &container.life;
        if life.exit.is_some() || life.started_at != 0 || container.starting.is_some() {
            let text = format!("container {id} was started already");
            return self.refuse(client, seq, WireErrorKind::State, text);
        }
        // By way of /proc, since socket paths are short.
        let told = fs::File::open(&notify).and_then(|directory| {
            let path = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
            let mut stream = fs::File::from(socket::connect_stream(path.as_ref())?);
            stream.write_all(b"start container")
        });
        match told {
            Ok(()) => {
                container.starting = Some((client, seq));
                match container.error.as_ref().map(AsRawFd::as_raw_fd) {
                    Some(fd) => {
                        let _ = self.watch(fd, Source::Error(index), EpollFlags::EPOLLIN);
                    }
                    // An adopted one whose pipe is lost: it will run, or end.
                    None => self.started(index),
                }
            }
            Err(e) => {
                let text = format!("start container {id}: {e}");
                self.refuse(client, seq, WireErrorKind::State, text);
            }
        }
    }

    /// The process has become its program, or has said why not.
    pub(super) fn started(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let text = std::mem::take(&mut container.error_text);
        let waiter = container.starting.take();
        if text.is_empty() {
            container.life.started_at = now_ns();
            let id = container.record.id.clone();
            let pid = container.life.pid;
            if let Some(container) = self.containers.get(&index) {
                self.save_life(container);
            }
            if let Some((client, seq)) = waiter {
                self.reply(client, seq, Ok(Reply::Done));
            }
            self.broadcast(Event::Started { id, pid });
        } else if let Some((client, seq)) = waiter {
            let text = String::from_utf8_lossy(&text);
            self.refuse(client, seq, WireErrorKind::Exec, text);
        }
    }

    fn kill(&mut self, client: u64, seq: u64, id: &str, signal: i32) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let killed = match &self.containers[&index].pidfd {
            Some(pidfd) => sys_process::pidfd_kill(pidfd.as_fd(), signal),
            None => Ok(()),
        };
        match killed {
            Ok(()) => self.reply(client, seq, Ok(Reply::Done)),
            Err(e) => {
                let text = format!("signal {signal} to container {id}: {e}");
                self.refuse(client, seq, WireErrorKind::Invalid, text);
            }
        }
    }

    fn remove(&mut self, client: u64, seq: u64, id: &str) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        if container.life.exit.is_some() {
            self.forget(index);
            return self.reply(client, seq, Ok(Reply::Done));
        }
        if let Some(pidfd) = &container.pidfd {
            let _ = sys_process::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
        }
        container.removing.push((client, seq));
    }

    fn attach(&mut self, client: u64, seq: u64, id: &str, fds: Vec<OwnedFd>) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let subscriber = self.fresh();
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        if container.life.exit.is_some() {
            let text = format!("container {id} is not running");
            return self.refuse(client, seq, WireErrorKind::State, text);
        }
        let mut watched = Vec::new();
        let mut slots = [None, None];
        for (slot, fd) in slots.iter_mut().zip(fds) {
            let _ = fd::set_nonblocking(fd.as_fd(), true);
            watched.push(fd.as_raw_fd());
            *slot = Some(fd);
        }
        let input = if container.record.terminal {
            container.output(Stream::Stdout)
        } else {
            container.stdin.as_ref()
        };
        let copy = input.and_then(|fd| fd.try_clone().ok());
        container
            .subscribers
            .push(Subscriber::new(subscriber, slots));
        for fd in watched {
            let source = Source::Subscriber(index, subscriber);
            let _ = self.watch(fd, source, EpollFlags::empty());
        }
        let message = Message::Reply {
            seq,
            result: Ok(Reply::Done),
        };
        let copies: Vec<RawFd> = copy.iter().map(AsRawFd::as_raw_fd).collect();
        self.send(client, &message, &copies);
    }

    fn end_stdin(&mut self, client: u64, seq: u64, id: &str) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        if let Some(container) = self.containers.get_mut(&index)
            && container.record.stdin_once
        {
            if container.record.terminal {
                // A terminal has no end of input but the character for it.
                if let Some(master) = container.output(Stream::Stdout) {
                    let _ = nix::unistd::write(master, &[4]);
                }
            } else {
                container.stdin = None;
                let id = id.to_string();
                let clients: Vec<u64> = self.clients.keys().copied().collect();
                for other in clients {
                    self.send(other, &Message::StdinClosed { id: id.clone() }, &[]);
                }
            }
        }
        self.reply(client, seq, Ok(Reply::Done));
    }

    fn rotate_log(&mut self, client: u64, seq: u64, id: &str) {
        let Some(index) = self.find(client, seq, id) else {
            return;
        };
        let rotated = match self.containers.get_mut(&index).and_then(|c| c.log.as_mut()) {
            Some(log) => log.rotate(),
            None => Ok(()),
        };
        match rotated {
            Ok(()) => self.reply(client, seq, Ok(Reply::Done)),
            Err(e) => {
                let text = format!("rotate the log of container {id}: {e}");
                self.refuse(client, seq, WireErrorKind::Create, text);
            }
        }
    }
}

fn describe(container: &Container) -> Reply {
    Reply::Container {
        record: container.record.clone(),
        life: container.life.clone(),
    }
}

/// A pipe that a process has open, open both ways.
fn reopen_pipe(pid: i32, fd: usize) -> Option<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{fd}");
    if !fs::read_link(&path)
        .ok()?
        .to_string_lossy()
        .starts_with("pipe:")
    {
        return None;
    }
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    options.open(path).ok().map(OwnedFd::from)
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
