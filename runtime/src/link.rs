//! The connection to the keeper: requests, replies, and what the keeper tells unasked.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::error::{Error, IoContext, Result};
use crate::keeper::KeeperConfig;
use crate::proto::{Message, Op, Reply, Request, WireError, WireErrorKind};
use crate::sys::{process, socket};

type Answer = (Result<Reply, WireError>, Vec<OwnedFd>);

/// One connection. When it breaks, all waiting requests fail and a new one is made by the supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// Requests on their way; `None` once the connection is broken. Written by callers and the one reader.
    waiting: Mutex<Option<HashMap<u64, mpsc::UnboundedSender<Answer>>>>,
    /// The keeper at the other end.
    pub(crate) pid: i32,
    pub(crate) pidfd: AsyncFd<OwnedFd>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere leaves these maps consistent.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Link {
    /// Connects to the keeper that listens at `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<Link> {
        let fd = socket::connect_to(path)?;
        let credentials =
            nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::PeerCredentials)?;
        let pid = credentials.pid();
        let pidfd = process::pidfd_open(pid)?;
        // SAFETY: both are OwnedFds, which tell the same open descriptor until dropped.
        let (socket, pidfd) = unsafe { (AsyncFd::register(fd)?, AsyncFd::register(pidfd)?) };
        Ok(Link {
            socket,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            pid,
            pidfd,
        })
    }

    /// Sends a request; the answers come through the receiver.
    async fn send(&self, op: Op, fds: &[RawFd]) -> Result<mpsc::UnboundedReceiver<Answer>> {
        let broken = |e: io::Error| Error::Keeper(e.to_string());
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes =
            serde_json::to_vec(&Request { seq, op }).map_err(|e| Error::Invalid(e.to_string()))?;
        if bytes.len() > socket::MAX_MESSAGE {
            return Err(Error::Invalid("request is too large".into()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => waiting.insert(seq, sender),
            None => return Err(Error::Keeper("connection lost".into())),
        };
        loop {
            let mut guard = self.socket.writable().await.map_err(broken)?;
            match guard.try_io(|fd| socket::send(fd.get_ref().as_fd(), &bytes, fds)) {
                Ok(Ok(())) => return Ok(receiver),
                Ok(Err(e)) => return Err(broken(e)),
                Err(_would_block) => {}
            }
        }
    }

    /// One request, one answer.
    pub(crate) async fn call(&self, op: Op, fds: &[RawFd]) -> Result<(Reply, Vec<OwnedFd>)> {
        let mut answers = self.send(op, fds).await?;
        let lost = || Error::Keeper("connection lost during a request".into());
        let (result, fds) = answers.recv().await.ok_or_else(lost)?;
        Ok((result.map_err(error)?, fds))
    }

    /// One request, answers until `Done`.
    pub(crate) async fn call_many(&self, op: Op) -> Result<Vec<Reply>> {
        let mut answers = self.send(op, &[]).await?;
        let mut replies = Vec::new();
        while let Some((result, _)) = answers.recv().await {
            match result.map_err(error)? {
                Reply::Done => return Ok(replies),
                reply => replies.push(reply),
            }
        }
        Err(Error::Keeper("connection lost during a request".into()))
    }

    /// The next message that is no reply; replies are handed to their requests on the way, after `seen` has looked at them. An error: the
    /// connection is gone.
    pub(crate) async fn receive(
        &self,
        buffer: &mut [u8],
        seen: impl Fn(&Reply),
    ) -> io::Result<(Message, Vec<OwnedFd>)> {
        loop {
            let mut guard = self.socket.readable().await?;
            let (n, fds) = match guard.try_io(|fd| socket::recv(fd.get_ref().as_fd(), buffer)) {
                Ok(received) => received?,
                Err(_would_block) => continue,
            };
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match serde_json::from_slice(&buffer[..n])? {
                Message::Reply { seq, result } => {
                    let last = !matches!(result, Ok(Reply::Container { .. }));
                    if let Ok(reply) = &result {
                        seen(reply);
                    }
                    if let Some(waiting) = lock(&self.waiting).as_mut()
                        && let Some(sender) = waiting.get(&seq)
                    {
                        let abandoned = sender.send((result, fds)).is_err();
                        if last || abandoned {
                            waiting.remove(&seq);
                        }
                    }
                }
                message => return Ok((message, fds)),
            }
        }
    }

    /// Fails everything that waits.
    pub(crate) fn break_off(&self) {
        lock(&self.waiting).take();
    }
}

pub(crate) fn error(wire: WireError) -> Error {
    match wire.kind {
        WireErrorKind::NotFound => Error::ContainerNotFound(wire.text),
        WireErrorKind::Exists => Error::AlreadyExists(wire.text),
        WireErrorKind::State => Error::State(wire.text),
        WireErrorKind::Exec => Error::Exec(wire.text),
        WireErrorKind::Create => Error::Create(wire.text),
        WireErrorKind::Invalid => Error::Invalid(wire.text),
    }
}

/// Starts a keeper and waits until it listens. Blocks.
pub(crate) fn start_keeper(program: &Path, config: &KeeperConfig) -> Result<()> {
    use std::io::BufRead;
    use std::os::unix::process::CommandExt;
    let what = || format!("start the container keeper {}", program.display());
    let argument = serde_json::to_string(config).map_err(|e| Error::Invalid(e.to_string()))?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(config.log())
        .context(what)?;
    let mut child = Command::new(program)
        .arg0("amphipod")
        .arg("keeper")
        .arg(argument)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context(what)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .context(what)?;
    }
    if line != "ready\n" {
        let status = child.wait().context(what)?;
        let text = std::fs::read_to_string(config.log()).unwrap_or_default();
        let last = text.lines().last().unwrap_or("no message").to_string();
        return Err(Error::Keeper(format!(
            "it ended at once ({status}): {last}"
        )));
    }
    // Reaped by the supervisor.
    Ok(())
}

/// Raw numbers of descriptors that the caller keeps open.
pub(crate) fn raw(fds: &[OwnedFd]) -> Vec<RawFd> {
    fds.iter().map(AsRawFd::as_raw_fd).collect()
}
