//! The exit journal: one line per ended container, on disk before anybody is told.
//!
//! Appending a line and syncing once for all that ended together is the cheapest durable record there is on flash.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::proto::ExitRecord;

#[derive(Serialize, Deserialize)]
struct Line<T> {
    id: String,
    exit: T,
}

/// Rewritten without the removed containers when it has grown to this.
const COMPACT_AT: u64 = 256 * 1024;

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Journal {
    /// Opens the journal and tells what it holds. A torn last line (power cut) is left out.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, BTreeMap<String, ExitRecord>)> {
        let mut exits = BTreeMap::new();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        for line in text.lines() {
            if let Ok(line) = serde_json::from_str::<Line<ExitRecord>>(line) {
                exits.insert(line.id, line.exit);
            }
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let size = text.len() as u64;
        set_aside(&file);
        Ok((Journal { path, file, size }, exits))
    }

    /// Appends; durable after the next [`Journal::sync`].
    pub(super) fn append(&mut self, id: &str, exit: &ExitRecord) -> io::Result<()> {
        let line = line(id, exit)?;
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn wants_compaction(&self) -> bool {
        self.size > COMPACT_AT
    }

    /// Keeps only the given records.
    pub(super) fn compact<'a>(
        &mut self,
        live: impl Iterator<Item = (&'a str, &'a ExitRecord)>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (id, exit) in live {
            bytes.extend(line(id, exit)?);
        }
        let new = self.path.with_extension("new");
        fs::write(&new, &bytes)?;
        File::open(&new)?.sync_data()?;
        fs::rename(&new, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.size = bytes.len() as u64;
        set_aside(&self.file);
        Ok(())
    }
}

/// Blocks for all that the journal will hold: an exit must be kept also when the disk is full. Allocated, not written; a file system
/// that cannot do it has to have the space then.
fn set_aside(journal: &File) {
    let keep = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let _ = nix::fcntl::fallocate(journal.as_raw_fd(), keep, 0, COMPACT_AT as libc::off_t);
}

fn line(id: &str, exit: &ExitRecord) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Line {
        id: id.to_string(),
        exit,
    })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_journal_survives_a_torn_line_and_compaction() {
        let dir = std::env::temp_dir().join(format!("amphipod-journal-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("exits");
        let exit = |status| ExitRecord {
            status,
            oom: false,
            at: 5,
            lost: false,
        };
        let (mut journal, exits) = Journal::open(path.clone()).unwrap();
        assert!(exits.is_empty());
        journal.append("a", &exit(0)).unwrap();
        journal.append("b", &exit(256)).unwrap();
        journal.sync().unwrap();
        journal.file.write_all(b"{\"id\":\"c\",\"ex").unwrap();
        let (mut journal, exits) = Journal::open(path.clone()).unwrap();
        assert_eq!(exits.keys().collect::<Vec<_>>(), ["a", "b"]);
        journal.append("d", &exit(9)).unwrap();
        journal.compact([("d", &exit(9))].into_iter()).unwrap();
        let (_, exits) = Journal::open(path).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(exits["d"].status, 9);
        assert_eq!(exits.len(), 1);
    }
}
