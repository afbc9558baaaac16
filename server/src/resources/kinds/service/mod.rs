//! Service: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/>.

mod allocate;
mod print;
mod validate;

use std::collections::{HashMap, HashSet};

use amphipod_api::meta::{array_at, at, str_at};
use amphipod_api::{FieldError, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use super::pod::PROXY;
use crate::resources::common::{fill, fill_text, items_mut, keep, keep_meta, spec_mut};
use crate::resources::{Column, Connect, Descriptor, SelectableField, Strategy, StrategyContext};

/// Hidden selectable fields: what is taken.
const CLUSTER_IPS: &str = "spec.clusterIPs";
const NODE_PORTS: &str = "spec.ports.nodePort";
const HEALTH_PORT: &str = "spec.healthCheckNodePort";

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Service>("", "v1", "Service", "services")
        .short(&["svc"])
        .in_all()
        .connect("proxy", Connect::Proxy, PROXY, "ServiceProxyOptions")
        .status()
        .fields(vec![
            SelectableField::new("spec.clusterIP"),
            SelectableField::new("spec.type"),
            SelectableField::new(CLUSTER_IPS).hidden(),
            SelectableField::at(NODE_PORTS, "spec.ports.*.nodePort").hidden(),
            SelectableField::new(HEALTH_PORT).hidden(),
        ])
        .columns(vec![
            Column::name(),
            Column::new("Type", "How the service is exposed."),
            Column::new("Cluster-IP", "Address inside the cluster."),
            Column::new("External-IP", "Addresses outside the cluster."),
            Column::new("Port(s)", "Ports, with their node ports."),
            Column::age(),
            Column::new("Selector", "Labels of the pods behind the service.").wide(),
        ])
        .strategy(Service)
        .build()
}

struct Service;

impl Strategy for Service {
    fn default(&self, obj: &mut Value) {
        defaults(spec_mut(obj));
    }

    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        obj["status"] = json!({"loadBalancer": {}});
        let spec = spec_mut(obj);
        if let Some(ip) = spec.get("clusterIP").filter(|ip| *ip != "").cloned()
            && !spec.contains_key("clusterIPs")
        {
            spec.insert("clusterIPs".into(), json!([ip]));
        }
        // Nothing is allocated for what validation will refuse.
        if validate::service(obj).is_empty() {
            allocate::allocate(cx, obj, None)
        } else {
            Ok(())
        }
    }

    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        if sub == Some("status") {
            keep(new, old, "spec");
            keep_meta(new, old, "ownerReferences");
            return Ok(());
        }
        keep(new, old, "status");
        if kind(new) != "LoadBalancer" && kind(old) == "LoadBalancer" {
            new["status"] = json!({"loadBalancer": {}});
        }
        drop_what_the_type_lacks(new, old);
        keep_allocated(new, old);
        sync_cluster_ip(new, old);
        if validate::service(new).is_empty() && validate::update(new, old).is_empty() {
            allocate::allocate(cx, new, Some(old))
        } else {
            Ok(())
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        validate::service(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return validate::status(new);
        }
        let mut errors = validate::update(new, old);
        errors.extend(validate::service(new));
        errors
    }

    fn name_rule(&self) -> fn(&str) -> Vec<String> {
        names::dns1035_label
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        print::row(obj, now)
    }
}

fn kind(obj: &Value) -> &str {
    str_at(obj, &["spec", "type"])
}

fn ports(obj: &Value) -> &[Value] {
    array_at(obj, &["spec", "ports"])
}

fn is_headless(obj: &Value) -> bool {
    str_at(obj, &["spec", "clusterIP"]) == "None"
}

