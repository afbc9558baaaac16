//! What can be typed.

use std::net::IpAddr;
#[cfg(feature = "server")]
use std::net::SocketAddr;
use std::path::PathBuf;
#[cfg(feature = "server")]
use std::time::Duration;

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
    /// Let further boxes join this server's cluster
    #[cfg(feature = "server")]
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look after the boxes of the fleet
    #[cfg(feature = "server")]
    #[command(subcommand)]
    Node(NodeCommand),
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
    /// How long a node may be silent before it is taken for lost; agents renew their Lease four times in theirs
    #[arg(long, default_value = "40s", value_name = "TIME", value_parser = period)]
    pub node_monitor_grace_period: Duration,
    /// How long pods stay on a node that is not ready, if they do not say so themselves
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..))]
    pub default_not_ready_toleration_seconds: i64,
    /// How long pods stay on a node that is not heard of, if they do not say so themselves
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..))]
    pub default_unreachable_toleration_seconds: i64,
    /// How long a client may keep the server waiting: to send a request, between requests, to take an answer or an event
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = period)]
    pub request_timeout: Duration,
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
    /// The server's URL, like https://10.0.0.1:6443; needed the first time, and when the server has moved
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// What `amphipod token create` printed on the server; needed the first time, and to join again
    #[arg(long, env = "AMPHIPOD_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[cfg(feature = "server")]
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print the line to run on the box that shall join
    Create {
        /// How long the token is good: 30m, 24h, 7d; 0 means for ever
        #[arg(long, default_value = "24h", value_parser = lifetime)]
        ttl: Duration,
        /// What the token is for
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List the tokens, without their secrets
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Revoke a token: boxes that have joined stay, none joins by it any more
    Delete {
        /// The token, or its ID, which is what stands before its first dot
        #[arg(value_name = "ID")]
        token: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

#[cfg(feature = "server")]
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Take a box out of the cluster: its Node is deleted and its credentials are refused from now on
    Remove {
        /// The name of the Node
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// How commands talk to the running server.
#[cfg(feature = "server")]
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The administrator's kubeconfig
    #[arg(
        long,
        default_value = "/etc/amphipod/kubeconfig",
        env = "KUBECONFIG",
        value_name = "FILE"
    )]
    pub kubeconfig: PathBuf,
}

/// `90s`, `30m`, `24h`, `7d`, or `0`.
#[cfg(feature = "server")]
fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time like 30m, 24h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    if number == 0 {
        return Err(wrong());
    }
    Ok(Duration::from_secs(u64::from(number) * unit))
}

/// As [`lifetime`], but not 0.
#[cfg(feature = "server")]
fn period(text: &str) -> Result<Duration, String> {
    match lifetime(text)? {
        Duration::ZERO => Err("0 is too short".to_owned()),
        period => Ok(period),
    }
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
    #[arg(
        long,
        default_value = "/etc/amphipod/registries.yaml",
        value_name = "FILE"
    )]
    pub registries: PathBuf,
    /// How packets travel to pods of other boxes: auto (routes to boxes on the same link, VXLAN to others), none (routes only), vxlan or wireguard
    #[cfg(feature = "agent")]
    #[arg(long, default_value = "auto", value_name = "KIND")]
    pub overlay: amphipod_agent::Overlay,
    /// How long the node's Lease lasts; it is renewed four times in that time. Not longer than the server's --node-monitor-grace-period
    #[arg(long, default_value_t = 40, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub node_lease_duration_seconds: u32,
    /// The packet filter for services and policies: nftables, or iptables by the programs of the host
    #[cfg(feature = "agent")]
    #[arg(long, default_value = "nftables", value_name = "KIND")]
    pub firewall: amphipod_agent::FirewallKind,
    /// What must stay free, else the node takes no more pods and ends some, as kubelet's option of this name
    #[cfg(feature = "agent")]
    #[arg(
        long,
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<5%",
        value_name = "LIST",
        overrides_with = "eviction_hard"
    )]
    pub eviction_hard: amphipod_agent::EvictionThresholds,
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
    /// Leave the data of persistent volumes
    #[arg(long)]
    pub keep_volumes: bool,
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
