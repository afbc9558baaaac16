//! Keeps the connection to the keeper, and the keeper itself, alive.
//!
//! One task owns all of it: it reads what the keeper says, holds copies of the containers' descriptors, and when the keeper dies, reaps the
//! orphans (we are their sub-reaper), starts a new keeper and hands it everything.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, watch};

use crate::error::Result;
use crate::keeper::KeeperConfig;
use crate::link::{self, Link};
use crate::proto::{Event, ExitRecord, Held, Message, Op, Reply};
use crate::session::ExecOutcome;
use crate::status::{ContainerEvent, EventKind, Exit};
use crate::sys::{process, socket};

/// Pause before another attempt to start a keeper that would not start.
const RETRY: Duration = Duration::from_secs(2);

/// How long a keeper may take until it serves, whoever has started it; and the pause between looks.
const START_PATIENCE: Duration = Duration::from_secs(5);
const START_PAUSE: Duration = Duration::from_millis(20);

/// Copies of what the keeper has of one container.
#[derive(Debug)]
struct Stashed {
    held: Held,
    fds: Vec<OwnedFd>,
}

/// A running exec of ours.
#[derive(Debug)]
pub(crate) struct ExecEntry {
    pid: i32,
    sender: watch::Sender<Option<ExecOutcome>>,
    pub(crate) receiver: watch::Receiver<Option<ExecOutcome>>,
    pub(crate) timed_out: Arc<AtomicBool>,
}

