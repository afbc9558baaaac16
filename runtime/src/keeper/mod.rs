//! The keeper: one small, single-threaded process per box that is the parent of all containers.
//!
//! ```text
//!   agent ──SOCK_SEQPACKET──▶ keeper ──fork──▶ create / exec / sandbox child (short-lived)
//!     │  (sub-reaper above,      │                     │ libcontainer
//!     │   holds copies of        ├── pipes, ptys ◀── container ◀┘ (a child of the keeper)
//!     └── the keeper's fds)      ├── log files, exit journal
//!                                └── copies of output to attached clients
//! ```
//!
//! It outlives the agent. If it dies, containers live on: their pipes are also held by the agent, their exit codes go to the agent (the
//! sub-reaper) or stay in their pidfds, and a new keeper adopts them. It replaces itself by `execve` without losing a child ([`upgrade`]).
//!
//! Everything is one epoll loop; nothing polls and nothing blocks except short file writes. Requests that need libcontainer fork.

mod children;
mod container;
mod cursor;
mod detail;
mod journal;
mod logs;
mod requests;
mod spool;
mod upgrade;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::proto::{
    Event, ExitRecord, Held, Life, Message, Record, Reply, WireError, WireErrorKind,
};
use crate::sys::{process as sys_process, socket};
pub(crate) use children::{
    OCI_DIRECTORY, OCI_NAME, PROCESS_FILE, ROOT_DIRECTORY, ROOT_FILE, RootPlan,
};
use container::Container;
use journal::Journal;
use logs::Stream;

/// Raised when a message changes its meaning.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// Where the keeper finds its directories; its command line argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeeperConfig {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Soft limit of open files for containers, if ours was raised before.
    #[serde(default)]
    pub open_files: Option<u64>,
}

impl KeeperConfig {
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("keeper.sock")
    }

    /// Held locked by the living keeper.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run_dir.join("keeper.lock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.run_dir.join("keeper.log")
    }

    /// Durable side of all containers.
    pub(crate) fn containers(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    /// Durable side of one container: `record.json`, writable layer.
    pub(crate) fn container_state(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// This boot's side of one container: `life.json`, bundle.
    pub(crate) fn container_run(&self, id: &str) -> PathBuf {
        self.run_dir.join("c").join(id)
    }

    pub(crate) fn sandbox_run(&self, id: &str) -> PathBuf {
        self.run_dir.join("s").join(id)
    }
}

pub(crate) const RECORD_FILE: &str = "record.json";
pub(crate) const LIFE_FILE: &str = "life.json";

/// One line for the operator, on our standard error (`keeper.log`).
fn report(text: &str) {
    eprintln!("{} {text}", logs::timestamp());
}

fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// What a descriptor in the epoll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Client(u64),
    /// Result socket of a forked child.
    Child,
    Output(u32, Stream),
    /// Says whether a started program could be run.
    Error(u32),
    /// Of an adopted process, whose end no SIGCHLD tells.
    Pidfd(u32),
    Subscriber(u32, u64),
}

struct Client {
    socket: OwnedFd,
    stash: bool,
    /// What the socket did not take yet.
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// More unsent messages than this and the client is cut off; it will connect again and list.
const MAX_QUEUE: usize = 4096;

/// A forked child that has not reported yet.
struct Pending {
    socket: OwnedFd,
    child: i32,
    client: u64,
    seq: u64,
    work: Work,
    terminal: Option<OwnedFd>,
    pid: Option<i32>,
    failure: Option<WireError>,
    /// What libcontainer logged about it.
    detail: Option<String>,
}

enum Work {
    Create(Box<Container>),
    /// The version 2 cgroup that it is forked into.
    Exec { group: Option<OwnedFd> },
    Sandbox,
}

struct Exec {
    pid: i32,
    client: u64,
}

pub(super) struct Keeper {
    config: KeeperConfig,
    epoll: Epoll,
    listener: OwnedFd,
    signals: SignalFd,
    dev_null: OwnedFd,
    /// Kept open for its lock.
    lock: OwnedFd,
    /// What containers get; ours is raised.
    nofile: libc::rlimit,
    cgroups: Cgroups,
    journal: Journal,
    cursors: cursor::Cursors,
    spool: spool::Spool,
    sources: HashMap<RawFd, Source>,
    clients: BTreeMap<u64, Client>,
    containers: BTreeMap<u32, Container>,
    ids: BTreeMap<String, u32>,
    pending: HashMap<RawFd, Pending>,
    execs: BTreeMap<u64, Exec>,
    /// Ended children that nobody knew: perhaps those that a pending child will tell us about.
    early: Vec<(i32, i32)>,
    /// Noticed in this round of the loop, not yet on disk.
    exited: Vec<(u32, i32, bool)>,
    /// Client, request and program of an upgrade that waits for pending children.
    upgrade: Option<(u64, u64, String)>,
    next: u64,
    buffer: Vec<u8>,
    lines: Vec<u8>,
    quit: bool,
}

/// Becomes the keeper: `<program> keeper <config>` or `<program> keeper --resume <fd>`. Returns the exit code.
pub(crate) fn main(args: &[std::ffi::OsString]) -> i32 {
    let started = match args {
        [flag, fd] if flag == "--resume" => upgrade::resume(&fd.to_string_lossy()),
        [config] => serde_json::from_str(&config.to_string_lossy())
            .map_err(io::Error::from)
            .and_then(Keeper::start),
        _ => {
            report("usage: keeper CONFIG");
            return 2;
        }
    };
    let mut keeper = match started {
        Ok(keeper) => keeper,
        Err(e) => {
            report(&format!("keeper cannot start: {e}"));
            return 1;
        }
    };
    match keeper.run() {
        Ok(()) => 0,
        Err(e) => {
            report(&format!("keeper ends: {e}"));
            1
        }
    }
}

/// Takes the lock that says who is the keeper.
fn take_lock(path: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    // SAFETY: integers only. The lock lasts as long as the descriptor, also over an execve.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file.into());
    }
    let error = io::Error::last_os_error();
    Err(match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::AddrInUse, "another keeper is alive")
        }
        _ => error,
    })
}

