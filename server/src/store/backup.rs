//! The copy of the log that stands ready for the day the file is damaged.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::StoreError;
use super::log::Log;

/// A server that has just started is busy: a backup can wait so long.
const EARLIEST: Duration = Duration::from_secs(600);

/// When the next backup is made. Nothing wakes up for it: it comes with the first change after it is due.
pub(super) struct Backups {
    path: Option<PathBuf>,
    every: Duration,
    due: Instant,
    changed: bool,
}

impl Backups {
    /// Goes by the age of the last backup.
    pub fn new(path: Option<PathBuf>, every: Duration) -> Backups {
        let last = path
            .as_ref()
            .and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
        let age = last.and_then(|last| SystemTime::now().duration_since(last).ok());
        let wait = every
            .saturating_sub(age.unwrap_or(Duration::MAX))
            .max(EARLIEST.min(every));
        Backups {
            path,
            every,
            due: Instant::now() + wait,
            changed: false,
        }
    }

    /// Something changed that a backup would lack.
    pub fn note_change(&mut self) {
        self.changed = true;
    }

    pub fn make_if_due(&mut self, log: &Log) {
        if !self.changed || Instant::now() < self.due {
            return;
        }
        let Some(path) = &self.path else { return };
        match make(log, path) {
            Ok(()) => self.changed = false,
            Err(error) => {
                warn!(%error, backup = %path.display(), "the backup of the state was not made")
            }
        }
        self.due = Instant::now() + self.every;
    }
}

/// Writes a consistent copy of the file to `path`, replacing an older one.
pub(super) fn make(log: &Log, path: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::Failed(format!("writing the backup: {error}"));
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let made = log.copy_to(&fresh).and_then(|()| {
        std::fs::File::open(&fresh)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(failed)
    });
    if made.is_err() {
        // Half a backup is worth nothing, and takes up space.
        let _ = std::fs::remove_file(&fresh);
    }
    made
}
