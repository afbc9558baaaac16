//! Noticing that links and addresses of the box come and go: the kernel forgets the routes over a link that goes down.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::link::{self, PEER_PROTOCOL};
use crate::netlink::Socket;

/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`
const GROUPS: [u32; 2] = [7, 11];

/// A subscription to changes of the routing table in one network namespace, but for those that are ours.
#[derive(Debug)]
pub struct Watch(Socket);

impl Watch {
    /// Subscribes in the current namespace.
    pub fn open() -> io::Result<Watch> {
        let socket = link::open()?;
        for group in GROUPS {
            socket.subscribe(group, &mut filter())?;
        }
        Ok(Watch(socket))
    }

    /// Starts to listen. Needs a tokio runtime.
    pub fn listen(self) -> io::Result<Listener> {
        // SAFETY: the socket owns its descriptor and returns the same one for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE)? };
        Ok(Listener(socket))
    }
}

/// A subscription that is listened to.
pub struct Listener(AsyncFd<Socket>);

impl Listener {
    /// Waits until routes of others changed; takes all changes that are waiting as one.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut any = false;
        loop {
            let mut guard = self.0.readable_mut().await?;
            loop {
                match guard.get_inner_mut().events(|_, _, _| {}) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // More happened than we were told.
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                    Err(e) => return Err(e),
                    Ok(()) => any = true,
                }
            }
            guard.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}

/// Takes datagrams whose first message is about a route of the main table that neither a pod's link nor a peer brought about.
fn filter() -> [libc::sock_filter; 7] {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    let is = |n: u8, jt, jf| {
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            jt,
            jf,
            u32::from(n),
        )
    };
    // After the header of 16 bytes, `struct rtmsg`: the table is its fifth byte, the protocol its sixth.
    [
        load(20),
        is(libc::RT_TABLE_MAIN, 0, 3),
        load(21),
        is(PEER_PROTOCOL, 1, 0),
        is(libc::RTPROT_STATIC, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ]
}
