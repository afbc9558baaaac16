//! Pod network, services, host ports and DNS of one box.
//!
//! Everything is done in process: links, addresses and routes by rtnetlink, services and host ports by nftables over netlink, names by a small DNS
//! server. This crate knows addresses, endpoints and the kernel. It never sees an object of the Kubernetes API.

mod config;
mod conntrack;
mod dns;
mod error;
mod firewall;
mod ledger;
mod link;
mod netlink;
mod netns;
mod network;
mod nft;
mod pod;
mod service;
mod services;

pub use config::{IpNet, NetConfig};
pub use dns::{DnsConfig, DnsEndpoint, DnsPort, DnsServer, RecordKind, ServiceRecords, Upstreams};
pub use error::{Error, Result};
pub use network::{Capabilities, Network};
pub use pod::{HostPort, PodAttach, PodNetwork};
pub use service::{Affinity, Endpoint, Protocol, Service, ServicePort};