fn needs_cluster_ip(obj: &Value) -> bool {
    matches!(kind(obj), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(obj: &Value) -> bool {
    match kind(obj) {
        "NodePort" => true,
        "LoadBalancer" => {
            at(obj, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

fn needs_health_port(obj: &Value) -> bool {
    kind(obj) == "LoadBalancer" && str_at(obj, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn external_traffic(obj: &Value) -> bool {
    matches!(kind(obj), "NodePort" | "LoadBalancer")
}

fn defaults(spec: &mut Map<String, Value>) {
    fill_text(spec, "type", "ClusterIP");
    fill_text(spec, "sessionAffinity", "None");
    match spec.get("sessionAffinity").and_then(Value::as_str) {
        Some("None") => drop(spec.remove("sessionAffinityConfig")),
        Some("ClientIP") => {
            let seconds = spec
                .get("sessionAffinityConfig")
                .and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if seconds.is_none() {
                spec.insert(
                    "sessionAffinityConfig".into(),
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
        }
        _ => {}
    }
    for port in items_mut(spec, "ports") {
        fill_text(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|t| *t == 0 || *t == "") {
            let number = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort".into(), number);
        }
        if port.get("nodePort") == Some(&json!(0)) {
            port.remove("nodePort");
        }
    }
    let kind = spec
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if matches!(&*kind, "NodePort" | "LoadBalancer") {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
        let two = |field: &str| {
            spec.get(field)
                .and_then(Value::as_array)
                .is_some_and(|l| l.len() == 2)
        };
        if two("clusterIPs") || two("ipFamilies") {
            fill_text(spec, "ipFamilyPolicy", "RequireDualStack");
        }
        if spec.get("ipFamilyPolicy") == Some(&json!("RequireDualStack"))
            && let Some(families) = spec.get_mut("ipFamilies").and_then(Value::as_array_mut)
            && let [one] = &families[..]
        {
            let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
            families.push(other.into());
        }
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// A change of type takes away what only the old type had, unless the user changed it, too.
fn drop_what_the_type_lacks(new: &mut Value, old: &Value) {
    let same = |new: &Value, field: &str| at(new, &["spec", field]) == at(old, &["spec", field]);
    if needs_cluster_ip(old)
        && !needs_cluster_ip(new)
        && same(new, "clusterIP")
        && same(new, "clusterIPs")
    {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec_mut(new).remove(field);
        }
    }
    if needs_cluster_ip(old) && !needs_cluster_ip(new) && same(new, "internalTrafficPolicy") {
        spec_mut(new).remove("internalTrafficPolicy");
    }
    let node_ports = |v: &Value| {
        ports(v)
            .iter()
            .map(|p| p["nodePort"].clone())
            .collect::<Vec<_>>()
    };
    if needs_node_ports(old) && !needs_node_ports(new) && node_ports(old) == node_ports(new) {
        for port in items_mut(spec_mut(new), "ports") {
            port.remove("nodePort");
        }
    }
    if needs_health_port(old) && !needs_health_port(new) && same(new, "healthCheckNodePort") {
        spec_mut(new).remove("healthCheckNodePort");
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, field) {
                spec_mut(new).remove(field);
            }
        }
    }
    if external_traffic(old) && !external_traffic(new) && same(new, "externalTrafficPolicy") {
        spec_mut(new).remove("externalTrafficPolicy");
    }
}

/// What was allocated stays when an update leaves it out.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        let spec = spec_mut(new);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = at(old, &["spec", field]) {
                if field.starts_with("ip") || spec.get(field).is_none_or(|v| *v == "") {
                    spec.entry(field).or_insert_with(|| value.clone());
                }
                if field == "clusterIP" && spec.get(field).is_some_and(|v| *v == "") {
                    spec.insert(field.into(), value.clone());
                }
            }
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        let key = |p: &Value| (str_at(p, &["protocol"]).to_owned(), p["port"].as_i64());
        let used: HashSet<Option<i64>> =
            ports(new).iter().map(|p| p["nodePort"].as_i64()).collect();
        let before: HashMap<_, _> = ports(old).iter().rev().map(|p| (key(p), p)).collect();
        for port in items_mut(spec_mut(new), "ports") {
            if port.contains_key("nodePort") {
                continue;
            }
            let wanted = key(&Value::Object(port.clone()));
            let before = before.get(&wanted).and_then(|p| p.get("nodePort"));
            if let Some(number) = before
                && !used.contains(&number.as_i64())
            {
                port.insert("nodePort".into(), number.clone());
            }
        }
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && let Some(port) = at(old, &["spec", "healthCheckNodePort"])
    {
        fill(spec_mut(new), "healthCheckNodePort", port.clone());
    }
}

/// Clients that only know `clusterIP` change it alone: `clusterIPs` follows.
fn sync_cluster_ip(new: &mut Value, old: &Value) {
    let same_list = at(new, &["spec", "clusterIPs"]) == at(old, &["spec", "clusterIPs"]);
    let ip = str_at(new, &["spec", "clusterIP"]).to_owned();
    if !same_list || ip == str_at(old, &["spec", "clusterIP"]) {
        if !ip.is_empty() && at(new, &["spec", "clusterIPs"]).is_none() {
            spec_mut(new).insert("clusterIPs".into(), json!([ip]));
        }
        return;
    }
    let spec = spec_mut(new);
    if ip.is_empty() {
        spec.remove("clusterIPs");
    } else {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
}
