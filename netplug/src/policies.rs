//! Policies as cells: boxes of (address range, protocol range, port range) that never overlap, as interval sets of the kernel want them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::{Allow, Direction, PolicyGroup, Traffic};

/// A block of allowed packets. All bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub peers: (IpAddr, IpAddr),
    pub protocols: (u8, u8),
    pub ports: (u16, u16),
}

/// A group in one IP family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub pods: BTreeSet<IpAddr>,
    pub cells: BTreeSet<Cell>,
}

/// The groups of one IP family by their names, which start with `in_` or `out_`.
pub type Groups = BTreeMap<String, Group>;

/// Names of ingress and egress groups start so.
pub const PREFIXES: [(Direction, &str); 2] =
    [(Direction::Ingress, "in_"), (Direction::Egress, "out_")];

/// The direction that the name of a group tells.
pub fn direction_of(group: &str) -> Option<Direction> {
    PREFIXES
        .iter()
        .find(|(_, prefix)| group.starts_with(prefix))
        .map(|(direction, _)| *direction)
}

/// A short name for a group: FNV-1a of its key.
fn name(group: &PolicyGroup) -> String {
    let hash = group.key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let prefix = match group.direction {
        Direction::Ingress => "in_",
        Direction::Egress => "out_",
    };
    format!("{prefix}{hash:016x}")
}

/// The groups of one family. Groups without pods are left out.
pub fn compile(groups: &[PolicyGroup], v4: bool) -> Groups {
    let mut compiled = Groups::new();
    for group in groups {
        let pods: BTreeSet<IpAddr> = group
            .pods
            .iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .copied()
            .collect();
        if pods.is_empty() {
            continue;
        }
        let cells = cells(group.allow.iter().filter(|a| a.peer.addr().is_ipv4() == v4));
        let to = compiled.entry(name(group)).or_default();
        to.pods.extend(pods);
        to.cells.extend(cells);
    }
    compiled
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::V4((number as u32).into())
    } else {
        IpAddr::V6(number.into())
    }
}

/// What is left of a network without some parts of it: ranges in order.
fn ranges(net: IpNet, except: &[IpNet]) -> Vec<(u128, u128)> {
    let bounds = |n: &IpNet| (number(n.network()), number(n.broadcast()));
    let (mut from, end) = bounds(&net);
    let mut holes: Vec<(u128, u128)> = except
        .iter()
        .filter(|e| e.addr().is_ipv4() == net.addr().is_ipv4())
        .map(bounds)
        .collect();
    holes.sort_unstable();
    let mut left = Vec::new();
    for (first, last) in holes {
        if last < from || first > end {
            continue;
        }
        if first > from {
            left.push((from, first - 1));
        }
        match last.checked_add(1) {
            Some(next) if next <= end => from = next,
            _ => return left,
        }
    }
    left.push((from, end));
    left
}

/// The blocks of what is allowed, none of which overlaps another: address by address, what any of them allows there.
fn cells<'a>(allowed: impl Iterator<Item = &'a Allow>) -> BTreeSet<Cell> {
    let mut v4 = true;
    // Where something begins or ends to be allowed, and what.
    let mut events: BTreeMap<u128, (Vec<Traffic>, Vec<Traffic>)> = BTreeMap::new();
    for allow in allowed {
        v4 = allow.peer.addr().is_ipv4();
        for (first, last) in ranges(allow.peer, &allow.except) {
            events.entry(first).or_default().0.push(allow.traffic);
            if let Some(after) = last.checked_add(1) {
                events.entry(after).or_default().1.push(allow.traffic);
            }
        }
    }
    let mut active: BTreeMap<Traffic, usize> = BTreeMap::new();
    // The blocks so far: from where, and what; ended by the next.
    let mut steps: Vec<(u128, Vec<Blocks>)> = Vec::new();
    for (at, (begin, end)) in events {
        for traffic in begin {
            *active.entry(traffic).or_default() += 1;
        }
        for traffic in end {
            if let Some(n) = active.get_mut(&traffic) {
                *n -= 1;
                if *n == 0 {
                    active.remove(&traffic);
                }
            }
        }
        let now = blocks(active.keys());
        if steps.last().map_or(!now.is_empty(), |(_, was)| *was != now) {
            steps.push((at, now));
        }
    }
    let top = if v4 { u128::from(u32::MAX) } else { u128::MAX };
    let mut cells = BTreeSet::new();
    for (i, (from, blocks)) in steps.iter().enumerate() {
        let to = steps.get(i + 1).map_or(top, |(next, _)| next - 1);
        for (protocols, ports) in blocks {
            cells.insert(Cell {
                peers: (address(*from, v4), address(to, v4)),
                protocols: *protocols,
                ports: *ports,
            });
        }
    }
    cells
}

