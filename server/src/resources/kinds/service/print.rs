//! A service's row.

use amphipod_api::meta::{array_at, i64_at, map_at, str_at};
use jiff::Timestamp;
use serde_json::Value;

use super::{kind, ports};
use crate::resources::table::{NONE, age_cell, labels, name, or_none};

pub fn row(obj: &Value, now: Timestamp) -> Vec<Value> {
    let cluster_ip = match array_at(obj, &["spec", "clusterIPs"]).first() {
        Some(first) => first.as_str().unwrap_or_default(),
        None => str_at(obj, &["spec", "clusterIP"]),
    };
    vec![
        name(obj),
        kind(obj).into(),
        or_none(cluster_ip),
        external_ip(obj).into(),
        or_none(&port_list(obj)),
        age_cell(obj, now),
        labels(map_at(obj, &["spec", "selector"])),
    ]
}

fn external_ip(obj: &Value) -> String {
    let mut ips: Vec<&str> = Vec::new();
    let kind = kind(obj);
    if kind == "ExternalName" {
        return str_at(obj, &["spec", "externalName"]).to_owned();
    }
    if kind == "LoadBalancer" {
        for ingress in array_at(obj, &["status", "loadBalancer", "ingress"]) {
            let ip = str_at(ingress, &["ip"]);
            ips.push(if ip.is_empty() {
                str_at(ingress, &["hostname"])
            } else {
                ip
            });
        }
    }
    ips.extend(
        array_at(obj, &["spec", "externalIPs"])
            .iter()
            .filter_map(Value::as_str),
    );
    match (ips.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".into(),
        (true, _) => NONE.into(),
        _ => ips.join(","),
    }
}

fn port_list(obj: &Value) -> String {
    let one = |port: &Value| {
        let number = i64_at(port, &["port"]).unwrap_or(0);
        let protocol = str_at(port, &["protocol"]);
        match i64_at(port, &["nodePort"]).unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    };
    ports(obj).iter().map(one).collect::<Vec<_>>().join(",")
}
