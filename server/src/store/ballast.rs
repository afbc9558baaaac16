//! A file that only takes up space, to be given back when the disk is full: deletions need a little room, too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;

/// Enough for the copying of the write-ahead log (2 MiB, see `log.rs`) and many deletions.
const SIZE: usize = 3 << 20;

pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// The ballast of a database: `state.db-ballast` beside `state.db`.
    pub fn beside(database: &Path) -> Ballast {
        let mut path = database.as_os_str().to_owned();
        path.push("-ballast");
        Ballast { path: path.into() }
    }

    /// Takes up the space, if it is not taken up already.
    pub fn load(&self) -> io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.len() == SIZE as u64) {
            return Ok(());
        }
        let written = File::create(&self.path).and_then(|file| {
            // Blocks are set aside without being written: it costs no flash.
            posix_fallocate(file.as_raw_fd(), 0, SIZE as i64).map_err(io::Error::from)
        });
        if written.is_err() {
            // Half a ballast would leave the disk as full as it is.
            self.drop();
        }
        written
    }

    /// Gives the space back.
    pub fn drop(&self) {
        // If even that fails, the retry of the write says what is wrong.
        let _ = std::fs::remove_file(&self.path);
    }
}
