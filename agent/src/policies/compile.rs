//! From NetworkPolicies, pods and namespaces to what the pods of this node may do. Pure.
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use amphipod_netplug::{Allow, Direction, IpNet, PolicyGroup, Traffic};

use super::model::{Labels, PeerIs, PodView, Policy, PortIs, Rule};

/// All that decides.
#[derive(Default)]
pub struct World<'a> {
    pub policies: Vec<&'a Policy>,
    /// Labels of namespaces by name.
    pub namespaces: BTreeMap<&'a str, &'a Labels>,
    /// Pods of all nodes that have addresses of their own.
    pub pods: Vec<&'a PodView>,
    /// Those of this node. No address comes twice.
    pub local: Vec<&'a PodView>,
}

/// The groups of isolated pods of this node.
pub fn compile(world: &World<'_>) -> Vec<PolicyGroup> {
    let mut groups: BTreeMap<(Direction, String), PolicyGroup> = BTreeMap::new();
    for pod in &world.local {
        for direction in [Direction::Ingress, Direction::Egress] {
            let of = |p: &&&Policy| p.rules(direction).is_some() && p.selects(pod);
            let policies: Vec<&Policy> = world.policies.iter().filter(of).copied().collect();
            if policies.is_empty() {
                continue;
            }
            let mut names: Vec<String> = policies.iter().map(|p| p.key()).collect();
            names.sort_unstable();
            if direction == Direction::Ingress {
                // Pods whose ports of one name differ in number need groups of their own.
                names.extend(named_ports(pod, &policies));
            }
            let key = names.join(",");
            let group = groups
                .entry((direction, key.clone()))
                .or_insert_with(|| PolicyGroup {
                    key,
                    direction,
                    pods: BTreeSet::new(),
                    allow: policies
                        .iter()
                        .flat_map(|p| {
                            let rules = p.rules(direction).unwrap_or_default();
                            rules.iter().map(move |r| (*p, r))
                        })
                        .flat_map(|(p, rule)| allowed(world, p, rule, direction, pod))
                        .collect(),
                });
            group.pods.extend(&pod.ips);
        }
    }
    groups.into_values().collect()
}

/// What the names in the policies' ports mean for a pod.
fn named_ports(pod: &PodView, policies: &[&Policy]) -> BTreeSet<String> {
    let ports = policies
        .iter()
        .flat_map(|p| p.rules(Direction::Ingress).unwrap_or_default())
        .flat_map(|r| r.ports.iter().flatten());
    ports
        .filter_map(|p| match p {
            PortIs::Name { protocol, name } => {
                Some(format!("{name}={:?}", pod.port(*protocol, name)))
            }
            PortIs::Numbers { .. } => None,
        })
        .collect()
}

fn everyone() -> [IpNet; 2] {
    [IpNet::V4(Default::default()), IpNet::V6(Default::default())]
}

/// What one rule allows. `pod` stands for its group.
fn allowed(
    world: &World<'_>,
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    pod: &PodView,
) -> Vec<Allow> {
    let mut allow = Vec::new();
    let mut add = |peer: IpNet, except: &[IpNet], traffic| {
        allow.push(Allow {
            peer,
            except: except.to_vec(),
            traffic,
        });
    };
    // Traffic that has the same meaning at every peer, and names that peers give a meaning each.
    let mut common = Vec::new();
    let mut names = Vec::new();
    match &rule.ports {
        None => common.push(Traffic::All),
        Some(ports) => {
            for port in ports {
                match (port, direction) {
                    (
                        PortIs::Numbers {
                            protocol,
                            first,
                            last,
                        },
                        _,
                    ) => common.push(Traffic::Ports {
                        protocol: *protocol,
                        first: *first,
                        last: *last,
                    }),
                    (PortIs::Name { protocol, name }, Direction::Ingress) => {
                        common.extend(pod.port(*protocol, name).map(|n| Traffic::Ports {
                            protocol: *protocol,
                            first: n,
                            last: n,
                        }));
                    }
                    (PortIs::Name { protocol, name }, Direction::Egress) => {
                        names.push((*protocol, name));
                    }
                }
            }
        }
    }
    let of_pod = |peer: &PodView| -> Vec<Traffic> {
        let named = names.iter().filter_map(|(protocol, name)| {
            let port = peer.port(*protocol, name)?;
            Some(Traffic::Ports {
                protocol: *protocol,
                first: port,
                last: port,
            })
        });
        common.iter().copied().chain(named).collect()
    };
    let mut add_pod = |peer: &PodView, traffic: Vec<Traffic>| {
        for ip in &peer.ips {
            for t in &traffic {
                add(IpNet::from(*ip), &[], *t);
            }
        }
    };
    let Some(peers) = &rule.peers else {
        if !names.is_empty() {
            for peer in &world.pods {
                add_pod(peer, of_pod(peer));
            }
        }
        for net in everyone() {
            common.iter().for_each(|t| add(net, &[], *t));
        }
        return allow;
    };
    for peer in &world.pods {
        let is_meant = |p: &PeerIs| match p {
            PeerIs::Pods { namespaces, pods } => {
                let place = match namespaces {
                    None => peer.namespace == policy.namespace,
                    Some(selector) => {
                        let none = Labels::new();
                        let labels = world.namespaces.get(peer.namespace.as_str());
                        selector.matches(*labels.unwrap_or(&&none))
                    }
                };
                place && pods.as_ref().is_none_or(|s| s.matches(&peer.labels))
            }
            PeerIs::Block { .. } => false,
        };
        if peers.iter().any(is_meant) {
            add_pod(peer, of_pod(peer));
        }
    }
    for peer in peers {
        if let PeerIs::Block { net, except } = peer {
            common.iter().for_each(|t| add(*net, except, *t));
        }
    }
    allow
}

/// Whether two lists of addresses have one in common.
pub fn share(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.iter().any(|ip| b.contains(ip))
}
