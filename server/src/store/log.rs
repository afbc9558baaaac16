//! The SQLite file: one table to which changes are appended, and nothing that is rewritten in place.
//!
//! An append touches the last page of one B-tree and no index, which is as little flash as a database can wear. Which row is
//! a key's latest is known in memory (see `writer.rs`), rebuilt by one scan at open.
//!
//! Pragmas, and why:
//! - `journal_mode=WAL`, `synchronous=FULL`: one fsync per transaction, and what was acknowledged survives a power cut.
//! - `locking_mode=EXCLUSIVE`: one server per file, told clearly; and no shared-memory file beside it.
//! - `cache_size=-512`: half a MiB of pages; objects are served from the watch cache, rows are read only at start.
//! - `wal_autocheckpoint=512` (2 MiB) and `journal_size_limit`: the write-ahead log is copied into the file seldom, and fits
//!   into the space that the ballast sets aside.
//! - `temp_store=MEMORY`: nothing is written elsewhere. `auto_vacuum=NONE`: freed pages are reused by later appends.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};

use super::{Key, Record, StoreError};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS log (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB) STRICT;
    CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// Step N makes layout N + 1 of layout N, which `user_version` tells; an empty file is layout 0. A new layout is a new step, never another
/// text of an old one.
const STEPS: &[&str] = &[SCHEMA];

/// What is set aside for the write-ahead log: the 2 MiB at which it is copied, and the last transaction before that.
pub(super) const SET_ASIDE: u32 = 7 << 19;

/// Names of the numbers beside the log.
pub(super) enum Counter {
    /// Revisions up to this one may have been given out.
    Reserved,
    /// Compaction has been up to this revision.
    Horizon,
    /// The same as `Reserved` after a close in order.
    Closed,
}

impl Counter {
    fn name(&self) -> &'static str {
        match self {
            Counter::Reserved => "reserved",
            Counter::Horizon => "horizon",
            Counter::Closed => "closed",
        }
    }
}

/// What becomes of the write-ahead log after it was copied into the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Checkpoint {
    /// It is used from its beginning by the next transaction that can.
    Passive,
    /// The same, for certain.
    Restart,
    /// Its space is given back.
    Truncate,
}

/// What a scan tells about a row.
pub(super) struct Row {
    pub revision: u64,
    pub key: Key,
    /// Length of the value; `None`: the row says deleted.
    pub length: Option<usize>,
}

/// The open file.
pub(super) struct Log {
    connection: Connection,
}

