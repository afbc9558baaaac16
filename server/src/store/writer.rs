//! The one thread that writes. Commits that wait together become one transaction; lazy ones wait in memory.
//!
//! State: `keys` says for each live key which revision is its latest and which row on disk is its latest; `pending` holds lazy
//! changes not yet on disk, one for each key; `history` names the rows that later changes made obsolete, oldest first. The
//! file holds just the rows of `keys` and `history`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::ballast::Ballast;
use super::log::{Counter, Log};
use super::{Change, Durability, Expect, Key, Options, Record, Sink, StoreError, Write};

/// Answers to a command.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Commit(Write, Reply<u64>),
    Load { prefix: String, at: u64, visit: Box<dyn FnMut(Record) + Send>, reply: Reply<()> },
    Watch { after: u64, sink: Sink, reply: Reply<()> },
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
const BATCH_BYTES: usize = 4 << 20;
/// Revisions are reserved on disk in blocks of this many.
const RESERVE: u64 = 4096;
/// Obsolete rows removed by one transaction.
const COMPACT_ROWS: usize = 512;
/// Lazy changes that wait in memory: above the first they are written at once, above the second refused.
const PENDING_BYTES: usize = 8 << 20;
const PENDING_BYTES_MOST: usize = 32 << 20;
/// How long to wait after a failed attempt to write lazy changes, or to take up the ballast again.
const RETRY: Duration = Duration::from_secs(10);

/// While the disk is full: free bytes inside the file above which other writes than deletions may take some.
const ROOM: u64 = 2 << 20;

/// A key that exists, or whose deletion is not on disk yet.
struct Latest {
    revision: u64,
    deleted: bool,
    /// Its row on disk: revision and length of the value. `None`: never written.
    row: Option<(u64, usize)>,
}

/// A row that may go when the horizon reaches `by`.
struct Obsolete {
    by: u64,
    row: u64,
    length: usize,
}

struct Pending {
    record: Record,
    since: Instant,
    due: Instant,
}

/// A commit that was accepted and has its revision.
struct Planned {
    record: Record,
    durability: Durability,
    frees: bool,
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
    pending: BTreeMap<u64, Pending>,
    pending_bytes: usize,
    flush_at: Option<Instant>,
    history: VecDeque<Obsolete>,
    history_bytes: usize,
    revision: u64,
    reserved: u64,
    /// The last write failed and the operator was told.
    failing: bool,
    ballast: Ballast,
    /// The disk was full, the ballast was dropped: when it was last tried to take it up again. Until that works, only
    /// writes that free space are tried.
    full_since: Option<Instant>,
    /// When the next backup is due, if there are changes then.
    backup_at: Instant,
    changed_since_backup: bool,
}

/// A server that has just started is busy: a backup can wait so long.
const BACKUP_EARLIEST: Duration = Duration::from_secs(600);

