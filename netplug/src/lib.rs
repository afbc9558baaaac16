//! Pod network, services, host ports, policies and DNS of one box, and its ways to the pods of other boxes.
//!
//! Everything is done in process: links, addresses and routes by rtnetlink, services and host ports by nftables over netlink, names by a small DNS
//! server. No executable of the host is run (but those of iptables, where that is chosen), and nothing happens while nothing changes.
//!
//! **Architecture invariant:** this crate knows addresses, endpoints and the kernel. It never sees an object of the Kubernetes API.
//!
//! **Architecture invariant:** every pod has a link of its own, and every packet of a pod passes the IP hooks of the box, also on its way to a neighbour.
//! So replies through services are translated back and policies see everything, without a bridge and its netfilter module. Neighbours are permanent
//! entries: no pod can claim the address of another.
//!
//! **Architecture invariant:** a box needs nothing of its peers but their addresses and pod ranges, and nothing is learned on the wire: plain routes lead to
//! neighbours, VXLAN to the others, and what the kernel has is compared with what should be whenever peers, links or addresses change.
//!
//! **Architecture invariant:** a policy is judged once for each connection, where it is forwarded, after services were resolved. A pod and its own box are
//! never kept apart, which includes the DNS server of the box.
//!
//! **Architecture invariant:** `services`, `policies` and `peers::plan` are pure and say what should be; `nft` is the only module that speaks nftables, and `iptables` the only one that runs programs, behind the trait `Firewall`.
//! What the kernel has is read back when the network is opened, so a restart, an upgrade or a `kill -9` interrupts no connection.
//!
//! ```no_run
//! use amphipod_netplug::{NetConfig, Network, PodAttach};
//! # fn main() -> Result<(), amphipod_netplug::Error> {
//! # let cidr = |s: &str| s.parse::<amphipod_netplug::IpNet>().expect("a CIDR");
//! let config = NetConfig::new(cidr("10.42.0.0/24"), cidr("10.42.0.0/16"), cidr("10.43.0.0/16"), "/run/amphipod/net");
//! let network = Network::open(config)?;
//! let pod = PodAttach { id: "uid".into(), netns: "/run/netns/x".into(), ifname: "eth0".into(), host_ports: vec![] };
//! println!("{:?}", network.attach(&pod)?.ips);
//! network.set_services(vec![])?;
//! # Ok(())
//! # }
//! ```

mod config;
mod conntrack;
pub mod dns;
mod error;
mod firewall;
mod iptables;
mod ledger;
mod link;
mod netlink;
mod netns;
mod network;
mod nft;
mod peer;
mod peers;
mod pod;
mod policies;
mod policy;
mod service;
mod services;

pub use config::{IpNet, NetConfig};
pub use dns::{DnsConfig, DnsEndpoint, DnsPort, DnsServer, RecordKind, ServiceRecords, Upstreams};
pub use error::{Error, Result};
pub use firewall::FirewallKind;
pub use network::{Capabilities, Network};
pub use peer::{Overlay, Peer};
pub use peers::wireguard::{PrivateKey, PublicKey};
pub use pod::{HostPort, PodAttach, PodNetwork};
pub use policy::{Allow, Direction, PolicyGroup, Traffic};
pub use service::{Affinity, Endpoint, Protocol, Service, ServicePort};
