//! Which way leads to which pod range.

use std::net::IpAddr;

use ipnet::IpNet;

use super::wireguard::PublicKey;
use crate::config::gateway;
use crate::{Overlay, Peer};

/// What the routing table says of the address of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The link by which packets leave.
    pub index: i32,
    /// MTU of that link.
    pub mtu: u32,
    /// Whether the peer itself is the next hop.
    pub neighbour: bool,
}

/// A way to one pod range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The peer's own address is the next hop.
    Plain { net: IpNet, via: IpAddr, index: i32 },
    /// Wrapped, to the address `remote`.
    Vxlan {
        net: IpNet,
        /// The peer's gateway for its pods.
        via: IpAddr,
        mac: [u8; 6],
        remote: IpAddr,
    },
    /// Encrypted, to the address `remote` of the box with this key.
    Wireguard {
        net: IpNet,
        key: PublicKey,
        remote: IpAddr,
    },
}

/// All ways, and the largest packet that fits through each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub ways: Vec<Way>,
    /// The smallest MTU of a link that a plain way uses.
    pub plain_mtu: Option<u32>,
    /// The smallest MTU of a link that carries wrapped packets, before they are wrapped.
    pub vxlan_mtu: Option<u32>,
    /// The largest packet that fits into an encrypted one on every way.
    pub wireguard_mtu: Option<u32>,
    /// What cannot be reached and why.
    pub troubles: Vec<String>,
}

impl Plan {
    /// The largest packet that fits everywhere.
    pub fn mtu(&self) -> Option<u32> {
        [self.plain_mtu, self.vxlan_mtu, self.wireguard_mtu]
            .into_iter()
            .flatten()
            .min()
    }
}

