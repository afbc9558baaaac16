//! The one thread that writes. Commits that wait together become one transaction; lazy ones wait in memory.
//!
//! State: `keys` says for each live key which revision is its latest and which row on disk is its latest; `pending` holds lazy
//! changes not yet on disk, one for each key; `history` names the rows that later changes made obsolete, oldest first. The
//! file holds just the rows of `keys` and `history`.

mod full;
mod lazy;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use amphipod_api::ballast::Ballast;
use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::warn;

use super::backup::{self, Backups};
use super::history::{BUNCH, History, Removal};
use super::log::{Checkpoint, Counter, Log};
use super::pending::Pending;
use super::{Change, Durability, Expect, Key, Options, Record, Sink, StoreError, Write};

/// Answers to a command.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Commit(Write, Reply<u64>),
    Load {
        prefix: String,
        at: u64,
        visit: Box<dyn FnMut(Record) + Send>,
        reply: Reply<()>,
    },
    Watch {
        after: u64,
        sink: Sink,
        reply: Reply<()>,
    },
    Compact(u64, Reply<()>),
    Backup(PathBuf, Reply<()>),
    Close(Option<Reply<()>>),
}

/// What others see without asking the thread.
pub(super) struct Shared {
    pub revision: AtomicU64,
    pub horizon: AtomicU64,
    pub lazy_horizon: u64,
}

/// Bounds of one transaction.
const BATCH_WRITES: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
/// How much larger the database may be than its file: what is only in the write-ahead log needs space when it is copied. At most
/// this and one transaction, which the ballast covers.
const GROWTH: u64 = 1 << 20;
/// Revisions are reserved on disk in blocks of this many.
const RESERVE: u64 = 4096;
/// Lazy changes that wait in memory: above the first they are written at once, above the second refused.
const PENDING_BYTES: usize = 8 << 20;
const PENDING_BYTES_MOST: usize = 32 << 20;
/// How long to wait after a failed attempt to write lazy changes, or to take up the ballast again.
const RETRY: Duration = Duration::from_secs(10);

/// While the disk is full: free bytes inside the file that are left for deletions and small changes.
const ROOM: u64 = 512 << 10;
/// While the disk is full, what one transaction takes must fit into what was set aside for the write-ahead log.
const FULL_BATCH_WRITES: usize = 64;
const FULL_BATCH_BYTES: usize = 256 << 10;
/// While the disk is full, by how many bytes an object may grow: statuses and conditions change a little.
const FULL_GROWTH: usize = 2 << 10;

/// A key that exists, or whose deletion is not on disk yet.
struct Latest {
    revision: u64,
    deleted: bool,
    /// Its row on disk: revision and length of the value. `None`: never written.
    row: Option<(u64, usize)>,
}

/// A commit that was accepted and has its revision.
struct Planned {
    record: Record,
    durability: Durability,
    frees: bool,
    /// It replaces a row that is not much smaller, which goes soon after.
    replaces: bool,
    reply: Reply<u64>,
    before: Option<Latest>,
    failed: Option<StoreError>,
}

impl Planned {
    fn is_immediate(&self) -> bool {
        self.failed.is_none() && self.durability == Durability::Immediate
    }
}

pub(super) struct Writer {
    log: Log,
    options: Options,
    shared: Arc<Shared>,
    sinks: Vec<Sink>,
    keys: HashMap<Key, Latest>,
    pending: Pending,
    history: History,
    revision: u64,
    reserved: u64,
    /// The last write failed and the operator was told.
    failing: bool,
    ballast: Ballast,
    /// The disk was full, the ballast was dropped: when it was last tried to take it up again. Until that works, only
    /// writes that free space are tried.
    full_since: Option<Instant>,
    /// The disk is so full that the write-ahead log could not be copied: what is set aside is for deletions alone.
    cramped: bool,
    /// The database's file has at least so many bytes.
    file_bytes: u64,
    backups: Backups,
}