impl Keeper {
    fn start(config: KeeperConfig) -> io::Result<Self> {
        // What the starter left open by mistake would stay open as long as we live. From here on, our own are above 2, and children put
        // theirs on 0 to 2.
        crate::sys::fd::close_all_but(&mut []);
        let lock = take_lock(&config.lock())?;
        let _ = nix::unistd::setsid();
        std::env::set_current_dir("/")?;
        // The last to go when memory is short: without us nobody writes logs. Needs CAP_SYS_RESOURCE.
        let _ = fs::write("/proc/self/oom_score_adj", "-999");
        fs::create_dir_all(config.containers())?;
        let listener = socket::listen_at(&config.socket())?;
        let mut nofile = sys_process::raise_open_files()?;
        if let Some(soft) = config.open_files {
            nofile.rlim_cur = (soft as libc::rlim_t).min(nofile.rlim_max);
        }
        let (mut keeper, exits) = Self::assemble(config, lock, listener, nofile)?;
        keeper.load(exits)?;
        // The starter waits for this line on our standard output. If it has died meanwhile, the next one will find us.
        let _ = io::Write::write_all(&mut io::stdout(), b"ready\n");
        // SAFETY: both descriptors are open; our standard output is a pipe that nobody reads any more.
        unsafe { libc::dup2(keeper.dev_null.as_raw_fd(), 1) };
        Ok(keeper)
    }

    /// Everything that is made anew, at a start as after an upgrade.
    fn assemble(
        config: KeeperConfig,
        lock: OwnedFd,
        listener: OwnedFd,
        nofile: libc::rlimit,
    ) -> io::Result<(Self, BTreeMap<String, ExitRecord>)> {
        sys_process::become_subreaper()?;
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let dev_null: OwnedFd = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?
            .into();
        let (journal, exits) = Journal::open(config.state_dir.join("exits"))?;
        let cgroups = Cgroups::detect().map_err(io::Error::other)?;
        let cursors = cursor::Cursors::open(&config.run_dir.join("cursors"))?;
        let mut keeper = Keeper {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            config,
            listener,
            signals,
            dev_null,
            lock,
            nofile,
            cgroups,
            journal,
            cursors,
            spool: spool::Spool::new()?,
            sources: HashMap::new(),
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            ids: BTreeMap::new(),
            pending: HashMap::new(),
            execs: BTreeMap::new(),
            early: Vec::new(),
            exited: Vec::new(),
            upgrade: None,
            next: 1,
            buffer: vec![0; socket::MAX_MESSAGE],
            lines: Vec::new(),
            quit: false,
        };
        let fds = [
            (keeper.listener.as_raw_fd(), Source::Listener),
            (keeper.signals.as_raw_fd(), Source::Signals),
        ];
        for (fd, source) in fds {
            keeper.watch(fd, source, EpollFlags::EPOLLIN)?;
        }
        Ok((keeper, exits))
    }

