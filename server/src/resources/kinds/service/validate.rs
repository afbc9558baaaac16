//! What a service must be. Source: `ValidateService` of `pkg/apis/core/validation` (v1.36).

use std::collections::HashSet;

use amphipod_api::ip::parse_ip;
use amphipod_api::meta::{array_at, at, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::{Value, json};

use super::{external_traffic, is_headless, kind, needs_cluster_ip, needs_health_port, ports};
use crate::resources::validate::{Errors, labels, one_of, pod::port_number_or_name, problems};

const SPEC: FieldPath = FieldPath::new("spec");
const MAX_AFFINITY_SECONDS: i64 = 86400;

pub fn service(obj: &Value) -> Errors {
    let mut errors = Vec::new();
    let spec = &obj["spec"];
    let kind = kind(obj);
    let headless = is_headless(obj);
    if ports(obj).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(SPEC.child("ports"), ""));
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(
            SPEC.child("clusterIPs").index(0),
            "None",
            why,
        ));
    }
    if kind == "LoadBalancer" {
        for (index, port) in ports(obj).iter().enumerate() {
            if i64_at(port, &["port"]) == Some(10250) {
                let why = "may not expose port 10250 externally since it is used by kubelet";
                errors.push(FieldError::invalid(
                    SPEC.child("ports").index(index),
                    10250,
                    why,
                ));
            }
        }
    }
    if kind == "ExternalName" {
        external_name(spec, &mut errors);
    }
    port_list(obj, &mut errors);
    errors.extend(labels(map_at(spec, &["selector"]), &SPEC.child("selector")));
    affinity(spec, &mut errors);
    if kind != "ExternalName" {
        addresses(obj, &mut errors);
    }
    for (index, ip) in array_at(spec, &["externalIPs"]).iter().enumerate() {
        let path = SPEC.child("externalIPs");
        external_ip(
            &path.index(index),
            ip.as_str().unwrap_or_default(),
            &mut errors,
        );
    }
    one_of(
        &SPEC.child("type"),
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &mut errors,
    );
    duplicates(obj, &mut errors);
    load_balancer(spec, kind, &mut errors);
    traffic(obj, &mut errors);
    errors
}

fn external_name(spec: &Value, errors: &mut Errors) {
    if !array_at(spec, &["clusterIPs"]).is_empty() {
        errors.push(FieldError::forbidden(
            SPEC.child("clusterIPs"),
            "may not be set for ExternalName services",
        ));
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.get(field).is_some() {
            errors.push(FieldError::forbidden(
                SPEC.child(field),
                "may not be set for ExternalName services",
            ));
        }
    }
    let name = str_at(spec, &["externalName"]);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(FieldError::required(SPEC.child("externalName"), ""));
    } else {
        problems(
            &SPEC.child("externalName"),
            name,
            names::dns1123_subdomain(name),
            errors,
        );
    }
}

