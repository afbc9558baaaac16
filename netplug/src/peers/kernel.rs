//! Brings the ways about: compares with what the kernel has and sends what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Hop, Plan, Way, mac, plan};
use super::wireguard::{Device, Partner, PublicKey};
use super::{device, encrypted_device, overhead};
use crate::firewall::Tunnel;
use crate::link::{self, Via};
use crate::netlink::{Message, Socket};
use crate::{Error, NetConfig, Overlay, Peer, Result};

/// The ways from this box to its peers.
#[derive(Debug)]
pub struct Ways {
    config: NetConfig,
    gateways: Vec<IpAddr>,
    /// Where packets are encrypted.
    wireguard: Option<Device>,
    /// `None` until told: what an earlier run installed is left alone.
    peers: Option<Vec<Peer>>,
    plan: Plan,
}

impl Ways {
    /// Opens what must be opened in the network namespace of the box.
    pub fn open(config: &NetConfig, links: &mut Socket) -> Result<Ways> {
        let gateways = config.gateways();
        let wireguard = match (config.overlay, &config.wireguard_key) {
            (Overlay::Wireguard, Some(key)) => {
                let name = encrypted_device(config.device_prefix());
                let port = config.wireguard_port;
                Some(Device::open(links, &name, key, port, &gateways)?)
            }
            _ => None,
        };
        Ok(Ways {
            config: config.clone(),
            gateways,
            wireguard,
            peers: None,
            plan: Plan::default(),
        })
    }

