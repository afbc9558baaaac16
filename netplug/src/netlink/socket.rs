//! A blocking netlink socket: requests, acknowledgements, dumps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::message::{ACK, DUMP, HEADER, Message};

/// The kernel answers at once; this bounds the wait for an answer that never comes.
const TIMEOUT_SECONDS: i64 = 20;

/// One netlink socket. It stays in the network namespace in which it was opened, whichever thread uses it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A piece of a reply: message type and what follows the header.
struct Reply<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    payload: &'a [u8],
}

impl Socket {
    /// `protocol` is `NETLINK_ROUTE` or `NETLINK_NETFILTER`.
    pub fn open(protocol: i32) -> io::Result<Socket> {
        // SAFETY: plain system calls; the descriptor is owned from here on.
        let fd = unsafe {
            let fd = libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol,
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let socket = Socket {
            fd,
            sequence: 0,
            buffer: Vec::new(),
        };
        let wait = libc::timeval {
            tv_sec: TIMEOUT_SECONDS as _,
            tv_usec: 0,
        };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
        // Error replies need not carry the whole request back. Old kernels may not know it.
        let _ = socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1i32);
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as _;
        // SAFETY: the address is a valid sockaddr_nl of the given size.
        if unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as _,
            )
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    /// Subscribes to what the kernel tells about changes; `filter` sees each datagram first (classic BPF), so that what is not wanted wakes nobody.
    /// The socket no longer blocks.
    pub fn subscribe(&self, group: u32, filter: &mut [libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        self.option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        // SAFETY: changes flags of our own descriptor.
        if unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &group)
    }

    /// Shows one datagram of events (type, number of the socket that caused it, payload).
    pub fn events(&mut self, mut each: impl FnMut(u16, u32, &[u8])) -> io::Result<()> {
        self.receive(0, |reply| {
            each(reply.kind, reply.port, reply.payload);
            Ok(())
        })
    }

    fn option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: passes a valid pointer and its size.
        let r = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as _,
            )
        };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The number by which the kernel knows this socket.
    pub fn port(&self) -> io::Result<u32> {
        // SAFETY: all zeroes is a valid sockaddr_nl, and its size is given.
        unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            let mut len = size_of_val(&address) as libc::socklen_t;
            let to = (&raw mut address).cast();
            if libc::getsockname(self.fd.as_raw_fd(), to, &raw mut len) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(address.nl_pid)
        }
    }

    /// A number for the next message.
    pub fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends bytes that hold one or more messages.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > 64 * 1024 {
            // A transaction must be one datagram. The kernel doubles the number. It only bounds, it allocates nothing.
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
            if self
                .option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room)
                .is_err()
            {
                self.option(libc::SOL_SOCKET, libc::SO_SNDBUF, &room)?;
            }
        }
        // SAFETY: the buffer is valid for its length.
        let n = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if n < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Receives one datagram and shows its messages.
    fn receive(
        &mut self,
        flags: i32,
        mut each: impl FnMut(Reply<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; 32 * 1024]; // the largest datagram of a dump
        }
        let n = loop {
            // SAFETY: the buffer is valid for its length.
            let n = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    flags,
                )
            };
            if n >= 0 {
                break n as usize;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        let mut rest = &self.buffer[..n];
        while let Some(header) = rest.get(..HEADER) {
            let field = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let len = field(0) as usize;
            let Some(payload) = rest.get(HEADER..len) else {
                break;
            };
            each(Reply {
                kind: u16::from_ne_bytes([header[4], header[5]]),
                flags: u16::from_ne_bytes([header[6], header[7]]),
                sequence: field(8),
                port: field(12),
                payload,
            })?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Waits until the message numbered `last` was acknowledged, or until one from `first` on was refused. Returns the first refusal with its number.
    pub fn acknowledged(
        &mut self,
        first: u32,
        last: u32,
    ) -> io::Result<Result<(), (u32, io::Error)>> {
        let mut done = false;
        let mut refused = None;
        while !done {
            // The kernel has queued all its answers by now; after a refusal there may be no last one to wait for.
            let flags = if refused.is_some() {
                libc::MSG_DONTWAIT
            } else {
                0
            };
            let result = self.receive(flags, |reply| {
                if i32::from(reply.kind) == libc::NLMSG_ERROR
                    && (first..=last).contains(&reply.sequence)
                {
                    let code = code(reply.payload);
                    if code != 0 && refused.is_none() {
                        refused = Some((reply.sequence, io::Error::from_raw_os_error(-code)));
                    }
                    done |= reply.sequence == last;
                }
                Ok(())
            });
            match result {
                Err(_) if refused.is_some() => done = true,
                other => other?,
            }
        }
        Ok(refused.map_or(Ok(()), Err))
    }

    /// Sends messages at once; the result of each in order. The kernel carries on after a refusal.
    pub fn pipeline(&mut self, messages: &mut [Message]) -> io::Result<Vec<io::Result<()>>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        let first = self.sequence + 1;
        for message in messages.iter_mut() {
            message.flag(ACK);
            let sequence = self.next();
            bytes.extend_from_slice(message.finish(sequence));
        }
        self.send(&bytes)?;
        let mut results: Vec<Option<io::Result<()>>> = messages.iter().map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            self.receive(0, |reply| {
                let slot = reply
                    .sequence
                    .checked_sub(first)
                    .and_then(|i| results.get_mut(i as usize));
                if let (Some(slot), true) = (slot, i32::from(reply.kind) == libc::NLMSG_ERROR) {
                    let code = code(reply.payload);
                    *slot = Some(if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    });
                }
                Ok(())
            })?;
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends one message and waits for its acknowledgement.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.pipeline(&mut [message])?.pop().unwrap_or(Ok(()))
    }

    /// Sends one question and shows every answer to it (type, payload). A dump if `dump`, else a single object.
    pub fn query(
        &mut self,
        mut message: Message,
        dump: bool,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        message.flag(if dump { DUMP } else { ACK });
        let sequence = self.next();
        let bytes = message.finish(sequence).to_vec();
        self.send(&bytes)?;
        let mut done = false;
        let mut interrupted = false;
        while !done {
            self.receive(0, |reply| {
                if reply.sequence != sequence {
                    return Ok(());
                }
                interrupted |= i32::from(reply.flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(reply.kind) {
                    libc::NLMSG_DONE => {
                        done = true;
                        match code(reply.payload) {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        }
                    }
                    libc::NLMSG_ERROR => {
                        done = true;
                        match code(reply.payload) {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        }
                    }
                    _ => {
                        each(reply.kind, reply.payload);
                        Ok(())
                    }
                }
            })?;
        }
        if interrupted {
            Err(io::Error::from_raw_os_error(libc::EINTR))
        } else {
            Ok(())
        }
    }
}

/// The error number that starts an acknowledgement: 0 or negative.
fn code(payload: &[u8]) -> i32 {
    payload
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes)
}