fn port_list(obj: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let list = SPEC.child("ports");
    for (index, port) in ports(obj).iter().enumerate() {
        let path = list.index(index);
        let name = str_at(port, &["name"]);
        if name.is_empty() {
            if ports(obj).len() > 1 {
                errors.push(FieldError::required(path.child("name"), ""));
            }
        } else {
            problems(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            );
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        let number = i64_at(port, &["port"]).unwrap_or(0);
        for problem in names::port_number(number) {
            errors.push(FieldError::invalid(path.child("port"), number, problem));
        }
        one_of(
            &path.child("protocol"),
            str_at(port, &["protocol"]),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
        port_number_or_name(&path.child("targetPort"), &port["targetPort"], errors);
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

fn affinity(spec: &Value, errors: &mut Errors) {
    let affinity = str_at(spec, &["sessionAffinity"]);
    one_of(
        &SPEC.child("sessionAffinity"),
        affinity,
        &["ClientIP", "None"],
        errors,
    );
    if affinity == "ClientIP"
        && let Some(seconds) = i64_at(
            spec,
            &["sessionAffinityConfig", "clientIP", "timeoutSeconds"],
        )
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.push(FieldError::invalid(
            SPEC.child("sessionAffinityConfig.clientIP.timeoutSeconds"),
            seconds,
            why,
        ));
    }
}

fn addresses(obj: &Value, errors: &mut Errors) {
    let spec = &obj["spec"];
    let path = SPEC.child("clusterIPs");
    let ip = str_at(spec, &["clusterIP"]);
    let ips = array_at(spec, &["clusterIPs"]);
    let all = || json!(ips);
    match (ip.is_empty(), ips.first()) {
        (false, None) => errors.push(FieldError::required(path, "")),
        (false, Some(first)) if first != ip => {
            errors.push(FieldError::invalid(
                path,
                all(),
                "first value must match `clusterIP`",
            ));
        }
        (true, Some(_)) => errors.push(FieldError::invalid(
            path,
            all(),
            "must be empty when `clusterIP` is not specified",
        )),
        _ => {}
    }
    let families = array_at(spec, &["ipFamilies"]);
    for (index, family) in families.iter().enumerate() {
        let path = SPEC.child("ipFamilies");
        let path = path.index(index);
        one_of(
            &path,
            family.as_str().unwrap_or_default(),
            &["IPv4", "IPv6"],
            errors,
        );
        if families[..index].contains(family) {
            errors.push(FieldError::duplicate(path, family.clone()));
        }
    }
    if let Some(policy) = spec.get("ipFamilyPolicy").and_then(Value::as_str) {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        one_of(&SPEC.child("ipFamilyPolicy"), policy, &supported, errors);
    }
    let mut bad = false;
    for (index, ip) in ips.iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if index == 0 && text == "None" {
            if ips.len() > 1 {
                bad = true;
                errors.push(FieldError::invalid(
                    path,
                    all(),
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        let found = names::ip_address(text);
        bad |= !found.is_empty();
        problems(&path.index(index), text, found, errors);
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(
            path,
            all(),
            "may only hold up to 2 values",
        ));
    }
    if bad {
        return;
    }
    let versions: Vec<bool> = ips
        .iter()
        .filter_map(|ip| parse_ip(ip.as_str()?))
        .map(|ip| ip.is_ipv4())
        .collect();
    if versions.len() == 2 && versions[0] == versions[1] {
        errors.push(FieldError::invalid(
            path,
            all(),
            "may specify no more than one IP for each IP family",
        ));
    }
    for (index, (v4, family)) in versions.iter().zip(families).enumerate() {
        let wanted = family.as_str().unwrap_or_default();
        if (wanted == "IPv4") != *v4 {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(
                path.index(index),
                ips[index].clone(),
                why,
            ));
        }
    }
}

fn external_ip(path: &FieldPath, ip: &str, errors: &mut Errors) {
    let found = names::ip_address(ip);
    let valid = found.is_empty();
    problems(path, ip, found, errors);
    if valid && let Some(parsed) = parse_ip(ip) {
        let why = if parsed.is_unspecified() {
            format!("may not be unspecified ({parsed})")
        } else if parsed.is_loopback() {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
        } else if matches!(parsed, std::net::IpAddr::V4(v4) if v4.is_link_local()) {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
        } else {
            return;
        };
        errors.push(FieldError::invalid(path, ip, why));
    }
}

fn duplicates(obj: &Value, errors: &mut Errors) {
    let list = SPEC.child("ports");
    let mut node_ports = HashSet::new();
    let mut numbers = HashSet::new();
    for (index, port) in ports(obj).iter().enumerate() {
        let path = list.index(index);
        let protocol = str_at(port, &["protocol"]);
        if let Some(number) = i64_at(port, &["nodePort"]) {
            if kind(obj) == "ClusterIP" {
                let why = "may not be used when `type` is 'ClusterIP'";
                errors.push(FieldError::forbidden(path.child("nodePort"), why));
            }
            if !node_ports.insert((protocol, number)) {
                errors.push(FieldError::duplicate(path.child("nodePort"), number));
            }
        }
        let number = i64_at(port, &["port"]).unwrap_or(0);
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(
                path,
                json!({"port": number, "protocol": protocol}),
            ));
        }
    }
}

fn load_balancer(spec: &Value, kind: &str, errors: &mut Errors) {
    let ranges = array_at(spec, &["loadBalancerSourceRanges"]);
    let path = SPEC.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        errors.push(FieldError::forbidden(
            path,
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
    for (index, range) in ranges.iter().enumerate() {
        let text = range.as_str().unwrap_or_default().trim();
        problems(&path.index(index), text, names::cidr(text), errors);
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if kind != "LoadBalancer" && spec.get(field).is_some() {
            errors.push(FieldError::forbidden(
                SPEC.child(field),
                "may only be used when `type` is 'LoadBalancer'",
            ));
        }
    }
    if let Some(class) = spec.get("loadBalancerClass").and_then(Value::as_str) {
        problems(
            &SPEC.child("loadBalancerClass"),
            class,
            names::qualified_name(class),
            errors,
        );
    }
}

fn traffic(obj: &Value, errors: &mut Errors) {
    let spec = &obj["spec"];
    let external = str_at(spec, &["externalTrafficPolicy"]);
    if !external.is_empty() && !external_traffic(obj) && array_at(spec, &["externalIPs"]).is_empty()
    {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(
            SPEC.child("externalTrafficPolicy"),
            external,
            why,
        ));
    } else if external_traffic(obj) {
        one_of(
            &SPEC.child("externalTrafficPolicy"),
            external,
            &["Cluster", "Local"],
            errors,
        );
    }
    if let Some(port) = i64_at(spec, &["healthCheckNodePort"])
        && port != 0
        && !needs_health_port(obj)
    {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(
            SPEC.child("healthCheckNodePort"),
            port,
            why,
        ));
    }
    match spec.get("internalTrafficPolicy").and_then(Value::as_str) {
        None if needs_cluster_ip(obj) => errors.push(FieldError::required(
            SPEC.child("internalTrafficPolicy"),
            "",
        )),
        Some(policy) => one_of(
            &SPEC.child("internalTrafficPolicy"),
            policy,
            &["Cluster", "Local"],
            errors,
        ),
        None => {}
    }
    if let Some(policy) = spec.get("trafficDistribution").and_then(Value::as_str) {
        let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        one_of(
            &SPEC.child("trafficDistribution"),
            policy,
            &supported,
            errors,
        );
    }
}

/// What may not change.
pub fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    if kind(new) == "ExternalName" || kind(old) == "ExternalName" {
        return errors;
    }
    if let Some(class) = at(old, &["spec", "loadBalancerClass"])
        && kind(old) == "LoadBalancer"
        && kind(new) == "LoadBalancer"
        && at(new, &["spec", "loadBalancerClass"]) != Some(class)
    {
        let new_class = at(new, &["spec", "loadBalancerClass"])
            .cloned()
            .unwrap_or_default();
        errors.push(FieldError::invalid(
            SPEC.child("loadBalancerClass"),
            new_class,
            "may not change once set",
        ));
    }
    if is_headless(new) && is_headless(old) {
        return errors;
    }
    let (now, before) = (
        array_at(new, &["spec", "clusterIPs"]),
        array_at(old, &["spec", "clusterIPs"]),
    );
    let path = SPEC.child("clusterIPs");
    if now.is_empty() && !before.is_empty() {
        errors.push(FieldError::invalid(
            path.index(0),
            json!(now),
            "primary clusterIP can not be unset",
        ));
    }
    for (index, (new_ip, old_ip)) in now.iter().zip(before).enumerate() {
        if new_ip != old_ip {
            errors.push(FieldError::invalid(
                path.index(index),
                json!(now),
                "may not change once set",
            ));
        }
    }
    let single = str_at(new, &["spec", "ipFamilyPolicy"]) == "SingleStack";
    if before.len() == 2 && now.len() == 1 && !single {
        let why = "must be 'SingleStack' to release the secondary cluster IP";
        errors.push(FieldError::invalid(
            SPEC.child("ipFamilyPolicy"),
            str_at(new, &["spec", "ipFamilyPolicy"]),
            why,
        ));
    }
    if is_headless(new) == is_headless(old) {
        let (now, before) = (
            array_at(new, &["spec", "ipFamilies"]),
            array_at(old, &["spec", "ipFamilies"]),
        );
        if let (Some(a), Some(b)) = (now.first(), before.first())
            && a != b
        {
            errors.push(FieldError::invalid(
                SPEC.child("ipFamilies").index(0),
                json!(now),
                "may not change once set",
            ));
        }
    }
    errors
}

/// `status.loadBalancer.ingress`.
pub fn status(obj: &Value) -> Errors {
    let mut errors = Vec::new();
    let path = FieldPath::new("status.loadBalancer.ingress");
    let ingresses = array_at(obj, &["status", "loadBalancer", "ingress"]);
    if !ingresses.is_empty() && kind(obj) != "LoadBalancer" {
        errors.push(FieldError::forbidden(
            path,
            "may only be used when `spec.type` is 'LoadBalancer'",
        ));
    }
    for (index, ingress) in ingresses.iter().enumerate() {
        let path = path.index(index);
        let (ip, host) = (str_at(ingress, &["ip"]), str_at(ingress, &["hostname"]));
        if !ip.is_empty() {
            problems(&path.child("ip"), ip, names::ip_address(ip), &mut errors);
        }
        if !host.is_empty() {
            problems(
                &path.child("hostname"),
                host,
                names::dns1123_subdomain(host),
                &mut errors,
            );
        }
    }
    errors
}
