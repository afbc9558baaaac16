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
mod clients;
mod container;
mod cursor;
mod detail;
mod exits;
mod journal;
mod logs;
mod pending;
mod requests;
mod spool;
mod upgrade;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::proto::{ExitRecord, Life, Record, WireError};
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
    Exec {
        group: Option<OwnedFd>,
    },
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
    /// Somebody sent SIGTERM, while containers ran or not.
    asked_to_end: bool,
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
            asked_to_end: false,
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
            if self.is_left_alone() {
                break;
            }
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
