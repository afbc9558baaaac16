//! Lazy changes that wait in memory, the latest of each key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Key, Record};

struct Waiting {
    record: Record,
    since: Instant,
    due: Instant,
}

#[derive(Default)]
pub(super) struct Pending {
    by_revision: BTreeMap<u64, Waiting>,
    /// What they take up, roughly.
    pub bytes: usize,
    /// When they must be written at the latest.
    pub due: Option<Instant>,
}

impl Pending {
    /// Adds a change that may wait for `delay`. It replaces the one of its key, which had revision `before`.
    pub fn add(&mut self, record: Record, before: Option<u64>, delay: Duration) {
        let now = Instant::now();
        let (mut since, mut due) = (now, now + delay);
        if let Some(replaced) = before.and_then(|before| self.by_revision.remove(&before)) {
            self.bytes -= weight(&replaced.record);
            since = replaced.since;
            due = due.min(replaced.due);
        }
        self.bytes += weight(&record);
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
        let revision = record.revision;
        let waiting = Waiting { record, since, due };
        self.by_revision.insert(revision, waiting);
    }

    /// The change of this revision, if it waits, need not be written any more: there is a newer one on disk.
    pub fn drop_superseded(&mut self, revision: u64) {
        if let Some(dropped) = self.by_revision.remove(&revision) {
            self.bytes -= weight(&dropped.record);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_revision.is_empty()
    }

    /// In the order of their revisions.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.by_revision.values().map(|waiting| &waiting.record)
    }

    /// Whether any has waited so long.
    pub fn waited(&self, long: Duration) -> bool {
        self.by_revision
            .values()
            .any(|waiting| waiting.since.elapsed() >= long)
    }

    /// Takes all away; they are written.
    pub fn take(&mut self) -> impl Iterator<Item = (u64, Key)> + use<> {
        let taken = std::mem::take(self).by_revision;
        taken
            .into_iter()
            .map(|(revision, waiting)| (revision, waiting.record.key))
    }
}

fn weight(record: &Record) -> usize {
    record.value.as_ref().map_or(0, Bytes::len) + record.key.as_str().len()
}
