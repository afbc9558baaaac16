//! What the writer does when the disk takes no more: refuse clearly, let deletions pass, find out when it is over.

use std::time::Instant;

use tracing::{info, warn};

use super::{Planned, ROOM, Writer};
use crate::store::{Key, StoreError};

impl Writer {
    /// Takes back commits: those meant by `lost`, and what was built on them.
    pub(super) fn fail(
        &mut self,
        planned: &mut [Planned],
        error: &StoreError,
        lost: impl Fn(&Planned, u64) -> bool,
    ) {
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
    pub(super) fn has_room(&mut self) -> Result<(), StoreError> {
        let Some(tried) = self.full_since else {
            return Ok(());
        };
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
    pub(super) fn make_room(&mut self) {
        self.ballast.drop();
        self.full_since = Some(Instant::now());
        if let Err(error) = self.log.checkpoint(false) {
            warn!(%error, "copying the write-ahead log into the state database");
        }
    }

    /// Tells the operator once that writing fails.
    pub(super) fn told(&mut self, error: &StoreError) {
        if !self.failing {
            warn!(%error, "changes are refused, reads go on");
        }
        self.failing = true;
    }

    pub(super) fn recovered(&mut self) {
        if self.failing {
            info!("the state database takes changes again");
        }
        self.failing = false;
    }
}