impl Log {
    /// Opens or makes the file, and checks it.
    pub fn open(path: &Path) -> Result<Log, StoreError> {
        let connection = Connection::open(path).map_err(store_error)?;
        let log = Log { connection };
        log.prepare()?;
        Ok(log)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let db = &self.connection;
        db.busy_timeout(Duration::from_secs(2))
            .map_err(store_error)?;
        db.execute_batch(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-512;
             PRAGMA wal_autocheckpoint=512; PRAGMA temp_store=MEMORY;",
        )
        .and_then(|()| db.pragma_update(None, "journal_size_limit", SET_ASIDE))
        .map_err(store_error)?;
        let verdict: String = db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(store_error)?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt(verdict));
        }
        let version: i64 = db
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(store_error)?;
        let known = STEPS.len() as i64;
        if version > known {
            let text = format!(
                "it has layout {version}, made by a newer amphipod; this one knows layouts up to {known}. Nothing was changed: run the newer one \
                 again, or put a copy that is older in its place"
            );
            return Err(StoreError::Failed(text));
        }
        let due = STEPS.iter().skip(usize::try_from(version).unwrap_or(0));
        for (step, layout) in due.zip(version + 1..) {
            db.execute_batch(&format!(
                "BEGIN; {step} PRAGMA user_version={layout}; COMMIT;"
            ))
            .map_err(store_error)?;
        }
        Ok(())
    }

    pub fn counter(&self, counter: Counter) -> Result<u64, StoreError> {
        let value: Option<i64> = self
            .connection
            .prepare_cached("SELECT value FROM counter WHERE name = ?1")
            .and_then(|mut query| {
                query
                    .query_row([counter.name()], |row| row.get(0))
                    .optional()
            })
            .map_err(store_error)?;
        Ok(value.unwrap_or(0) as u64)
    }

    /// Visits all rows in revision order, without their values.
    pub fn scan(&self, mut visit: impl FnMut(Row)) -> Result<(), StoreError> {
        let mut query = self
            .connection
            .prepare("SELECT revision, key, length(value) FROM log ORDER BY revision")
            .map_err(store_error)?;
        let mut rows = query.query([]).map_err(store_error)?;
        while let Some(row) = rows.next().map_err(store_error)? {
            let key: String = row.get(1).map_err(store_error)?;
            let revision: i64 = row.get(0).map_err(store_error)?;
            let length: Option<i64> = row.get(2).map_err(store_error)?;
            let key = Key::parse(&key)
                .ok_or_else(|| StoreError::Corrupt(format!("row {revision} has key {key:?}")))?;
            visit(Row {
                revision: revision as u64,
                key,
                length: length.map(|length| length as usize),
            });
        }
        Ok(())
    }

    /// Visits the rows after one revision and up to another, in revision order.
    pub fn read(
        &self,
        after: u64,
        upto: u64,
        mut visit: impl FnMut(Record),
    ) -> Result<(), StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT revision, key, value FROM log WHERE revision > ?1 AND revision <= ?2 ORDER BY revision")
            .map_err(store_error)?;
        let upto = i64::try_from(upto).unwrap_or(i64::MAX);
        let mut rows = query
            .query(params![after as i64, upto])
            .map_err(store_error)?;
        while let Some(row) = rows.next().map_err(store_error)? {
            let revision: i64 = row.get(0).map_err(store_error)?;
            let key: String = row.get(1).map_err(store_error)?;
            let value: Option<Vec<u8>> = row.get(2).map_err(store_error)?;
            if let Some(key) = Key::parse(&key) {
                visit(Record {
                    revision: revision as u64,
                    key,
                    value: value.map(Bytes::from),
                });
            }
        }
        Ok(())
    }

    /// Runs `work` in one transaction; on any error nothing of it happened.
    pub fn transaction(
        &mut self,
        work: impl FnOnce(&Batch<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        let batch = Batch(
            self.connection
                .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
                .map_err(store_error)?,
        );
        work(&batch).map_err(store_error)?;
        batch.0.commit().map_err(store_error)
    }

    /// Moves the next revision and the horizon on, past all that may have been given out since this copy was made.
    pub fn jump(&mut self, by: u64) -> Result<(), StoreError> {
        let mut last = self.counter(Counter::Reserved)?;
        self.scan(|row| last = last.max(row.revision))?;
        self.transaction(|batch| {
            batch.set(Counter::Reserved, last + by)?;
            batch.set(Counter::Horizon, last + by)
        })
    }

    /// Writes a consistent copy of the whole to another file, which must not exist.
    pub fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let path = path.to_string_lossy();
        self.connection
            .execute("VACUUM INTO ?1", [path.as_ref()])
            .map_err(store_error)?;
        Ok(())
    }

    /// Copies the write-ahead log into the file.
    pub fn checkpoint(&self, how: Checkpoint) -> Result<(), StoreError> {
        let mode = match how {
            Checkpoint::Passive => "PASSIVE",
            Checkpoint::Restart => "RESTART",
            Checkpoint::Truncate => "TRUNCATE",
        };
        self.connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
            .map_err(store_error)
    }

    /// Makes so many bytes inside the file free for new rows, on blocks that the file then has.
    pub fn grow(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.transaction(|batch| {
            batch
                .0
                .execute_batch("CREATE TABLE IF NOT EXISTS spare (space BLOB)")?;
            let insert = "INSERT INTO spare VALUES (zeroblob(?1))";
            batch.0.execute(insert, [bytes as i64]).map(drop)
        })?;
        // Pages that are free before they were ever copied would be holes in the file.
        let copied = self.checkpoint(Checkpoint::Restart);
        self.transaction(|batch| batch.0.execute_batch("DROP TABLE spare"))?;
        copied
    }

    /// The size of the database, with what is only in the write-ahead log.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let bytes: i64 = self
            .connection
            .prepare_cached(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
            )
            .and_then(|mut query| query.query_row([], |row| row.get(0)))
            .map_err(store_error)?;
        Ok(bytes as u64)
    }

    /// The size of the file without the write-ahead log; 0 if it cannot be told.
    pub fn file_bytes(&self) -> u64 {
        let path = self.connection.path().unwrap_or_default();
        std::fs::metadata(path).map_or(0, |file| file.len())
    }

    /// Bytes inside the file that new rows can take without its growing.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let query =
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
        let bytes: i64 = self
            .connection
            .query_row(query, [], |row| row.get(0))
            .map_err(store_error)?;
        Ok(bytes as u64)
    }
}

/// A transaction under way.
pub(super) struct Batch<'c>(Transaction<'c>);

impl Batch<'_> {
    pub fn append(&self, record: &Record) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached("INSERT INTO log (revision, key, value) VALUES (?1, ?2, ?3)")?
            .execute(params![
                record.revision as i64,
                record.key.as_str(),
                record.value.as_deref()
            ])?;
        Ok(())
    }

    pub fn delete(&self, revision: u64) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached("DELETE FROM log WHERE revision = ?1")?
            .execute([revision as i64])?;
        Ok(())
    }

    /// Gives a row another revision.
    pub fn renumber(&self, revision: u64, to: u64) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached("UPDATE log SET revision = ?2 WHERE revision = ?1")?
            .execute(params![revision as i64, to as i64])?;
        Ok(())
    }

    pub fn set(&self, counter: Counter, value: u64) -> Result<(), rusqlite::Error> {
        self.0
            .prepare_cached(
                "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
            )?
            .execute(params![counter.name(), value as i64])?;
        Ok(())
    }
}

/// SQLite's errors in our words. Result codes: <https://www.sqlite.org/rescode.html>
pub(super) fn store_error(error: rusqlite::Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(text),
        // A file system that went read-only says so by failing system calls.
        Some(ErrorCode::ReadOnly | ErrorCode::SystemIoFailure) => StoreError::ReadOnly(text),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(text),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Failed("the state database is in use by another server".to_owned())
        }
        _ => StoreError::Failed(text),
    }
}
