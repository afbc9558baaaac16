//! Cluster IPs and node ports: free ones are found by looking at the services there are.
//!
//! There is no table of allocations that could go wrong. The registry runs `prepare` and the commit of services one
//! after the other, so that two services never get the same address.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use amphipod_api::gvk::GroupKind;
use amphipod_api::ip::{contains, parse_cidr, parse_ip};
use amphipod_api::meta::{array_at, at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status};
use serde_json::{Value, json};

use super::{
    CLUSTER_IPS, HEALTH_PORT, NODE_PORTS, is_headless, needs_cluster_ip, needs_health_port,
    needs_node_ports, ports,
};
use crate::resources::StrategyContext;
use crate::resources::common::{fill_text, spec_mut};

const SPEC: FieldPath = FieldPath::new("spec");

/// Gives the service everything that its type needs and that it does not have yet.
pub fn allocate(cx: &StrategyContext, obj: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let mut errors = Vec::new();
    if needs_cluster_ip(obj) {
        families(cx, obj, &mut errors);
        if errors.is_empty() && !is_headless(obj) {
            cluster_ips(cx, obj, old, &mut errors);
        }
    }
    if errors.is_empty() {
        node_ports(cx, obj, old, &mut errors);
    }
    if errors.is_empty() {
        return Ok(());
    }
    let name = str_at(obj, &["metadata", "name"]).to_owned();
    Err(Status::invalid(
        &GroupKind::new("", "Service"),
        &name,
        &errors,
    ))
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies` from what the cluster has.
fn families(cx: &StrategyContext, obj: &mut Value, errors: &mut Vec<FieldError>) {
    let cluster: Vec<&str> = cx
        .config
        .service_cidrs
        .iter()
        .filter_map(|c| parse_cidr(c))
        .map(|(ip, _)| family(ip))
        .collect();
    let given = array_at(obj, &["spec", "ipFamilies"]);
    for (index, wanted) in given.iter().enumerate() {
        if !cluster.iter().any(|have| wanted == *have) {
            errors.push(FieldError::invalid(
                SPEC.child("ipFamilies").index(index),
                wanted.clone(),
                "not configured on this cluster",
            ));
        }
    }
    let headless_without_selector = is_headless(obj) && at(obj, &["spec", "selector"]).is_none();
    let policy = str_at(obj, &["spec", "ipFamilyPolicy"]).to_owned();
    if policy == "RequireDualStack" && cluster.len() < 2 && !headless_without_selector {
        errors.push(FieldError::invalid(
            SPEC.child("ipFamilyPolicy"),
            policy,
            "this cluster is not configured for dual-stack services",
        ));
        return;
    }
    let mut list: Vec<String> = given
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if list.is_empty() {
        let ips = array_at(obj, &["spec", "clusterIPs"]);
        list = ips
            .iter()
            .filter_map(Value::as_str)
            .filter_map(parse_ip)
            .map(|ip| family(ip).to_owned())
            .collect();
    }
    if list.is_empty() {
        list.extend(cluster.first().map(|f| (*f).to_owned()));
    }
    let policy = match &*policy {
        "" if headless_without_selector && array_at(obj, &["spec", "ipFamilies"]).is_empty() => {
            "RequireDualStack"
        }
        "" => "SingleStack",
        _ => "",
    };
    let spec = spec_mut(obj);
    if !policy.is_empty() {
        fill_text(spec, "ipFamilyPolicy", policy);
    }
    let policy = spec
        .get("ipFamilyPolicy")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if headless_without_selector && policy == "RequireDualStack" {
        for other in ["IPv4", "IPv6"] {
            if !list.iter().any(|f| f == other) {
                list.push(other.into());
            }
        }
    } else if policy == "PreferDualStack" || policy == "RequireDualStack" {
        for have in &cluster {
            if !list.iter().any(|f| f == have) {
                list.push((*have).to_owned());
            }
        }
    } else {
        list.truncate(1);
    }
    spec.insert("ipFamilies".into(), json!(list));
}

fn cluster_ips(
    cx: &StrategyContext,
    obj: &mut Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    let mut ips: Vec<Value> = array_at(obj, &["spec", "clusterIPs"]).to_vec();
    let mine: Vec<Value> = old
        .map(|o| array_at(o, &["spec", "clusterIPs"]).to_vec())
        .unwrap_or_default();
    let families: Vec<Value> = array_at(obj, &["spec", "ipFamilies"]).to_vec();
    let mut taken: Option<HashSet<IpAddr>> = None;
    for (index, wanted) in families.iter().enumerate() {
        let given = ips
            .get(index)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if !given.is_empty() && mine.iter().any(|m| *m == given) {
            continue;
        }
        let range = cx
            .config
            .service_cidrs
            .iter()
            .filter_map(|c| parse_cidr(c))
            .find(|(ip, _)| *wanted == family(*ip));
        let Some((network, prefix)) = range else {
            continue;
        };
        let taken = taken.get_or_insert_with(|| used_ips(cx, obj));
        let path = SPEC.child("clusterIPs");
        if given.is_empty() {
            match free_ip(network, prefix, taken) {
                Some(ip) => ips.push(ip.to_string().into()),
                None => {
                    errors.push(FieldError::internal(
                        path,
                        "failed to allocate a serviceIP: range is full",
                    ));
                    return;
                }
            }
            continue;
        }
        let why = match parse_ip(&given) {
            Some(ip) if !contains(network, prefix, ip) => {
                let base = masked(network, prefix);
                format!(
                    "provided IP is not in the valid range. The range of valid IPs is {base}/{prefix}"
                )
            }
            Some(ip) if taken.contains(&ip) => "provided IP is already allocated".to_owned(),
            _ => continue,
        };
        let why = format!("failed to allocate IP {given}: {why}");
        errors.push(FieldError::invalid(path, json!(ips), why));
        return;
    }
    ips.truncate(families.len());
    let spec = spec_mut(obj);
    spec.insert("clusterIP".into(), ips.first().cloned().unwrap_or_default());
    spec.insert("clusterIPs".into(), Value::Array(ips));
}

/// Addresses of all other services.
fn used_ips(cx: &StrategyContext, obj: &Value) -> HashSet<IpAddr> {
    let mut used = HashSet::new();
    let me = (
        str_at(obj, &["metadata", "namespace"]),
        str_at(obj, &["metadata", "name"]),
    );
    cx.lookup
        .scan_field("services", CLUSTER_IPS, &mut |namespace, name, value| {
            if (namespace, name) != me {
                used.extend(value.split(',').filter_map(parse_ip));
            }
        });
    used
}

fn masked(network: IpAddr, prefix: u8) -> IpAddr {
    match network {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & mask(prefix, 32) as u32).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & mask(prefix, 128)).into()),
    }
}

fn mask(prefix: u8, bits: u32) -> u128 {
    let host = bits - u32::from(prefix).min(bits);
    u128::MAX.checked_shl(host).unwrap_or(0)
}

/// A free address of the range, at random. The low end of the range is used last: it is left to addresses that
/// users choose (<https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>).
fn free_ip(network: IpAddr, prefix: u8, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let bits = if network.is_ipv4() { 32 } else { 128 };
    // More than 2^16 addresses are never needed.
    let host_bits = (bits - u32::from(prefix).min(bits)).min(16);
    let size = 1u64 << host_bits;
    let band = (size / 16).clamp(16, 256);
    let base = masked(network, prefix);
    let last = if network.is_ipv4() {
        size.saturating_sub(1)
    } else {
        size
    };
    let at = |offset: u64| match base {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).wrapping_add(offset as u32))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).wrapping_add(offset.into()))),
    };
    pick(band.max(1), last, |offset| !taken.contains(&at(offset)))
        .or_else(|| pick(1, band.min(last), |offset| !taken.contains(&at(offset))))
        .map(at)
}

/// A number from `from` up to but not including `to` that is free, beginning at random.
fn pick(from: u64, to: u64, free: impl Fn(u64) -> bool) -> Option<u64> {
    let count = to.checked_sub(from).filter(|n| *n > 0)?;
    let start = random() % count;
    (0..count)
        .map(|i| from + (start + i) % count)
        .find(|n| free(*n))
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1 & 0x3fff_ffff_ffff_ffff
}

fn node_ports(
    cx: &StrategyContext,
    obj: &mut Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    let (first, last) = cx.config.node_ports;
    let mine: HashSet<u16> = old.map(own_ports).unwrap_or_default();
    let me = (
        str_at(obj, &["metadata", "namespace"]).to_owned(),
        str_at(obj, &["metadata", "name"]).to_owned(),
    );
    let taken = LazyCell::new(|| used_ports(cx, (&me.0, &me.1)));
    let mut given: HashSet<u16> = HashSet::new();
    let path = SPEC.child("ports");
    let check = |field: &FieldPath, number: i64, errors: &mut Vec<FieldError>| {
        let Ok(port) = u16::try_from(number) else {
            return;
        };
        if mine.contains(&port) {
            return;
        }
        if port < first || port > last {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            );
            errors.push(FieldError::invalid(field, number, why));
        } else if taken.contains(&port) {
            errors.push(FieldError::invalid(
                field,
                number,
                "provided port is already allocated",
            ));
        }
    };
    for (index, port) in ports(obj).iter().enumerate() {
        if let Some(number) = i64_at(port, &["nodePort"]) {
            check(&path.index(index).child("nodePort"), number, errors);
            given.extend(u16::try_from(number));
        }
    }
    let health = i64_at(obj, &["spec", "healthCheckNodePort"]);
    if let Some(number) = health {
        check(&SPEC.child("healthCheckNodePort"), number, errors);
        given.extend(u16::try_from(number));
    }
    if !errors.is_empty() {
        return;
    }
    let next = |given: &mut HashSet<u16>| -> Option<u16> {
        let free =
            |n: u64| u16::try_from(n).is_ok_and(|p| !taken.contains(&p) && !given.contains(&p));
        let (low, end) = (u64::from(first), u64::from(last) + 1);
        let band = ((end - low) / 32).clamp(16, 128);
        let found = pick(low + band, end, free).or_else(|| pick(low, end, free))?;
        let port = u16::try_from(found).ok()?;
        given.insert(port);
        Some(port)
    };
    if needs_node_ports(obj) {
        // TCP and UDP on the same port share a node port.
        let mut of_port: Vec<(Value, String, u16)> = Vec::new();
        let count = ports(obj).len();
        for index in 0..count {
            let Some(port) = obj
                .pointer_mut(&format!("/spec/ports/{index}"))
                .and_then(Value::as_object_mut)
            else {
                continue;
            };
            let number = port.get("port").cloned().unwrap_or_default();
            let protocol = port
                .get("protocol")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            if let Some(node_port) = port.get("nodePort").and_then(Value::as_u64) {
                of_port.push((number, protocol, node_port as u16));
                continue;
            }
            let shared = of_port
                .iter()
                .find(|(n, p, _)| *n == number && *p != protocol)
                .map(|(_, _, port)| *port);
            let Some(node_port) = shared.or_else(|| next(&mut given)) else {
                errors.push(FieldError::internal(
                    path.index(index).child("nodePort"),
                    "failed to allocate a nodePort: range is full",
                ));
                return;
            };
            port.insert("nodePort".into(), node_port.into());
            of_port.push((number, protocol, node_port));
        }
    }
    if needs_health_port(obj) && health.is_none() {
        match next(&mut given) {
            Some(port) => drop(spec_mut(obj).insert("healthCheckNodePort".into(), port.into())),
            None => errors.push(FieldError::internal(
                SPEC.child("healthCheckNodePort"),
                "failed to allocate a nodePort: range is full",
            )),
        }
    }
}

fn own_ports(obj: &Value) -> HashSet<u16> {
    let health = i64_at(obj, &["spec", "healthCheckNodePort"]);
    let numbers = ports(obj)
        .iter()
        .filter_map(|p| i64_at(p, &["nodePort"]))
        .chain(health);
    numbers.filter_map(|n| u16::try_from(n).ok()).collect()
}

/// Node ports of all other services.
fn used_ports(cx: &StrategyContext, me: (&str, &str)) -> HashSet<u16> {
    let mut used = HashSet::new();
    for field in [NODE_PORTS, HEALTH_PORT] {
        cx.lookup
            .scan_field("services", field, &mut |namespace, name, value| {
                if (namespace, name) != me {
                    used.extend(value.split(',').filter_map(|p| p.parse::<u16>().ok()));
                }
            });
    }
    used
}
