//! Endpoints and EndpointSlice: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/>.

use std::collections::HashSet;

use amphipod_api::ip::parse_ip;
use amphipod_api::meta::{array_at, at, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::{core, discovery};
use serde_json::{Value, json};

use super::Kind;
use crate::resources::common::{fill_text, items_mut, set_generation, set_generation_like};
use crate::resources::table::{NONE, age_cell, name};
use crate::resources::validate::{Errors, immutable, labels, one_of, problems};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn endpoints() -> Descriptor {
    Kind::new::<core::v1::Endpoints>("", "v1", "Endpoints", "endpoints")
        .short(&["ep"])
        .columns(vec![
            Column::name(),
            Column::new("Endpoints", "Addresses and ports."),
            Column::age(),
        ])
        .strategy(Endpoints)
        .build()
}

pub fn endpoint_slice() -> Descriptor {
    Kind::new::<discovery::v1::EndpointSlice>(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
    )
    .columns(vec![
        Column::name(),
        Column::new("AddressType", "Family of the addresses."),
        Column::new("Ports", "Ports of all endpoints."),
        Column::new("Endpoints", "Addresses."),
        Column::age(),
    ])
    .strategy(EndpointSlice)
    .build()
}

/// Cells show this many and say how many more there are.
const SHOWN: usize = 3;

fn shorten(all: &[String], none: &str) -> Value {
    let text = match all.len() {
        0 => none.to_owned(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
        _ => all.join(","),
    };
    text.into()
}

struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, obj: &mut Value) {
        let Some(map) = obj.as_object_mut() else {
            return;
        };
        for subset in items_mut(map, "subsets") {
            for port in items_mut(subset, "ports") {
                fill_text(port, "protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let subsets = FieldPath::new("subsets");
        for (index, subset) in array_at(obj, &["subsets"]).iter().enumerate() {
            let path = subsets.index(index);
            let (ready, unready) = (
                array_at(subset, &["addresses"]),
                array_at(subset, &["notReadyAddresses"]),
            );
            if ready.is_empty() && unready.is_empty() {
                errors.push(FieldError::required(
                    path,
                    "must specify `addresses` or `notReadyAddresses`",
                ));
            }
            for (field, list) in [("addresses", ready), ("notReadyAddresses", unready)] {
                for (index, address) in list.iter().enumerate() {
                    endpoint_address(&path.child(field).index(index), address, &mut errors);
                }
            }
            let ports = array_at(subset, &["ports"]);
            for (index, port) in ports.iter().enumerate() {
                let list = path.child("ports");
                let path = list.index(index);
                let name = str_at(port, &["name"]);
                if name.is_empty() && ports.len() > 1 {
                    errors.push(FieldError::required(path.child("name"), ""));
                } else if !name.is_empty() {
                    problems(
                        &path.child("name"),
                        name,
                        names::dns1123_label(name),
                        &mut errors,
                    );
                }
                let number = i64_at(port, &["port"]).unwrap_or(0);
                for problem in names::port_number(number) {
                    errors.push(FieldError::invalid(path.child("port"), number, problem));
                }
                one_of(
                    &path.child("protocol"),
                    str_at(port, &["protocol"]),
                    &["SCTP", "TCP", "UDP"],
                    &mut errors,
                );
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut all = Vec::new();
        for subset in array_at(obj, &["subsets"]) {
            let addresses = || {
                array_at(subset, &["addresses"])
                    .iter()
                    .map(|a| str_at(a, &["ip"]))
            };
            let ports = array_at(subset, &["ports"]);
            if ports.is_empty() {
                all.extend(addresses().map(str::to_owned));
            }
            for port in ports {
                let port = i64_at(port, &["port"]).unwrap_or(0);
                all.extend(addresses().map(|ip| {
                    if ip.contains(':') {
                        format!("[{ip}]:{port}")
                    } else {
                        format!("{ip}:{port}")
                    }
                }));
            }
        }
        vec![name(obj), shorten(&all, NONE), age_cell(obj, now)]
    }
}

fn endpoint_address(path: &FieldPath, address: &Value, errors: &mut Errors) {
    let ip = str_at(address, &["ip"]);
    let found = names::ip_address(ip);
    let valid = found.is_empty();
    problems(&path.child("ip"), ip, found, errors);
    let host = str_at(address, &["hostname"]);
    if !host.is_empty() {
        problems(
            &path.child("hostname"),
            host,
            names::dns1123_label(host),
            errors,
        );
    }
    if let Some(node) = address.get("nodeName").and_then(Value::as_str) {
        problems(
            &path.child("nodeName"),
            node,
            names::dns1123_subdomain(node),
            errors,
        );
    }
    if valid {
        special_ip(&path.child("ip"), ip, errors);
    }
}

/// Addresses that would lead to the node itself.
fn special_ip(path: &FieldPath, text: &str, errors: &mut Errors) {
    let Some(ip) = parse_ip(text) else { return };
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let why = if ip.is_unspecified() {
        format!("may not be unspecified ({text})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else if ip.is_multicast() {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, text, why));
}

struct EndpointSlice;

const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20000;
const MAX_ADDRESSES: usize = 100;

impl Strategy for EndpointSlice {
    fn default(&self, obj: &mut Value) {
        let Some(map) = obj.as_object_mut() else {
            return;
        };
        map.entry("endpoints").or_insert_with(|| json!([]));
        for port in items_mut(map, "ports") {
            port.entry("name").or_insert_with(|| "".into());
            fill_text(port, "protocol", "TCP");
        }
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        set_generation(obj, 1);
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        _: Option<&str>,
    ) -> Result<(), Status> {
        let changed = ["endpoints", "ports"]
            .iter()
            .any(|f| new.get(f) != old.get(f))
            || at(new, &["metadata", "labels"]) != at(old, &["metadata", "labels"]);
        set_generation_like(new, old, i64::from(changed));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let family = str_at(obj, &["addressType"]);
        if family.is_empty() {
            errors.push(FieldError::required("addressType", ""));
        } else {
            one_of(
                &FieldPath::new("addressType"),
                family,
                &["FQDN", "IPv4", "IPv6"],
                &mut errors,
            );
        }
        slice_endpoints(obj, family, &mut errors);
        slice_ports(obj, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = self.validate_create(new);
        immutable(
            &FieldPath::new("addressType"),
            new.get("addressType"),
            old.get("addressType"),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = array_at(obj, &["ports"])
            .iter()
            .map(|p| match i64_at(p, &["port"]) {
                Some(number) => number.to_string(),
                None if !str_at(p, &["name"]).is_empty() => str_at(p, &["name"]).to_owned(),
                None => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<String> = array_at(obj, &["endpoints"])
            .iter()
            .flat_map(|e| array_at(e, &["addresses"]))
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        vec![
            name(obj),
            str_at(obj, &["addressType"]).into(),
            shorten(&ports, "<unset>"),
            shorten(&addresses, "<unset>"),
            age_cell(obj, now),
        ]
    }
}

fn slice_endpoints(obj: &Value, family: &str, errors: &mut Errors) {
    let endpoints = array_at(obj, &["endpoints"]);
    let list = FieldPath::new("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many(list, endpoints.len(), MAX_ENDPOINTS));
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = list.index(index);
        let addresses = array_at(endpoint, &["addresses"]);
        if addresses.is_empty() {
            errors.push(FieldError::required(
                path.child("addresses"),
                "must contain at least 1 address",
            ));
        } else if addresses.len() > MAX_ADDRESSES {
            errors.push(FieldError::too_many(
                path.child("addresses"),
                addresses.len(),
                MAX_ADDRESSES,
            ));
        }
        for (index, address) in addresses.iter().enumerate() {
            let list = path.child("addresses");
            let path = list.index(index);
            let text = address.as_str().unwrap_or_default();
            match family {
                "FQDN" => problems(&path, text, names::dns1123_subdomain(text), errors),
                "IPv4" | "IPv6" => {
                    match parse_ip(text) {
                        Some(ip) if ip.is_ipv4() == (family == "IPv4") => {}
                        _ => {
                            let version = &family[2..];
                            errors.push(FieldError::invalid(
                                path,
                                text,
                                format!("must be a valid IP{version} address"),
                            ));
                        }
                    }
                    special_ip(&path, text, errors);
                }
                _ => {}
            }
        }
        if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str) {
            problems(
                &path.child("nodeName"),
                node,
                names::dns1123_subdomain(node),
                errors,
            );
        }
        errors.extend(labels(
            map_at(endpoint, &["deprecatedTopology"]),
            &path.child("deprecatedTopology"),
        ));
        if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
            problems(
                &path.child("hostname"),
                host,
                names::dns1123_label(host),
                errors,
            );
        }
    }
}

fn slice_ports(obj: &Value, errors: &mut Errors) {
    let ports = array_at(obj, &["ports"]);
    let list = FieldPath::new("ports");
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many(list, ports.len(), MAX_PORTS));
        return;
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            problems(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            );
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        one_of(
            &path.child("protocol"),
            str_at(port, &["protocol"]),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            problems(
                &path.child("appProtocol"),
                protocol,
                names::qualified_name(protocol),
                errors,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_three_and_count_the_rest() {
        let now = Timestamp::UNIX_EPOCH;
        let ips: Vec<Value> = (1..=5)
            .map(|i| json!({"ip": format!("10.0.0.{i}")}))
            .collect();
        let obj = json!({"metadata": {"name": "a"}, "subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(
            Endpoints.row(&obj, now)[1],
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."
        );
        assert_eq!(Endpoints.row(&json!({}), now)[1], "<none>");
        let slice = json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
        assert_eq!(
            EndpointSlice.row(&slice, now)[1..4],
            ["IPv4", "80,x", "10.0.0.1"]
        );
    }

    #[test]
    fn slices_hold_addresses_of_their_family_only() {
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}]});
        let errors: Vec<String> = EndpointSlice
            .validate_create(&slice)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                r#"endpoints[0].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address"#,
                "endpoints[1].addresses: Required value: must contain at least 1 address",
            ]
        );
    }
}
