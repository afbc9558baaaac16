//! A position in a table's ring. It holds no queue: a slow watch costs nothing, and in the end falls off the ring.

use std::sync::Arc;

use tokio::sync::watch;

use super::table::{Event, Gone, Table};

/// The events of a table after a revision, in order, none skipped and none repeated.
pub struct Watch {
    table: Arc<Table>,
    /// The sequence number of the next event.
    next: u64,
    /// Every event up to this revision was told.
    seen: u64,
    changed: watch::Receiver<u64>,
}

/// How many events are handed out at once, and about how many bytes: what a watcher that is slow then holds, though they
/// have left the ring.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 128 << 10;

impl Watch {
    pub(super) fn new(
        table: Arc<Table>,
        next: u64,
        seen: u64,
        changed: watch::Receiver<u64>,
    ) -> Watch {
        Watch {
            table,
            next,
            seen,
            changed,
        }
    }

    /// Waits for events and takes them, at least one. Cancel-safe: events are only taken when returned.
    ///
    /// # Errors
    /// [`Gone`]: this watch was too slow, events it had not taken have left the ring.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, Gone> {
        self.ready().await;
        self.try_next()
    }

    /// Waits until [`Watch::try_next`] has something to say, and takes nothing. Cancel-safe.
    pub async fn ready(&mut self) {
        loop {
            self.changed.mark_unchanged();
            if self.table.has_events(self.next) {
                return;
            }
            // The table lives as long as this watch, and the sender with it.
            let _ = self.changed.changed().await;
        }
    }

    /// Takes the events that are there now, possibly none.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn try_next(&mut self) -> Result<Vec<Arc<Event>>, Gone> {
        let (events, reached) =
            self.table
                .events(self.next, BATCH, BATCH_BYTES)
                .map_err(|gone| Gone {
                    requested: self.seen,
                    ..gone
                })?;
        self.next += events.len() as u64;
        self.seen = self.seen.max(reached);
        Ok(events)
    }

    /// The revision that this watch has reached, if it has taken all events there are: a bookmark.
    pub fn idle_revision(&mut self) -> Option<u64> {
        let (events, revision) = self.table.events(self.next, 1, 1).ok()?;
        if !events.is_empty() {
            return None;
        }
        self.seen = self.seen.max(revision);
        Some(self.seen)
    }

    /// How many watches of this table there are.
    pub fn audience(&self) -> usize {
        self.table.audience()
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }
}
