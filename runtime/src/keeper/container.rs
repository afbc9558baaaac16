//! A container in the keeper's memory, and what becomes of its output.

use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::cursor::{self, Unfinished};
use super::logs::{self, LogFile, Stream};
use super::{Keeper, Source, spool};
use crate::proto::{Life, Record};

/// An attached client that takes no output for so long is cut off: until then it holds back the container, as with other runtimes.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// How long an agent has to tell a status that only it can know.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

/// A pipe's default capacity.
const BUFFER: usize = 64 * 1024;

/// One attached client: pipes to copy output into.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) id: u64,
    pub(super) fds: [Option<OwnedFd>; 2],
    /// What the pipe did not take; while there is any, the container's stream is not read.
    waiting: [Vec<u8>; 2],
    stalled: Option<Instant>,
    /// The container has ended: close when everything was taken.
    ending: bool,
}

impl Subscriber {
    pub(super) fn new(id: u64, fds: [Option<OwnedFd>; 2]) -> Self {
        Subscriber {
            id,
            fds,
            waiting: [Vec::new(), Vec::new()],
            stalled: None,
            ending: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.iter().all(Vec::is_empty)
    }
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: Record,
    pub(super) life: Life,
    /// We may wait for it; adopted ones are somebody else's children.
    pub(super) is_child: bool,
    pub(super) pidfd: Option<OwnedFd>,
    /// Writing end; none with a terminal.
    pub(super) stdin: Option<OwnedFd>,
    /// Reading ends, open both ways so that they can be asked for room; or the terminal's master and nothing.
    pub(super) outputs: [Option<OwnedFd>; 2],
    /// Unfinished lines of a terminal. Those of pipes stay in the pipe.
    pub(super) partial: [Vec<u8>; 2],
    /// How much of what is still in the pipes was copied to attached clients.
    pub(super) seen: [usize; 2],
    /// Reading end of the pipe that tells whether the program could be run.
    pub(super) error: Option<OwnedFd>,
    pub(super) error_text: Vec<u8>,
    pub(super) log: Option<LogFile>,
    pub(super) subscribers: Vec<Subscriber>,
    /// Who waits for the start, for the removal: client and request.
    pub(super) starting: Option<(u64, u64)>,
    pub(super) removing: Vec<(u64, u64)>,
    /// It has ended, but its status is not known yet.
    pub(super) status_deadline: Option<Instant>,
}

impl Container {
    pub(super) fn new(record: Record, life: Life) -> Self {
        let log = match (&record.log_path, &life.exit) {
            (Some(path), None) => Some(LogFile::open(PathBuf::from(path), record.log_limits)),
            _ => None,
        };
        Container {
            record,
            life,
            is_child: false,
            pidfd: None,
            stdin: None,
            outputs: [None, None],
            partial: [Vec::new(), Vec::new()],
            seen: [0, 0],
            error: None,
            error_text: Vec::new(),
            log,
            subscribers: Vec::new(),
            starting: None,
            removing: Vec::new(),
            status_deadline: None,
        }
    }

    pub(super) fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        self.outputs[stream as usize].as_ref()
    }

    /// The process is gone; somebody may still tell us how.
    pub(super) fn expect_status(&mut self) {
        self.status_deadline
            .get_or_insert_with(|| Instant::now() + STATUS_LIMIT);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let stalled = self
            .subscribers
            .iter()
            .filter_map(|s| s.stalled)
            .map(|since| since + STALL_LIMIT);
        stalled.chain(self.status_deadline).min()
    }

    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let own = [&self.pidfd, &self.stdin, &self.error];
        own.into_iter()
            .chain(&self.outputs)
            .chain(self.subscribers.iter().flat_map(|s| &s.fds))
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect()
    }

    fn has_backlog(&self, stream: Stream) -> bool {
        self.subscribers
            .iter()
            .any(|s| !s.waiting[stream as usize].is_empty())
    }
}

/// Buffers taken from one stream before others have their turn.
const TURN: usize = 8;

impl Keeper {
    pub(super) fn read_output(&mut self, index: u32, stream: Stream) {
        for _ in 0..TURN {
            let more = self.read_once(index, stream);
            let Some(container) = self.containers.get(&index) else {
                return;
            };
            let Some(fd) = container.output(stream).map(AsRawFd::as_raw_fd) else {
                return;
            };
            if container.has_backlog(stream) {
                return self.unwatch(fd);
            }
            if !more {
                return;
            }
        }
        self.watch_output(index, stream);
    }

