//! Container logs: from the CRI-format files that the keeper writes to what `kubectl logs` shows.
//!
//! A line in a file is `TIMESTAMP STREAM TAG TEXT`; tag `P` marks a piece of a longer line, `F` its end. Rotated files stand beside the
//! current one as `N.log.YYYYMMDD-HHMMSS`, and are read too, oldest first.

use std::io::{self, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// The longest piece of a line; the keeper cuts at 16 KiB.
const MAX_LINE: usize = 256 * 1024;

/// `PodLogOptions` of the core/v1 API.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    /// Lines, counted from the end.
    pub(super) tail: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) limit_bytes: Option<u64>,
    /// `stdout` or `stderr` only.
    pub(super) stream: Option<&'static str>,
}

/// Turns pieces of log files into what is shown. Pure: bytes in, bytes out.
struct Formatter<'a> {
    options: &'a LogOptions,
    /// Timestamps only grow within a log, so they are compared until the first that is late enough.
    since: Option<Timestamp>,
    at_line_start: bool,
    left: u64,
    /// Lines of the file that may still be read: a container that goes on writing must not make the last lines many.
    lines_left: u64,
}

impl<'a> Formatter<'a> {
    fn new(options: &'a LogOptions) -> Self {
        Formatter {
            options,
            since: options.since,
            at_line_start: true,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            lines_left: options.tail.filter(|_| !options.follow).unwrap_or(u64::MAX),
        }
    }

    /// Appends what one line of the file (without its newline) shows as. False when nothing more may be shown.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(lines_left) = self.lines_left.checked_sub(1) else {
            return false;
        };
        self.lines_left = lines_left;
        self.show(line, out) && lines_left > 0
    }

    fn show(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return self.left > 0;
        };
        if let Some(since) = self.since {
            match std::str::from_utf8(time)
                .ok()
                .and_then(|time| time.parse::<Timestamp>().ok())
            {
                Some(time) if time < since => return true,
                _ => self.since = None,
            }
        }
        if self
            .options
            .stream
            .is_some_and(|wanted| wanted.as_bytes() != stream)
        {
            return true;
        }
        let start = out.len();
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.at_line_start = tag != b"P";
        if self.at_line_start {
            out.push(b'\n');
        }
        let shown = ((out.len() - start) as u64).min(self.left);
        out.truncate(start + shown as usize);
        self.left -= shown;
        self.left > 0
    }
}

/// The files of one container instance, oldest first; the last is the one being written.
async fn files_of(current: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (
        current.parent(),
        current.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let rotated = format!("{name}.");
    let mut files = Vec::new();
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        let found = entry.file_name();
        // The names of rotated files sort by time; unfinished (`.tmp`) and compressed files are not read.
        let plain = |rest: &str| {
            rest.bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        };
        if found
            .to_str()
            .and_then(|found| found.strip_prefix(&rotated))
            .is_some_and(plain)
        {
            files.push(entry.path());
        }
    }
    files.sort();
    files.push(current.to_owned());
    Ok(files)
}

/// Where the last `lines` lines begin: (index of the file, offset in it).
async fn tail_start(files: &[PathBuf], lines: u64) -> io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = match File::open(path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let size = file.metadata().await?.len();
        let mut end = size;
        let mut block = vec![0; 16 * 1024];
        while end > 0 {
            let start = end.saturating_sub(block.len() as u64);
            let part = &mut block[..(end - start) as usize];
            file.seek(SeekFrom::Start(start)).await?;
            file.read_exact(part).await?;
            for (at, byte) in part.iter().enumerate().rev() {
                let offset = start + at as u64 + 1;
                // The newline at the very end closes the last line, it does not begin one.
                if *byte == b'\n' && offset < size {
                    wanted = wanted.saturating_sub(1);
                    if wanted == 0 {
                        return Ok((index, offset));
                    }
                }
            }
            end = start;
        }
        if size > 0 {
            wanted = wanted.saturating_sub(1);
            if wanted == 0 {
                return Ok((index, 0));
            }
        }
    }
    Ok((0, 0))
}

