//! Links, addresses and routes of a box: the anchor device, and a pair of links for each pod.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::{Network, lock};
use crate::ledger::Entry;
use crate::link::{self, Via};
use crate::netlink::Socket;
use crate::{Error, NetConfig, PodNetwork, Result, config, netns};

/// MAC address of the host end of every pod link; pods know it beforehand, so nobody asks.
const HOST_MAC: [u8; 6] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];

impl Network {
    /// Links on this box whose names say that they are ours and belong to a pod.
    pub(super) fn pod_links(&self) -> Result<Vec<String>> {
        let links = link::list(&mut lock(&self.links)).map_err(Error::kernel("listing links"))?;
        let prefix = self.config.device_prefix();
        let ours = |name: &str| {
            name != self.config.device
                && name
                    .strip_prefix(prefix)
                    .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        };
        Ok(links
            .into_iter()
            .filter(|l| l.kind == "veth" && ours(&l.name))
            .map(|l| l.name)
            .collect())
    }

    /// Removes links of pods, together with those of other pods that leave at the same time.
    pub(super) fn unlink(&self, names: &[String]) -> Result<()> {
        let failed = || Error::kernel(format!("removing the links {names:?}"));
        let mut doomed = Vec::new();
        for name in names {
            let mut links = lock(&self.links);
            if let Some(link) = link::find(&mut links, name).map_err(failed())? {
                link::apply(&mut links, vec![link::doom(link.index)], &[libc::ENODEV])
                    .map_err(failed())?;
                doomed.push(name);
            }
        }
        let mut reaper = lock(&self.reaper);
        for name in doomed {
            // Whoever held the reaper before, or the first round, may have taken it along.
            if link::find(&mut reaper, name).map_err(failed())?.is_some() {
                link::apply(&mut reaper, vec![link::delete_doomed()], &[libc::ENODEV])
                    .map_err(failed())?;
            }
        }
        Ok(())
    }

    pub(super) fn connect(&self, entry: &Entry, netns: &Path, ifname: &str) -> Result<()> {
        if ifname.is_empty()
            || ifname.len() > 15
            || ifname == "lo"
            || ifname
                .bytes()
                .any(|b| b == b'/' || b.is_ascii_whitespace() || b == 0)
        {
            return Err(Error::Invalid(format!(
                "{ifname:?} cannot be the name of a pod's link"
            )));
        }
        let pod = &entry.network;
        let ns = netns::open(netns).map_err(Error::kernel(format!(
            "opening network namespace {}",
            netns.display()
        )))?;
        let mut inside = netns::link_socket(&ns).map_err(Error::kernel(format!(
            "entering network namespace {}",
            netns.display()
        )))?;
        let linking = || Error::kernel(format!("linking pod {} to the box", pod.id));
        let there = link::find(&mut inside, ifname).map_err(linking())?;
        let mtu = lock(&self.ways).pod_mtu();
        let mut links = lock(&self.links);
        let here = link::find(&mut links, &pod.host_ifname).map_err(linking())?;
        let paired = matches!((&here, &there), (Some(h), Some(t)) if h.kind == "veth" && h.peer == Some(t.index) && t.peer == Some(h.index));
        if !paired {
            for (link, socket) in [(here, &mut *links), (there, &mut inside)] {
                if let Some(link) = link {
                    // One end takes the other along.
                    link::apply(socket, vec![link::delete(link.index)], &[libc::ENODEV])
                        .map_err(linking())?;
                }
            }
            let message = link::add_veth((&pod.host_ifname, HOST_MAC), (ifname, pod.mac), &ns, mtu);
            links.request(message).map_err(linking())?;
        }
        box_side(&mut links, pod)?;
        drop(links);

        let there = link::find(&mut inside, ifname)
            .map_err(linking())?
            .map_or(0, |l| l.index);
        let mut steps = vec![link::up(1), link::up(there)];
        for (ip, gateway) in pod.ips.iter().zip(&pod.gateways) {
            let everywhere = if ip.is_ipv4() {
                IpNet::V4(Default::default())
            } else {
                IpNet::V6(Default::default())
            };
            steps.push(link::add_address(there, *ip));
            steps.push(link::add_neighbour(there, *gateway, HOST_MAC));
            steps.push(link::add_route(
                everywhere,
                Via::Gateway {
                    index: there,
                    gateway: *gateway,
                },
            ));
        }
        link::apply(&mut inside, steps, &[]).map_err(Error::kernel(format!(
            "setting addresses and routes inside pod {}",
            pod.id
        )))
    }
}

