//! What is allowed in a pod and probably not meant. Source: `pkg/api/pod/warnings.go` (v1.36).

use std::collections::HashMap;

use amphipod_api::meta::{array_at, i64_at, map_at, str_at};
use amphipod_api::{FieldPath, Quantity};
use serde_json::Value;

/// Warnings about a pod spec, each beginning with the field's path.
pub fn warnings(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut out = Vec::new();
    if i64_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|s| s < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        out.push(format!(
            "{path}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    if spec.get("hostAliases").is_some() {
        let mut seen = HashMap::new();
        for (index, alias) in array_at(spec, &["hostAliases"]).iter().enumerate() {
            let list = path.child("hostAliases");
            let ip = str_at(alias, &["ip"]);
            if let Some(first) = seen.insert(ip, index) {
                out.push(format!(
                    "{}: duplicate ip {ip:?}; first seen at {}",
                    list.index(index).child("ip"),
                    list.index(first)
                ));
            }
        }
    }
    let mut secrets = HashMap::new();
    let list = path.child("imagePullSecrets");
    for (index, secret) in array_at(spec, &["imagePullSecrets"]).iter().enumerate() {
        let name = str_at(secret, &["name"]);
        if name.is_empty() {
            out.push(format!(
                "{}: invalid empty name {name:?}",
                list.index(index).child("name")
            ));
        } else if secrets.insert(name, index).is_some() {
            out.push(format!(
                "{}: duplicate name {name:?}",
                list.index(index).child("name")
            ));
        }
    }
    for name in ["initContainers", "containers"] {
        let list = path.child(name);
        for (index, container) in array_at(spec, &[name]).iter().enumerate() {
            self::container(container, &list.index(index), &mut out);
        }
    }
    out
}

fn container(container: &Value, path: &FieldPath, out: &mut Vec<String>) {
    for kind in ["limits", "requests"] {
        for name in ["memory", "ephemeral-storage"] {
            let Some(value) = map_at(container, &["resources", kind]).get(name) else {
                continue;
            };
            if Quantity::from_value(value).is_ok_and(|q| !q.is_integer()) {
                let text = value.as_str().unwrap_or_default();
                let resources = path.child("resources");
                let path = resources.child(kind);
                out.push(format!(
                    "{}: fractional byte value {text:?} is invalid, must be an integer",
                    path.key(name)
                ));
            }
        }
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let list = path.child("env");
    for (index, variable) in array_at(container, &["env"]).iter().enumerate() {
        let name = str_at(variable, &["name"]);
        let Some(first) = seen.insert(name, index) else {
            continue;
        };
        // `PATH=$(PATH):...` builds on the one before.
        let before = array_at(container, &["env"])
            .get(first)
            .map(|v| str_at(v, &["value"]))
            .unwrap_or_default();
        if before.is_empty() || !str_at(variable, &["value"]).contains(&format!("$({name})")) {
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                list.index(index)
            ));
        }
    }
    let mut ports: HashMap<(i64, &str), usize> = HashMap::new();
    let list = path.child("ports");
    for (index, port) in array_at(container, &["ports"]).iter().enumerate() {
        let key = (
            i64_at(port, &["containerPort"]).unwrap_or(0),
            str_at(port, &["protocol"]),
        );
        if let Some(first) = ports.insert(key, index) {
            out.push(format!(
                "{}: duplicate port definition with {}",
                list.index(index),
                list.index(first)
            ));
        }
    }
}