/// Writes the log whose current file is `path` to `to`.
///
/// With `follow`, goes on until `running` says false and all was read, or until the receiver is gone.
pub(super) async fn send(
    path: &Path,
    options: &LogOptions,
    mut running: watch::Receiver<bool>,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    // Watching begins before reading, so that nothing falls between.
    let mut changes = if options.follow {
        Some(Changes::of(path)?)
    } else {
        None
    };
    let mut files = files_of(path).await?;
    let (first, offset) = match options.tail {
        Some(0) => (
            files.len() - 1,
            tokio::fs::metadata(path).await.map_or(0, |data| data.len()),
        ),
        Some(lines) => tail_start(&files, lines).await?,
        None => (0, 0),
    };
    let mut formatter = Formatter::new(options);
    let mut out = Vec::new();
    let current = files.pop();
    for (index, file) in files.iter().enumerate().skip(first) {
        let mut lines = match Lines::open(file, if index == first { offset } else { 0 }).await {
            Ok(lines) => lines,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !lines.show(&mut formatter, &mut out, to).await? {
            return Ok(());
        }
    }
    let Some(current) = current else {
        return Ok(());
    };
    let mut lines = Lines::open(&current, if first == files.len() { offset } else { 0 }).await?;
    loop {
        let ended = !*running.borrow_and_update();
        if !lines.show(&mut formatter, &mut out, to).await? {
            return Ok(());
        }
        let Some(changes) = changes.as_mut().filter(|_| !ended) else {
            return Ok(());
        };
        tokio::select! {
            // An error says that nobody knows of the container any more.
            changed = running.changed() => if changed.is_err() { return Ok(()) },
            changed = changes.next() => changed?,
        }
        if lines.was_rotated(&current).await? {
            // What was written between the last read and the rotation comes first.
            if !lines.show(&mut formatter, &mut out, to).await? {
                return Ok(());
            }
            if let Ok(next) = Lines::open(&current, 0).await {
                lines = next;
            }
        }
    }
}

/// One file, read by whole lines.
struct Lines {
    file: File,
    identity: (u64, u64),
    pending: Vec<u8>,
}

impl Lines {
    async fn open(path: &Path, offset: u64) -> io::Result<Lines> {
        let mut file = File::open(path).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        let identity = identity(&file.metadata().await?);
        Ok(Lines {
            file,
            identity,
            pending: Vec::new(),
        })
    }

    /// Whether `path` is another file by now.
    async fn was_rotated(&self, path: &Path) -> io::Result<bool> {
        match tokio::fs::metadata(path).await {
            Ok(data) => Ok(identity(&data) != self.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Shows all whole lines from here to the end of the file. False when nothing more may be shown.
    async fn show(
        &mut self,
        formatter: &mut Formatter<'_>,
        out: &mut Vec<u8>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<bool> {
        loop {
            self.pending.reserve(32 * 1024);
            if self.file.read_buf(&mut self.pending).await? == 0 {
                return Ok(true);
            }
            let mut go_on = true;
            let mut done = 0;
            while let Some(length) = self.pending[done..]
                .iter()
                .position(|byte| *byte == b'\n')
                .filter(|_| go_on)
            {
                go_on = formatter.line(&self.pending[done..done + length], out);
                done += length + 1;
            }
            self.pending.drain(..done);
            if self.pending.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line of the log file has no end",
                ));
            }
            to.write_all(out).await?;
            out.clear();
            if !go_on {
                return Ok(false);
            }
        }
    }
}

fn identity(data: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (data.dev(), data.ino())
}

/// Tells when something changes in a log's directory (inotify(7)).
struct Changes {
    inotify: AsyncFd<Watched>,
}

/// nix gives [`Inotify`] only `AsFd`; tokio asks for `AsRawFd`.
struct Watched(Inotify);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    fn of(path: &Path) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(path.parent().unwrap_or(path), events)?;
        // SAFETY: a `Watched` tells the same open descriptor, which its Inotify owns, until it is dropped.
        let inotify = unsafe { AsyncFd::register(Watched(inotify)) }?;
        Ok(Changes { inotify })
    }

    async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.try_io(|inotify| inotify.get_ref().0.read_events().map_err(io::Error::from))
            {
                Ok(events) => return events.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    const FILE: &str = "2026-01-01T00:00:01.000000001Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n\
2026-01-01T00:00:03Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n";

    async fn shown(path: &Path, options: LogOptions) -> String {
        let mut out = Vec::new();
        send(path, &options, watch::channel(false).1, &mut out)
            .await
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn lines_are_shown_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, FILE).unwrap();
        let with = LogOptions::default;
        assert_eq!(shown(&path, with()).await, "one\ntwo\nthree\n");
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    stream: Some("stderr"),
                    ..with()
                }
            )
            .await,
            "two\n"
        );
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    tail: Some(3),
                    ..with()
                }
            )
            .await,
            "two\nthree\n"
        );
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    tail: Some(0),
                    ..with()
                }
            )
            .await,
            ""
        );
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    tail: Some(99),
                    ..with()
                }
            )
            .await,
            "one\ntwo\nthree\n"
        );
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    limit_bytes: Some(5),
                    ..with()
                }
            )
            .await,
            "one\nt"
        );
        let since = "2026-01-01T00:00:02Z".parse().ok();
        assert_eq!(
            shown(&path, LogOptions { since, ..with() }).await,
            "two\nthree\n"
        );
        let stamped = shown(
            &path,
            LogOptions {
                timestamps: true,
                ..with()
            },
        )
        .await;
        assert_eq!(stamped.lines().last(), Some("2026-01-01T00:00:03Z three"));
    }

    #[test]
    fn the_last_lines_are_not_more_because_others_follow() {
        let options = LogOptions {
            tail: Some(2),
            ..Default::default()
        };
        let (mut formatter, mut out) = (Formatter::new(&options), Vec::new());
        let more: Vec<bool> = FILE
            .lines()
            .map(|line| formatter.line(line.as_bytes(), &mut out))
            .collect();
        assert_eq!(more, [true, false, false, false]);
        assert_eq!(out, b"one\ntwo\n");
    }

    #[tokio::test]
    async fn rotated_files_are_read_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (name, text) in [
            ("0.log.20260101-000001.999999999", "b"),
            ("0.log.20260101-000001.000000001", "a"),
            ("0.log", "c"),
            ("0.log.x.gz", "no"),
        ] {
            std::fs::write(
                dir.path().join(name),
                format!("2026-01-01T00:00:01Z stdout F {text}\n"),
            )
            .unwrap();
        }
        assert_eq!(shown(&path, LogOptions::default()).await, "a\nb\nc\n");
        assert_eq!(
            shown(
                &path,
                LogOptions {
                    tail: Some(2),
                    ..Default::default()
                }
            )
            .await,
            "b\nc\n"
        );
    }

    #[tokio::test]
    async fn following_goes_across_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:01Z stdout F {text}\n");
        std::fs::write(&path, line("a")).unwrap();
        let (stop, running) = watch::channel(true);
        let (mut out, mut shown) = tokio::io::duplex(1024);
        let options = LogOptions {
            follow: true,
            ..Default::default()
        };
        let log = path.clone();
        let following = tokio::spawn(async move { send(&log, &options, running, &mut out).await });
        let mut seen = [0; 2];
        shown.read_exact(&mut seen).await.unwrap();
        std::fs::rename(&path, dir.path().join("0.log.20260101-000001")).unwrap();
        std::fs::write(dir.path().join("new"), line("b")).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        tokio::time::timeout(Duration::from_secs(5), shown.read_exact(&mut seen))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&seen, b"b\n");
        stop.send(false).unwrap();
        tokio::time::timeout(Duration::from_secs(5), following)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
