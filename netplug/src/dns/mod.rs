//! DNS of the box: answers for services and pods from memory, forwards the rest.

mod records;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use records::{DnsEndpoint, DnsPort, RecordKind, ServiceRecords};

/// Where names outside the cluster domain are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// The `nameserver` lines of a file such as `/etc/resolv.conf`; read again when the file changed.
    ResolvConf(PathBuf),
    Fixed(Vec<SocketAddr>),
    /// Never ask anybody: other names are refused.
    None,
}

/// How the DNS server of a box runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// One UDP and one TCP socket each.
    pub listen: Vec<SocketAddr>,
    /// `cluster.local` by custom.
    pub cluster_domain: String,
    pub upstreams: Upstreams,
    /// Time to live of cluster records, in seconds; CoreDNS in Kubernetes uses 30.
    pub ttl: u32,
}

/// A running DNS server. Dropping it closes its sockets.
#[derive(Debug)]
pub struct DnsServer {}

impl DnsServer {
    /// Binds the sockets and answers from now on. Needs a tokio runtime.
    pub async fn start(_config: DnsConfig) -> io::Result<DnsServer> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The addresses that are served, with real ports where the configuration said 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &[]
    }

    /// Adds or replaces the records of one service.
    pub fn upsert(&self, _records: ServiceRecords) {}

    /// Removes the records of one service.
    pub fn remove(&self, _namespace: &str, _name: &str) {}

    /// Replaces everything.
    pub fn set_zone(&self, _services: Vec<ServiceRecords>) {}
}
