//! Entering a pod's network namespace without taking a worker thread there: a thread of its own enters, opens a socket, and ends; the socket stays.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::netlink::Socket;

/// Opens the file that names a network namespace.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Runs `work` on a new thread inside `netns` and waits for it.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            // Only what is touched is memory; running programs takes more than a socket.
            .stack_size(1024 * 1024)
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                work()
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread inside the network namespace panicked",
            ))
        })
    })
}

/// An rtnetlink socket of another namespace.
pub fn link_socket(netns: &File) -> io::Result<Socket> {
    inside(netns, crate::link::open)
}
