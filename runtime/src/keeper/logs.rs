//! Container logs in CRI format: `2016-10-06T00:17:09.669794202Z stdout F line`.
//!
//! The format, and its partial lines, are those of the CRI logging proposal
//! <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>; limits and names of rotated files are the
//! kubelet's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::cursor::Cursor;

use crate::spec::LogLimits;

/// Longer lines are cut into pieces of this size, all but the last tagged `P`: containerd's `max_container_log_line_size`.
pub(super) const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Turns `data` into log lines at the end of `out`. An unfinished line waits in `partial` for the next call.
pub(super) fn format_lines(
    stream: Stream,
    now: &str,
    partial: &mut Vec<u8>,
    data: &[u8],
    out: &mut Vec<u8>,
) {
    for piece in data.split_inclusive(|b| *b == b'\n') {
        let (mut line, ended) = match piece.split_last() {
            Some((b'\n', line)) => (line, true),
            _ => (piece, false),
        };
        while partial.len() + line.len() > MAX_LINE {
            let (head, tail) = line.split_at(MAX_LINE - partial.len());
            partial.extend_from_slice(head);
            push_line(stream, now, b'P', partial, out);
            partial.clear();
            line = tail;
        }
        if !ended {
            partial.extend_from_slice(line);
        } else if partial.is_empty() {
            push_line(stream, now, b'F', line, out);
        } else {
            partial.extend_from_slice(line);
            push_line(stream, now, b'F', partial, out);
            // Give the memory back: most containers never write partial lines.
            *partial = Vec::new();
        }
    }
}

/// A piece of a line that has no end yet, but cannot wait for it.
pub(super) fn format_piece(stream: Stream, now: &str, data: &[u8], out: &mut Vec<u8>) {
    for piece in data.chunks(MAX_LINE) {
        push_line(stream, now, b'P', piece, out);
    }
}

/// How much of `data` can be logged: whole lines, and of an unfinished one what fills whole pieces.
pub(super) fn loggable(data: &[u8]) -> (usize, usize) {
    let whole = data
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let pieces = (data.len() - whole) / MAX_LINE * MAX_LINE;
    (whole, whole + pieces)
}

/// The stream has ended in the middle of a line: a piece without an end, so that readers add no newline that was not written.
pub(super) fn format_rest(stream: Stream, now: &str, partial: &mut Vec<u8>, out: &mut Vec<u8>) {
    if !partial.is_empty() {
        push_line(stream, now, b'P', partial, out);
        *partial = Vec::new();
    }
}