    /// Finds the containers of an earlier keeper: the living ones are adopted, the others have ended.
    fn load(&mut self, mut exits: BTreeMap<String, ExitRecord>) -> io::Result<()> {
        for entry in fs::read_dir(self.config.containers())? {
            let directory = entry?.path();
            let Some(record) = read_json::<Record>(&directory.join(RECORD_FILE)) else {
                continue;
            };
            let run = self.config.container_run(&record.id);
            let mut life: Life = read_json(&run.join(LIFE_FILE)).unwrap_or_default();
            life.exit = exits.remove(&record.id);
            let index = self.fresh() as u32;
            let alive = life.exit.is_none() && sys_process::is_same(life.pid, life.ticks);
            let ended = life.exit.is_some();
            let mut container = Container::new(record, life);
            if alive {
                container.pidfd = sys_process::pidfd_open(container.life.pid).ok();
            } else if !ended {
                container.expect_status();
            }
            self.insert(index, container)?;
        }
        let live = self
            .containers
            .values()
            .filter_map(|c| Some((c.record.id.as_str(), c.life.exit.as_ref()?)));
        self.journal.compact(live)
    }

    /// A number that was never used before.
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn insert(&mut self, index: u32, container: Container) -> io::Result<()> {
        self.ids.insert(container.record.id.clone(), index);
        if let (false, Some(pidfd)) = (container.is_child, &container.pidfd) {
            // Edges: first the end, then (since 6.15) that it was reaped and its status is known.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            let fd = pidfd.as_raw_fd();
            self.watch(fd, Source::Pidfd(index), flags)?;
        }
        self.containers.insert(index, container);
        for stream in Stream::BOTH {
            self.watch_output(index, stream);
        }
        Ok(())
    }

