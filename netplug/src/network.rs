//! The network of a box, as its owner uses it.

use std::net::IpAddr;

use crate::{Error, NetConfig, PodAttach, PodNetwork, Result, Service};

/// The pod network, the services and the host ports of one box.
///
/// All methods block for the time of a few netlink calls (single milliseconds): call them through `spawn_blocking`. They may be called from
/// many threads at once. The network namespace is that of the thread that called [`Network::open`].
#[derive(Debug)]
pub struct Network {}

/// What the kernel of this box can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub nftables: bool,
    pub ipv6: bool,
    pub sctp: bool,
}

impl Network {
    /// Makes the anchor device, routes, kernel settings and base rules, and adopts what an earlier run left: pods keep their links, services keep
    /// working until the first [`set_services`](Self::set_services) says otherwise.
    pub fn open(_config: NetConfig) -> Result<Network> {
        Err(Error::Config("later".into()))
    }

    /// Connects a pod: link, address, default route, host ports. Idempotent; the same id gets the same address.
    pub fn attach(&self, _pod: &PodAttach) -> Result<PodNetwork> {
        Err(Error::Config("later".into()))
    }

    /// Disconnects a pod and frees its address. Unknown ids are fine; the namespace may be gone.
    pub fn detach(&self, _id: &str) -> Result<()> {
        Err(Error::Config("later".into()))
    }

    /// The connected pods, in no order.
    pub fn attached(&self) -> Vec<PodNetwork> {
        Vec::new()
    }

    /// Detaches every pod that is not in `ids` and removes links that belong to nobody.
    pub fn retain(&self, _ids: &[&str]) -> Result<()> {
        Err(Error::Config("later".into()))
    }

    /// Makes exactly these services exist; only what differs is sent to the kernel, in one transaction.
    pub fn set_services(&self, _services: Vec<Service>) -> Result<()> {
        Err(Error::Config("later".into()))
    }

    /// Adds or replaces one service. The cost does not depend on how many others there are.
    pub fn upsert_service(&self, _service: Service) -> Result<()> {
        Err(Error::Config("later".into()))
    }

    /// Removes one service; unknown keys are fine.
    pub fn remove_service(&self, _key: &str) -> Result<()> {
        Err(Error::Config("later".into()))
    }

    /// The gateways of the pods, one per IP family: addresses of the box that every pod can reach.
    pub fn gateways(&self) -> &[IpAddr] {
        &[]
    }

    /// What this kernel can do; changes nothing.
    pub fn probe() -> Capabilities {
        Capabilities::default()
    }

    /// Uninstall: removes every link, route, rule and file that [`open`](Self::open) and [`attach`](Self::attach) made. Kernel settings (`ip_forward`) stay.
    pub fn teardown(self) -> Result<()> {
        Err(Error::Config("later".into()))
    }
}