impl Writer {
    /// Reads what the file holds.
    pub fn new(
        log: Log,
        ballast: Ballast,
        options: Options,
    ) -> Result<(Writer, Arc<Shared>), StoreError> {
        let horizon = log.counter(Counter::Horizon)?;
        let backups = Backups::new(options.backup.clone(), options.backup_every);
        let mut writer = Writer {
            options,
            shared: Arc::new(Shared {
                revision: AtomicU64::new(0),
                horizon: AtomicU64::new(horizon),
                lazy_horizon: 0,
            }),
            sinks: Vec::new(),
            keys: HashMap::new(),
            pending: Pending::default(),
            history: History::default(),
            revision: log.counter(Counter::Reserved)?.max(horizon),
            reserved: 0,
            failing: false,
            full_since: None,
            cramped: false,
            file_bytes: 0,
            backups,
            ballast,
            log,
        };
        if let Err(error) = writer.ballast.load() {
            warn!(%error, "the disk that holds the server's state is full; until there is space, only deletions and small changes are taken");
            writer.full_since = Some(Instant::now());
        }
        if let Err(error) = writer.renumber() {
            warn!(%error, "objects whose last changes may have been lost by a crash keep their old versions");
        }
        let mut rows = Vec::new();
        writer.log.scan(|row| rows.push(row))?;
        for row in rows {
            writer.revision = writer.revision.max(row.revision);
            let deleted = row.length.is_none();
            writer
                .keys
                .entry(row.key.clone())
                .and_modify(|latest| {
                    latest.revision = row.revision;
                    latest.deleted = deleted;
                })
                .or_insert(Latest {
                    revision: row.revision,
                    deleted,
                    row: None,
                });
            writer.settle(&row.key, row.revision, row.length);
        }
        writer.reserved = writer.revision;
        writer.shared = Arc::new(Shared {
            revision: AtomicU64::new(writer.revision),
            horizon: AtomicU64::new(horizon),
            lazy_horizon: writer.revision,
        });
        let shared = writer.shared.clone();
        Ok((writer, shared))
    }

    /// After a crash, the lazily stored objects may have had changes that are lost. Clients may have seen those: so what is left
    /// comes back as a change of its own, with a revision that is newer than all that was given out. Nobody sees an object go
    /// back, and no update that was made for the old state, before the lost changes, goes through.
    fn renumber(&mut self) -> Result<(), StoreError> {
        if self.log.counter(Counter::Closed)? == self.log.counter(Counter::Reserved)? {
            return Ok(());
        }
        let lazy = &self.options.lazy_resources;
        let mut latest: HashMap<Key, Option<u64>> = HashMap::new();
        let mut last = self.revision;
        self.log.scan(|row| {
            last = last.max(row.revision);
            if lazy.iter().any(|resource| *resource == row.key.resource()) {
                latest.insert(row.key, row.length.map(|_| row.revision));
            }
        })?;
        let mut rows: Vec<u64> = latest.into_values().flatten().collect();
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_unstable();
        let end = last + rows.len() as u64;
        self.log.transaction(|batch| {
            for (row, to) in rows.iter().zip(last + 1..) {
                batch.renumber(*row, to)?;
            }
            batch.set(Counter::Reserved, end)
        })?;
        self.revision = end;
        Ok(())
    }