/// Sets the box's end of a pod's link; does nothing where there is none.
pub(super) fn box_side(links: &mut Socket, pod: &PodNetwork) -> Result<()> {
    let failed = || {
        Error::kernel(format!(
            "setting the box's end of the link of pod {}",
            pod.id
        ))
    };
    let Some(link) = link::find(links, &pod.host_ifname).map_err(failed())? else {
        return Ok(());
    };
    let index = link.index;
    let mut steps = vec![link::up(index), link::no_link_local(index)];
    for (ip, gateway) in pod.ips.iter().zip(&pod.gateways) {
        if ip.is_ipv4() {
            steps.push(link::route_localnet(index));
        }
        let via = Via::Link {
            index,
            source: Some(*gateway),
        };
        steps.push(link::add_route(IpNet::from(*ip), via));
        steps.push(link::add_neighbour(index, *ip, pod.mac));
    }
    // Kernels without IPv6 do not know its settings.
    link::apply(links, steps, &[libc::EAFNOSUPPORT]).map_err(failed())
}

pub(super) fn delete_link(links: &mut Socket, name: &str) -> Result<()> {
    let failed = || Error::kernel(format!("removing link {name}"));
    match link::find(links, name).map_err(failed())? {
        Some(link) => {
            link::apply(links, vec![link::delete(link.index)], &[libc::ENODEV]).map_err(failed())
        }
        None => Ok(()),
    }
}

/// The device that carries the gateway's address, and the routes that do not belong to a pod.
pub(super) fn anchor(config: &NetConfig, links: &mut Socket) -> Result<()> {
    let failed = || Error::kernel(format!("making device {}", config.device));
    if link::find(links, &config.device)
        .map_err(failed())?
        .is_none()
    {
        // Either will do: it never has a port. Some kernels have only one of the two.
        let bridge = link::apply(
            links,
            vec![link::add_anchor(&config.device, "bridge")],
            &[libc::EEXIST],
        );
        if bridge.is_err() {
            link::apply(
                links,
                vec![link::add_anchor(&config.device, "dummy")],
                &[libc::EEXIST],
            )
            .map_err(failed())?;
        }
    }
    let index = link::find(links, &config.device)
        .map_err(failed())?
        .map_or(0, |l| l.index);
    let wanted: HashSet<IpAddr> = config
        .gateways()
        .into_iter()
        .chain(config.local_ips.iter().copied())
        .collect();
    let mut steps = vec![link::up(index)];
    for ip in link::addresses(links, index).map_err(failed())? {
        let ours = |ip: &IpAddr| !matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local());
        if ours(&ip) && !wanted.contains(&ip) {
            steps.push(link::delete_address(index, ip));
        }
    }
    steps.extend(wanted.iter().map(|ip| link::add_address(index, *ip)));
    for net in &config.pod_cidrs {
        // Pods have routes of their own; addresses without a pod lead nowhere, and say so.
        steps.push(link::add_route(*net, Via::Unreachable));
        let same = |n: &&IpNet| n.addr().is_ipv4() == net.addr().is_ipv4();
        if let Some(services) = config.service_cidrs.iter().find(same) {
            // The box itself reaches services also without a default route, and from an address that every pod can answer.
            steps.push(link::add_route(
                *services,
                Via::Link {
                    index,
                    source: Some(config::gateway(net)),
                },
            ));
        }
    }
    link::apply(links, steps, &[]).map_err(Error::kernel(format!(
        "setting addresses and routes of {}",
        config.device
    )))
}
