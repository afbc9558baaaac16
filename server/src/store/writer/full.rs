//! What the writer does when the disk takes no more: refuse clearly, let deletions pass, find out when it is over.

use std::time::Instant;

use tracing::{info, warn};

use super::{GROWTH, Planned, ROOM, Writer};
use crate::store::log::Checkpoint;
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

    /// Refuses what a full disk does not take. Deletions pass; what is only in memory passes; and, unless it is very tight, what
    /// replaces something about as large: a box must be able to tell its state, and an operator to scale down what fills the disk.
    pub(super) fn refuse(&mut self, planned: &mut [Planned], error: &StoreError) {
        let cramped = self.cramped;
        self.fail(planned, error, |plan, _| {
            plan.is_immediate() && !plan.frees && (cramped || !plan.replaces)
        });
    }

    /// Says no while the disk is full, unless so many bytes fit into what is free inside the file. Finds out now and then whether
    /// the disk still is full.
    pub(super) fn has_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        let Some(tried) = self.full_since else {
            return Ok(());
        };
        if tried.elapsed() >= self.options.full_retry {
            if self.ballast.load().is_ok() {
                self.full_since = None;
                return Ok(());
            }
            self.full_since = Some(Instant::now());
            self.copy_log();
        }
        let free = self.log.free_bytes().unwrap_or(0);
        if !self.cramped && free > ROOM + bytes as u64 {
            return Ok(());
        }
        Err(StoreError::Full("no space left on device".to_owned()))
    }

    /// Gives back the ballast, and while there is that space, copies the write-ahead log into the file and makes some of it free.
    pub(super) fn make_room(&mut self) {
        self.ballast.drop();
        self.full_since = Some(Instant::now());
        self.copy_log();
        if !self.cramped && self.log.free_bytes().is_ok_and(|free| free < ROOM) {
            // Before somebody else takes it.
            self.cramped = self.log.grow(ROOM).is_err();
        }
    }

    /// After a transaction: finds out whether there is space for what the database has grown by, before more is promised.
    pub(super) fn grown(&mut self) {
        if self.full_since.is_some() {
            return;
        }
        let enough = |bytes: u64, file: u64| bytes <= file + GROWTH;
        let Ok(bytes) = self.log.bytes() else { return };
        if enough(bytes, self.file_bytes) {
            return;
        }
        self.file_bytes = self.log.file_bytes();
        if enough(bytes, self.file_bytes) {
            return;
        }
        match self.log.checkpoint(Checkpoint::Passive) {
            Ok(()) => self.file_bytes = bytes,
            Err(error) => {
                self.told(&error);
                self.make_room();
            }
        }
    }

    /// Makes the write-ahead log ready to be used from its beginning.
    fn copy_log(&mut self) {
        self.cramped = self.log.checkpoint(Checkpoint::Restart).is_err();
    }

    /// Tells the operator once that writing fails.
    pub(super) fn told(&mut self, error: &StoreError) {
        if !self.failing {
            warn!(%error, "changes are refused, reads go on");
        }
        self.failing = true;
    }

    pub(super) fn recovered(&mut self) {
        if self.full_since.is_some() {
            return;
        }
        if self.failing {
            info!("the state database takes changes again");
        }
        self.failing = false;
    }
}
