//! Services as the data plane needs them: frontends and endpoints, nothing of the Kubernetes API.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number of the protocol in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The inverse of [`Protocol::number`].
    pub fn from_number(n: u8) -> Option<Self> {
        match n {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

/// How connections of one client are spread (`Service.spec.sessionAffinity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    None,
    /// A client keeps its endpoint until it opened no connection for this long (1 to 86,400 seconds).
    ClientIp { seconds: u32 },
}

/// One service of the cluster, whatever its type. Headless and ExternalName services have no frontends and need not be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `namespace/name`; identity of the service.
    pub key: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP`.
    pub load_balancer_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub affinity: Affinity,
    /// `internalTrafficPolicy: Local`: clients inside the cluster get endpoints on this box or nothing.
    pub internal_traffic_local: bool,
    /// `externalTrafficPolicy: Local`: clients outside the cluster get endpoints on this box or nothing, and keep their source address.
    pub external_traffic_local: bool,
    /// `loadBalancerSourceRanges`: who may use `load_balancer_ips`; empty means everybody.
    pub source_ranges: Vec<ipnet::IpNet>,
}

/// One port of a service with its endpoints of both IP families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint as an EndpointSlice tells it; the conditions are already defaulted (unset `ready` and `serving` mean true).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this box.
    pub local: bool,
    /// Near enough for clients of this box where topology is asked for; where none is near, none is far.
    /// Policies that want local endpoints do not look at it.
    pub near: bool,
}

impl Endpoint {
    /// A ready endpoint, near enough.
    pub fn ready(ip: IpAddr, port: u16, local: bool) -> Self {
        Endpoint {
            ip,
            port,
            ready: true,
            serving: true,
            terminating: false,
            local,
            near: true,
        }
    }
}
