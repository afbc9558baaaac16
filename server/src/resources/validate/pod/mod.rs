//! Pods and pod templates. Source: `ValidatePodSpec` and what it calls in `pkg/apis/core/validation` (v1.36).

mod container;
mod env;
mod placement;
mod probe;
mod quantities;
mod security;
mod volume;
mod warnings;

use std::collections::HashSet;

use amphipod_api::meta::{array_at, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use super::{Errors, labels, one_of, problems};

pub use placement::node_selector;
pub use volume::{no_backsteps, one_source};
pub use warnings::warnings;

/// Where a pod spec stands: some rules are for pods only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Pod,
    Template,
}

/// A port number, or the name of a port.
pub fn port_number_or_name(path: &FieldPath, port: &Value, errors: &mut Errors) {
    match port {
        Value::String(name) => problems(path, name, names::port_name(name), errors),
        _ => {
            let number = port.as_i64().unwrap_or(0);
            for problem in names::port_number(number) {
                errors.push(FieldError::invalid(path, number, problem));
            }
        }
    }
}

/// `spec.template` of a workload.
pub fn pod_template(template: &Value, path: &FieldPath) -> Errors {
    let mut errors = labels(
        map_at(template, &["metadata", "labels"]),
        &path.child("labels"),
    );
    let annotations = map_at(template, &["metadata", "annotations"]);
    let pairs = annotations
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()));
    errors.extend(names::annotations(pairs, &path.child("annotations")));
    let spec = path.child("spec");
    errors.extend(pod_spec(&template["spec"], &spec, Where::Template));
    if !array_at(template, &["spec", "ephemeralContainers"]).is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(
            spec.child("ephemeralContainers"),
            why,
        ));
    }
    errors
}

/// A pod's spec, after defaults.
pub fn pod_spec(spec: &Value, path: &FieldPath, place: Where) -> Errors {
    let mut errors = Vec::new();
    let volumes = volume::volumes(
        array_at(spec, &["volumes"]),
        &path.child("volumes"),
        &mut errors,
    );
    container::all(spec, path, &volumes, place, &mut errors);
    let policy = str_at(spec, &["restartPolicy"]);
    one_of_required(
        &path.child("restartPolicy"),
        policy,
        &["Always", "OnFailure", "Never"],
        &mut errors,
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of_required(
        &path.child("dnsPolicy"),
        str_at(spec, &["dnsPolicy"]),
        &policies,
        &mut errors,
    );
    errors.extend(labels(
        map_at(spec, &["nodeSelector"]),
        &path.child("nodeSelector"),
    ));
    security::pod(spec, path, &mut errors);
    placement::affinity(&spec["affinity"], &path.child("affinity"), &mut errors);
    dns_config(spec, &path.child("dnsConfig"), &mut errors);
    gates(spec, path, &mut errors);
    let constraints = array_at(spec, &["topologySpreadConstraints"]);
    placement::spread(
        constraints,
        &path.child("topologySpreadConstraints"),
        &mut errors,
    );
    for (field, rule) in NAMES {
        let name = str_at(spec, &[*field]);
        if !name.is_empty() {
            problems(&path.child(field), name, rule(name), &mut errors);
        }
    }
    if let Some(seconds) = i64_at(spec, &["activeDeadlineSeconds"])
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(
            path.child("activeDeadlineSeconds"),
            seconds,
            why,
        ));
    }
    placement::tolerations(
        array_at(spec, &["tolerations"]),
        &path.child("tolerations"),
        &mut errors,
    );
    host_aliases(
        array_at(spec, &["hostAliases"]),
        &path.child("hostAliases"),
        &mut errors,
    );
    if let Some(policy) = spec.get("preemptionPolicy").and_then(Value::as_str) {
        one_of(
            &path.child("preemptionPolicy"),
            policy,
            &["PreemptLowerPriority", "Never"],
            &mut errors,
        );
    }
    quantities::list(
        map_at(spec, &["overhead"]),
        &path.child("overhead"),
        &mut errors,
    );
    if let Some(os) = spec.get("os") {
        one_of_required(
            &path.child("os").child("name"),
            str_at(os, &["name"]),
            &["linux", "windows"],
            &mut errors,
        );
    }
    errors
}

/// Gives what is wrong with a name.
type NameRule = fn(&str) -> Vec<String>;

/// Fields that are names of something.
const NAMES: &[(&str, NameRule)] = &[
    ("serviceAccountName", names::dns1123_subdomain),
    ("nodeName", names::dns1123_subdomain),
    ("hostname", names::dns1123_label),
    ("subdomain", names::dns1123_label),
    ("priorityClassName", names::dns1123_subdomain),
    ("runtimeClassName", names::dns1123_subdomain),
];

fn one_of_required(path: &FieldPath, value: &str, supported: &[&str], errors: &mut Errors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        one_of(path, value, supported, errors);
    }
}

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

fn dns_config(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let config = spec.get("dnsConfig");
    let none = str_at(spec, &["dnsPolicy"]) == "None";
    let Some(config) = config else {
        if none {
            errors.push(FieldError::required(
                path,
                "must provide `dnsConfig` when `dnsPolicy` is None",
            ));
        }
        return;
    };
    let servers = array_at(config, &["nameservers"]);
    let list = path.child("nameservers");
    if none && servers.is_empty() {
        errors.push(FieldError::required(
            list,
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if servers.len() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(
            list,
            Value::Array(servers.to_vec()),
            why,
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        problems(
            &list.index(index),
            server,
            names::ip_address(server),
            errors,
        );
    }
    let searches = array_at(config, &["searches"]);
    let list = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        let why = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(
            list,
            Value::Array(searches.to_vec()),
            why,
        ));
    }
    for (index, search) in searches.iter().enumerate() {
        let text = search.as_str().unwrap_or_default();
        let name = text.strip_suffix('.').unwrap_or(text);
        // Underscores occur in real search paths, and a lone dot means none.
        if text != "." {
            problems(
                &list.index(index),
                text,
                names::dns1123_subdomain(&name.replace('_', "-")),
                errors,
            );
        }
    }
    for (index, option) in array_at(config, &["options"]).iter().enumerate() {
        if str_at(option, &["name"]).is_empty() {
            errors.push(FieldError::required(
                path.child("options").index(index),
                "must not be empty",
            ));
        }
    }
}

/// Readiness gates and scheduling gates.
fn gates(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let list = path.child("readinessGates");
    for (index, gate) in array_at(spec, &["readinessGates"]).iter().enumerate() {
        let kind = str_at(gate, &["conditionType"]);
        problems(
            &list.index(index).child("conditionType"),
            kind,
            names::qualified_name(kind),
            errors,
        );
    }
    let list = path.child("schedulingGates");
    let mut seen = HashSet::new();
    for (index, gate) in array_at(spec, &["schedulingGates"]).iter().enumerate() {
        let name = str_at(gate, &["name"]);
        problems(
            &list.index(index),
            name,
            names::qualified_name(name),
            errors,
        );
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(list.index(index), name));
        }
    }
    if !seen.is_empty() && !str_at(spec, &["nodeName"]).is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(path.child("nodeName"), why));
    }
}

fn host_aliases(aliases: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = path.index(index);
        let ip = str_at(alias, &["ip"]);
        problems(&path.child("ip"), ip, names::ip_address(ip), errors);
        for (index, host) in array_at(alias, &["hostnames"]).iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            problems(
                &path.child("hostnames").index(index),
                host,
                names::dns1123_subdomain(host),
                errors,
            );
        }
    }
}

#[cfg(test)]
mod tests;