/// Protocols and ports.
type Blocks = ((u8, u8), (u16, u16));

/// The union of kinds of traffic as blocks that do not overlap.
fn blocks<'a>(traffic: impl Iterator<Item = &'a Traffic>) -> Vec<Blocks> {
    let mut merged: Vec<Blocks> = Vec::new();
    // In order of protocol, then first port; everything comes first.
    for traffic in traffic {
        match *traffic {
            Traffic::All => return vec![((0, u8::MAX), (0, u16::MAX))],
            Traffic::Ports {
                protocol,
                first,
                last,
            } => {
                let protocol = protocol.number();
                if first > last {
                    continue;
                }
                match merged.last_mut() {
                    Some(((p, _), (_, end)))
                        if *p == protocol && u32::from(first) <= u32::from(*end) + 1 =>
                    {
                        *end = last.max(*end);
                    }
                    _ => merged.push(((protocol, protocol), (first, last))),
                }
            }
        }
    }
    merged
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn allow(peer: &str, except: &[&str], traffic: Traffic) -> Allow {
        Allow {
            peer: peer.parse().unwrap(),
            except: except.iter().map(|e| e.parse().unwrap()).collect(),
            traffic,
        }
    }

    fn tcp(first: u16, last: u16) -> Traffic {
        Traffic::Ports {
            protocol: Protocol::Tcp,
            first,
            last,
        }
    }

    fn shown(allowed: &[Allow]) -> Vec<String> {
        let show = |c: &Cell| {
            format!(
                "{}-{} {}-{} {}-{}",
                c.peers.0, c.peers.1, c.protocols.0, c.protocols.1, c.ports.0, c.ports.1
            )
        };
        cells(allowed.iter()).iter().map(show).collect()
    }

    #[test]
    fn exceptions_are_cut_out() {
        let a = allow(
            "10.0.0.0/24",
            &["10.0.0.64/26", "10.0.0.0/30", "10.0.0.255/32", "11.0.0.0/8"],
            Traffic::All,
        );
        assert_eq!(
            shown(&[a]),
            [
                "10.0.0.4-10.0.0.63 0-255 0-65535",
                "10.0.0.128-10.0.0.254 0-255 0-65535"
            ]
        );
        assert!(shown(&[allow("10.0.0.0/24", &["10.0.0.0/8"], Traffic::All)]).is_empty());
    }

    #[test]
    fn what_overlaps_is_divided_and_what_is_equal_is_joined() {
        let all = [
            allow("10.0.0.0/8", &[], tcp(80, 80)),
            allow("10.0.0.5/32", &[], tcp(70, 90)),
            allow("10.0.0.6/32", &[], tcp(80, 80)),
            allow("10.0.0.7/32", &[], Traffic::All),
        ];
        assert_eq!(
            shown(&all),
            [
                "10.0.0.0-10.0.0.4 6-6 80-80",
                "10.0.0.5-10.0.0.5 6-6 70-90",
                "10.0.0.6-10.0.0.6 6-6 80-80",
                "10.0.0.7-10.0.0.7 0-255 0-65535",
                "10.0.0.8-10.255.255.255 6-6 80-80"
            ]
        );
    }

    #[test]
    fn ports_that_touch_become_one_range() {
        let udp = Traffic::Ports {
            protocol: Protocol::Udp,
            first: 81,
            last: 81,
        };
        let at = |traffic| allow("10.0.0.1/32", &[], traffic);
        let all = [tcp(80, 80), tcp(81, 85), tcp(83, 84), udp, tcp(87, 86)].map(at);
        assert_eq!(
            shown(&all),
            [
                "10.0.0.1-10.0.0.1 6-6 80-85",
                "10.0.0.1-10.0.0.1 17-17 81-81"
            ]
        );
    }

    #[test]
    fn everything_reaches_to_the_last_address() {
        assert_eq!(
            shown(&[allow("0.0.0.0/0", &[], Traffic::All)]),
            ["0.0.0.0-255.255.255.255 0-255 0-65535"]
        );
        assert_eq!(
            shown(&[allow("::/0", &["::/1"], Traffic::All)]),
            ["8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 0-255 0-65535"]
        );
    }
}
