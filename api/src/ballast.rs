//! Space that an SQLite database keeps back for the day when the disk is full: deletions need a little room, too.
//!
//! There are two reserves. The blocks of the write-ahead log are set aside for as long as the database is open, so that a
//! transaction needs nothing from the file system, also while something else takes every block that comes free. The ballast is a
//! file beside the database that only takes up space; it is given up when the disk is full, for the little that the database
//! itself must grow. While nobody has the database open there is no write-ahead log, and the next one begins with the ballast's
//! blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate, posix_fallocate};
use nix::libc::off_t;
use nix::sys::statvfs::statvfs;

use crate::files::PRIVATE;

/// What is kept back for one database.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    log: PathBuf,
    bytes: off_t,
    log_bytes: off_t,
}

impl Ballast {
    /// The ballast of `NAME.db` is `NAME.db-ballast`. `bytes`: its size, at least that at which the write-ahead log is copied into
    /// the database; `log_bytes`: what is set aside for that log, which should have this `journal_size_limit`.
    pub fn beside(database: &Path, bytes: u32, log_bytes: u32) -> Ballast {
        let with = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        Ballast {
            path: with("-ballast"),
            log: with("-wal"),
            bytes: bytes as off_t,
            log_bytes: log_bytes as off_t,
        }
    }

    /// Before the database is opened: a write-ahead log that must be made is made of the ballast. It holds zeros, which SQLite
    /// takes for an empty one (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>: a header without its magic number).
    pub fn lend(&self) {
        if !self.log.exists() {
            // Without a ballast, or on a read-only disk, SQLite makes its own or says what is wrong.
            let _ = std::fs::rename(&self.path, &self.log);
        }
    }

    /// Takes up the space, where it is not taken up already. The database is open.
    pub fn load(&self) -> io::Result<()> {
        // Blocks are allocated beyond the end without being written: it costs no flash, and SQLite does not see it.
        let log = open(&self.log)?;
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(log.as_raw_fd(), keep, 0, self.log_bytes)?;
        self.load_file()
    }

    /// Takes up the space of the file alone, as after the database was closed. As much must be left for others, so that the last
    /// space on a full disk, which was perhaps given up a moment ago, is not taken again before it was of use.
    pub fn load_file(&self) -> io::Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        if free_bytes(&self.path)? < 2 * self.bytes as u64 {
            return Err(Errno::ENOSPC.into());
        }
        let loaded =
            open(&self.path).and_then(|file| Ok(posix_fallocate(file.as_raw_fd(), 0, self.bytes)?));
        if loaded.is_err() {
            // Half a ballast would leave the disk as full as it is.
            self.drop();
        }
        loaded
    }

    /// Whether there is something to give up.
    pub fn is_loaded(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| file.len() == self.bytes as u64)
    }

    /// Gives the file's space back if there is hardly any other.
    pub fn drop_if_tight(&self) {
        if free_bytes(&self.path).is_ok_and(|free| free < self.bytes as u64) {
            self.drop();
        }
    }

    /// Gives the file's space back.
    pub fn drop(&self) {
        // If even that fails, the retry of the write says what is wrong.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What can be written to the file system that holds `path`, a file that need not be there. What a file system keeps for root or
/// for itself does not count: of the latter (ext4: 2 %) nobody can have any.
// The C types of statvfs are narrower on 32-bit machines.
#[allow(clippy::unnecessary_cast)]
fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path.parent().unwrap_or(path))?;
    Ok(found.blocks_available() as u64 * found.fragment_size() as u64)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(PRIVATE)
        .open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_log_has_its_blocks_before_it_needs_them_and_the_ballast_is_given_and_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let ballast = Ballast::beside(&path("a.db"), 1 << 20, 2 << 20);
        ballast.load().unwrap();
        let log = std::fs::metadata(path("a.db-wal")).unwrap();
        assert_eq!(log.len(), 0);
        assert!(log.blocks() * 512 >= 2 << 20, "{} blocks", log.blocks());
        assert_eq!(
            std::fs::metadata(path("a.db-ballast")).unwrap().len(),
            1 << 20
        );
        ballast.lend();
        assert!(path("a.db-ballast").exists(), "a log is there already");
        std::fs::remove_file(path("a.db-wal")).unwrap();
        ballast.lend();
        assert!(!path("a.db-ballast").exists());
        assert_eq!(std::fs::metadata(path("a.db-wal")).unwrap().len(), 1 << 20);
        ballast.load_file().unwrap();
        ballast.drop();
        ballast.drop();
        assert!(!path("a.db-ballast").exists());
    }
}
