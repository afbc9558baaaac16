//! A file that only takes up space, to be given back when the disk is full: deletions need a little room, too.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
        let written = File::create(&self.path).and_then(|mut file| {
            // Not zeros: some file systems store those in no space at all.
            let mut state: u32 = 1;
            let block: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .take(64 << 10)
            .collect();
            for _ in 0..SIZE / block.len() {
                file.write_all(&block)?;
            }
            file.sync_all()
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
