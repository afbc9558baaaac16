//! What a damaged file can still tell, and the backup where it cannot.
//!
//! Damage is mostly a few pages. Rows are found by their revisions, so what is around a page that cannot be read can be: those rows are
//! taken, and what is missing is taken from the backup. So a change is lost only if it is in the damage and newer than the backup.

use std::path::Path;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row, params};

use super::log::Log;
use super::{Key, Record, StoreError};

/// Rows written in one transaction.
const BATCH: usize = 500;

/// What was found where.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Rows that could be read of the damaged file.
    pub read: usize,
    /// Rows of the backup, in the place of others.
    pub backup: usize,
    /// The first and the last revision of what could not be read. There may be less in it, or nothing.
    pub unreadable: Vec<(u64, u64)>,
}

/// Makes a new file at `path` of what is left of a damaged one.
pub(super) fn rebuild(
    damaged: &Path,
    backup: Option<&Path>,
    path: &Path,
) -> Result<(Log, Found), StoreError> {
    let mut log = Log::open(path)?;
    let mut found = Found::default();
    let remains = Remains::open(damaged);
    let backup = backup.and_then(|backup| Remains::open(backup).ok());
    let mut at = 0;
    loop {
        let read = match &remains {
            Ok(remains) => remains.copy(at, u64::MAX, &mut log)?,
            Err(_) => Copied::default(),
        };
        found.read += read.rows;
        at = read.last.unwrap_or(at);
        if read.complete {
            return Ok((log, found));
        }
        let next = remains.as_ref().ok().and_then(|r| r.readable_after(at));
        if let Some(backup) = &backup {
            found.backup += backup.copy(at, next.unwrap_or(u64::MAX), &mut log)?.rows;
        }
        found.unreadable.push((at + 1, next.unwrap_or(u64::MAX)));
        match next {
            Some(next) => at = next,
            None => return Ok((log, found)),
        }
    }
}

/// How far a copy came.
#[derive(Default)]
struct Copied {
    rows: usize,
    last: Option<u64>,
    /// To the end of what was asked for.
    complete: bool,
}

/// A file that is only read, and not changed by that: somebody may want to look into it.
struct Remains(Connection);

impl Remains {
    fn open(path: &Path) -> Result<Remains, rusqlite::Error> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Its write-ahead log is read without a shared-memory file beside it.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Remains(connection))
    }

    /// Visits the rows after one revision and up to another. False if it came to one that cannot be read.
    fn read(
        &self,
        after: u64,
        upto: u64,
        limit: i64,
        mut visit: impl FnMut(Record) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let number = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
        let query = "SELECT revision, key, value FROM log WHERE revision > ?1 AND revision <= ?2 ORDER BY revision LIMIT ?3";
        let Ok(mut query) = self.0.prepare_cached(query) else {
            return Ok(false);
        };
        let Ok(mut rows) = query.query(params![number(after), number(upto), limit]) else {
            return Ok(false);
        };
        let mut last = after;
        loop {
            match rows.next() {
                Ok(None) => return Ok(true),
                Ok(Some(row)) => match record(row) {
                    Some(record) if record.revision > last => {
                        last = record.revision;
                        visit(record)?;
                    }
                    _ => return Ok(false),
                },
                Err(_) => return Ok(false),
            }
        }
    }

    fn copy(&self, after: u64, upto: u64, log: &mut Log) -> Result<Copied, StoreError> {
        let mut copied = Copied::default();
        let mut batch = Vec::with_capacity(BATCH);
        let mut write = |batch: &mut Vec<Record>| {
            log.transaction(|transaction| batch.drain(..).try_for_each(|r| transaction.append(&r)))
        };
        copied.complete = self.read(after, upto, i64::MAX, |record| {
            copied.rows += 1;
            copied.last = Some(record.revision);
            batch.push(record);
            match batch.len() {
                BATCH => write(&mut batch),
                _ => Ok(()),
            }
        })?;
        write(&mut batch)?;
        Ok(copied)
    }

    fn is_readable(&self, after: u64) -> bool {
        self.read(after, u64::MAX, 1, |_| Ok(())).unwrap_or(false)
    }

    /// The first revision after one that cannot be passed from which reading can go on; none if there is no such.
    fn readable_after(&self, bad: u64) -> Option<u64> {
        // Revisions may be far apart: in growing steps there, and then back to the edge.
        let (mut low, mut step) = (bad, 1);
        let mut high = bad + step;
        while !self.is_readable(high) {
            low = high;
            step += 1 + step / 8;
            high = low.checked_add(step).filter(|h| *h < i64::MAX as u64)?;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.is_readable(middle) {
                true => high = middle,
                false => low = middle,
            }
        }
        Some(high)
    }
}

/// A row, if it is whole. Damage in the middle of a value is not seen by SQLite; but every value is JSON.
fn record(row: &Row<'_>) -> Option<Record> {
    let revision: i64 = row.get(0).ok()?;
    let key: String = row.get(1).ok()?;
    let value: Option<Vec<u8>> = row.get(2).ok()?;
    if let Some(value) = &value {
        serde_json::from_slice::<serde::de::IgnoredAny>(value).ok()?;
    }
    Some(Record {
        revision: u64::try_from(revision).ok()?,
        key: Key::parse(&key)?,
        value: value.map(Bytes::from),
    })
}
