//! Where the keeper was with each log, kept where it survives the keeper: a file on the tmpfs, mapped into memory.
//!
//! Output stays in its pipe until it is in the log (`tee(2)` shows it without taking it). A keeper that is killed in between leaves a
//! cursor that tells the next one whether to cut the log back or to take what was logged out of the pipe: each line is logged once.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::logs::Stream;

/// Containers with cursors; more would do without (and lose exactness, not lines).
const CONTAINERS: u32 = 4096;

/// What is to be done by who finds the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfinished {
    Nothing,
    /// The log may hold a part of something that is still in the pipe: cut it back to this size.
    Cut {
        size: u64,
    },
    /// Everything is in the log; if the pipe still starts with `head`, take `length` bytes out of it.
    Take {
        length: usize,
        head: [u8; HEAD],
    },
}

/// Bytes by which a piece of output is known again.
const HEAD: usize = 32;
const WRITING: u32 = 1;
const WRITTEN: u32 = 2;

/// One stream's cursor. Written by the keeper only, in this order.
#[repr(C, align(64))]
pub(super) struct Cursor {
    phase: AtomicU32,
    length: AtomicU32,
    size: AtomicU64,
    head: [AtomicU64; HEAD / 8],
}

impl Cursor {
    /// About to append to a log of this size.
    pub(super) fn writing(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
        self.phase.store(WRITING, Ordering::Release);
    }

    /// `data` is in the log and about to be taken out of the pipe.
    pub(super) fn written(&self, data: &[u8]) {
        for (word, bytes) in self.head.iter().zip(head(data).chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(raw), Ordering::Relaxed);
        }
        self.length.store(data.len() as u32, Ordering::Relaxed);
        self.phase.store(WRITTEN, Ordering::Release);
    }

    pub(super) fn done(&self) {
        self.phase.store(0, Ordering::Release);
    }

    pub(super) fn unfinished(&self) -> Unfinished {
        match self.phase.load(Ordering::Acquire) {
            WRITING => Unfinished::Cut {
                size: self.size.load(Ordering::Relaxed),
            },
            WRITTEN => {
                let mut known = [0; HEAD];
                for (bytes, word) in known.chunks_exact_mut(8).zip(&self.head) {
                    bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
                }
                Unfinished::Take {
                    length: self.length.load(Ordering::Relaxed) as usize,
                    head: known,
                }
            }
            _ => Unfinished::Nothing,
        }
    }
}

/// The first bytes, padded.
pub(super) fn head(data: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let n = data.len().min(HEAD);
    head[..n].copy_from_slice(&data[..n]);
    head
}

/// All cursors of a box.
#[derive(Debug)]
pub(super) struct Cursors {
    base: NonNull<Cursor>,
}

impl Cursors {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let length = CONTAINERS as usize * Stream::BOTH.len() * size_of::<Cursor>();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        file.set_len(length as u64)?;
        // SAFETY: a new shared mapping of a file that is ours and has this length; pages that nobody touches take no memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<Cursor>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Cursors { base }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The cursor of a container's stream; containers are numbered from 1, 0 has none.
    pub(super) fn of(&self, container: u32, stream: Stream) -> Option<&Cursor> {
        if container == 0 || container > CONTAINERS {
            return None;
        }
        let at = (container as usize - 1) * Stream::BOTH.len() + stream as usize;
        // SAFETY: within the mapping, which lives as long as this process (it is never unmapped). All fields are atomics, for which any
        // bytes are valid.
        Some(unsafe { self.base.add(at).as_ref() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cursor_tells_the_next_keeper_what_to_do() {
        let path = std::env::temp_dir().join(format!("amphipod-cursors-{}", std::process::id()));
        let cursors = Cursors::open(&path).unwrap();
        let next = || {
            Cursors::open(&path)
                .unwrap()
                .of(7, Stream::Stderr)
                .unwrap()
                .unfinished()
        };
        let cursor = cursors.of(7, Stream::Stderr).unwrap();
        assert_eq!(next(), Unfinished::Nothing);
        cursor.writing(123);
        assert_eq!(next(), Unfinished::Cut { size: 123 });
        cursor.written(b"hello\n");
        let head = head(b"hello\n");
        assert_eq!(next(), Unfinished::Take { length: 6, head });
        assert_eq!(
            cursors.of(7, Stream::Stdout).unwrap().unfinished(),
            Unfinished::Nothing
        );
        cursor.done();
        assert_eq!(next(), Unfinished::Nothing);
        assert!(cursors.of(0, Stream::Stdout).is_none());
        assert!(cursors.of(CONTAINERS, Stream::Stderr).is_some());
        assert!(cursors.of(CONTAINERS + 1, Stream::Stdout).is_none());
        std::fs::remove_file(path).unwrap();
    }
}
