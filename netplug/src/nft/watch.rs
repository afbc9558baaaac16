//! Noticing that somebody removed rules, as `nft flush ruleset` or a restarted firewall service do.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::uapi::{SUBSYS, chain, msg, rule};
use crate::netlink::Socket;
use crate::netlink::message::{attribute, text};

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;

/// Removals of tables, chains, rules and sets. What we ourselves do all the time starts with other messages, and does not even wake us.
const REMOVALS: [u16; 4] = [msg::DELTABLE, msg::DELCHAIN, msg::DELRULE, msg::DELSET];

/// Something that was removed.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The netlink port of who did it.
    pub by: u32,
    pub table: &'a str,
    /// The chain that was removed or that lost a rule; `None`: a table or a set was removed.
    pub chain: Option<&'a str>,
}

/// Which removals matter.
pub type Matters = Box<dyn Fn(&Removal<'_>) -> bool + Send>;

/// A subscription to removals of rules in one network namespace.
pub struct Watch {
    socket: Socket,
    matters: Matters,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Subscribes in the current namespace.
    pub fn open(matters: Matters) -> io::Result<Watch> {
        let socket = Socket::open(libc::NETLINK_NETFILTER)?;
        socket.subscribe(GROUP, &mut filter())?;
        Ok(Watch { socket, matters })
    }

    /// Starts to listen. Needs a tokio runtime.
    pub fn listen(self) -> io::Result<Listener> {
        // SAFETY: the socket owns its descriptor and returns the same one for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(self.socket, Interest::READABLE)? };
        Ok(Listener {
            socket,
            matters: self.matters,
        })
    }
}

/// A subscription that is listened to.
pub struct Listener {
    socket: AsyncFd<Socket>,
    matters: Matters,
}

impl Listener {
    /// Waits until something of ours was removed.
    pub async fn damaged(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.socket.readable_mut().await?;
            let mut ours = false;
            let matters = &self.matters;
            let each = |kind: u16, by: u32, payload: &[u8]| {
                let told = |kind| payload.get(4..).and_then(|p| attribute(p, kind)).map(text);
                let removed = kind & 0xff;
                if kind >> 8 != SUBSYS || !REMOVALS.contains(&removed) {
                    return;
                }
                // The first attribute of all these messages is the name of the table.
                let Some(table) = told(rule::TABLE) else {
                    return;
                };
                let chain = match removed {
                    msg::DELCHAIN => told(chain::NAME),
                    msg::DELRULE => told(rule::CHAIN),
                    _ => None,
                };
                ours |= matters(&Removal { by, table, chain });
            };
            match guard.get_inner_mut().events(each) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                // More happened than we were told.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(e) => return Err(e),
                Ok(()) if ours => return Ok(()),
                Ok(()) => {}
            }
        }
    }
}

/// Takes datagrams whose first message is a removal.
fn filter() -> [libc::sock_filter; 7] {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // Filters read numbers in network order; message types are in ours.
    let kind = |m: u16| u32::from((SUBSYS << 8 | m).to_be());
    let is = |m: u16, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, kind(m));
    [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        is(REMOVALS[0], 4, 0),
        is(REMOVALS[1], 3, 0),
        is(REMOVALS[2], 2, 0),
        is(REMOVALS[3], 1, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ]
}
