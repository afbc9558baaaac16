//! What the kernel tells of nftables.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM` of linux/netfilter/nf_tables.h: a set got elements.
const NEW_ELEMENTS: u16 = 10 << 8 | 12;
/// Notifications wait here while a burst goes on.
const BUFFER: libc::c_int = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(300);

/// Notifications of new elements of sets, which the kernel sends when a transaction is in force.
pub struct Elements {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Elements {
    /// Of the network namespace that the caller is in.
    ///
    /// # Errors
    /// When the kernel has no nftables, or we are not root.
    pub fn watch() -> Result<Elements> {
        let check = |result: libc::c_int| {
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(result)
            }
        };
        // SAFETY: plain system calls with pointers to live locals of the sizes that are given; the descriptor is owned from here on.
        let fd = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = OwnedFd::from_raw_fd(check(libc::socket(
                libc::AF_NETLINK,
                kind,
                libc::NETLINK_NETFILTER,
            ))?);
            let set = |level, name, value: libc::c_int| {
                let size = size_of_val(&value) as libc::socklen_t;
                check(libc::setsockopt(
                    fd.as_raw_fd(),
                    level,
                    name,
                    (&raw const value).cast(),
                    size,
                ))
            };
            set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = 1 << (libc::NFNLGRP_NFTABLES - 1);
            let size = size_of_val(&address) as libc::socklen_t;
            check(libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size,
            ))
            .context("listening to nftables")?;
            fd
        };
        // SAFETY: the descriptor is owned by what is registered, and closed only with it.
        let socket = unsafe { AsyncFd::register(fd) }?;
        Ok(Elements {
            socket,
            buffer: vec![0; 1 << 16],
        })
    }

    /// Shows IPv4 addresses in new elements, and other words that look like one, until `done`. Returns when the kernel's word came.
    ///
    /// # Errors
    /// When notifications were lost, or `done` is not satisfied for minutes.
    pub async fn until(&mut self, mut done: impl FnMut(Ipv4Addr) -> bool) -> Result<Instant> {
        let told = async {
            loop {
                let mut ready = self.socket.readable().await?;
                let buffer = &mut self.buffer;
                let received = ready.try_io(|socket| {
                    // SAFETY: the buffer is as long as is said.
                    let length = unsafe {
                        libc::recv(
                            socket.as_raw_fd(),
                            buffer.as_mut_ptr().cast(),
                            buffer.len(),
                            0,
                        )
                    };
                    usize::try_from(length).map_err(|_| io::Error::last_os_error())
                });
                let Ok(length) = received else { continue };
                let now = Instant::now();
                let length = length.context("notifications of nftables")?;
                if addresses(&self.buffer[..length]).any(&mut done) {
                    return Ok(now);
                }
            }
        };
        tokio::time::timeout(PATIENCE, told)
            .await
            .with_context(|| format!("nothing of the kind within {PATIENCE:?}"))?
    }
}

/// The words of messages about new elements.
fn addresses(mut datagram: &[u8]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    std::iter::from_fn(move || {
        // netlink(7): length, type, flags, sequence number, sender.
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let message = datagram.get(16..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, message))
    })
    .filter(|(kind, _)| *kind == NEW_ELEMENTS)
    .flat_map(|(_, message)| {
        message
            .chunks_exact(4)
            .map(|word| Ipv4Addr::new(word[0], word[1], word[2], word[3]))
    })
}