    fn watch(&mut self, fd: RawFd, source: Source, flags: EpollFlags) -> io::Result<()> {
        // SAFETY: the caller owns the descriptor and calls `unwatch` before it is closed.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut event = EpollEvent::new(flags, fd as u64);
        match self.epoll.add(borrowed, event) {
            Err(nix::Error::EEXIST) => self.epoll.modify(borrowed, &mut event)?,
            other => other?,
        }
        self.sources.insert(fd, source);
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd) {
        if self.sources.remove(&fd).is_some() {
            // SAFETY: still open, says the caller.
            let _ = self
                .epoll
                .delete(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) });
        }
    }

    fn run(&mut self) -> io::Result<()> {
        self.reap();
        let mut events = [EpollEvent::empty(); 32];
        while !self.quit {
            self.finish_exits();
            self.try_upgrade();
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            for event in &events[..count] {
                let fd = event.data() as RawFd;
                // A source may have gone with an earlier event of this round.
                let Some(source) = self.sources.get(&fd).copied() else {
                    continue;
                };
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.take_signals(),
                    Source::Client(id) => self.serve(id, event.events()),
                    Source::Child => self.hear_child(fd),
                    Source::Output(index, stream) => self.read_output(index, stream),
                    Source::Error(index) => self.read_error(index),
                    Source::Pidfd(index) => self.adopted_ended(index),
                    Source::Subscriber(index, id) => {
                        self.flush_subscriber(index, id, event.events())
                    }
                }
            }
            self.check_deadlines();
        }
        Ok(())
    }

    /// How long to sleep: forever, unless a client stalls or a status is awaited.
    fn patience(&self) -> EpollTimeout {
        let next = self
            .containers
            .values()
            .filter_map(Container::deadline)
            .min();
        match next {
            None => EpollTimeout::NONE,
            Some(at) => {
                let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
            }
        }
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .containers
            .iter()
            .filter(|(_, c)| c.deadline().is_some_and(|at| at <= now))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            self.drop_stalled(index, now);
            let lost = self
                .containers
                .get(&index)
                .is_some_and(|c| c.status_deadline.is_some_and(|at| at <= now));
            if lost {
                self.note_lost(index);
            }
        }
    }

    fn accept(&mut self) {
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

    fn drop_client(&mut self, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            self.unwatch(client.socket.as_raw_fd());
        }
    }

    fn send(&mut self, client: u64, message: &Message, fds: &[RawFd]) {
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

    fn flush_client(&mut self, id: u64) {
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

    fn reply(&mut self, client: u64, seq: u64, result: Result<Reply, WireError>) {
        self.send(client, &Message::Reply { seq, result }, &[]);
    }

    fn refuse(&mut self, client: u64, seq: u64, kind: WireErrorKind, text: impl Into<String>) {
        self.reply(client, seq, Err(WireError::new(kind, text)));
    }

    fn broadcast(&mut self, event: Event) {
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        let message = Message::Event(event);
        for client in clients {
            self.send(client, &message, &[]);
        }
    }

    /// Gives a client copies of all that a new keeper would need.
    fn send_stash(&mut self, client: u64, index: u32) {
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

    fn serve(&mut self, id: u64, events: EpollFlags) {
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

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == libc::SIGTERM as u32 {
                // Containers must not lose their keeper; without any, nobody needs one.
                let idle = self.containers.values().all(|c| c.life.exit.is_some());
                self.quit = idle && self.pending.is_empty();
            }
        }
        self.reap();
    }

    /// Collects every ended child.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: the status lives across the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            self.ended(pid, status);
        }
        if self.pending.is_empty() {
            self.early.clear();
        }
    }

    /// A process has ended with this status.
    fn ended(&mut self, pid: i32, status: i32) {
        let container = self
            .containers
            .iter()
            .find(|(_, c)| c.life.pid == pid && c.life.exit.is_none())
            .map(|(index, _)| *index);
        if let Some(index) = container {
            return self.note_exit(index, status, false);
        }
        let exec = self
            .execs
            .iter()
            .find(|(_, e)| e.pid == pid)
            .map(|(id, _)| *id);
        if let Some(exec_id) = exec {
            if let Some(exec) = self.execs.remove(&exec_id) {
                self.send(exec.client, &Message::ExecExited { exec_id, status }, &[]);
            }
            return;
        }
        let child = self.pending.iter().find(|(_, p)| p.child == pid);
        match child.map(|(fd, _)| *fd) {
            Some(fd) => self.child_ended(fd),
            None => self.early.push((pid, status)),
        }
    }

    fn note_exit(&mut self, index: u32, status: i32, lost: bool) {
        if let Some(container) = self.containers.get_mut(&index)
            && container.life.exit.is_none()
            && !self.exited.iter().any(|(i, ..)| *i == index)
        {
            container.status_deadline = None;
            self.exited.push((index, status, lost));
        }
    }

    /// 255 is the kubelet's code for what it cannot know.
    fn note_lost(&mut self, index: u32) {
        self.note_exit(index, 255 << 8, true);
    }

    /// Completes the exits noticed in this round: output drained, record on disk (one sync for all), then told.
    fn finish_exits(&mut self) {
        if self.exited.is_empty() {
            return;
        }
        let exited = std::mem::take(&mut self.exited);
        for &(index, status, lost) in &exited {
            // A program may end before we have seen that it had started.
            self.settle_start(index);
            self.drain(index);
            let Some(container) = self.containers.get_mut(&index) else {
                continue;
            };
            let cgroup = &container.record.cgroup;
            if !container.record.own_pid_namespace {
                self.cgroups.kill(cgroup);
            }
            let exit = ExitRecord {
                status,
                oom: self.cgroups.oom_kills(cgroup).is_some_and(|n| n > 0),
                at: now_ns(),
                lost,
            };
            if let Err(e) = self.journal.append(&container.record.id, &exit) {
                report(&format!("exit journal: {e}"));
            }
            container.life.exit = Some(exit);
        }
        if let Err(e) = self.journal.sync() {
            report(&format!("exit journal: {e}"));
        }
        for (index, ..) in exited {
            self.after_exit(index);
        }
        if self.journal.wants_compaction() {
            let live = self
                .containers
                .values()
                .filter_map(|c| Some((c.record.id.as_str(), c.life.exit.as_ref()?)));
            if let Err(e) = self.journal.compact(live) {
                report(&format!("exit journal: {e}"));
            }
        }
    }

    fn after_exit(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let closing = [container.pidfd.take(), container.stdin.take()];
        let error = container.error.take();
        let start = container.starting.take();
        let removers = std::mem::take(&mut container.removing);
        let id = container.record.id.clone();
        let exit = container.life.exit.clone();
        for fd in closing.into_iter().chain([error]).flatten() {
            self.unwatch(fd.as_raw_fd());
        }
        self.end_subscribers(index);
        if let Some((client, seq)) = start {
            let text = format!("container {id} ended before it was started");
            self.refuse(client, seq, WireErrorKind::State, text);
        }
        if let Some(exit) = exit {
            self.broadcast(Event::Exited { id, exit });
        }
        if !removers.is_empty() {
            self.forget(index);
            for (client, seq) in removers {
                self.reply(client, seq, Ok(Reply::Done));
            }
        }
    }

    /// An adopted process has ended or was reaped: its status may be in the pidfd.
    fn adopted_ended(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let Some(pidfd) = &container.pidfd else {
            return;
        };
        match sys_process::pidfd_exit_status(pidfd.as_fd()) {
            Some(status) => self.note_exit(index, status, false),
            None => container.expect_status(),
        }
    }

    /// Removes a container from memory; its files are the caller's.
    fn forget(&mut self, index: u32) {
        let Some(container) = self.containers.remove(&index) else {
            return;
        };
        for fd in container.descriptors() {
            self.unwatch(fd);
        }
        self.ids.remove(&container.record.id);
        self.broadcast(Event::Removed {
            id: container.record.id.clone(),
        });
    }

    /// Writes what must survive this process but not this boot.
    fn save_life(&self, container: &Container) {
        let path = self
            .config
            .container_run(&container.record.id)
            .join(LIFE_FILE);
        let new = path.with_extension("new");
        let saved = serde_json::to_vec(&container.life)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &path));
        if let Err(e) = saved {
            report(&format!(
                "{}: {e}: a new keeper could not adopt it",
                path.display()
            ));
        }
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
