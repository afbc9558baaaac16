//! From Services and EndpointSlices to what data plane, DNS and health checks need. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use amphipod_netplug as net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::key;
use super::topology::{Hints, Place};

fn protocol(text: Option<&str>) -> net::Protocol {
    match text {
        Some("UDP") => net::Protocol::Udp,
        Some("SCTP") => net::Protocol::Sctp,
        _ => net::Protocol::Tcp,
    }
}

fn ips(list: Option<&Vec<String>>) -> Vec<IpAddr> {
    list.into_iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn cluster_ips(s: &Service) -> Vec<IpAddr> {
    let spec = s.spec.as_ref();
    let list = ips(spec.and_then(|s| s.cluster_ips.as_ref()));
    if list.is_empty() {
        spec.and_then(|s| s.cluster_ip.as_ref())
            .and_then(|ip| ip.parse().ok())
            .into_iter()
            .collect()
    } else {
        list
    }
}

/// A service for the data plane; `None` if it has no frontend (headless, ExternalName).
pub fn compile(
    service: &Service,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    place: &Place,
) -> Option<net::Service> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ips = cluster_ips(service);
    if cluster_ips.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        let name = p.name.clone().unwrap_or_default();
        let protocol = protocol(p.protocol.as_deref());
        Some(net::ServicePort {
            endpoints: endpoints(slices, &name, protocol, place),
            name,
            protocol,
            port: u16::try_from(p.port).ok()?,
            node_port: p
                .node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p > 0),
        })
    });
    let affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let seconds = spec
                .session_affinity_config
                .as_ref()
                .and_then(|c| c.client_ip.as_ref())
                .and_then(|c| c.timeout_seconds);
            net::Affinity::ClientIp {
                seconds: seconds.unwrap_or(10800).clamp(1, 86400) as u32,
            }
        }
        _ => net::Affinity::None,
    };
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten());
    Some(net::Service {
        key: key(
            service.metadata.namespace.as_ref(),
            service.metadata.name.as_ref(),
        ),
        cluster_ips,
        external_ips: ips(spec.external_ips.as_ref()),
        load_balancer_ips: ingress
            .filter(|i| i.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
            .filter_map(|i| i.ip.as_ref()?.parse().ok())
            .collect(),
        ports: ports.collect(),
        affinity,
        internal_traffic_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_traffic_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|r| r.trim().parse().ok())
            .collect(),
    })
}

fn endpoints(
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    port: &str,
    protocol_: net::Protocol,
    place: &Place,
) -> Vec<net::Endpoint> {
    let mut out: BTreeMap<(IpAddr, u16), (net::Endpoint, Hints)> = BTreeMap::new();
    for slice in slices.values() {
        let ports = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or_default() == port
                && protocol(p.protocol.as_deref()) == protocol_
        });
        for number in ports
            .filter_map(|p| p.port)
            .filter_map(|p| u16::try_from(p).ok())
        {
            for e in slice.endpoints.iter().flatten() {
                let c = e.conditions.as_ref();
                let ready = c.and_then(|c| c.ready).unwrap_or(true);
                for ip in e.addresses.iter().filter_map(|a| a.parse().ok()) {
                    let endpoint = net::Endpoint {
                        ip,
                        port: number,
                        ready,
                        serving: c.and_then(|c| c.serving).unwrap_or(ready),
                        terminating: c.and_then(|c| c.terminating).unwrap_or(false),
                        local: e.node_name.as_deref() == Some(&place.node),
                        near: true,
                    };
                    let told = (endpoint, Hints::of(e));
                    // While slices are rearranged, an endpoint can stand in two of them: the better word counts.
                    let old = out.entry((ip, number)).or_insert_with(|| told.clone());
                    if told.0.ready && !old.0.ready {
                        *old = told;
                    }
                }
            }
        }
    }
    let mut out: Vec<_> = out.into_values().collect();
    for v4 in [true, false] {
        let ready = out
            .iter()
            .filter(|(e, _)| e.ip.is_ipv4() == v4 && e.ready)
            .map(|(_, hints)| hints);
        let reach = place.reach(ready);
        for (endpoint, hints) in out.iter_mut().filter(|(e, _)| e.ip.is_ipv4() == v4) {
            endpoint.near = place.within(reach, hints);
        }
    }
    out.into_iter().map(|(endpoint, _)| endpoint).collect()
}

/// The port that tells load balancers whether this box has pods of a service, and how many ready ones it has
/// (`spec.healthCheckNodePort`). `None` where the service has no such port.
pub fn health(
    service: &Service,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    node: &str,
) -> Option<(u16, usize)> {
    let port = service.spec.as_ref()?.health_check_node_port?;
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    let ready = |c: &k8s_openapi::api::discovery::v1::Endpoint| {
        let ready = c.conditions.as_ref().and_then(|c| c.ready);
        c.node_name.as_deref() == Some(node) && ready.unwrap_or(true)
    };
    let addresses: BTreeSet<&String> = slices
        .values()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| ready(endpoint))
        .flat_map(|endpoint| endpoint.addresses.first())
        .collect();
    Some((port, addresses.len()))
}