    /// Serves commands until told to close or until nobody can send any.
    pub fn run(mut self, commands: &mpsc::Receiver<Command>) {
        let mut next: Option<Command> = None;
        loop {
            let command = match next.take() {
                Some(command) => command,
                None => match self.wait(commands) {
                    Wait::Command(command) => command,
                    Wait::Due => {
                        if let Err(error) = self.flush() {
                            self.told(&error);
                        }
                        continue;
                    }
                    Wait::Nobody => Command::Close(None),
                },
            };
            match command {
                Command::Commit(write, reply) => {
                    let mut batch = vec![(write, reply)];
                    let mut bytes = 0;
                    let (most, most_bytes) = match self.full_since {
                        None => (BATCH_WRITES, BATCH_BYTES),
                        Some(_) => (FULL_BATCH_WRITES, FULL_BATCH_BYTES),
                    };
                    while batch.len() < most && bytes < most_bytes {
                        match commands.try_recv() {
                            Ok(Command::Commit(write, reply)) => {
                                if let Change::Put(value) = &write.change {
                                    bytes += value.len();
                                }
                                batch.push((write, reply));
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(batch);
                    self.backups.make_if_due(&self.log);
                }
                Command::Load {
                    prefix,
                    at,
                    visit,
                    reply,
                } => answer(reply, self.load(&prefix, at, visit)),
                Command::Watch { after, sink, reply } => answer(reply, self.watch(after, sink)),
                Command::Compact(revision, reply) => answer(reply, self.compact(revision)),
                Command::Backup(path, reply) => answer(reply, backup::make(&self.log, &path)),
                Command::Close(reply) => {
                    let result = self.close();
                    match reply {
                        Some(reply) => answer(reply, result),
                        None => result
                            .unwrap_or_else(|error| warn!(%error, "closing the state database")),
                    }
                    return;
                }
            }
        }
    }

    fn wait(&self, commands: &mpsc::Receiver<Command>) -> Wait {
        let Some(at) = self.pending.due else {
            return commands.recv().map_or(Wait::Nobody, Wait::Command);
        };
        match commands.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(command) => Wait::Command(command),
            Err(mpsc::RecvTimeoutError::Timeout) => Wait::Due,
            Err(mpsc::RecvTimeoutError::Disconnected) => Wait::Nobody,
        }
    }

    fn commit(&mut self, batch: Vec<(Write, Reply<u64>)>) {
        let mut planned: Vec<Planned> = batch
            .into_iter()
            .filter_map(|(write, reply)| self.plan(write, reply))
            .collect();
        if planned.is_empty() {
            return;
        }
        let length = |plan: &Planned| plan.record.value.as_ref().map_or(0, Bytes::len);
        if let Err(error) = self.has_room(planned.iter().map(length).sum()) {
            self.refuse(&mut planned, &error);
        }
        let mut result = self.store(&planned);
        if let Err(error @ StoreError::Full(_)) = &result {
            self.told(error);
            self.make_room();
            self.refuse(&mut planned, error);
            result = self.store(&planned);
        }
        if let Err(error @ StoreError::Full(_)) = &result
            && !self.cramped
        {
            self.cramped = true;
            self.refuse(&mut planned, error);
            result = self.store(&planned);
        }
        if let Err(error) = result {
            self.told(&error);
            self.fail(&mut planned, &error, |plan, reserved| {
                plan.durability == Durability::Immediate || plan.record.revision > reserved
            });
        }
        for plan in planned
            .iter_mut()
            .filter(|plan| plan.failed.is_none() && plan.durability == Durability::Lazy)
        {
            let row = self.keys.get(&plan.record.key).and_then(|key| key.row);
            // One that came after it may be on disk already.
            if row.is_none_or(|(row, _)| row < plan.record.revision) {
                self.postpone(plan);
            }
        }
        let done: Vec<Record> = planned
            .iter()
            .filter(|plan| plan.failed.is_none())
            .map(|plan| plan.record.clone())
            .collect();
        self.publish(&done);
        for plan in planned {
            answer(
                plan.reply,
                plan.failed.map_or(Ok(plan.record.revision), Err),
            );
        }
        if self.pending.bytes > PENDING_BYTES
            && let Err(error) = self.flush()
        {
            self.told(&error);
        }
    }

    /// Gives an accepted commit its revision; answers a refused one.
    fn plan(&mut self, write: Write, reply: Reply<u64>) -> Option<Planned> {
        let latest = self.keys.get(&write.key);
        let current = latest
            .filter(|latest| !latest.deleted)
            .map(|latest| latest.revision);
        let fits = match write.expect {
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current == Some(revision),
        };
        if !fits {
            answer(reply, Err(StoreError::Conflict { current }));
            return None;
        }
        if write.durability == Durability::Lazy && self.pending.bytes > PENDING_BYTES_MOST {
            answer(
                reply,
                Err(StoreError::Full(
                    "too many changes wait to be written".to_owned(),
                )),
            );
            return None;
        }
        self.revision += 1;
        let value = match write.change {
            Change::Put(value) => Some(value),
            Change::Delete => None,
        };
        let record = Record {
            revision: self.revision,
            key: write.key,
            value,
        };
        let row = latest.and_then(|latest| latest.row);
        let length = record.value.as_ref().map_or(0, Bytes::len);
        let replaces = row.is_some_and(|(_, before)| length <= before + FULL_GROWTH);
        let now = Latest {
            revision: record.revision,
            deleted: record.value.is_none(),
            row,
        };
        let before = self.keys.insert(record.key.clone(), now);
        Some(Planned {
            record,
            durability: write.durability,
            frees: write.frees,
            replaces,
            reply,
            before,
            failed: None,
        })
    }

    /// Writes the immediate commits of a batch, and what may ride along.
    fn store(&mut self, planned: &[Planned]) -> Result<(), StoreError> {
        let immediate: Vec<&Record> = planned
            .iter()
            .filter(|plan| plan.is_immediate())
            .map(|plan| &plan.record)
            .collect();
        let reserve = (self.revision > self.reserved).then_some(self.revision + RESERVE);
        if immediate.is_empty() && reserve.is_none() {
            return Ok(());
        }
        let ride = self.full_since.is_none() && self.pending.waited(self.options.lazy_delay);
        let lazy: Vec<Record> = if ride { self.unwritten() } else { Vec::new() };
        let removal = match self.full_since {
            None => self
                .history
                .beyond(self.options.keep_rows, self.options.keep_bytes),
            Some(_) => self.history.upto(self.revision, FULL_BATCH_WRITES),
        };
        let horizon = removal.horizon.max(self.horizon());
        self.log.transaction(|batch| {
            lazy.iter().try_for_each(|record| batch.append(record))?;
            immediate
                .iter()
                .try_for_each(|record| batch.append(record))?;
            removal.rows.iter().try_for_each(|row| batch.delete(*row))?;
            if !removal.rows.is_empty() {
                batch.set(Counter::Horizon, horizon)?;
            }
            reserve.map_or(Ok(()), |reserve| batch.set(Counter::Reserved, reserve))
        })?;
        self.recovered();
        self.grown();
        self.forget(&removal);
        if let Some(reserve) = reserve {
            self.reserved = reserve;
        }
        if !immediate.is_empty() {
            self.backups.note_change();
        }
        if ride {
            self.written(&lazy);
        }
        for record in immediate {
            self.settle(
                &record.key,
                record.revision,
                record.value.as_ref().map(bytes::Bytes::len),
            );
        }
        for plan in planned.iter().filter(|plan| plan.is_immediate()) {
            if let Some(before) = &plan.before {
                self.pending.drop_superseded(before.revision);
            }
        }
        Ok(())
    }

    /// Notes that a change is on disk.
    fn settle(&mut self, key: &Key, revision: u64, length: Option<usize>) {
        let Some(latest) = self.keys.get_mut(key) else {
            return;
        };
        if let Some((row, length)) = latest.row.take() {
            self.history.push(revision, row, length);
        }
        latest.row = length.map(|length| (revision, length));
        if length.is_none() {
            self.history.push(revision, revision, 0);
            if latest.deleted && latest.revision == revision {
                self.keys.remove(key);
            }
        }
    }

    /// Notes that obsolete rows are gone.
    fn forget(&mut self, removal: &Removal) {
        self.history.forget(removal);
        self.shared
            .horizon
            .fetch_max(removal.horizon, Ordering::AcqRel);
    }

    fn compact(&mut self, revision: u64) -> Result<(), StoreError> {
        let revision = revision.min(self.revision);
        loop {
            let mut removal = self.history.upto(revision, BUNCH);
            let last = removal.rows.len() < BUNCH;
            if last {
                removal.horizon = self.horizon().max(revision);
            }
            let horizon = removal.horizon.max(self.horizon());
            self.log.transaction(|batch| {
                removal.rows.iter().try_for_each(|row| batch.delete(*row))?;
                batch.set(Counter::Horizon, horizon)
            })?;
            self.forget(&removal);
            if last {
                return Ok(());
            }
        }
    }

    fn horizon(&self) -> u64 {
        self.shared.horizon.load(Ordering::Relaxed)
    }

    fn load(
        &mut self,
        prefix: &str,
        at: u64,
        mut visit: Box<dyn FnMut(Record) + Send>,
    ) -> Result<(), StoreError> {
        self.check_horizon(at)?;
        self.flush()?;
        self.log.read(0, at, |record| {
            if record.key.as_str().starts_with(prefix) {
                visit(record);
            }
        })
    }

    fn watch(&mut self, after: u64, mut sink: Sink) -> Result<(), StoreError> {
        self.check_horizon(after)?;
        self.flush()?;
        let mut chunk = Vec::new();
        self.log.read(after, u64::MAX, |record| {
            chunk.push(record);
            if chunk.len() == 256 {
                sink(&chunk);
                chunk.clear();
            }
        })?;
        if !chunk.is_empty() {
            sink(&chunk);
        }
        self.sinks.push(sink);
        Ok(())
    }

    fn check_horizon(&self, revision: u64) -> Result<(), StoreError> {
        let horizon = self.horizon();
        if revision < horizon {
            Err(StoreError::Compacted { horizon })
        } else {
            Ok(())
        }
    }

    fn publish(&mut self, records: &[Record]) {
        if records.is_empty() {
            return;
        }
        for sink in &mut self.sinks {
            sink(records);
        }
        self.shared.revision.store(self.revision, Ordering::Release);
    }

    fn close(mut self) -> Result<(), StoreError> {
        let noted = self.note_close();
        let closed = noted.and_then(|()| self.log.checkpoint(Checkpoint::Truncate));
        drop(self.log);
        // The write-ahead log is gone; the next one begins with the ballast, if there is room for that now.
        let _ = self.ballast.load_file();
        closed
    }

    fn note_close(&mut self) -> Result<(), StoreError> {
        let revision = self.revision;
        if let Err(error) = self.flush() {
            warn!(%error, "the latest heartbeats and events are lost");
            self.log
                .transaction(|batch| batch.set(Counter::Reserved, revision))?;
        } else if self.reserved != revision || self.log.counter(Counter::Closed)? != revision {
            self.log.transaction(|batch| {
                batch.set(Counter::Reserved, revision)?;
                batch.set(Counter::Closed, revision)
            })?;
        }
        Ok(())
    }
}

enum Wait {
    Command(Command),
    Due,
    Nobody,
}

fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    // Nobody waits for an answer that nobody wants any more, as when a client has gone.
    let _ = reply.send(result);
}