    /// What peers must know to send us encrypted packets.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.wireguard.as_ref().map(Device::public_key)
    }

    /// MTU for the links of pods; `None`: the kernel's default.
    pub fn pod_mtu(&self) -> Option<u32> {
        self.config.mtu.or_else(|| self.plan.mtu())
    }

    /// Who may send wrapped packets, if there is a device for them.
    pub fn tunnel(&self) -> Option<Tunnel> {
        let wraps = |way: &Way| matches!(way, Way::Vxlan { .. });
        self.plan.ways.iter().any(wraps).then(|| Tunnel {
            port: self.config.vxlan_port,
            network: link::VXLAN_NETWORK,
            senders: self
                .peers
                .iter()
                .flatten()
                .flat_map(|peer| peer.ips.iter().copied())
                .collect(),
        })
    }

    /// Whether it was said who the peers are.
    pub fn told(&self) -> bool {
        self.peers.is_some()
    }

    pub fn set(&mut self, links: &mut Socket, peers: Vec<Peer>) -> Result<()> {
        self.peers = Some(peers);
        self.apply(links)
    }

    /// Compares everything; cheap where nothing differs.
    pub fn apply(&mut self, links: &mut Socket) -> Result<()> {
        let Some(peers) = &self.peers else {
            return Ok(());
        };
        let overlay = self.config.overlay;
        let mut failed = None;
        let plan = plan(overlay, &self.config.pod_cidrs, peers, |ip| {
            hop(links, ip).unwrap_or_else(|e| {
                failed = Some(e);
                None
            })
        });
        if let Some(error) = failed {
            return Err(Error::kernel("looking for the ways to other boxes")(error));
        }
        for trouble in plan
            .troubles
            .iter()
            .filter(|t| !self.plan.troubles.contains(t))
        {
            tracing::warn!("{trouble}");
        }
        let prefix = device(self.config.device_prefix());
        let outer = plan.ways.iter().find_map(|w| match w {
            Way::Vxlan { remote, .. } => Some(remote.is_ipv4()),
            Way::Plain { .. } | Way::Wireguard { .. } => None,
        });
        let names = [(true, prefix.clone()), (false, format!("{prefix}6"))];
        let mut vxlan = None;
        for (v4, name) in &names {
            if outer == Some(*v4) {
                let mtu = plan.vxlan_mtu.unwrap_or(1500 - overhead(*v4));
                vxlan = Some(self.vxlan(links, name, *v4, mtu)?);
            }
        }
        self.encrypt(links, &plan)?;
        self.routes(links, &plan, vxlan)
            .map_err(Error::kernel("setting routes to other boxes"))?;
        for (v4, name) in &names {
            if outer != Some(*v4) {
                delete(links, name)?;
            }
        }
        if self.wireguard.is_none() {
            delete(links, &encrypted_device(self.config.device_prefix()))?;
        }
        self.plan = plan;
        Ok(())
    }

    /// The index of the device, made if need be.
    fn vxlan(&self, links: &mut Socket, name: &str, v4: bool, mtu: u32) -> Result<i32> {
        let failed = || {
            Error::kernel(format!(
                "making device {name} (is CONFIG_VXLAN on? else boxes must be neighbours on one link)"
            ))
        };
        let mac = mac(&self.config.pod_cidrs);
        let port = self.config.vxlan_port;
        let local = self.config.node_ip.filter(|ip| ip.is_ipv4() == v4);
        if let Some(found) = link::find(links, name).map_err(failed())? {
            if found.kind == "vxlan"
                && found.mac == mac
                && found.vxlan_port == Some(port)
                && found.vxlan_local == local
            {
                if found.mtu != mtu {
                    links
                        .request(link::set_mtu(found.index, mtu))
                        .map_err(failed())?;
                }
                links.request(link::up(found.index)).map_err(failed())?;
                return Ok(found.index);
            }
            links.request(link::delete(found.index)).map_err(failed())?;
        }
        // Down at first, so that the kernel gives it no link-local address.
        links
            .request(link::add_vxlan(name, mac, port, mtu, v4, local))
            .map_err(failed())?;
        let index = link::find(links, name)
            .map_err(failed())?
            .map_or(0, |l| l.index);
        // Kernels without IPv6 do not know its settings.
        link::apply(
            links,
            vec![link::no_link_local(index), link::up(index)],
            &[libc::EAFNOSUPPORT],
        )
        .map_err(failed())?;
        Ok(index)
    }

    /// Tells the WireGuard device who the peers are.
    fn encrypt(&mut self, links: &mut Socket, plan: &Plan) -> Result<()> {
        let Some(device) = &mut self.wireguard else {
            return Ok(());
        };
        let mut partners: BTreeMap<PublicKey, Partner> = BTreeMap::new();
        for way in &plan.ways {
            if let Way::Wireguard { net, key, remote } = way {
                let partner = partners.entry(*key).or_insert_with(|| Partner {
                    key: *key,
                    endpoint: (*remote, self.config.wireguard_port).into(),
                    allowed: BTreeSet::new(),
                });
                partner.allowed.insert(*net);
            }
        }
        let failed = || Error::kernel("telling WireGuard of the other boxes");
        let index = device.index();
        device
            .set(partners.into_values().collect())
            .map_err(failed())?;
        let now = link::by_index(links, index).map_err(failed())?;
        match plan.wireguard_mtu {
            Some(mtu) if now.is_some_and(|link| link.mtu != mtu) => {
                links.request(link::set_mtu(index, mtu)).map_err(failed())
            }
            _ => Ok(()),
        }
    }

    fn routes(&self, links: &mut Socket, plan: &Plan, vxlan: Option<i32>) -> io::Result<()> {
        let mut routes: BTreeMap<IpNet, (i32, Option<IpAddr>)> = BTreeMap::new();
        let mut neighbours = BTreeSet::new();
        let mut forwardings = BTreeSet::new();
        for way in &plan.ways {
            match (way, vxlan) {
                (Way::Plain { net, via, index }, _) => {
                    routes.insert(*net, (*index, Some(*via)));
                }
                (
                    Way::Vxlan {
                        net,
                        via,
                        mac,
                        remote,
                    },
                    Some(index),
                ) => {
                    routes.insert(*net, (index, Some(*via)));
                    neighbours.insert((*via, *mac));
                    forwardings.insert((*mac, *remote));
                }
                (Way::Vxlan { .. }, None) => {}
                (Way::Wireguard { net, .. }, _) => {
                    routes.extend(self.wireguard.as_ref().map(|d| (*net, (d.index(), None))));
                }
            }
        }
        let mut add: Vec<Message> = Vec::new();
        let mut remove: Vec<Message> = Vec::new();
        if let Some(index) = vxlan {
            let mut known = BTreeSet::new();
            for v4 in [true, false] {
                known.extend(link::neighbours(links, index, v4).or_else(no_ipv6)?);
            }
            // The kernel's own multicast entries are not ours.
            known.retain(|(ip, _)| !ip.is_multicast());
            for (ip, mac) in neighbours.difference(&known) {
                add.push(link::add_neighbour(index, *ip, *mac));
            }
            for (ip, _) in known.difference(&neighbours) {
                if !neighbours.iter().any(|(n, _)| n == ip) {
                    remove.push(link::delete_neighbour(index, *ip));
                }
            }
            let known: BTreeSet<_> = link::forwardings(links, index)?.into_iter().collect();
            for (mac, remote) in forwardings.difference(&known) {
                add.push(link::add_forwarding(index, *mac, *remote));
            }
            for (mac, remote) in known.difference(&forwardings) {
                if !forwardings.iter().any(|(m, _)| m == mac) {
                    remove.push(link::delete_forwarding(index, *mac, *remote));
                }
            }
        }
        let known: BTreeMap<IpNet, (i32, Option<IpAddr>)> = link::peer_routes(links)?
            .into_iter()
            .map(|r| (r.net, (r.index, r.gateway)))
            .collect();
        for (net, (index, gateway)) in &routes {
            let same = |ip: &&IpAddr| ip.is_ipv4() == net.addr().is_ipv4();
            let Some(source) = self.gateways.iter().find(same) else {
                continue; // no pods of this family here
            };
            if known.get(net) != Some(&(*index, *gateway)) {
                let via = Via::Peer {
                    index: *index,
                    gateway: *gateway,
                    source: *source,
                };
                add.push(link::add_route(*net, via));
            }
        }
        for net in known.keys().filter(|net| !routes.contains_key(net)) {
            remove.push(link::delete_peer_route(*net));
        }
        link::apply(links, add, &[])?;
        link::apply(links, remove, &[libc::ESRCH, libc::ENOENT])
    }

    /// Removes every way.
    pub fn remove(&mut self, links: &mut Socket) -> Result<()> {
        self.set(links, Vec::new())?;
        self.wireguard = None;
        delete(links, &encrypted_device(self.config.device_prefix()))
    }
}

fn no_ipv6<T: Default>(error: io::Error) -> io::Result<T> {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(T::default()),
        _ => Err(error),
    }
}

/// What the routing table says of an address.
fn hop(links: &mut Socket, ip: IpAddr) -> io::Result<Option<Hop>> {
    let Some(route) = link::route_to(links, ip)? else {
        return Ok(None);
    };
    if route.kind != libc::RTN_UNICAST || route.index == 0 {
        return Ok(None);
    }
    let mtu = link::by_index(links, route.index)?.map_or(1500, |l| l.mtu);
    Ok(Some(Hop {
        index: route.index,
        mtu,
        neighbour: route.gateway.is_none(),
    }))
}

fn delete(links: &mut Socket, name: &str) -> Result<()> {
    let failed = || Error::kernel(format!("removing device {name}"));
    match link::find(links, name).map_err(failed())? {
        Some(link) => {
            link::apply(links, vec![link::delete(link.index)], &[libc::ENODEV]).map_err(failed())
        }
        None => Ok(()),
    }
}
