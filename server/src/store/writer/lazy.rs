//! Changes that wait in memory: when they come, and when they are written.

use std::time::Instant;

use super::{Planned, RETRY, Writer};
use crate::store::{Record, StoreError};

impl Writer {
    /// Lets a lazy change wait in memory, in place of an older one of its key.
    pub(super) fn postpone(&mut self, plan: &Planned) {
        let before = plan.before.as_ref();
        let on_disk = before.is_some_and(|before| before.row.is_some());
        let delay = match plan.record.value {
            Some(_) if on_disk => self.options.lazy_rewrite_delay,
            _ => self.options.lazy_delay,
        };
        let before = before.map(|before| before.revision);
        self.pending.add(plan.record.clone(), before, delay);
    }

    /// The pending changes that need a row: all but deletions of what was never written.
    pub(super) fn unwritten(&self) -> Vec<Record> {
        let on_disk = |key| {
            self.keys
                .get(key)
                .is_some_and(|latest| latest.row.is_some())
        };
        let records = self.pending.records();
        records
            .filter(|record| record.value.is_some() || on_disk(&record.key))
            .cloned()
            .collect()
    }

    /// Notes that all pending changes are on disk, as `records`.
    pub(super) fn written(&mut self, records: &[Record]) {
        for record in records {
            self.settle(
                &record.key,
                record.revision,
                record.value.as_ref().map(bytes::Bytes::len),
            );
        }
        for (revision, key) in self.pending.take() {
            let latest = self.keys.get(&key);
            if latest.is_some_and(|latest| latest.deleted && latest.revision == revision) {
                self.keys.remove(&key);
            }
        }
    }

    /// Writes the pending changes.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            self.pending.due = None;
            return Ok(());
        }
        let records = self.unwritten();
        if !records.is_empty() {
            if let Err(error) = self.has_room(self.pending.bytes) {
                self.pending.due = Some(Instant::now() + RETRY);
                return Err(error);
            }
            let result = self
                .log
                .transaction(|batch| records.iter().try_for_each(|record| batch.append(record)));
            if result.is_err() {
                self.pending.due = Some(Instant::now() + RETRY);
                return result;
            }
            self.recovered();
        }
        self.written(&records);
        Ok(())
    }
}
