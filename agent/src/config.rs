//! What an agent is told at its start. Everything else it learns from the server and keeps on disk.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use amphipod_api::Quantity;

/// How the agent proves to the server who it is, and how it knows the server.
#[derive(Debug, Clone)]
pub struct ServerCredentials {
    /// PEM bundle of the certificate authorities that sign the server's certificate.
    pub ca: PathBuf,
    /// PEM client certificate; its subject is `CN=system:node:NAME, O=system:nodes`.
    pub cert: PathBuf,
    /// PEM private key of `cert`: the same file, which is replaced as a whole when the certificate is renewed.
    pub key: PathBuf,
}

/// Free resources below which pods are evicted
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>).
#[derive(Debug, Clone)]
pub struct EvictionThresholds {
    /// `memory.available`, in bytes.
    pub memory_available: u64,
    /// `nodefs.available`, in percent of the file system.
    pub nodefs_available_percent: u8,
    /// `nodefs.inodesFree`, in percent of the file system.
    pub nodefs_inodes_free_percent: u8,
    /// `pid.available`, in percent of the kernel's `pid_max`.
    pub pid_available_percent: u8,
}

impl Default for EvictionThresholds {
    fn default() -> Self {
        Self {
            memory_available: 100 << 20,
            nodefs_available_percent: 10,
            nodefs_inodes_free_percent: 5,
            pid_available_percent: 5,
        }
    }
}

impl FromStr for EvictionThresholds {
    type Err = String;

    /// As kubelet's `--eviction-hard`: `memory.available<100Mi,nodefs.available<10%`. What is not named is not watched.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self {
            memory_available: 0,
            nodefs_available_percent: 0,
            nodefs_inodes_free_percent: 0,
            pid_available_percent: 0,
        };
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (signal, value) = one
                .split_once('<')
                .ok_or_else(|| format!("{one:?}: want SIGNAL<VALUE, as in nodefs.available<10%"))?;
            let percent = || {
                let number = value.strip_suffix('%').and_then(|n| n.parse().ok());
                number
                    .filter(|n| *n <= 100)
                    .ok_or_else(|| format!("{one:?}: want a percentage, as in {signal}<10%"))
            };
            match signal {
                "memory.available" => {
                    let bytes = value.parse::<Quantity>().ok();
                    limits.memory_available = bytes
                        .and_then(|bytes| bytes.value().try_into().ok())
                        .ok_or_else(|| format!("{one:?}: want a quantity, as in {signal}<100Mi"))?;
                }
                "nodefs.available" => limits.nodefs_available_percent = percent()?,
                "nodefs.inodesFree" => limits.nodefs_inodes_free_percent = percent()?,
                "pid.available" => limits.pid_available_percent = percent()?,
                other => {
                    return Err(format!(
                        "{other:?} is no signal here: want memory.available, nodefs.available, nodefs.inodesFree or pid.available"
                    ));
                }
            }
        }
        Ok(limits)
    }
}

