//! A pod as the network sees it: a network namespace that gets a link, an address and perhaps host ports.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::service::Protocol;

/// A request to connect a pod. The namespace exists already (pinned by a bind mount or held by a process).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAttach {
    /// Unique and stable, such as the pod's UID. The same id keeps its address until [`detach`](crate::Network::detach).
    pub id: String,
    /// Path of the network namespace, such as `/run/netns/x` or `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// Name of the link inside the pod; `eth0` by custom.
    pub ifname: String,
    pub host_ports: Vec<HostPort>,
}

/// `containers[].ports[]` with a `hostPort`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// `None` or an unspecified address: every address of the box.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

/// A connected pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    pub id: String,
    /// One address per IP family, the primary one first (`status.podIPs`).
    pub ips: Vec<IpAddr>,
    /// The gateway of each family, in the same order.
    pub gateways: Vec<IpAddr>,
    /// MAC address of the pod's link.
    pub mac: [u8; 6],
    /// Name of the other end of the pod's link, on the box.
    pub host_ifname: String,
}
