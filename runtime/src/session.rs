//! Live connections to processes: exec and attach.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Error, IoContext, Result};
use crate::runtime::Runtime;
use crate::stream::FdStream;

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// It was killed because [`crate::ExecSpec::timeout`] passed.
    pub timed_out: bool,
}

/// A process started by [`Runtime::exec`].
///
/// Take the streams out and drop `stdin` to say end of input. With a terminal, `stdin` and `stdout` are both its master and `stderr` is
/// `None`; the output ends when the process has gone. Output is not lost if `wait` returns first: it stays in the pipe.
#[derive(Debug)]
pub struct ExecSession {
    pub stdin: Option<FdStream>,
    pub stdout: Option<FdStream>,
    pub stderr: Option<FdStream>,
    pub(crate) tty: Option<FdStream>,
    pub(crate) pid: i32,
    pub(crate) exec_id: u64,
    pub(crate) runtime: Runtime,
    pub(crate) exit: tokio::sync::watch::Receiver<Option<ExecOutcome>>,
}

impl ExecSession {
    /// The process id on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sets the terminal's size in characters; the process gets SIGWINCH. Without a terminal: no effect.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        resize(self.tty.as_ref(), width, height)
    }

    /// A handle that resizes while the streams are in use elsewhere.
    pub fn resizer(&self) -> Resizer {
        Resizer(self.tty.clone())
    }

    /// Waits for the process to end. May be called again.
    pub async fn wait(&mut self) -> Result<ExecOutcome> {
        let outcome = self
            .exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::Keeper("connection lost while a command was running".into()))?;
        (*outcome).ok_or_else(|| Error::Keeper("no outcome".into()))
    }

    /// Sends a signal to the process and its group.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.runtime.kill_exec(self.exec_id, signal).await
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        self.runtime.forget_exec(self.exec_id);
    }
}

/// A connection to a container's own streams, from [`Runtime::attach`]. Ends (end of file) when the container's output does.
#[derive(Debug)]
pub struct AttachSession {
    /// `Some` if the container has [`crate::ContainerSpec::stdin`].
    pub stdin: Option<AttachInput>,
    pub stdout: FdStream,
    /// `None` with a terminal.
    pub stderr: Option<FdStream>,
    pub(crate) tty: Option<FdStream>,
}

impl AttachSession {
    /// As [`ExecSession::resize`].
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        resize(self.tty.as_ref(), width, height)
    }

    pub fn resizer(&self) -> Resizer {
        Resizer(self.tty.clone())
    }
}

/// Resizes the terminal of a session.
#[derive(Debug, Clone)]
pub struct Resizer(pub(crate) Option<FdStream>);

impl Resizer {
    /// As [`ExecSession::resize`].
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        resize(self.0.as_ref(), width, height)
    }
}

/// The writing side of a container's standard input.
///
/// Write through [`AttachInput::stream`]; call [`AttachInput::end`] when the client's input is at its end: with
/// [`crate::ContainerSpec::stdin_once`] the container then sees end of file, else nothing happens.
#[derive(Debug)]
pub struct AttachInput {
    pub stream: FdStream,
    pub(crate) container: String,
    pub(crate) runtime: Runtime,
}

impl AttachInput {
    /// The client has no more input.
    pub async fn end(self) -> Result<()> {
        let AttachInput {
            stream,
            container,
            runtime,
        } = self;
        drop(stream);
        runtime.end_stdin(&container).await
    }
}

fn resize(tty: Option<&FdStream>, width: u16, height: u16) -> Result<()> {
    match tty {
        Some(tty) => set_window_size(tty.as_borrowed(), width, height),
        None => Ok(()),
    }
}

pub(crate) fn set_window_size(tty: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    let rc = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(rc)
        .map(drop)
        .context(|| "set the terminal size".into())
}
