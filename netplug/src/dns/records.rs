//! What the agent tells the DNS server about a service.

use std::net::IpAddr;

use crate::service::Protocol;

/// DNS view of one service (Kubernetes DNS-based service discovery, version 1.1.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecords {
    pub namespace: String,
    pub name: String,
    pub kind: RecordKind,
}

/// The three shapes of a service in DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// `name.ns.svc.zone` is the ClusterIPs; SRV for each named port points at it.
    Cluster {
        ips: Vec<IpAddr>,
        ports: Vec<DnsPort>,
    },
    /// `name.ns.svc.zone` is the addresses of the endpoints; each has a name of its own, that SRV records point at.
    Headless {
        endpoints: Vec<DnsEndpoint>,
        ports: Vec<DnsPort>,
    },
    /// `name.ns.svc.zone` is a CNAME.
    External { name: String },
}

/// A port of a service; only named ports get SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// An endpoint of a headless service. The caller leaves out what is not ready unless the service publishes not-ready addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsEndpoint {
    pub ip: IpAddr,
    /// `spec.hostname` of the pod when its `subdomain` is the service; else the name is made from the address.
    pub hostname: Option<String>,
    /// Ports of this very endpoint when they differ from the service's (`targetPort` by name); empty: those of the service.
    pub ports: Vec<DnsPort>,
}