/// Configuration of one agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Name of the Node object; a DNS-1123 subdomain.
    pub node_name: String,
    /// Base URL of the server, like `https://127.0.0.1:6443`.
    pub server_url: String,
    pub credentials: ServerCredentials,
    /// Lets this box join again when its certificate is over or refused ([`amphipod_api::join::JoinToken`]).
    pub join_token: Option<String>,
    /// Durable state: database, pod directories, images. `/var/lib/amphipod/agent`.
    pub data_dir: PathBuf,
    /// The data of volumes that are directories of this box. `/var/lib/amphipod/storage`.
    pub storage_dir: PathBuf,
    /// State that need not survive a power cut: sockets, pinned namespaces, secrets. `/run/amphipod`.
    pub run_dir: PathBuf,
    /// `pods/` and `containers/` below it hold the containers' logs. `/var/log`.
    pub log_dir: PathBuf,
    /// The node's InternalIP, and the source of traffic to pods. `None`: the address that the default route uses.
    pub node_ip: Option<IpAddr>,
    /// The cgroup below which pods live, relative to each hierarchy's mount point. `/kubepods`.
    pub cgroup_root: PathBuf,
    /// Executable that serves as helper and keeper (re-exec'd by the runtime); normally our own binary, `/proc/self/exe`.
    pub helper_exe: PathBuf,
    /// Address of the cluster's DNS service, written to pods' resolv.conf.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Cluster-wide pod range; addresses in it are never masqueraded between pods.
    pub cluster_cidr: String,
    /// The service range (ClusterIPs).
    pub service_cidr: String,
    /// How packets to pods of other nodes travel.
    pub overlay: amphipod_netplug::Overlay,
    /// The packet filter for services and policies.
    pub firewall: amphipod_netplug::FirewallKind,
    /// Inclusive range of node ports.
    pub node_port_range: (u16, u16),
    /// Pod range used until the server assigns `node.spec.podCIDR` (kept durably afterwards). `None`: wait for the server.
    pub fallback_pod_cidr: Option<String>,
    /// The host's resolver configuration, for dnsPolicy Default and for forwarding. `/etc/resolv.conf`.
    pub host_resolv_conf: PathBuf,
    /// Registry mirrors, plain-HTTP registries and credentials (the runtime's format); `None`: defaults.
    pub registries: Option<PathBuf>,
    /// Processes and threads that one pod may have (the kubelet's `podPidsLimit`). 4096: a pod that forks without bound must not take
    /// the whole box's. `None`: no limit.
    pub pod_pids_limit: Option<i64>,
    /// How long the node's Lease lasts, in seconds (the kubelet's `nodeLeaseDurationSeconds`); it is renewed four times in that time. 40.
    pub node_lease_seconds: u32,
    /// How many pods the node offers. 110.
    pub max_pods: u32,
    /// Port of the node API (`:10250`).
    pub node_api_port: u16,
    pub eviction: EvictionThresholds,
    /// Resources kept back for the system, as quantities by resource name (`cpu`, `memory`, `ephemeral-storage`).
    pub system_reserved: BTreeMap<String, String>,
    /// Labels the node registers itself with, beside the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// Taints it registers itself with: `key=value:Effect`.
    pub node_taints: Vec<String>,
    /// Sysctls that pods may set beside the safe ones (`allowedUnsafeSysctls`); a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// A container's log is rotated at this size (bytes), and this many files are kept.
    pub log_max_size: u64,
    pub log_max_files: u32,
    /// Image garbage collection starts above `high` percent of disk use and stops below `low`.
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
}

impl AgentConfig {
    /// The defaults for a box that reaches its server at `server_url`.
    pub fn new(
        node_name: impl Into<String>,
        server_url: impl Into<String>,
        credentials: ServerCredentials,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            server_url: server_url.into(),
            credentials,
            join_token: None,
            data_dir: "/var/lib/amphipod/agent".into(),
            storage_dir: amphipod_api::local_volumes::DEFAULT_DIRECTORY.into(),
            run_dir: "/run/amphipod".into(),
            log_dir: "/var/log".into(),
            node_ip: None,
            cgroup_root: "/kubepods".into(),
            helper_exe: "/proc/self/exe".into(),
            cluster_dns: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            overlay: Default::default(),
            firewall: Default::default(),
            node_port_range: (30000, 32767),
            fallback_pod_cidr: None,
            host_resolv_conf: "/etc/resolv.conf".into(),
            registries: None,
            pod_pids_limit: Some(4096),
            node_lease_seconds: 40,
            max_pods: 110,
            node_api_port: 10250,
            eviction: EvictionThresholds::default(),
            system_reserved: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            allowed_unsafe_sysctls: Vec::new(),
            log_max_size: 10 << 20,
            log_max_files: 5,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_thresholds_are_those_that_are_named() {
        let all = "memory.available<1Gi, nodefs.available<5%,nodefs.inodesFree<3%,pid.available<2%";
        let limits = all.parse::<EvictionThresholds>().unwrap_or_default();
        assert_eq!(
            (
                limits.memory_available,
                limits.nodefs_available_percent,
                limits.nodefs_inodes_free_percent,
                limits.pid_available_percent
            ),
            (1 << 30, 5, 3, 2)
        );
        let none = "".parse::<EvictionThresholds>().unwrap_or_default();
        assert_eq!(
            (none.memory_available, none.nodefs_available_percent),
            (0, 0)
        );
        for (bad, why) in [
            ("nodefs.available", "SIGNAL<VALUE"),
            ("nodefs.available<1Gi", "percentage"),
            ("memory.available<x", "quantity"),
            ("imagefs.available<10%", "no signal"),
        ] {
            let told = bad.parse::<EvictionThresholds>().err().unwrap_or_default();
            assert!(told.contains(why), "{bad}: {told}");
        }
    }
}
