//! What can be typed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Kubernetes for the edge in one small static binary.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "On a single box, `amphipod server` is all there is to run: it is the API server, the scheduler, the controllers and \
the node agent in one process. The administrator's kubeconfig is /etc/amphipod/kubeconfig."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server: the Kubernetes API, the scheduler, the controllers, and (unless --disable-agent) this box's agent
    #[cfg(feature = "server")]
    Server(ServerArgs),
    /// Run only the node agent, which works for a server elsewhere
    #[cfg(feature = "agent")]
    Agent(AgentOnlyArgs),
    /// Remove everything that amphipod made on this box: pods, networks, mounts, control groups
    #[cfg(feature = "agent")]
    Reset(ResetArgs),
    /// A small web server, to see that a box serves; the image `amphipod.local/hello` runs it
    #[cfg(feature = "agent")]
    Hello(HelloArgs),
}

#[cfg(feature = "server")]
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Address and port of the Kubernetes API
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// Address that agents, pods and kubeconfigs use to reach this server [default: the default route's]
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// A further host name or address for the server's certificate; may be given several times
    #[arg(long = "tls-san", value_name = "NAME")]
    pub tls_sans: Vec<String>,
    /// Range of the pods' addresses; each node gets a /24 of it
    #[arg(long, default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Range of the services' addresses
    #[arg(long, default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// DNS suffix of the services
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where to write the administrator's kubeconfig
    #[arg(long, default_value = "/etc/amphipod/kubeconfig", value_name = "FILE")]
    pub write_kubeconfig: PathBuf,
    /// Do not run pods on this box
    #[arg(long)]
    pub disable_agent: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[cfg(feature = "agent")]
#[derive(Debug, Args)]
pub struct AgentOnlyArgs {
    /// The server's URL, like https://10.0.0.1:6443
    #[arg(long)]
    pub server: String,
    /// PEM file with the certificate authority of the server
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// PEM file with this node's client certificate (CN=system:node:NAME, O=system:nodes)
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// PEM file with the key of --cert
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// What server and agent boxes have in common.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Directory of everything that must survive a reboot
    #[arg(long, default_value = "/var/lib/amphipod", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Name of this box's Node [default: the host name in lower case]
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of this box [default: the default route's]
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// The control group below which pods live
    #[arg(long, default_value = "/kubepods", value_name = "PATH")]
    pub cgroup_root: PathBuf,
    /// Mirrors, plain-HTTP registries and their certificates
    #[arg(long, default_value = "/etc/amphipod/registries.yaml", value_name = "FILE")]
    pub registries: PathBuf,
    /// A label for the node, KEY=VALUE; may be given several times
    #[arg(long = "node-label", value_name = "KEY=VALUE")]
    pub node_labels: Vec<String>,
}

#[cfg(feature = "agent")]
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Do it; without this, only say what would be removed
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[cfg(feature = "agent")]
#[derive(Debug, Args)]
pub struct HelloArgs {
    /// Port to serve on
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// The greeting on the page
    #[arg(long, default_value = "Hello from Amphipod", env = "HELLO_MESSAGE")]
    pub message: String,
    /// Fetch http://... once, print the body and end, instead of serving
    #[arg(long, value_name = "URL")]
    pub get: Option<String>,
}