/// The hardware address of the VXLAN device of the box with these pod ranges: locally administered, told by the range.
pub fn mac(pod_cidrs: &[IpNet]) -> [u8; 6] {
    let tail = match pod_cidrs.first().map(IpNet::network) {
        Some(IpAddr::V4(a)) => a.octets(),
        Some(IpAddr::V6(a)) => {
            // The ranges of the boxes differ in the middle; FNV-1a mixes all bytes.
            let hash = a.octets().iter().fold(0x811c_9dc5_u32, |h, b| {
                (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
            });
            hash.to_be_bytes()
        }
        None => [0; 4],
    };
    [0x0e, 0xa3, tail[0], tail[1], tail[2], tail[3]]
}

/// Decides for each range of each peer. `own` are the pod ranges of this box; `look` asks the routing table about an address, and tells nothing of
/// those that are this box's own or cannot be reached.
pub fn plan(
    overlay: Overlay,
    own: &[IpNet],
    peers: &[Peer],
    mut look: impl FnMut(IpAddr) -> Option<Hop>,
) -> Plan {
    let mut plan = Plan::default();
    let mut taken: Vec<(IpNet, &str)> = own.iter().map(|n| (*n, "this box")).collect();
    // One device has one outer family: that of most boxes, as the first of them tells.
    let outer_v4 = peers
        .iter()
        .find_map(|p| p.ips.first())
        .is_none_or(IpAddr::is_ipv4);
    for peer in peers {
        let hops: Vec<(IpAddr, Option<Hop>)> = peer.ips.iter().map(|ip| (*ip, look(*ip))).collect();
        for net in &peer.pod_cidrs {
            let net = net.trunc();
            let clash = |n: &IpNet| n.contains(&net) || net.contains(n);
            if let Some((other, whose)) = taken.iter().find(|(n, _)| clash(n)) {
                plan.troubles.push(format!(
                    "pod range {net} of node {} overlaps {other} of {whose}",
                    peer.node
                ));
                continue;
            }
            taken.push((net, &peer.node));
            if overlay == Overlay::Wireguard {
                encrypt(&mut plan, peer, net, &hops);
                continue;
            }
            let plain = hops.iter().find_map(|(ip, hop)| {
                let hop = hop.filter(|h| h.neighbour)?;
                (ip.is_ipv4() == net.addr().is_ipv4()).then_some((*ip, hop))
            });
            if let (Some((via, hop)), Overlay::Auto | Overlay::None) = (plain, overlay) {
                least(&mut plan.plain_mtu, hop.mtu);
                plan.ways.push(Way::Plain {
                    net,
                    via,
                    index: hop.index,
                });
                continue;
            }
            if overlay == Overlay::None {
                plan.troubles.push(format!(
                    "pods of node {} ({net}) are not reached: none of its addresses {:?} is a neighbour, and only plain routes are allowed",
                    peer.node, peer.ips
                ));
                continue;
            }
            let Some((remote, hop)) = hops.iter().find(|(ip, _)| ip.is_ipv4() == outer_v4) else {
                plan.troubles.push(format!(
                    "pods of node {} ({net}) are not reached: it has no address of the family that other nodes use",
                    peer.node
                ));
                continue;
            };
            if let Some(hop) = hop {
                least(
                    &mut plan.vxlan_mtu,
                    hop.mtu.saturating_sub(super::overhead(outer_v4)),
                );
            }
            plan.ways.push(Way::Vxlan {
                net,
                via: gateway(&net),
                mac: mac(&peer.pod_cidrs),
                remote: *remote,
            });
        }
    }
    plan
}

/// Encrypted to the first address that the routing table knows a way to.
fn encrypt(plan: &mut Plan, peer: &Peer, net: IpNet, hops: &[(IpAddr, Option<Hop>)]) {
    let reached = hops.iter().find(|(_, hop)| hop.is_some()).or(hops.first());
    let (Some(key), Some((remote, hop))) = (peer.wireguard, reached) else {
        plan.troubles.push(format!(
            "pods of node {} ({net}) are not reached: it has told no key (was its agent started with --overlay wireguard?)",
            peer.node
        ));
        return;
    };
    let mtu = hop.map_or(1500, |hop| hop.mtu);
    least(
        &mut plan.wireguard_mtu,
        mtu.saturating_sub(super::encrypted_overhead(remote.is_ipv4())),
    );
    plan.ways.push(Way::Wireguard {
        net,
        key,
        remote: *remote,
    });
}

fn least(now: &mut Option<u32>, new: u32) {
    *now = Some(now.map_or(new, |old| old.min(new)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn peer(node: &str, ips: &[&str], nets: &[&str]) -> Peer {
        Peer {
            node: node.into(),
            ips: ips.iter().map(|i| i.parse().unwrap()).collect(),
            pod_cidrs: nets.iter().map(|n| n.parse().unwrap()).collect(),
            wireguard: None,
        }
    }

    fn own() -> Vec<IpNet> {
        vec!["10.42.0.0/24".parse().unwrap()]
    }

    fn hop(neighbour: bool) -> Hop {
        Hop {
            index: 2,
            mtu: 1500,
            neighbour,
        }
    }

    #[test]
    fn neighbours_get_plain_routes_and_others_vxlan() {
        let near: IpAddr = "192.0.2.2".parse().unwrap();
        let peers = [
            peer("near", &["192.0.2.2"], &["10.42.1.0/24"]),
            peer("far", &["198.51.100.3"], &["10.42.2.0/24"]),
        ];
        let p = plan(Overlay::Auto, &own(), &peers, |ip| Some(hop(ip == near)));
        assert_eq!(
            p.ways[0],
            Way::Plain {
                net: "10.42.1.0/24".parse().unwrap(),
                via: near,
                index: 2
            }
        );
        assert_eq!(
            p.ways[1],
            Way::Vxlan {
                net: "10.42.2.0/24".parse().unwrap(),
                via: "10.42.2.1".parse().unwrap(),
                mac: [0x0e, 0xa3, 10, 42, 2, 0],
                remote: "198.51.100.3".parse().unwrap()
            }
        );
        assert_eq!(
            (p.plain_mtu, p.vxlan_mtu, p.mtu()),
            (Some(1500), Some(1450), Some(1450))
        );
    }

    #[test]
    fn the_flag_overrules_what_is_found() {
        let peers = [peer("a", &["192.0.2.2"], &["10.42.1.0/24"])];
        let wrapped = plan(Overlay::Vxlan, &own(), &peers, |_| Some(hop(true)));
        assert!(matches!(wrapped.ways[..], [Way::Vxlan { .. }]));
        let plain = plan(Overlay::None, &own(), &peers, |_| Some(hop(false)));
        assert!(plain.ways.is_empty());
        assert!(plain.troubles[0].contains("node a"), "{:?}", plain.troubles);
    }

    #[test]
    fn ranges_that_overlap_are_told_and_left_out() {
        let peers = [
            peer("a", &["192.0.2.2"], &["10.42.0.0/25"]),
            peer("b", &["192.0.2.3"], &["10.42.1.0/24"]),
            peer("c", &["192.0.2.4"], &["10.42.1.0/24"]),
        ];
        let p = plan(Overlay::Auto, &own(), &peers, |_| Some(hop(true)));
        assert_eq!((p.ways.len(), p.troubles.len()), (1, 2));
        assert!(p.troubles[1].contains("node c") && p.troubles[1].contains("of b"));
    }

    #[test]
    fn dual_stack_takes_the_address_of_each_family() {
        let peers = [peer(
            "a",
            &["192.0.2.2", "2001:db8::2"],
            &["10.42.1.0/24", "fd00:1::/64"],
        )];
        let p = plan(Overlay::Auto, &own(), &peers, |_| Some(hop(true)));
        let vias: Vec<_> = p
            .ways
            .iter()
            .map(|w| match w {
                Way::Plain { via, .. } | Way::Vxlan { via, .. } => via.to_string(),
                Way::Wireguard { remote, .. } => remote.to_string(),
            })
            .collect();
        assert_eq!(vias, ["192.0.2.2", "2001:db8::2"]);
        let only_v4 = [peer("a", &["192.0.2.2"], &["fd00:1::/64"])];
        let p = plan(Overlay::Auto, &own(), &only_v4, |_| Some(hop(true)));
        assert!(
            matches!(p.ways[..], [Way::Vxlan { .. }]),
            "a route of one family cannot lead to an address of the other"
        );
    }

    #[test]
    fn encrypted_ways_need_the_keys_of_peers() {
        let mut known = peer("a", &["192.0.2.2"], &["10.42.1.0/24", "fd00:1::/64"]);
        known.wireguard = Some([7; 32]);
        let peers = [known, peer("b", &["192.0.2.3"], &["10.42.2.0/24"])];
        let p = plan(Overlay::Wireguard, &own(), &peers, |_| Some(hop(true)));
        assert_eq!(p.ways.len(), 2, "both families go to the same peer");
        assert_eq!(
            p.ways[0],
            Way::Wireguard {
                net: "10.42.1.0/24".parse().unwrap(),
                key: [7; 32],
                remote: "192.0.2.2".parse().unwrap()
            }
        );
        assert_eq!((p.mtu(), p.troubles.len()), (Some(1440), 1));
        assert!(p.troubles[0].contains("node b") && p.troubles[0].contains("--overlay wireguard"));
    }
}