impl Writer {
    /// Reads what the file holds.
    pub fn new(log: Log, ballast: Ballast, options: Options) -> Result<(Writer, Arc<Shared>), StoreError> {
        let horizon = log.counter(Counter::Horizon)?;
        let mut writer = Writer {
            options,
            shared: Arc::new(Shared {
                revision: AtomicU64::new(0),
                horizon: AtomicU64::new(horizon),
                lazy_horizon: 0,
            }),
            sinks: Vec::new(),
            keys: HashMap::new(),
            pending: BTreeMap::new(),
            pending_bytes: 0,
            flush_at: None,
            history: VecDeque::new(),
            history_bytes: 0,
            revision: log.counter(Counter::Reserved)?.max(horizon),
            reserved: 0,
            failing: false,
            full_since: None,
            backup_at: Instant::now(),
            changed_since_backup: false,
            ballast,
            log,
        };
        writer.backup_at += writer.backup_due().max(BACKUP_EARLIEST.min(writer.options.backup_every));
        if let Err(error) = writer.ballast.load() {
            warn!(%error, "no room for the ballast file that lets deletions go on when the disk is full");
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
                .or_insert(Latest { revision: row.revision, deleted, row: None });
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
                    while batch.len() < BATCH_WRITES && bytes < BATCH_BYTES {
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
                    self.back_up_if_due();
                }
                Command::Load { prefix, at, visit, reply } => answer(reply, self.load(&prefix, at, visit)),
                Command::Watch { after, sink, reply } => answer(reply, self.watch(after, sink)),
                Command::Compact(revision, reply) => answer(reply, self.compact(revision)),
                Command::Backup(path, reply) => answer(reply, self.back_up(&path)),
                Command::Close(reply) => {
                    let result = self.close();
                    match reply {
                        Some(reply) => answer(reply, result),
                        None => result.unwrap_or_else(|error| warn!(%error, "closing the state database")),
                    }
                    return;
                }
            }
        }
    }

    fn wait(&self, commands: &mpsc::Receiver<Command>) -> Wait {
        let Some(at) = self.flush_at else {
            return commands.recv().map_or(Wait::Nobody, Wait::Command);
        };
        match commands.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(command) => Wait::Command(command),
            Err(mpsc::RecvTimeoutError::Timeout) => Wait::Due,
            Err(mpsc::RecvTimeoutError::Disconnected) => Wait::Nobody,
        }
    }

    fn commit(&mut self, batch: Vec<(Write, Reply<u64>)>) {
        let mut planned: Vec<Planned> =
            batch.into_iter().filter_map(|(write, reply)| self.plan(write, reply)).collect();
        if planned.is_empty() {
            return;
        }
        if let Err(error) = self.has_room() {
            self.fail(&mut planned, &error, |plan, _| !plan.frees);
        }
        let mut result = self.store(&planned);
        if let Err(error @ StoreError::Full(_)) = &result {
            self.told(error);
            self.fail(&mut planned, error, |plan, _| !plan.frees);
            self.make_room();
            result = self.store(&planned);
        }
        if let Err(error) = result {
            self.told(&error);
            self.fail(&mut planned, &error, |plan, reserved| {
                plan.durability == Durability::Immediate || plan.record.revision > reserved
            });
        }
        let now = Instant::now();
        for plan in planned.iter_mut().filter(|plan| plan.failed.is_none() && plan.durability == Durability::Lazy) {
            self.postpone(plan, now);
        }
        let done: Vec<Record> =
            planned.iter().filter(|plan| plan.failed.is_none()).map(|plan| plan.record.clone()).collect();
        self.publish(&done);
        for plan in planned {
            answer(plan.reply, plan.failed.map_or(Ok(plan.record.revision), Err));
        }
        if self.pending_bytes > PENDING_BYTES
            && let Err(error) = self.flush()
        {
            self.told(&error);
        }
    }

    /// Takes back commits: those meant by `lost`, and what was built on them.
    fn fail(&mut self, planned: &mut [Planned], error: &StoreError, lost: impl Fn(&Planned, u64) -> bool) {
        let mut keys: Vec<Key> = Vec::new();
        let mut taken_back: Vec<&mut Planned> = Vec::new();
        for plan in planned.iter_mut().filter(|plan| plan.failed.is_none()) {
            if lost(plan, self.reserved) || keys.contains(&plan.record.key) {
                keys.push(plan.record.key.clone());
                plan.failed = Some(error.clone());
                taken_back.push(plan);
            }
        }
        for plan in taken_back.into_iter().rev() {
            match plan.before.take() {
                Some(before) => drop(self.keys.insert(plan.record.key.clone(), before)),
                None => drop(self.keys.remove(&plan.record.key)),
            }
        }
    }

    /// Says no while the disk is full. Finds out now and then whether it still is.
    fn has_room(&mut self) -> Result<(), StoreError> {
        let Some(tried) = self.full_since else { return Ok(()) };
        if tried.elapsed() >= self.options.full_retry {
            if self.ballast.load().is_ok() {
                self.full_since = None;
                return Ok(());
            }
            self.full_since = Some(Instant::now());
        }
        if self.log.free_bytes().is_ok_and(|bytes| bytes > ROOM) {
            return Ok(());
        }
        Err(StoreError::Full("no space left on device".to_owned()))
    }

    /// Gives back the ballast, and what the write-ahead log holds beside the file.
    fn make_room(&mut self) {
        self.ballast.drop();
        self.full_since = Some(Instant::now());
        if let Err(error) = self.log.checkpoint(false) {
            warn!(%error, "copying the write-ahead log into the state database");
        }
    }

    /// Gives an accepted commit its revision; answers a refused one.
    fn plan(&mut self, write: Write, reply: Reply<u64>) -> Option<Planned> {
        let latest = self.keys.get(&write.key);
        let current = latest.filter(|latest| !latest.deleted).map(|latest| latest.revision);
        let fits = match write.expect {
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current == Some(revision),
        };
        if !fits {
            answer(reply, Err(StoreError::Conflict { current }));
            return None;
        }
        if write.durability == Durability::Lazy && self.pending_bytes > PENDING_BYTES_MOST {
            answer(reply, Err(StoreError::Full("too many changes wait to be written".to_owned())));
            return None;
        }
        self.revision += 1;
        let value = match write.change {
            Change::Put(value) => Some(value),
            Change::Delete => None,
        };
        let record = Record { revision: self.revision, key: write.key, value };
        let row = latest.and_then(|latest| latest.row);
        let now = Latest { revision: record.revision, deleted: record.value.is_none(), row };
        let before = self.keys.insert(record.key.clone(), now);
        Some(Planned { record, durability: write.durability, frees: write.frees, reply, before, failed: None })
    }

    /// Writes the immediate commits of a batch, and what may ride along.
    fn store(&mut self, planned: &[Planned]) -> Result<(), StoreError> {
        let immediate: Vec<&Record> =
            planned.iter().filter(|plan| plan.is_immediate()).map(|plan| &plan.record).collect();
        let reserve = (self.revision > self.reserved).then_some(self.revision + RESERVE);
        if immediate.is_empty() && reserve.is_none() {
            return Ok(());
        }
        let oldest = self.pending.values().map(|pending| pending.since).min();
        let ride = self.full_since.is_none() && oldest.is_some_and(|since| since.elapsed() >= self.options.lazy_delay);
        let lazy: Vec<Record> = if ride { self.unwritten() } else { Vec::new() };
        let room_wanted = self.full_since.is_some().then_some(self.revision);
        let (obsolete, horizon) = self.obsolete(room_wanted);
        self.log.transaction(|batch| {
            lazy.iter().try_for_each(|record| batch.append(record))?;
            immediate.iter().try_for_each(|record| batch.append(record))?;
            obsolete.iter().try_for_each(|row| batch.delete(*row))?;
            if !obsolete.is_empty() {
                batch.set(Counter::Horizon, horizon)?;
            }
            reserve.map_or(Ok(()), |reserve| batch.set(Counter::Reserved, reserve))
        })?;
        self.recovered();
        self.forget(obsolete.len(), horizon);
        if let Some(reserve) = reserve {
            self.reserved = reserve;
        }
        self.changed_since_backup |= !immediate.is_empty();
        if ride {
            self.written(&lazy);
        }
        for record in immediate {
            self.settle(&record.key, record.revision, record.value.as_ref().map(bytes::Bytes::len));
        }
        Ok(())
    }

    /// Notes that a change is on disk.
    fn settle(&mut self, key: &Key, revision: u64, length: Option<usize>) {
        let Some(latest) = self.keys.get_mut(key) else { return };
        if let Some((row, length)) = latest.row.take() {
            self.history.push_back(Obsolete { by: revision, row, length });
            self.history_bytes += length;
        }
        latest.row = length.map(|length| (revision, length));
        if length.is_none() {
            self.history.push_back(Obsolete { by: revision, row: revision, length: 0 });
            if latest.deleted && latest.revision == revision {
                self.keys.remove(key);
            }
        }
    }

    /// Lets a lazy change wait in memory, in place of an older one of its key.
    fn postpone(&mut self, plan: &Planned, now: Instant) {
        let record = &plan.record;
        let replaced = plan.before.as_ref().and_then(|before| self.pending.remove(&before.revision));
        let rewrite = record.value.is_some() && plan.before.as_ref().is_some_and(|before| before.row.is_some());
        let delay = if rewrite { self.options.lazy_rewrite_delay } else { self.options.lazy_delay };
        let mut pending = Pending { record: record.clone(), since: now, due: now + delay };
        if let Some(replaced) = replaced {
            self.pending_bytes -= weight(&replaced.record);
            pending.since = replaced.since;
            pending.due = pending.due.min(replaced.due);
        }
        self.pending_bytes += weight(record);
        self.flush_at = Some(self.flush_at.map_or(pending.due, |at| at.min(pending.due)));
        self.pending.insert(record.revision, pending);
    }

    /// The pending changes that need a row: all but deletions of what was never written.
    fn unwritten(&self) -> Vec<Record> {
        let needs_row = |record: &&Record| {
            record.value.is_some() || self.keys.get(&record.key).is_some_and(|latest| latest.row.is_some())
        };
        self.pending.values().map(|pending| &pending.record).filter(needs_row).cloned().collect()
    }

    /// Notes that all pending changes are on disk, as `records`.
    fn written(&mut self, records: &[Record]) {
        for record in records {
            self.settle(&record.key, record.revision, record.value.as_ref().map(bytes::Bytes::len));
        }
        for (revision, pending) in std::mem::take(&mut self.pending) {
            let key = &pending.record.key;
            if self.keys.get(key).is_some_and(|latest| latest.deleted && latest.revision == revision) {
                self.keys.remove(key);
            }
        }
        self.pending_bytes = 0;
        self.flush_at = None;
    }

    /// Writes the pending changes.
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            self.flush_at = None;
            return Ok(());
        }
        let records = self.unwritten();
        if !records.is_empty() {
            if let Err(error) = self.has_room() {
                self.flush_at = Some(Instant::now() + RETRY);
                return Err(error);
            }
            let result = self.log.transaction(|batch| records.iter().try_for_each(|record| batch.append(record)));
            if result.is_err() {
                self.flush_at = Some(Instant::now() + RETRY);
                return result;
            }
            self.recovered();
        }
        self.written(&records);
        Ok(())
    }

    /// The obsolete rows to remove now, and the horizon afterwards. `upto`: all up to this revision; else those beyond
    /// what the options keep, in bunches.
    fn obsolete(&self, upto: Option<u64>) -> (Vec<u64>, u64) {
        let mut rows = Vec::new();
        let mut horizon = self.shared.horizon.load(Ordering::Relaxed);
        let (mut count, mut bytes) = (self.history.len(), self.history_bytes);
        let bunch = count > self.options.keep_rows + COMPACT_ROWS / 2 || bytes > self.options.keep_bytes;
        for obsolete in &self.history {
            let wanted = match upto {
                Some(upto) => obsolete.by <= upto,
                None => bunch && (count > self.options.keep_rows || bytes > self.options.keep_bytes / 4 * 3),
            };
            if !wanted || rows.len() == COMPACT_ROWS {
                break;
            }
            rows.push(obsolete.row);
            horizon = horizon.max(obsolete.by);
            count -= 1;
            bytes -= obsolete.length;
        }
        (rows, horizon)
    }

    /// Notes that the oldest rows of the history are gone.
    fn forget(&mut self, rows: usize, horizon: u64) {
        for obsolete in self.history.drain(..rows) {
            self.history_bytes -= obsolete.length;
        }
        self.shared.horizon.store(horizon, Ordering::Release);
    }

    fn compact(&mut self, revision: u64) -> Result<(), StoreError> {
        let revision = revision.min(self.revision);
        loop {
            let (rows, horizon) = self.obsolete(Some(revision));
            let last = rows.len() < COMPACT_ROWS;
            let horizon = if last { horizon.max(revision) } else { horizon };
            self.log.transaction(|batch| {
                rows.iter().try_for_each(|row| batch.delete(*row))?;
                batch.set(Counter::Horizon, horizon)
            })?;
            self.forget(rows.len(), horizon);
            if last {
                return Ok(());
            }
        }
    }

    fn load(&mut self, prefix: &str, at: u64, mut visit: Box<dyn FnMut(Record) + Send>) -> Result<(), StoreError> {
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
        let horizon = self.shared.horizon.load(Ordering::Relaxed);
        if revision < horizon { Err(StoreError::Compacted { horizon }) } else { Ok(()) }
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

    /// How long until the next backup, by the age of the last one.
    fn backup_due(&self) -> Duration {
        let last = self.options.backup.as_ref().and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
        let age = last.and_then(|last| SystemTime::now().duration_since(last).ok()).unwrap_or(Duration::MAX);
        self.options.backup_every.saturating_sub(age)
    }

    fn back_up_if_due(&mut self) {
        if !self.changed_since_backup || Instant::now() < self.backup_at {
            return;
        }
        let Some(path) = self.options.backup.clone() else { return };
        if let Err(error) = self.back_up(&path) {
            warn!(%error, backup = %path.display(), "the backup of the state was not made");
        }
        self.backup_at = Instant::now() + self.options.backup_every;
    }

    /// Writes a consistent copy of the file, replacing an older one.
    fn back_up(&mut self, path: &Path) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| StoreError::Failed(format!("writing the backup: {error}"));
        let fresh = path.with_extension("new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let made = self.log.copy_to(&fresh).and_then(|()| {
            std::fs::File::open(&fresh)
                .and_then(|file| file.sync_all())
                .and_then(|()| std::fs::rename(&fresh, path))
                .map_err(failed)
        });
        match &made {
            Ok(()) => self.changed_since_backup = false,
            // Half a backup is worth nothing, and takes up space.
            Err(_) => drop(std::fs::remove_file(&fresh)),
        }
        made
    }

    fn close(&mut self) -> Result<(), StoreError> {
        if let Err(error) = self.flush() {
            warn!(%error, "the latest heartbeats and events are lost");
        }
        let revision = self.revision;
        if self.reserved != revision {
            self.log.transaction(|batch| batch.set(Counter::Reserved, revision))?;
        }
        self.log.checkpoint(true)
    }

    /// Tells the operator once that writing fails.
    fn told(&mut self, error: &StoreError) {
        if !self.failing {
            warn!(%error, "changes are refused, reads go on");
        }
        self.failing = true;
    }

    fn recovered(&mut self) {
        if self.failing {
            info!("the state database takes changes again");
        }
        self.failing = false;
    }
}

enum Wait {
    Command(Command),
    Due,
    Nobody,
}

fn weight(record: &Record) -> usize {
    record.value.as_ref().map_or(0, bytes::Bytes::len) + record.key.as_str().len()
}

fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    // Nobody waits for an answer that nobody wants any more, as when a client has gone.
    let _ = reply.send(result);
}