/// What the supervisor and the callers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) keeper: KeeperConfig,
    pub(crate) program: std::path::PathBuf,
    /// The connection, when there is one. Written by the supervisor.
    pub(crate) link: watch::Sender<Option<Arc<Link>>>,
    pub(crate) events: broadcast::Sender<ContainerEvent>,
    /// Entered by the supervisor when the reply passes, so that an exit right behind it finds its entry.
    execs: Mutex<HashMap<u64, ExecEntry>>,
    stash: Mutex<BTreeMap<String, Stashed>>,
    /// The keeper is being stopped for good: no new one.
    pub(crate) closing: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(keeper: KeeperConfig, program: std::path::PathBuf) -> Self {
        Shared {
            keeper,
            program,
            link: watch::Sender::new(None),
            events: broadcast::Sender::new(1024),
            execs: Mutex::default(),
            stash: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    pub(crate) fn take_exec(
        &self,
        id: u64,
    ) -> Option<(watch::Receiver<Option<ExecOutcome>>, Arc<AtomicBool>)> {
        lock(&self.execs)
            .get(&id)
            .map(|e| (e.receiver.clone(), Arc::clone(&e.timed_out)))
    }

    fn enter_exec(&self, reply: &Reply) {
        if let Reply::Exec { exec_id, pid } = reply {
            let (sender, receiver) = watch::channel(None);
            let entry = ExecEntry {
                pid: *pid,
                sender,
                receiver,
                timed_out: Arc::default(),
            };
            lock(&self.execs).insert(*exec_id, entry);
        }
    }

    /// The entry is kept until its session has looked: sessions forget it.
    fn exec_ended(&self, id: u64, status: i32) {
        if let Some(entry) = lock(&self.execs).get(&id) {
            let outcome = ExecOutcome {
                code: process::decode_status(status).0,
                timed_out: entry.timed_out.load(Ordering::Acquire),
            };
            entry.sender.send_replace(Some(outcome));
        }
    }

    pub(crate) fn forget_exec(&self, id: u64) {
        lock(&self.execs).remove(&id);
    }

    fn tell(&self, id: String, kind: EventKind) {
        // Nobody may be listening.
        let _ = self.events.send(ContainerEvent { id, kind });
    }

    fn hear(&self, message: Message, fds: Vec<OwnedFd>) {
        match message {
            Message::Reply { .. } => {}
            Message::ExecExited { exec_id, status } => self.exec_ended(exec_id, status),
            Message::Stash { id, held, .. } => {
                lock(&self.stash).insert(id, Stashed { held, fds });
            }
            Message::StdinClosed { id } => {
                if let Some(stashed) = lock(&self.stash).get_mut(&id)
                    && stashed.held.stdin
                {
                    stashed.held.stdin = false;
                    let at = usize::from(stashed.held.pidfd);
                    stashed.fds.remove(at);
                }
            }
            Message::Event(event) => match event {
                Event::Created { id } => self.tell(id, EventKind::Created),
                Event::Started { id, pid } => self.tell(id, EventKind::Started { pid }),
                Event::Exited { id, exit } => {
                    lock(&self.stash).remove(&id);
                    self.tell(id, EventKind::Exited(exit_of(&exit)));
                }
                Event::Removed { id } => {
                    lock(&self.stash).remove(&id);
                    self.tell(id, EventKind::Removed);
                }
            },
        }
    }

    /// Connects to the living keeper, or starts one.
    pub(crate) async fn connect(&self) -> Result<Arc<Link>> {
        let deadline = tokio::time::Instant::now() + START_PATIENCE;
        loop {
            if let Ok(link) = Link::connect(&self.keeper.socket()) {
                return Ok(Arc::new(link));
            }
            let (program, config) = (self.program.clone(), self.keeper.clone());
            let started =
                tokio::task::spawn_blocking(move || link::start_keeper(&program, &config)).await;
            match started {
                Ok(Ok(())) => {}
                // Somebody else's keeper may be about to listen, or to end.
                Ok(Err(e)) if tokio::time::Instant::now() < deadline => {
                    tracing::debug!(error = %e, "keeper not started");
                    tokio::time::sleep(START_PAUSE).await;
                }
                Ok(Err(e)) => return Err(e),
                Err(e) => return Err(crate::Error::Keeper(format!("worker failed: {e}"))),
            }
        }
    }

    /// Gives a new keeper all that its predecessor had.
    async fn hand_over(self: &Arc<Self>, link: &Arc<Link>) -> Result<()> {
        let stash = std::mem::take(&mut *lock(&self.stash));
        self.watch_strange_execs();
        let reaped = reap_orphans();
        for (id, stashed) in stash {
            let op = Op::Adopt {
                id: id.clone(),
                held: stashed.held,
            };
            if let Err(e) = link.call(op, &link::raw(&stashed.fds)).await {
                tracing::warn!(container = id, error = %e, "not adopted by the new keeper");
            }
        }
        for (pid, status) in reaped {
            self.report_reaped(link, pid, status).await;
        }
        link.call(Op::AdoptDone, &[]).await?;
        Ok(())
    }

    /// Our commands that a dead keeper has left to somebody else (we are not its parent if we have connected to it later): only their
    /// pidfds can tell us now.
    fn watch_strange_execs(self: &Arc<Self>) {
        for (&id, exec) in lock(&self.execs).iter() {
            if exec.sender.borrow().is_some() || process::is_child(exec.pid) {
                continue;
            }
            let (shared, pid) = (Arc::clone(self), exec.pid);
            tokio::spawn(async move {
                let status = process::wait_stranger(pid).await.unwrap_or(255 << 8);
                shared.exec_ended(id, status);
            });
        }
    }

    async fn report_reaped(&self, link: &Link, pid: i32, status: i32) {
        let exec = lock(&self.execs)
            .iter()
            .find(|(_, e)| e.pid == pid)
            .map(|(id, _)| *id);
        match exec {
            Some(id) => self.exec_ended(id, status),
            None => {
                if let Err(e) = link.call(Op::Reaped { pid, status }, &[]).await {
                    tracing::warn!(pid, error = %e, "exit status not taken by the keeper");
                }
            }
        }
    }
}

/// Reaps what a dead keeper has left to us, its sub-reaper: pid and status of each. All of it, known or not: a PID namespace whose first
/// process was killed does not end before the last process in it is reaped. Children of other parts of this program are in our own
/// session, the keeper's are in others.
fn reap_orphans() -> Vec<(i32, i32)> {
    let mut ended = Vec::new();
    for pid in process::ended_children_of_other_sessions() {
        let mut status = 0;
        // SAFETY: the status lives across the call.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid {
            ended.push((pid, status));
        }
    }
    ended
}

