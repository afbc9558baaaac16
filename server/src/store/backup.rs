//! The copy of the log that stands ready for the day the file is damaged.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info};

use super::StoreError;
use super::log::Log;

/// A server that has just started is busy: a backup can wait so long.
const EARLIEST: Duration = Duration::from_secs(600);

/// How long after a failed attempt the next one is made, twice as long after each further one, up to the second. An attempt on a
/// full disk writes until nothing more fits, which wears flash.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MOST: Duration = Duration::from_secs(3600);

/// When the next backup is made. Nothing wakes up for it: it comes with the first change after it is due.
pub(super) struct Backups {
    path: Option<PathBuf>,
    every: Duration,
    due: Instant,
    changed: bool,
    /// Failed attempts since the last that went well.
    failures: u32,
}

/// What the operator has to hear.
#[derive(Debug, PartialEq)]
enum News {
    Fails,
    WorksAgain,
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
            failures: 0,
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
        let Some(path) = self.path.clone() else {
            return;
        };
        let made = make(log, &path);
        let news = self.note_attempt(made.is_ok(), Instant::now());
        let backup = path.display();
        match (news, made) {
            (Some(News::Fails), Err(error)) => {
                error!(%error, %backup, "the state has no backup of today; it is tried again and again. Free or repair the disk: if the state were damaged now, what came after the last backup would be lost")
            }
            (Some(News::WorksAgain), _) => info!(%backup, "the state has a backup again"),
            _ => {}
        }
    }

    fn note_attempt(&mut self, made: bool, now: Instant) -> Option<News> {
        let failed_before = self.failures > 0;
        if made {
            self.changed = false;
            self.failures = 0;
            self.due = now + self.every;
            return failed_before.then_some(News::WorksAgain);
        }
        let wait = RETRY.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures += 1;
        self.due = now + wait.min(RETRY_MOST).min(self.every);
        (!failed_before).then_some(News::Fails)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_backup_is_tried_again_soon_then_more_rarely_and_told_once() {
        let day = Duration::from_secs(24 * 3600);
        let mut backups = Backups::new(None, day);
        let mut now = Instant::now();
        let mut attempt = |made: bool| {
            let news = backups.note_attempt(made, now);
            let wait = backups.due - now;
            now += wait;
            (wait.as_secs() / 60, news)
        };
        assert_eq!(attempt(true), (24 * 60, None));
        assert_eq!(attempt(false), (1, Some(News::Fails)));
        let waits = [(); 8].map(|()| attempt(false));
        assert_eq!(
            waits,
            [2, 4, 8, 16, 32, 60, 60, 60].map(|minutes| (minutes, None))
        );
        assert_eq!(attempt(true), (24 * 60, Some(News::WorksAgain)));
        assert_eq!(attempt(false), (1, Some(News::Fails)), "it begins anew");
        for _ in 0..100 {
            assert!(attempt(false).0 <= 60);
        }
    }
}
