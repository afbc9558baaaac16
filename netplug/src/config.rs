//! What a box must know before it has a pod network.

use std::net::IpAddr;
use std::path::PathBuf;

pub use ipnet::IpNet;

use crate::peers::wireguard::PrivateKey;
use crate::{Error, FirewallKind, Overlay, Result};

/// The network of one box. Every list may hold one IPv4 and one IPv6 entry (dual stack); the first one is the primary family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the anchor device that carries the gateway address, and prefix (without a trailing digit) of the host ends of the pods' veth pairs:
    /// `amphi0` gives `amphi2`, `amphi3`, ... The number is the pod's place in the pod range. At most 10 bytes.
    pub device: String,
    /// Addresses for the pods of this box (`Node.spec.podCIDRs`). The first host address is the gateway.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of all pods of the cluster (`--cluster-cidr`): traffic within them is never masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// ClusterIPs (`--service-cluster-ip-range`): what no service claims is refused at once, never sent to the default gateway.
    pub service_cidrs: Vec<IpNet>,
    /// Further addresses that the box itself answers on, such as the ClusterIP of the DNS server. They are put on the anchor device.
    pub local_ips: Vec<IpAddr>,
    /// MTU of the pods' links; `None`: what fits on the way to every other box, and 1500 while there is none.
    pub mtu: Option<u32>,
    /// How packets to pods of other boxes travel.
    pub overlay: Overlay,
    /// The address by which peers know this box: the source of what it wraps. `None`: what the route to a peer says.
    pub node_ip: Option<IpAddr>,
    /// UDP port of VXLAN, the same on all boxes.
    pub vxlan_port: u16,
    /// The key of this box; needed for [`Overlay::Wireguard`].
    pub wireguard_key: Option<PrivateKey>,
    /// UDP port of WireGuard, the same on all boxes.
    pub wireguard_port: u16,
    /// The packet filter to use.
    pub firewall: FirewallKind,
    /// Hides pods behind the address of the box when they talk to the world outside `cluster_cidrs`.
    pub masquerade: bool,
    /// Name of our nftables tables (one per IP family). Nothing outside of them is touched.
    pub table: String,
    /// Which pod has which address and host ports: one small file per pod. On a file system that a reboot empties
    /// (`/run`); beside it stands which kernel settings were turned on.
    pub state_dir: PathBuf,
}

impl NetConfig {
    /// The defaults of a box: device `amphi0`, table `amphipod`, masquerading on.
    pub fn new(
        pod_cidr: IpNet,
        cluster_cidr: IpNet,
        service_cidr: IpNet,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        NetConfig {
            device: "amphi0".into(),
            pod_cidrs: vec![pod_cidr],
            cluster_cidrs: vec![cluster_cidr],
            service_cidrs: vec![service_cidr],
            local_ips: Vec::new(),
            mtu: None,
            overlay: Overlay::Auto,
            node_ip: None,
            vxlan_port: 8472,
            wireguard_key: None,
            wireguard_port: 51820,
            firewall: FirewallKind::default(),
            masquerade: true,
            table: "amphipod".into(),
            state_dir: state_dir.into(),
        }
    }

    /// The gateway of the pods for each of `pod_cidrs`: the first host address.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.pod_cidrs.iter().map(gateway).collect()
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::Config(why));
        let prefix = self.device_prefix();
        if prefix.is_empty()
            || self.device.len() > 10
            || !self
                .device
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return bad(format!(
                "device name {:?}: want at most 10 letters and digits, starting with a letter",
                self.device
            ));
        }
        if self.table.is_empty()
            || self.table.len() > 27
            || !self
                .table
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return bad(format!(
                "table name {:?}: want at most 27 letters and digits",
                self.table
            ));
        }
        if self.vxlan_port == 0 || self.wireguard_port == 0 {
            return bad("the port of an overlay cannot be 0".into());
        }
        if self.overlay == Overlay::Wireguard && self.wireguard_key.is_none() {
            return bad("the overlay wireguard needs a key".into());
        }
        if self.pod_cidrs.is_empty() {
            return bad("no pod CIDR".into());
        }
        for (what, nets) in [
            ("pod", &self.pod_cidrs),
            ("cluster", &self.cluster_cidrs),
            ("service", &self.service_cidrs),
        ] {
            for v4 in [true, false] {
                if nets.iter().filter(|n| n.addr().is_ipv4() == v4).count() > 1 {
                    return bad(format!("more than one {what} CIDR of one IP family"));
                }
            }
        }
        for net in &self.pod_cidrs {
            if net.max_prefix_len() - net.prefix_len() < 2 {
                return bad(format!(
                    "pod CIDR {net} has no room for a gateway and a pod"
                ));
            }
        }
        Ok(())
    }

    /// `amphi0` → `amphi`.
    pub(crate) fn device_prefix(&self) -> &str {
        self.device.trim_end_matches(|c: char| c.is_ascii_digit())
    }
}

/// The first host address of a range.
pub(crate) fn gateway(net: &IpNet) -> IpAddr {
    nth(net, 1)
}

/// The `n`-th address of a range, counted from its network address. Callers keep `n` within the range.
pub(crate) fn nth(net: &IpNet, n: u64) -> IpAddr {
    match net.network() {
        IpAddr::V4(a) => IpAddr::V4(u32::from(a).wrapping_add(n as u32).into()),
        IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add(u128::from(n)).into()),
    }
}
