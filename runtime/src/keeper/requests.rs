//! What clients ask of the keeper, and how forked children answer.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::epoll::EpollFlags;

use super::container::{Container, Subscriber};
use super::logs::Stream;
use super::{Keeper, OCI_DIRECTORY, OCI_NAME, PROTOCOL_VERSION, Source, now_ns};
use crate::proto::{Event, Held, Message, Op, Reply, Request, WireErrorKind};
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
    pub(super) fn find(&mut self, client: u64, seq: u64, id: &str) -> Option<u32> {
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
            let at = now_ns();
            container.life.started_at = at;
            let id = container.record.id.clone();
            let pid = container.life.pid;
            if let Some(container) = self.containers.get(&index) {
                self.save_life(container);
            }
            if let Some((client, seq)) = waiter {
                self.reply(client, seq, Ok(Reply::Started { at }));
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
