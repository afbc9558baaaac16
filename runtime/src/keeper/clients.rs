//! The keeper's side of its connections.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::epoll::EpollFlags;

use super::logs::Stream;
use super::{Client, Keeper, Source, report};
use crate::proto::{Event, Held, Message, Reply, WireError, WireErrorKind};
use crate::sys::socket;

/// More unsent messages than this and the client is cut off; it will connect again and list.
const MAX_QUEUE: usize = 4096;

impl Keeper {
    pub(super) fn accept(&mut self) {
        while let Ok(socket) = socket::accept_from(self.listener.as_fd()) {
            let id = self.fresh();
            if self
                .watch(socket.as_raw_fd(), Source::Client(id), EpollFlags::EPOLLIN)
                .is_err()
            {
                continue;
            }
            let client = Client {
                socket,
                stash: false,
                queue: VecDeque::new(),
            };
            self.clients.insert(id, client);
        }
    }

    pub(super) fn drop_client(&mut self, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            self.unwatch(client.socket.as_raw_fd());
        }
    }

    pub(super) fn send(&mut self, client: u64, message: &Message, fds: &[RawFd]) {
        let Some(target) = self.clients.get_mut(&client) else {
            return;
        };
        let Ok(bytes) = serde_json::to_vec(message) else {
            return;
        };
        let result = if target.queue.is_empty() {
            socket::send(target.socket.as_fd(), &bytes, fds)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        };
        match result {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && target.queue.len() < MAX_QUEUE => {
                let copies = fds
                    .iter()
                    // SAFETY: the caller's descriptors are open across this call.
                    .filter_map(|fd| {
                        unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) }
                            .try_clone_to_owned()
                            .ok()
                    })
                    .collect();
                target.queue.push_back((bytes, copies));
                let fd = target.socket.as_raw_fd();
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
                let _ = self.watch(fd, Source::Client(client), flags);
            }
            Err(_) => self.drop_client(client),
        }
    }

    pub(super) fn flush_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        while let Some((bytes, fds)) = client.queue.front() {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            match socket::send(client.socket.as_fd(), bytes, &raw) {
                Ok(()) => drop(client.queue.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.drop_client(id),
            }
        }
        let fd = client.socket.as_raw_fd();
        let _ = self.watch(fd, Source::Client(id), EpollFlags::EPOLLIN);
    }

    pub(super) fn reply(&mut self, client: u64, seq: u64, result: Result<Reply, WireError>) {
        self.send(client, &Message::Reply { seq, result }, &[]);
    }

    pub(super) fn refuse(
        &mut self,
        client: u64,
        seq: u64,
        kind: WireErrorKind,
        text: impl Into<String>,
    ) {
        self.reply(client, seq, Err(WireError::new(kind, text)));
    }

    pub(super) fn broadcast(&mut self, event: Event) {
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        let message = Message::Event(event);
        for client in clients {
            self.send(client, &message, &[]);
        }
    }

    /// Gives a client copies of all that a new keeper would need.
    pub(super) fn send_stash(&mut self, client: u64, index: u32) {
        let Some(container) = self.containers.get(&index) else {
            return;
        };
        if container.life.exit.is_some() {
            return;
        }
        let mut fds = Vec::new();
        let mut there = |fd: Option<&OwnedFd>| {
            fds.extend(fd.map(AsRawFd::as_raw_fd));
            fd.is_some()
        };
        let held = Held {
            pidfd: there(container.pidfd.as_ref()),
            stdin: there(container.stdin.as_ref()),
            stdout: there(container.output(Stream::Stdout)),
            stderr: there(container.output(Stream::Stderr)),
            error: there(container.error.as_ref()),
        };
        let message = Message::Stash {
            id: container.record.id.clone(),
            pid: container.life.pid,
            held,
        };
        self.send(client, &message, &fds);
    }

    pub(super) fn serve(&mut self, id: u64, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.flush_client(id);
        }
        // One message per turn: a busy client does not starve logs.
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        match socket::recv(client.socket.as_fd(), &mut self.buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok((0, _)) | Err(_) => self.drop_client(id),
            Ok((n, fds)) => match serde_json::from_slice(&self.buffer[..n]) {
                Ok(request) => self.handle(id, request, fds),
                Err(e) => {
                    report(&format!(
                        "a client sent what this keeper does not understand: {e}"
                    ));
                    self.drop_client(id);
                }
            },
        }
    }
}