/// A service as DNS tells it.
pub fn records(
    service: &Service,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
) -> Option<net::ServiceRecords> {
    let spec = service.spec.as_ref()?;
    let dns_port = |p: &k8s_openapi::api::core::v1::ServicePort| {
        Some(net::DnsPort {
            name: p.name.clone().unwrap_or_default(),
            protocol: protocol(p.protocol.as_deref()),
            port: u16::try_from(p.port).ok()?,
        })
    };
    let ports: Vec<net::DnsPort> = spec.ports.iter().flatten().filter_map(dns_port).collect();
    let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => net::RecordKind::External {
            name: spec.external_name.clone()?,
        },
        (_, Some("None")) => {
            let mut endpoints = Vec::new();
            for slice in slices.values() {
                let own: Vec<net::DnsPort> = slice
                    .ports
                    .iter()
                    .flatten()
                    .filter_map(|p| {
                        let port = u16::try_from(p.port?).ok()?;
                        Some(net::DnsPort {
                            name: p.name.clone().unwrap_or_default(),
                            protocol: protocol(p.protocol.as_deref()),
                            port,
                        })
                    })
                    .collect();
                for e in slice.endpoints.iter().flatten() {
                    if e.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                        continue;
                    }
                    endpoints.extend(e.addresses.iter().filter_map(|a| a.parse().ok()).map(|ip| {
                        net::DnsEndpoint {
                            ip,
                            hostname: e.hostname.clone(),
                            ports: own.clone(),
                        }
                    }));
                }
            }
            net::RecordKind::Headless { endpoints, ports }
        }
        _ => {
            let ips = cluster_ips(service);
            if ips.is_empty() {
                return None;
            }
            net::RecordKind::Cluster { ips, ports }
        }
    };
    Some(net::ServiceRecords {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        kind,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn me() -> Place {
        Place {
            node: "me".into(),
            zone: Some("here".into()),
        }
    }

    fn service(v: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": v}))
            .unwrap()
    }

    fn slices(v: Value) -> BTreeMap<String, Arc<EndpointSlice>> {
        let slice = serde_json::from_value(v).unwrap();
        [("x".to_string(), Arc::new(slice))].into()
    }

    fn two() -> BTreeMap<String, Arc<EndpointSlice>> {
        slices(
            json!({"metadata": {"namespace": "n"}, "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.42.0.2"], "nodeName": "me", "conditions": {"ready": true}},
                          {"addresses": ["10.42.1.2"], "nodeName": "other", "hostname": "h", "conditions": {"ready": false, "serving": true, "terminating": true}}]}),
        )
    }

    #[test]
    fn ports_find_their_endpoints_by_name() {
        let s = service(
            json!({"type": "NodePort", "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "externalTrafficPolicy": "Local",
            "ports": [{"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"}, {"name": "other", "port": 81}]}),
        );
        let c = compile(&s, &two(), &me()).unwrap();
        assert_eq!(
            (
                c.key.as_str(),
                c.external_traffic_local,
                c.ports[0].node_port
            ),
            ("n/s", true, Some(30080))
        );
        let e = &c.ports[0].endpoints;
        assert_eq!(
            (e.len(), e[0].port, e[0].ready, e[0].local),
            (2, 8080, true, true)
        );
        assert!(!e[1].ready && e[1].serving && e[1].terminating && !e[1].local);
        assert!(c.ports[1].endpoints.is_empty());
    }

    #[test]
    fn headless_and_external_services_are_names_only() {
        let headless =
            service(json!({"clusterIP": "None", "ports": [{"name": "web", "port": 80}]}));
        assert!(compile(&headless, &two(), &me()).is_none());
        match records(&headless, &two()).unwrap().kind {
            net::RecordKind::Headless { endpoints, .. } => {
                assert_eq!((endpoints.len(), endpoints[0].ports[0].port), (1, 8080))
            }
            other => panic!("{other:?}"),
        }
        let external = service(json!({"type": "ExternalName", "externalName": "example.org"}));
        assert!(compile(&external, &BTreeMap::new(), &me()).is_none());
        assert_eq!(
            records(&external, &BTreeMap::new()).unwrap().kind,
            net::RecordKind::External {
                name: "example.org".into()
            }
        );
    }

    #[test]
    fn hints_keep_traffic_near_where_every_ready_endpoint_has_one() {
        let s = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "web", "port": 80}]}));
        let near = |endpoints: Value| {
            let slices = slices(
                json!({"metadata": {"namespace": "n"}, "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}),
            );
            let compiled = compile(&s, &slices, &me()).unwrap();
            let near = compiled.ports[0].endpoints.iter().filter(|e| e.near);
            near.map(|e| e.ip.to_string()).collect::<Vec<_>>()
        };
        let at = |ip: &str, hints: Value| json!({"addresses": [ip], "hints": hints});
        let zone = |z: &str| json!({"forZones": [{"name": z}]});
        let node = |n: &str, z: &str| json!({"forNodes": [{"name": n}], "forZones": [{"name": z}]});
        assert_eq!(
            near(json!([
                at("10.42.0.2", zone("here")),
                at("10.42.1.2", zone("there"))
            ])),
            ["10.42.0.2"]
        );
        // A hint that is missing makes all of them void, as does a zone that has none.
        for hints in [Value::Null, zone("there")] {
            let all = near(json!([
                at("10.42.0.2", hints),
                at("10.42.1.2", zone("there"))
            ]));
            assert_eq!(all.len(), 2);
        }
        assert_eq!(
            near(json!([
                at("10.42.0.2", node("me", "here")),
                at("10.42.1.2", node("it", "here"))
            ])),
            ["10.42.0.2"]
        );
        // No pod on this node: its zone comes next.
        assert_eq!(
            near(json!([
                at("10.42.0.2", node("it", "here")),
                at("10.42.1.2", node("that", "there"))
            ])),
            ["10.42.0.2"]
        );
    }

    #[test]
    fn health_counts_ready_endpoints_of_this_node() {
        let s = service(json!({"type": "LoadBalancer", "healthCheckNodePort": 30001}));
        assert_eq!(health(&s, &two(), "me"), Some((30001, 1)));
        assert_eq!(health(&s, &two(), "other"), Some((30001, 0)));
        assert_eq!(health(&service(json!({})), &two(), "me"), None);
    }
}
