//! The Kubernetes API on SQLite, the scheduler and the controllers.
//!
//! [`Server::start`] is the whole interface: it opens the data directory, makes what a first start needs (keys, system
//! namespaces, default roles), serves HTTPS, and returns when `/readyz` would say ok.

pub mod auth;
pub mod bootstrap;
pub mod cache;
pub mod http;
pub mod registry;
pub mod resources;
pub mod store;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What a server needs to know. `Default` is the all-in-one box of the README.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Everything the server keeps: `state.db`, `pki/`, `admin.kubeconfig`. Made with mode 0700 if missing.
    pub data_dir: PathBuf,
    /// Where HTTPS listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that agents, pods and kubeconfigs use to reach this server. `None`: the host's first
    /// global address when `listen` is unspecified, else the address of `listen`.
    pub advertise_address: Option<IpAddr>,
    /// Pod addresses; each node gets a /24 (IPv4) of it. First family is the primary one.
    pub cluster_cidrs: Vec<String>,
    /// Service addresses; the first of each is the `kubernetes` service's, the tenth is DNS.
    pub service_cidrs: Vec<String>,
    /// Ports given to NodePort services, inclusive.
    pub node_port_range: (u16, u16),
    /// The DNS suffix of services, without dots at its ends.
    pub cluster_domain: String,
    /// Host names and addresses that the serving certificate also carries.
    pub extra_sans: Vec<String>,
    /// The name of this box, put into the serving certificate. `None`: the kernel's host name.
    pub node_name: Option<String>,
    /// Start the scheduler and the controllers. Off for tests of the API alone.
    pub run_controllers: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            data_dir: PathBuf::from("/var/lib/amphipod/server"),
            listen: SocketAddr::from(([0, 0, 0, 0], 6443)),
            advertise_address: None,
            cluster_cidrs: vec!["10.42.0.0/16".to_owned()],
            service_cidrs: vec!["10.43.0.0/16".to_owned()],
            node_port_range: (30000, 32767),
            cluster_domain: "cluster.local".to_owned(),
            extra_sans: Vec::new(),
            node_name: None,
            run_controllers: true,
        }
    }
}

/// A running server. Dropping it stops accepting; [`Server::shutdown`] stops in order.
pub struct Server {
    addr: SocketAddr,
    advertise: SocketAddr,
    admin_kubeconfig: String,
    ca_pem: String,
}

impl Server {
    /// Starts the server and returns when `/readyz` would say ok.
    ///
    /// # Errors
    /// An unusable data directory, a port in use, or a database that fails its check, each saying which and why.
    pub async fn start(_config: ServerConfig) -> anyhow::Result<Server> {
        anyhow::bail!("the server is not wired yet")
    }

    /// The address HTTPS listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address that others reach this server by.
    pub fn advertise_addr(&self) -> SocketAddr {
        self.advertise
    }

    /// A kubeconfig with a client certificate of group `system:masters`; also written to `DATA_DIR/admin.kubeconfig`, mode 0600.
    pub fn admin_kubeconfig(&self) -> &str {
        &self.admin_kubeconfig
    }

    /// The cluster's CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A client credential for the agent `system:node:NAME` (group `system:nodes`): (certificate PEM, key PEM).
    /// For the agent that runs in the same process or on the same box as the server.
    ///
    /// # Errors
    /// The CA key cannot be read or does not sign.
    pub fn node_credentials(&self, _node_name: &str) -> anyhow::Result<(String, String)> {
        anyhow::bail!("the server is not wired yet")
    }

    /// Stops: no new connections, watches end, requests under way get up to five seconds, the store is closed.
    pub async fn shutdown(self) {}
}
