//! Looking into pipes without emptying them: tee(2), splice(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::sys::fd;

/// A pipe for the copies that tee(2) makes.
#[derive(Debug)]
pub(super) struct Spool {
    read: OwnedFd,
    write: OwnedFd,
}

impl Spool {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = fd::pipe()?;
        Ok(Spool { read, write })
    }

    /// Copies what is in `pipe` to the start of `buffer`: at most a pipe's default capacity. 0 = nothing there.
    pub(super) fn peek(&self, pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: integers only.
        let n = unsafe {
            libc::tee(
                pipe.as_raw_fd(),
                self.write.as_raw_fd(),
                buffer.len(),
                libc::SPLICE_F_NONBLOCK,
            )
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        }
        let n = n as usize;
        let mut have = 0;
        while have < n {
            match nix::unistd::read(self.read.as_raw_fd(), &mut buffer[have..n]) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(have)
    }
}

/// Takes `length` bytes, which are there, out of a pipe.
pub(super) fn take(pipe: BorrowedFd<'_>, nowhere: BorrowedFd<'_>, length: usize) {
    let mut left = length;
    while left > 0 {
        // SAFETY: integers and null offsets only.
        let n = unsafe {
            libc::splice(
                pipe.as_raw_fd(),
                std::ptr::null_mut(),
                nowhere.as_raw_fd(),
                std::ptr::null_mut(),
                left,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        match n {
            n if n > 0 => left -= n as usize,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
}

/// Is there no room for another write? Of a descriptor that is open both ways.
pub(super) fn is_full(pipe: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: pipe.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure, which lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLOUT == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn looking_takes_nothing_and_taking_takes_as_much_as_said() {
        let spool = Spool::new().unwrap();
        let (read, write) = fd::pipe().unwrap();
        let nowhere: OwnedFd = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .unwrap()
            .into();
        let mut buffer = vec![0; 65536];
        assert_eq!(spool.peek(read.as_fd(), &mut buffer).unwrap(), 0);
        let mut write = std::fs::File::from(write);
        write.write_all(b"one\ntwo").unwrap();
        for _ in 0..2 {
            let n = spool.peek(read.as_fd(), &mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"one\ntwo");
        }
        take(read.as_fd(), nowhere.as_fd(), 4);
        write.write_all(b" three").unwrap();
        let n = spool.peek(read.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"two three");
    }

    #[test]
    fn a_pipe_without_room_is_full() {
        let (read, write) = fd::pipe().unwrap();
        let ours = fd::both_ways(&read).unwrap();
        assert!(!is_full(ours.as_fd()));
        std::fs::File::from(write)
            .write_all(&vec![b'x'; 65536])
            .unwrap();
        assert!(is_full(ours.as_fd()));
    }
}