pub(crate) fn exit_of(record: &ExitRecord) -> Exit {
    let (code, signal) = process::decode_status(record.status);
    let finished_at = jiff::Timestamp::from_nanosecond(record.at.into()).unwrap_or_default();
    Exit {
        code,
        signal,
        oom_killed: record.oom,
        finished_at,
        lost: record.lost,
    }
}

/// Serves one connection after the other until nobody holds the runtime any more.
pub(crate) async fn run(shared: Weak<Shared>, mut link: Arc<Link>) {
    // One for all connections: what ends between two of them is noticed with the next.
    let mut child_ended = match signal(SignalKind::child()) {
        Ok(signal) => signal,
        Err(e) => return tracing::error!(error = %e, "cannot listen for ended processes"),
    };
    loop {
        serve(&shared, &link, &mut child_ended).await;
        link.break_off();
        let Some(strong) = shared.upgrade() else {
            return;
        };
        strong.link.send_replace(None);
        if strong.closing.load(Ordering::Acquire) {
            return;
        }
        // Only a dead keeper's children are ours; and its end is told by its sockets a moment before.
        let dead = tokio::time::timeout(Duration::from_millis(500), link.pidfd.readable())
            .await
            .is_ok();
        if dead {
            tracing::warn!(
                pid = link.pid,
                "the container keeper died; containers go on, starting a new one"
            );
        }
        link = loop {
            match renew(&strong).await {
                Ok(link) => break link,
                Err(e) => {
                    tracing::error!(error = %e, "no container keeper: containers run, but none can be started or stopped");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        strong.link.send_replace(Some(Arc::clone(&link)));
        strong.tell(String::new(), EventKind::Resync);
    }
}

/// A new connection, whoever is at its end by now.
pub(crate) async fn renew(shared: &Arc<Shared>) -> Result<Arc<Link>> {
    let link = shared.connect().await?;
    let hello = async {
        shared.hand_over(&link).await?;
        link.call(Op::Hello { stash: true }, &[]).await
    };
    // Replies need a reader.
    tokio::select! {
        done = hello => done.map(drop)?,
        () = read(shared, &link) => {
            return Err(crate::Error::Keeper("the new keeper went away at once".into()));
        }
    }
    Ok(link)
}

/// Reads one connection until it breaks.
async fn read(shared: &Shared, link: &Link) {
    let mut buffer = vec![0; socket::MAX_MESSAGE];
    while let Ok((message, fds)) = link
        .receive(&mut buffer, |reply| shared.enter_exec(reply))
        .await
    {
        shared.hear(message, fds);
    }
}

/// Reads one connection and reaps orphans, until the connection breaks or nobody holds the runtime any more.
async fn serve(shared: &Weak<Shared>, link: &Arc<Link>, child_ended: &mut Signal) {
    let mut buffer = vec![0; socket::MAX_MESSAGE];
    loop {
        let seen = |reply: &Reply| {
            if let Some(shared) = shared.upgrade() {
                shared.enter_exec(reply);
            }
        };
        tokio::select! {
            received = link.receive(&mut buffer, seen) => {
                let (Ok((message, fds)), Some(shared)) = (received, shared.upgrade()) else { return };
                shared.hear(message, fds);
            }
            _ = child_ended.recv() => {
                let Some(strong) = shared.upgrade() else { return };
                let ended = reap_orphans();
                if !ended.is_empty() {
                    let link = Arc::clone(link);
                    tokio::spawn(async move {
                        for (pid, status) in ended {
                            strong.report_reaped(&link, pid, status).await;
                        }
                    });
                }
            }
        }
    }
}
