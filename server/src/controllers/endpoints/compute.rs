//! Who answers for a service: from the service and the pods that it selects. Pure.
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>

use std::collections::BTreeMap;

use amphipod_api::ip::parse_ip;
use k8s_openapi::api::core::v1::{self, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::backend::{Backend, family};

pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The slices of one address family and one list of ports: how the endpoints are spread over slices is decided elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`
    pub family: &'static str,
    pub ports: Vec<EndpointPort>,
    /// In the order of their names or addresses.
    pub endpoints: Vec<Endpoint>,
}

/// All slices of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner: Option<OwnerReference>,
    pub groups: Vec<Group>,
}

pub fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// Whether endpoints are found for it, and not written by its user.
pub fn is_selecting(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.selector
            .as_ref()
            .is_some_and(|selector| !selector.is_empty())
            && spec.type_.as_deref() != Some("ExternalName")
    })
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.clone().unwrap_or_default();
    let named: Vec<&'static str> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| ["IPv4", "IPv6"].into_iter().find(|known| known == family))
        .collect();
    match (
        named.is_empty(),
        spec.cluster_ip.as_deref().and_then(parse_ip),
    ) {
        (false, _) => named,
        (true, Some(ip)) => vec![family(ip)],
        (true, None) => vec!["IPv4"],
    }
}

/// Labels of a service that its endpoints have too.
fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The ports of a service at one pod; those that the pod does not name are left out.
fn ports(service: &Service, backend: &Backend) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let found = ports.into_iter().flatten().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => backend.port_named(name, &protocol)?,
        };
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(protocol),
            port: Some(number),
            app_protocol: port.app_protocol.clone(),
        })
    });
    found.collect()
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.publish_not_ready_addresses == Some(true))
}

fn hostname(service: &Service, backend: &Backend) -> Option<String> {
    text(&backend.hostname).filter(|_| Some(&backend.subdomain) == service.metadata.name.as_ref())
}

/// For whom an endpoint is meant first, if the service asks for near ones.
/// <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution>
fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
    let spec = service.spec.as_ref().filter(|_| ready == Some(true))?;
    let zones = || {
        Some(vec![ForZone {
            name: endpoint.zone.clone()?,
        }])
    };
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => Some(EndpointHints {
            for_zones: Some(zones()?),
            for_nodes: None,
        }),
        "PreferSameNode" => Some(EndpointHints {
            for_zones: zones(),
            for_nodes: Some(vec![ForNode {
                name: endpoint.node_name.clone()?,
            }]),
        }),
        _ => None,
    }
}

/// The slices of a service with a selector. `zone`: the zone of a node.
pub fn slices(
    service: &Service,
    backends: &[Backend],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Wanted {
    let mut groups: Vec<Group> = Vec::new();
    for family in families(service) {
        let first = groups.len();
        for backend in backends {
            let addresses: Vec<String> = backend
                .ips_of(family == "IPv6")
                .map(str::to_owned)
                .collect();
            if addresses.is_empty() {
                continue;
            }
            let endpoint = Endpoint {
                addresses,
                conditions: Some(EndpointConditions {
                    ready: Some(
                        publishes_not_ready(service) || (backend.ready && !backend.terminating),
                    ),
                    serving: Some(backend.ready),
                    terminating: Some(backend.terminating),
                }),
                hostname: hostname(service, backend),
                node_name: text(&backend.node),
                target_ref: Some(backend.reference()),
                zone: text(&backend.node).and_then(|node| zone(&node)),
                ..Endpoint::default()
            };
            let endpoint = Endpoint {
                hints: hints(service, &endpoint),
                ..endpoint
            };
            let ports = ports(service, backend);
            match groups[first..]
                .iter_mut()
                .find(|group| group.ports == ports)
            {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family,
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        // A family without endpoints is told by an empty slice.
        if groups.len() == first {
            groups.push(Group {
                family,
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
    }
    let mut labels = labels_of(service);
    labels.insert(
        SERVICE_NAME.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let owner = owner("Service", &service.metadata);
    Wanted {
        labels,
        annotations: BTreeMap::new(),
        owner,
        groups,
    }
}

fn owner(
    kind: &str,
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        name: meta.name.clone()?,
        uid: meta.uid.clone()?,
        controller: Some(true),
        block_owner_deletion: Some(true),
    })
}

/// The older form of the same: labels and subsets of the Endpoints object.
pub fn endpoints(
    service: &Service,
    backends: &[Backend],
) -> (BTreeMap<String, String>, Vec<v1::EndpointSubset>) {
    let v6 = families(service).first() == Some(&"IPv6");
    let mut subsets: Vec<v1::EndpointSubset> = Vec::new();
    for backend in backends {
        if backend.terminating && !publishes_not_ready(service) {
            continue;
        }
        let Some(ip) = backend.ips_of(v6).next() else {
            continue;
        };
        let found = ports(service, backend);
        let asked = service
            .spec
            .as_ref()
            .and_then(|spec| spec.ports.as_ref())
            .map_or(0, Vec::len);
        if found.is_empty() && asked > 0 {
            continue;
        }
        let ports: Vec<v1::EndpointPort> = found
            .into_iter()
            .map(|port| v1::EndpointPort {
                name: port.name.filter(|name| !name.is_empty()),
                protocol: port.protocol,
                port: port.port.unwrap_or(0),
                app_protocol: port.app_protocol,
            })
            .collect();
        let address = v1::EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, backend),
            node_name: text(&backend.node),
            target_ref: Some(backend.reference()),
        };
        let ports = (!ports.is_empty()).then_some(ports);
        let at = match subsets.iter().position(|subset| subset.ports == ports) {
            Some(at) => at,
            None => {
                subsets.push(v1::EndpointSubset {
                    ports,
                    ..v1::EndpointSubset::default()
                });
                subsets.len() - 1
            }
        };
        let subset = &mut subsets[at];
        let list = if publishes_not_ready(service) || backend.ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut labels = labels_of(service);
    labels.insert(
        "endpoints.kubernetes.io/managed-by".to_owned(),
        "endpoint-controller".to_owned(),
    );
    (labels, subsets)
}

/// The slices that mirror the Endpoints which a user wrote for a service without selector.
pub fn mirrored(endpoints: &Endpoints) -> Option<Wanted> {
    let labels = endpoints.metadata.labels.clone().unwrap_or_default();
    if labels.get(SKIP_MIRROR).is_some_and(|skip| skip == "true") {
        return None;
    }
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: port.protocol.clone(),
                port: Some(port.port),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let unready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, ready) in ready.chain(unready) {
            let Some(ip) = parse_ip(&address.ip) else {
                continue;
            };
            let endpoint = Endpoint {
                addresses: vec![address.ip.clone()],
                conditions: Some(EndpointConditions {
                    ready: Some(ready),
                    ..EndpointConditions::default()
                }),
                hostname: address.hostname.clone().filter(|name| !name.is_empty()),
                node_name: address.node_name.clone(),
                target_ref: address.target_ref.clone(),
                ..Endpoint::default()
            };
            match groups
                .iter_mut()
                .find(|group| group.family == family(ip) && group.ports == ports)
            {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family: family(ip),
                    ports: ports.clone(),
                    endpoints: vec![endpoint],
                }),
            }
        }
    }
    let mut labels = labels;
    labels.insert(
        SERVICE_NAME.to_owned(),
        endpoints.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.to_owned(), MIRROR.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
    Some(Wanted {
        labels,
        annotations,
        owner: owner("Endpoints", &endpoints.metadata),
        groups,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let mut spec = spec;
        spec["selector"] = json!({"app": "web"});
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s", "labels": {"l": "1"}}, "spec": spec})).unwrap()
    }

    fn backend(n: u8) -> Backend {
        Backend {
            namespace: "ns".into(),
            name: format!("p{n}"),
            uid: format!("u{n}"),
            ips: vec![format!("10.42.0.{n}")],
            node: "box".into(),
            hostname: String::new(),
            subdomain: String::new(),
            ports: vec![("http".into(), "TCP".into(), 8000 + i32::from(n))],
            ready: true,
            terminating: false,
        }
    }

    fn values(groups: &[Group]) -> Vec<Value> {
        groups
            .iter()
            .map(|g| json!({"family": g.family, "ports": g.ports, "endpoints": g.endpoints}))
            .collect()
    }

    #[test]
    fn a_service_tells_where_its_pods_answer_and_in_what_state_they_are() {
        let service = service(
            json!({"ports": [{"name": "w", "port": 80, "targetPort": 8080, "protocol": "TCP"}], "clusterIP": "10.43.0.9"}),
        );
        let going = Backend {
            terminating: true,
            ..backend(2)
        };
        let unready = Backend {
            ready: false,
            ..backend(3)
        };
        let nowhere = Backend {
            ips: vec![],
            ..backend(4)
        };
        let backends = [backend(1), going, unready, nowhere];
        let wanted = slices(&service, &backends, &|node| Some(format!("zone of {node}")));
        assert_eq!(
            json!(wanted.labels),
            json!({"l": "1", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
        );
        assert_eq!(wanted.groups.len(), 1);
        let group = &values(&wanted.groups)[0];
        assert_eq!(
            group["ports"],
            json!([{"name": "w", "port": 8080, "protocol": "TCP"}])
        );
        assert_eq!(
            group["endpoints"][0],
            json!({"addresses": ["10.42.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "box", "zone": "zone of box", "targetRef": {"kind": "Pod", "namespace": "ns", "name": "p1", "uid": "u1"}})
        );
        assert_eq!(
            group["endpoints"][1]["conditions"],
            json!({"ready": false, "serving": true, "terminating": true})
        );
        assert_eq!(
            group["endpoints"][2]["conditions"],
            json!({"ready": false, "serving": false, "terminating": false})
        );
        assert_eq!(group["endpoints"].as_array().unwrap().len(), 3);

        let (labels, subsets) = endpoints(&service, &backends);
        assert_eq!(
            json!(labels),
            json!({"l": "1", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        );
        let address = |n: u8| {
            json!({"ip": format!("10.42.0.{n}"), "nodeName": "box",
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": format!("p{n}"), "uid": format!("u{n}")}})
        };
        assert_eq!(
            json!(subsets),
            json!([{"addresses": [address(1)], "notReadyAddresses": [address(3)], "ports": [{"name": "w", "port": 8080, "protocol": "TCP"}]}])
        );
    }

    #[test]
    fn named_ports_may_differ_from_pod_to_pod() {
        let service = service(json!({"ports": [{"port": 80, "targetPort": "http"}]}));
        let unnamed = Backend {
            ports: vec![],
            ..backend(3)
        };
        let wanted = slices(
            &service,
            &[backend(1), backend(2), unnamed.clone()],
            &|_| None,
        );
        let ports: Vec<Vec<Option<i32>>> = wanted
            .groups
            .iter()
            .map(|g| g.ports.iter().map(|p| p.port).collect())
            .collect();
        assert_eq!(ports, [vec![Some(8001)], vec![Some(8002)], vec![]]);
        assert_eq!(endpoints(&service, &[backend(1), unnamed]).1.len(), 1);
    }

    #[test]
    fn a_headless_service_publishes_names_and_those_not_ready_if_asked() {
        let service = service(json!({"clusterIP": "None", "publishNotReadyAddresses": true}));
        let named = Backend {
            hostname: "a".into(),
            subdomain: "web".into(),
            ready: false,
            ..backend(1)
        };
        let other = Backend {
            hostname: "b".into(),
            subdomain: "db".into(),
            ..backend(2)
        };
        let wanted = slices(&service, &[named, other], &|_| None);
        assert_eq!(wanted.labels[HEADLESS], "");
        let group = &values(&wanted.groups)[0];
        assert_eq!(group["ports"], json!([]));
        assert_eq!(group["endpoints"][0]["hostname"], "a");
        assert_eq!(
            group["endpoints"][0]["conditions"],
            json!({"ready": true, "serving": false, "terminating": false})
        );
        assert_eq!(group["endpoints"][1].get("hostname"), None);
    }

    #[test]
    fn near_endpoints_are_hinted_at_if_asked() {
        let hints = |distribution: &str| {
            let service =
                service(json!({"trafficDistribution": distribution, "ports": [{"port": 80}]}));
            let unready = Backend {
                ready: false,
                ..backend(2)
            };
            let groups = slices(&service, &[backend(1), unready], &|_| Some("z".into())).groups;
            assert_eq!(groups[0].endpoints[1].hints, None, "only for ready ones");
            json!(groups[0].endpoints[0].hints)
        };
        assert_eq!(
            hints("PreferSameZone"),
            json!({"forZones": [{"name": "z"}]})
        );
        assert_eq!(
            hints("PreferSameNode"),
            json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "box"}]})
        );
    }

    #[test]
    fn each_family_has_its_slices_also_an_empty_one() {
        let service = service(json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]}));
        let both = Backend {
            ips: vec!["10.42.0.1".into(), "fd00::1".into()],
            ..backend(1)
        };
        let families = |backends: &[Backend]| -> Vec<(&'static str, usize)> {
            slices(&service, backends, &|_| None)
                .groups
                .iter()
                .map(|g| (g.family, g.endpoints.len()))
                .collect()
        };
        assert_eq!(families(&[both]), [("IPv4", 1), ("IPv6", 1)]);
        assert_eq!(families(&[backend(2)]), [("IPv4", 1), ("IPv6", 0)]);
        assert_eq!(families(&[]), [("IPv4", 0), ("IPv6", 0)]);
    }

    #[test]
    fn endpoints_that_a_user_wrote_are_mirrored() {
        let mut object = json!({"metadata": {"name": "db", "uid": "e", "annotations": {"a": "b"}}, "subsets": [{
            "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2", "hostname": "h"}],
            "ports": [{"port": 5432}]}]});
        let wanted = mirrored(&serde_json::from_value(object.clone()).unwrap()).unwrap();
        assert_eq!(wanted.labels[MANAGED_BY], MIRROR);
        assert_eq!(wanted.owner.unwrap().kind, "Endpoints");
        assert_eq!(
            values(&wanted.groups)[0],
            json!({"family": "IPv4", "ports": [{"name": "", "port": 5432}], "endpoints": [
                {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false}, "hostname": "h"}]})
        );
        assert_eq!(wanted.groups[1].family, "IPv6");
        object["metadata"]["labels"] = json!({SKIP_MIRROR: "true"});
        assert_eq!(mirrored(&serde_json::from_value(object).unwrap()), None);
    }
}
