//! The addresses of this box while the server runs: a box may get its address after the server started, or another one.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::objects::{self, Facts};
use super::{addresses, pki::Pki};
use crate::ServerConfig;
use crate::registry::Registry;

/// Between what the kernel tells and our looking: an address comes before its route.
const SETTLE: Duration = Duration::from_secs(1);
/// What a full or failing disk refused is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Keeps the endpoint of `default/kubernetes` and the serving certificate true to the addresses of this box.
pub async fn follow(
    config: ServerConfig,
    pki: Arc<Pki>,
    registry: Arc<Registry>,
    mut facts: Facts,
    stop: CancellationToken,
) {
    let events = match AddressEvents::open() {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(%error, "changes of this machine's addresses will not be noticed; restart amphipod after one");
            return;
        }
    };
    let mut refused = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = events.changed() => {}
            () = tokio::time::sleep(RETRY), if refused => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        match move_to(
            addresses::advertised(&config),
            &config,
            &pki,
            &registry,
            &mut facts,
        )
        .await
        {
            Ok(()) => refused = false,
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::error!(
                        "this machine has another address, of which nobody is told until that works: {error:#}"
                    );
                }
            }
        }
    }
}

/// Names the address in the certificate, and tells pods of it. Nothing to do is nothing done.
async fn move_to(
    address: IpAddr,
    config: &ServerConfig,
    pki: &Arc<Pki>,
    registry: &Registry,
    facts: &mut Facts,
) -> anyhow::Result<()> {
    rename(config, pki, address)
        .await
        .context("making a certificate for it")?;
    let endpoint = SocketAddr::new(address, facts.endpoint.port());
    if endpoint == facts.endpoint || address.is_loopback() {
        return Ok(());
    }
    let moved = Facts {
        endpoint,
        ..facts.clone()
    };
    objects::kubernetes_service(registry, &moved)
        .await
        .context("changing the endpoint of the service default/kubernetes")?;
    // Only now: what was refused is to be tried again.
    *facts = moved;
    tracing::info!(advertise = %endpoint, "this machine has another address");
    Ok(())
}

async fn rename(config: &ServerConfig, pki: &Arc<Pki>, advertised: IpAddr) -> anyhow::Result<()> {
    let names = addresses::serving_names(config, advertised)?;
    let pki = pki.clone();
    tokio::task::spawn_blocking(move || pki.rename(names)).await?
}

/// What the kernel tells of addresses that come and go. rtnetlink(7)
struct AddressEvents(AsyncFd<OwnedFd>);

impl AddressEvents {
    fn open() -> std::io::Result<AddressEvents> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        let groups = nix::libc::RTMGRP_IPV4_IFADDR | nix::libc::RTMGRP_IPV6_IFADDR;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        // SAFETY: an OwnedFd is the same descriptor for all its life, and nobody else closes it.
        Ok(AddressEvents(unsafe { AsyncFd::register(fd) }?))
    }

    /// Waits for the next change; what else came with it is read away.
    async fn changed(&self) {
        // What an event says does not matter, and a lost one (ENOBUFS) is one as well.
        let mut message = [0; 4096];
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            let mut some = false;
            loop {
                match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(nix::errno::Errno::EINTR) => {}
                    _ => some = true,
                }
            }
            ready.clear_ready();
            if some {
                return;
            }
        }
    }
}
