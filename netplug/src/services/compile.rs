//! From services and host ports to frontends. The rules are those of kube-proxy
//! (kubernetes.io/docs/reference/networking/virtual-ips, KEP-1669 for terminating endpoints, KEP-2086 for the internal policy).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{Frontend, Key, Scope};
use crate::pod::HostPort;
use crate::service::{Affinity, Endpoint, Service, ServicePort};

/// More than any service has; bounds the size of a transaction.
pub const MAX_ENDPOINTS: usize = 9_999;
/// Kubernetes allows a day.
const MAX_AFFINITY: u32 = 86_400;

/// The unspecified address of a family: every address of the box.
fn any(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// The endpoints that get traffic: ready ones (that are near), else those that terminate but still serve.
fn usable(port: &ServicePort, v4: bool, local_only: bool) -> Vec<SocketAddr> {
    let pick = |wanted: fn(&Endpoint) -> bool| {
        let chosen = port
            .endpoints
            .iter()
            .filter(|e| e.ip.is_ipv4() == v4 && (e.local || !local_only) && wanted(e));
        let mut found: Vec<SocketAddr> = chosen.map(|e| SocketAddr::new(e.ip, e.port)).collect();
        found.sort_unstable();
        found.dedup();
        found.truncate(MAX_ENDPOINTS);
        found
    };
    let ready = match local_only {
        true => pick(|e| e.ready && !e.terminating),
        false => pick(|e| e.ready && !e.terminating && e.near),
    };
    if ready.is_empty() {
        pick(|e| e.serving && e.terminating || e.ready)
    } else {
        ready
    }
}

/// The frontends of one service.
pub fn service(service: &Service) -> Vec<(Key, Frontend)> {
    let affinity = match service.affinity {
        Affinity::None => 0,
        Affinity::ClientIp { seconds } => seconds.clamp(1, MAX_AFFINITY),
    };
    let mut frontends = Vec::new();
    for port in &service.ports {
        for v4 in [true, false] {
            let all = usable(port, v4, false);
            let local = usable(port, v4, true);
            let mut ranges: Vec<IpNet> = service
                .source_ranges
                .iter()
                .filter(|n| n.addr().is_ipv4() == v4)
                .copied()
                .collect();
            ranges = IpNet::aggregate(&ranges);
            let forward = |endpoints: &[SocketAddr], masquerade: bool, ranged: bool| match endpoints
            {
                [] if all.is_empty() => Frontend::Reject,
                [] => Frontend::Drop,
                // Ranges of the other family only: nobody of this family is allowed.
                _ if ranged && ranges.is_empty() && !service.source_ranges.is_empty() => {
                    Frontend::Drop
                }
                endpoints => Frontend::Forward {
                    endpoints: endpoints.to_vec(),
                    masquerade,
                    affinity,
                    sources: if ranged { ranges.clone() } else { Vec::new() },
                },
            };
            let mut add = |scope, ip, port_number, frontend| {
                frontends.push((
                    Key {
                        scope,
                        ip,
                        protocol: port.protocol,
                        port: port_number,
                    },
                    frontend,
                ));
            };
            for ip in service.cluster_ips.iter().filter(|ip| ip.is_ipv4() == v4) {
                let endpoints = if service.internal_traffic_local {
                    &local
                } else {
                    &all
                };
                add(
                    Scope::Everyone,
                    *ip,
                    port.port,
                    forward(endpoints, false, false),
                );
            }
            let balanced = service
                .load_balancer_ips
                .iter()
                .map(|ip| (*ip, port.port, true));
            let external = service
                .external_ips
                .iter()
                .map(|ip| (*ip, port.port, false));
            let node = port
                .node_port
                .filter(|_| service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4))
                .map(|n| (any(v4), n, false));
            for (ip, number, ranged) in balanced
                .chain(external)
                .chain(node)
                .filter(|(ip, ..)| ip.is_ipv4() == v4)
            {
                // Clients inside the cluster may use any endpoint: for them the outer address is but another name of the service.
                add(
                    Scope::Everyone,
                    ip,
                    number,
                    forward(&all, !service.external_traffic_local, ranged),
                );
                if service.external_traffic_local {
                    add(Scope::External, ip, number, forward(&local, false, ranged));
                }
            }
        }
    }
    frontends
}