fn push_line(stream: Stream, now: &str, tag: u8, line: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(now.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// RFC 3339 with nanoseconds, UTC.
pub(super) fn timestamp() -> String {
    format!("{:.9}", Timestamp::now())
}

/// The open log of one container.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    limits: LogLimits,
    /// `None` if it could not be opened: tried again with the next output.
    file: Option<File>,
    size: u64,
    /// A write has failed and was reported; cleared by the next that succeeds.
    failing: bool,
}

impl LogFile {
    pub(super) fn open(path: PathBuf, limits: LogLimits) -> Self {
        let mut log = LogFile {
            path,
            limits,
            file: None,
            size: 0,
            failing: false,
        };
        if let Err(e) = log.reopen() {
            log.complain(&e);
        }
        log
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(&self.path)?;
        self.size = file.metadata()?.size();
        self.file = Some(file);
        Ok(())
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.failing {
            super::report(&format!(
                "container log {}: {error}: output is lost until this is repaired",
                self.path.display()
            ));
        }
        self.failing = true;
    }

    /// Appends whole lines, rotating before if they would not fit. Never fails the container: what cannot be written is dropped.
    /// `cursor` tells a later keeper how far this one came; the caller says when all is done.
    pub(super) fn append(&mut self, lines: &[u8], cursor: Option<&Cursor>) {
        if lines.is_empty() {
            return;
        }
        if self.size > 0
            && self.size + lines.len() as u64 > self.limits.max_size
            && let Err(e) = self.rotate()
        {
            self.complain(&e);
        }
        if let Some(cursor) = cursor {
            cursor.writing(self.size);
        }
        let written = match &mut self.file {
            Some(file) => file.write_all(lines),
            None => self.reopen().and_then(|()| match &mut self.file {
                Some(file) => file.write_all(lines),
                None => Ok(()),
            }),
        };
        match written {
            Ok(()) => {
                self.size += lines.len() as u64;
                self.failing = false;
            }
            Err(e) => {
                // No half lines: the next would be appended to one.
                if let Some(file) = &self.file {
                    let _ = file.set_len(self.size);
                }
                self.complain(&e);
            }
        }
    }

    /// Takes back what a killed keeper may have written in part.
    pub(super) fn cut(&mut self, size: u64) {
        if let Some(file) = &self.file
            && size < self.size
            && file.set_len(size).is_ok()
        {
            self.size = size;
        }
    }

    /// Moves the file aside and starts a new one.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        // To the nanosecond: in order also when a burst rotates several times in a second.
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f").to_string();
        let target = suffixed(&self.path, &stamp);
        match fs::rename(&self.path, &target) {
            // Somebody else has moved it already: then we only open it anew.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.reopen()?;
        self.prune();
        Ok(())
    }

    /// Keeps the youngest files.
    fn prune(&self) {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let mut old: Vec<PathBuf> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        old.sort();
        let keep = self.limits.max_files.max(2) as usize - 1;
        for path in old.iter().rev().skip(keep) {
            let _ = fs::remove_file(path);
        }
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(chunks: &[&[u8]]) -> String {
        let (mut partial, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            format_lines(Stream::Stdout, "T", &mut partial, chunk, &mut out);
        }
        format_rest(Stream::Stdout, "T", &mut partial, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        assert_eq!(
            lines(&[b"he", b"llo\nwor", b"ld\n\n"]),
            "T stdout F hello\nT stdout F world\nT stdout F \n"
        );
    }

    #[test]
    fn an_unfinished_last_line_is_kept_as_it_was_written() {
        assert_eq!(lines(&[b"a\nb"]), "T stdout F a\nT stdout P b\n");
    }

    #[test]
    fn long_lines_are_cut_at_sixteen_kibibytes() {
        let long = vec![b'x'; MAX_LINE * 2 + 5];
        let mut input = long.clone();
        input.push(b'\n');
        for chunks in [vec![&input[..]], input.chunks(1000).collect()] {
            let text = lines(&chunks);
            let tags: Vec<(&str, usize)> = text
                .lines()
                .map(|l| (&l[9..10], l.len() - "T stdout P ".len()))
                .collect();
            assert_eq!(tags, [("P", MAX_LINE), ("P", MAX_LINE), ("F", 5)]);
        }
    }

    #[test]
    fn unfinished_lines_wait_unless_they_are_long() {
        assert_eq!(loggable(b"one\ntwo\nthr"), (8, 8));
        assert_eq!(loggable(b"one"), (0, 0));
        let mut long = b"one\n".to_vec();
        long.extend(vec![b'x'; MAX_LINE * 2 + 1]);
        assert_eq!(loggable(&long), (4, 4 + MAX_LINE * 2));
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_full() {
        let mut input = vec![b'x'; MAX_LINE];
        input.push(b'\n');
        assert!(lines(&[&input]).starts_with("T stdout F x"));
    }

    #[test]
    fn timestamps_have_nine_digits() {
        let stamp = timestamp();
        assert_eq!(stamp.len(), "2016-10-06T00:17:09.669794202Z".len());
    }

    #[test]
    fn rotation_keeps_every_line_and_the_promised_number_of_files() {
        let dir = std::env::temp_dir().join(format!("amphipod-logs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let limits = LogLimits {
            max_size: 100,
            max_files: 3,
        };
        let mut log = LogFile::open(dir.join("0.log"), limits);
        for n in 0..20 {
            log.append(format!("line {n:02} {}\n", "x".repeat(40)).as_bytes(), None);
        }
        let mut names: Vec<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        let text: String = names[1..]
            .iter()
            .chain(&names[..1])
            .map(|n| fs::read_to_string(dir.join(n)).unwrap())
            .collect();
        let numbers: Vec<&str> = text.lines().map(|l| &l[5..7]).collect();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(numbers, ["14", "15", "16", "17", "18", "19"]);
    }
}