    /// (Again) waits for output. What is in a pipe without being a whole line is no news, so pipes tell only of arrivals.
    pub(super) fn watch_output(&mut self, index: u32, stream: Stream) {
        let Some(container) = self.containers.get(&index) else {
            return;
        };
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLET, !container.record.terminal);
        if let Some(fd) = container.output(stream).map(AsRawFd::as_raw_fd) {
            let _ = self.watch(fd, Source::Output(index, stream), flags);
        }
    }

    /// Takes one buffer's worth from a stream to the log and the attached clients. False if that was all for now.
    fn read_once(&mut self, index: u32, stream: Stream) -> bool {
        match self.containers.get(&index) {
            Some(container) if container.record.terminal => self.read_terminal(index, stream),
            Some(_) => self.read_pipe(index, stream),
            None => false,
        }
    }

    fn read_pipe(&mut self, index: u32, stream: Stream) -> bool {
        let slot = stream as usize;
        let Some(container) = self.containers.get_mut(&index) else {
            return false;
        };
        let Some(pipe) = &container.outputs[slot] else {
            return false;
        };
        let n = match self.spool.peek(pipe.as_fd(), &mut self.buffer[..BUFFER]) {
            Ok(n) => n,
            Err(e) => {
                super::report(&format!("output of container {}: {e}", container.record.id));
                return false;
            }
        };
        let seen = container.seen[slot];
        let data = &self.buffer[..n];
        let (whole, mut all) = logs::loggable(data);
        if all == 0 && n > 0 && spool::is_full(pipe.as_fd()) {
            // Many small pieces without a line's end: the container waits for room.
            all = n;
        }
        if all == 0 && n <= seen {
            return false;
        }
        let now = logs::timestamp();
        self.lines.clear();
        let mut nothing = Vec::new();
        logs::format_lines(stream, &now, &mut nothing, &data[..whole], &mut self.lines);
        logs::format_piece(stream, &now, &data[whole..all], &mut self.lines);
        container.seen[slot] = n - all;
        self.log_and_take(index, stream, all);
        self.copy_to_subscribers(index, stream, seen.min(n)..n);
        all > 0
    }

    /// Logs `self.lines`, which are the first `all` bytes of the buffer and the pipe, and then takes those out of the pipe.
    fn log_and_take(&mut self, index: u32, stream: Stream, all: usize) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let Some(pipe) = &container.outputs[stream as usize] else {
            return;
        };
        let cursor = self.cursors.of(container.life.cursor, stream);
        if let Some(log) = &mut container.log {
            log.append(&self.lines, cursor);
        }
        if let Some(cursor) = cursor {
            cursor.written(&self.buffer[..all]);
        }
        spool::take(pipe.as_fd(), self.dev_null.as_fd(), all);
        if let Some(cursor) = cursor {
            cursor.done();
        }
        // Give back what an unusual burst of lines took.
        self.lines.shrink_to(BUFFER * 2);
    }

    /// Finishes what a killed keeper was about.
    pub(super) fn recover_log(&mut self, index: u32) {
        for stream in Stream::BOTH {
            let Some(container) = self.containers.get_mut(&index) else {
                return;
            };
            let cursor = self.cursors.of(container.life.cursor, stream);
            let (Some(cursor), Some(pipe)) = (cursor, &container.outputs[stream as usize]) else {
                continue;
            };
            match cursor.unfinished() {
                Unfinished::Nothing => {}
                Unfinished::Cut { size } => {
                    if let Some(log) = &mut container.log {
                        log.cut(size);
                    }
                }
                Unfinished::Take { length, head } => {
                    let n = self.spool.peek(pipe.as_fd(), &mut self.buffer[..BUFFER]);
                    let there = n
                        .is_ok_and(|n| n >= length && cursor::head(&self.buffer[..length]) == head);
                    if there {
                        spool::take(pipe.as_fd(), self.dev_null.as_fd(), length);
                    }
                }
            }
            cursor.done();
        }
    }

    fn read_terminal(&mut self, index: u32, stream: Stream) -> bool {
        let Some(container) = self.containers.get_mut(&index) else {
            return false;
        };
        let Some(fd) = container.output(stream) else {
            return false;
        };
        let n = match nix::unistd::read(fd.as_raw_fd(), &mut self.buffer[..BUFFER]) {
            Ok(n) => n,
            Err(nix::Error::EAGAIN) => return false,
            Err(nix::Error::EINTR) => return true,
            // EIO: nobody has the terminal open any more.
            Err(_) => 0,
        };
        let now = logs::timestamp();
        self.lines.clear();
        let partial = &mut container.partial[stream as usize];
        if n == 0 {
            logs::format_rest(stream, &now, partial, &mut self.lines);
        } else {
            let data = &self.buffer[..n];
            logs::format_lines(stream, &now, partial, data, &mut self.lines);
        }
        if let Some(log) = &mut container.log {
            log.append(&self.lines, None);
        }
        self.lines.shrink_to(BUFFER * 2);
        if n == 0 {
            self.end_output(index, stream);
            return false;
        }
        self.copy_to_subscribers(index, stream, 0..n);
        true
    }

    fn end_output(&mut self, index: u32, stream: Stream) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let mut gone = Vec::new();
        gone.extend(container.outputs[stream as usize].take());
        for subscriber in &mut container.subscribers {
            if subscriber.waiting[stream as usize].is_empty() {
                gone.extend(subscriber.fds[stream as usize].take());
            }
        }
        for fd in gone {
            self.unwatch(fd.as_raw_fd());
        }
    }

    fn copy_to_subscribers(&mut self, index: u32, stream: Stream, range: Range<usize>) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let slot = stream as usize;
        let n = range.len();
        let data = &self.buffer[range];
        let (mut slow, mut gone) = (Vec::new(), Vec::new());
        for subscriber in &mut container.subscribers {
            let Some(fd) = &subscriber.fds[slot] else {
                continue;
            };
            let taken = if subscriber.waiting[slot].is_empty() {
                write_some(fd, data)
            } else {
                Some(0)
            };
            match taken {
                Some(taken) if taken < n => {
                    subscriber.waiting[slot].extend_from_slice(&data[taken..]);
                    subscriber.stalled.get_or_insert_with(Instant::now);
                    slow.push((fd.as_raw_fd(), subscriber.id));
                }
                Some(_) => {}
                None => gone.extend(subscriber.fds[slot].take()),
            }
        }
        for (fd, id) in slow {
            let _ = self.watch(fd, Source::Subscriber(index, id), EpollFlags::EPOLLOUT);
        }
        for fd in gone {
            self.unwatch(fd.as_raw_fd());
        }
    }

    pub(super) fn flush_subscriber(&mut self, index: u32, id: u64, events: EpollFlags) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let mut gone = Vec::new();
        let mut waits = Vec::new();
        for subscriber in container.subscribers.iter_mut().filter(|s| s.id == id) {
            for slot in 0..2 {
                let Some(fd) = &subscriber.fds[slot] else {
                    continue;
                };
                match write_some(fd, &subscriber.waiting[slot]) {
                    Some(taken) => drop(subscriber.waiting[slot].drain(..taken)),
                    None => {
                        subscriber.waiting[slot].clear();
                        gone.extend(subscriber.fds[slot].take());
                        continue;
                    }
                }
                if subscriber.waiting[slot].is_empty() {
                    waits.push(fd.as_raw_fd());
                    if subscriber.ending || container.outputs[slot].is_none() {
                        gone.extend(subscriber.fds[slot].take());
                    }
                }
            }
            subscriber.stalled = (!subscriber.is_idle()).then(Instant::now);
        }
        container
            .subscribers
            .retain(|s| s.fds.iter().any(Option::is_some));
        let hung_up = events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        for fd in waits {
            // Only to be told when it goes away.
            let kept = !hung_up && !gone.iter().any(|g| g.as_raw_fd() == fd);
            if kept {
                let _ = self.watch(fd, Source::Subscriber(index, id), EpollFlags::empty());
            } else {
                self.unwatch(fd);
            }
        }
        for fd in gone {
            self.unwatch(fd.as_raw_fd());
        }
        if hung_up {
            self.remove_subscriber(index, id);
        }
        self.resume_outputs(index);
    }

    fn remove_subscriber(&mut self, index: u32, id: u64) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let mut gone = Vec::new();
        container.subscribers.retain_mut(|s| {
            if s.id == id {
                gone.extend(s.fds.iter_mut().filter_map(Option::take));
            }
            s.id != id
        });
        for fd in gone {
            self.unwatch(fd.as_raw_fd());
        }
    }

    /// Reads streams again that a slow client has held back.
    fn resume_outputs(&mut self, index: u32) {
        for stream in Stream::BOTH {
            let Some(container) = self.containers.get(&index) else {
                return;
            };
            if !container.has_backlog(stream)
                && let Some(fd) = container.output(stream).map(AsRawFd::as_raw_fd)
                && !self.sources.contains_key(&fd)
            {
                self.watch_output(index, stream);
            }
        }
    }

    pub(super) fn drop_stalled(&mut self, index: u32, now: Instant) {
        let Some(container) = self.containers.get(&index) else {
            return;
        };
        let stalled: Vec<u64> = container
            .subscribers
            .iter()
            .filter(|s| s.stalled.is_some_and(|since| since + STALL_LIMIT <= now))
            .map(|s| s.id)
            .collect();
        for id in stalled {
            self.remove_subscriber(index, id);
        }
        self.resume_outputs(index);
    }

    /// Everything that the ended process has written.
    pub(super) fn drain(&mut self, index: u32) {
        for stream in Stream::BOTH {
            while self.read_once(index, stream) {}
        }
    }

    /// The container has ended: its clients see the end of its output, and nothing more is read (what it left running will be killed).
    pub(super) fn end_subscribers(&mut self, index: u32) {
        for stream in Stream::BOTH {
            self.log_rest(index, stream);
        }
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        container.log = None;
        let mut gone: Vec<OwnedFd> = container
            .outputs
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        for subscriber in &mut container.subscribers {
            subscriber.ending = true;
            for slot in 0..2 {
                if subscriber.waiting[slot].is_empty() {
                    gone.extend(subscriber.fds[slot].take());
                }
            }
        }
        container
            .subscribers
            .retain(|s| s.fds.iter().any(Option::is_some));
        for fd in gone {
            self.unwatch(fd.as_raw_fd());
        }
    }

    /// The last line, which has no end.
    fn log_rest(&mut self, index: u32, stream: Stream) {
        let now = logs::timestamp();
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        self.lines.clear();
        let partial = &mut container.partial[stream as usize];
        if !partial.is_empty() {
            logs::format_rest(stream, &now, partial, &mut self.lines);
            if let Some(log) = &mut container.log {
                log.append(&self.lines, None);
            }
        }
        let rest = match (
            &container.outputs[stream as usize],
            container.record.terminal,
        ) {
            (Some(pipe), false) => self.spool.peek(pipe.as_fd(), &mut self.buffer[..BUFFER]),
            _ => Ok(0),
        };
        if let Ok(n @ 1..) = rest {
            self.lines.clear();
            logs::format_rest(
                stream,
                &now,
                &mut self.buffer[..n].to_vec(),
                &mut self.lines,
            );
            self.log_and_take(index, stream, n);
        }
    }

    /// The process has ended: whether it had become its program stands in the pipe, which nobody else has open.
    pub(super) fn settle_start(&mut self, index: u32) {
        let waits = |keeper: &Self| {
            keeper
                .containers
                .get(&index)
                .is_some_and(|c| c.starting.is_some() && c.error.is_some())
        };
        while waits(self) {
            self.read_error(index);
        }
    }

    /// The pipe that is closed by a successful execve, or tells why there was none.
    pub(super) fn read_error(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let Some(fd) = &container.error else { return };
        let mut buf = [0; 512];
        let n = match fd.as_fd().try_clone_to_owned().map(std::fs::File::from) {
            Ok(mut file) => file.read(&mut buf).unwrap_or(0),
            Err(_) => 0,
        };
        if n > 0 {
            container.error_text.extend_from_slice(&buf[..n]);
            return;
        }
        let fd = container.error.take();
        if let Some(fd) = fd {
            self.unwatch(fd.as_raw_fd());
        }
        self.started(index);
    }
}

/// How many bytes a pipe takes now; `None` if nobody reads it any more.
fn write_some(fd: &OwnedFd, mut data: &[u8]) -> Option<usize> {
    let all = data.len();
    while !data.is_empty() {
        match nix::unistd::write(fd, data) {
            Ok(n) => data = &data[n..],
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => break,
            Err(_) => return None,
        }
    }
    Some(all - data.len())
}