/// The frontends of a pod's host ports.
pub fn host_ports(ips: &[IpAddr], ports: &[HostPort]) -> Vec<(Key, Frontend)> {
    let mut frontends = Vec::new();
    for port in ports {
        let host = port.host_ip.filter(|ip| !ip.is_unspecified());
        for ip in ips
            .iter()
            .filter(|ip| host.is_none_or(|h| h.is_ipv4() == ip.is_ipv4()))
        {
            let key = Key {
                scope: Scope::Everyone,
                ip: host.unwrap_or(any(ip.is_ipv4())),
                protocol: port.protocol,
                port: port.host_port,
            };
            let endpoints = vec![SocketAddr::new(*ip, port.container_port)];
            frontends.push((
                key,
                Frontend::Forward {
                    endpoints,
                    masquerade: false,
                    affinity: 0,
                    sources: Vec::new(),
                },
            ));
        }
    }
    frontends
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn web(endpoints: Vec<Endpoint>) -> Service {
        Service {
            key: "default/web".into(),
            cluster_ips: vec![ip("10.43.0.7")],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
                endpoints,
            }],
            ..Service::default()
        }
    }

    fn at<'a>(plan: &'a [(Key, Frontend)], scope: Scope, addr: &str, port: u16) -> &'a Frontend {
        let found: Vec<_> = plan
            .iter()
            .filter(|(k, _)| k.scope == scope && k.ip == ip(addr) && k.port == port)
            .collect();
        assert_eq!(found.len(), 1, "{addr}:{port} in {plan:?}");
        &found[0].1
    }

    fn targets(f: &Frontend) -> Vec<String> {
        f.endpoints().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_cluster_ip_forwards_to_the_ready_endpoints_of_its_family() {
        let mut not_ready = Endpoint::ready(ip("10.42.0.4"), 8080, true);
        (not_ready.ready, not_ready.serving) = (false, false);
        let plan = service(&web(vec![
            Endpoint::ready(ip("10.42.0.3"), 8080, true),
            Endpoint::ready(ip("10.42.1.2"), 8080, false),
            Endpoint::ready(ip("fd00::2"), 8080, false),
            not_ready,
        ]));
        let f = at(&plan, Scope::Everyone, "10.43.0.7", 80);
        assert_eq!(targets(f), ["10.42.0.3:8080", "10.42.1.2:8080"]);
        assert!(matches!(
            f,
            Frontend::Forward {
                masquerade: false,
                affinity: 0,
                ..
            }
        ));
        assert!(matches!(
            at(&plan, Scope::Everyone, "0.0.0.0", 30080),
            Frontend::Forward {
                masquerade: true,
                ..
            }
        ));
        assert_eq!(plan.len(), 2, "no IPv6 frontend without an IPv6 address");
    }

    #[test]
    fn terminating_endpoints_serve_only_when_nobody_else_does() {
        let mut leaving = Endpoint::ready(ip("10.42.0.3"), 80, true);
        (leaving.ready, leaving.terminating) = (false, true);
        let mut gone = leaving.clone();
        (gone.ip, gone.serving) = (ip("10.42.0.9"), false);
        let ready = Endpoint::ready(ip("10.42.0.4"), 80, true);
        let plan = service(&web(vec![leaving.clone(), gone.clone(), ready]));
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "10.43.0.7", 80)),
            ["10.42.0.4:80"]
        );
        let plan = service(&web(vec![leaving, gone]));
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "10.43.0.7", 80)),
            ["10.42.0.3:80"]
        );
    }

    #[test]
    fn without_endpoints_a_service_refuses() {
        let plan = service(&web(vec![]));
        assert_eq!(
            at(&plan, Scope::Everyone, "10.43.0.7", 80),
            &Frontend::Reject
        );
        assert_eq!(
            at(&plan, Scope::Everyone, "0.0.0.0", 30080),
            &Frontend::Reject
        );
    }

    #[test]
    fn local_policies_use_local_endpoints_or_drop() {
        let mut svc = web(vec![Endpoint::ready(ip("10.42.1.2"), 80, false)]);
        svc.internal_traffic_local = true;
        svc.external_traffic_local = true;
        svc.external_ips = vec![ip("192.0.2.1")];
        let plan = service(&svc);
        assert_eq!(at(&plan, Scope::Everyone, "10.43.0.7", 80), &Frontend::Drop);
        assert_eq!(
            at(&plan, Scope::External, "0.0.0.0", 30080),
            &Frontend::Drop
        );
        assert!(matches!(
            at(&plan, Scope::Everyone, "0.0.0.0", 30080),
            Frontend::Forward {
                masquerade: false,
                ..
            }
        ));
        assert_eq!(at(&plan, Scope::External, "192.0.2.1", 80), &Frontend::Drop);
        svc.ports[0]
            .endpoints
            .push(Endpoint::ready(ip("10.42.0.2"), 80, true));
        let plan = service(&svc);
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "10.43.0.7", 80)),
            ["10.42.0.2:80"]
        );
        assert_eq!(
            targets(at(&plan, Scope::External, "0.0.0.0", 30080)),
            ["10.42.0.2:80"]
        );
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "0.0.0.0", 30080)).len(),
            2
        );
    }

    #[test]
    fn source_ranges_bind_only_load_balancer_addresses() {
        let mut svc = web(vec![Endpoint::ready(ip("10.42.0.2"), 80, true)]);
        svc.load_balancer_ips = vec![ip("192.0.2.9")];
        svc.source_ranges = vec![
            "198.51.100.0/24".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ];
        let plan = service(&svc);
        let sources = |f: &Frontend| match f {
            Frontend::Forward { sources, .. } => sources.len(),
            _ => panic!("{f:?}"),
        };
        assert_eq!(sources(at(&plan, Scope::Everyone, "192.0.2.9", 80)), 1);
        assert_eq!(sources(at(&plan, Scope::Everyone, "10.43.0.7", 80)), 0);
        assert_eq!(sources(at(&plan, Scope::Everyone, "0.0.0.0", 30080)), 0);
    }

    #[test]
    fn host_ports_lead_to_the_pod_on_one_or_every_address() {
        let port = |host_ip: Option<&str>| HostPort {
            host_ip: host_ip.map(ip),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
        };
        let plan = host_ports(&[ip("10.42.0.2"), ip("fd00::2")], &[port(None)]);
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "0.0.0.0", 8080)),
            ["10.42.0.2:80"]
        );
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "::", 8080)),
            ["[fd00::2]:80"]
        );
        let plan = host_ports(
            &[ip("10.42.0.2"), ip("fd00::2")],
            &[port(Some("127.0.0.1"))],
        );
        assert_eq!(plan.len(), 1);
        assert_eq!(
            targets(at(&plan, Scope::Everyone, "127.0.0.1", 8080)),
            ["10.42.0.2:80"]
        );
    }
}
