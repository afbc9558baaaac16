//! Node: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/node-v1/>.

use std::collections::BTreeSet;

use amphipod_api::meta::{array_at, bool_at, condition, labels, str_at};
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::Kind;
use super::pod::PROXY;
use crate::resources::common::{fill, keep};
use crate::resources::table::{NONE, age_cell, name, or_none};
use crate::resources::validate::{Errors, one_of, problems};
use crate::resources::{Column, Connect, Descriptor, SelectableField, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Node>("", "v1", "Node", "nodes")
        .cluster()
        .short(&["no"])
        .connect("proxy", Connect::Proxy, PROXY, "NodeProxyOptions")
        .status()
        .fields(vec![
            SelectableField::new("spec.unschedulable").with_default("false"),
        ])
        .columns(vec![
            Column::name(),
            Column::new("Status", "Whether the node is ready and takes new pods."),
            Column::new("Roles", "From labels node-role.kubernetes.io/ROLE."),
            Column::age(),
            Column::new("Version", "Version of the agent."),
            Column::new("Internal-IP", "Address inside the cluster.").wide(),
            Column::new("External-IP", "Address outside the cluster.").wide(),
            Column::new("OS-Image", "Operating system.").wide(),
            Column::new("Kernel-Version", "Kernel.").wide(),
            Column::new("Container-Runtime", "What runs the containers.").wide(),
        ])
        .strategy(Node)
        .build()
}

struct Node;

impl Strategy for Node {
    fn default(&self, obj: &mut Value) {
        if !obj["spec"].is_object() {
            obj["spec"] = json!({});
        }
        // What can be used is all there is, unless the agent says less.
        if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut)
            && let Some(capacity) = status.get("capacity").cloned()
        {
            fill(status, "allocatable", capacity);
        }
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        // Agents register with their status.
        if !obj["status"].is_object() {
            obj["status"] = json!({});
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        match sub {
            Some("status") => keep(new, old, "spec"),
            _ => keep(new, old, "status"),
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        taints(array_at(obj, &["spec", "taints"]), &mut errors);
        let path = FieldPath::new("spec.podCIDRs");
        let cidrs = array_at(obj, &["spec", "podCIDRs"]);
        for (index, cidr) in cidrs.iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or_default();
            problems(&path.index(index), cidr, names::cidr(cidr), &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return Vec::new();
        }
        let mut errors = self.validate_create(new);
        let spec = FieldPath::new("spec");
        for field in ["podCIDR", "podCIDRs", "providerID"] {
            let (now, before) = (
                new.pointer(&format!("/spec/{field}")),
                old.pointer(&format!("/spec/{field}")),
            );
            if before.is_some_and(|b| *b != "" && *b != json!([])) && now != before {
                let why = match field {
                    "podCIDRs" => "node updates may not change podCIDR except from \"\" to valid",
                    "providerID" => {
                        "node updates may not change providerID except from \"\" to valid"
                    }
                    _ => continue,
                };
                errors.push(FieldError::forbidden(spec.child(field), why));
            }
        }
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let info = |field: &str| {
            let text = str_at(obj, &["status", "nodeInfo", field]);
            Value::from(if text.is_empty() { "<unknown>" } else { text })
        };
        let address = |kind: &str| {
            let found = array_at(obj, &["status", "addresses"])
                .iter()
                .find(|a| str_at(a, &["type"]) == kind);
            or_none(found.map(|a| str_at(a, &["address"])).unwrap_or_default())
        };
        vec![
            name(obj),
            status(obj).into(),
            roles(obj).into(),
            age_cell(obj, now),
            str_at(obj, &["status", "nodeInfo", "kubeletVersion"]).into(),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }
}

fn status(obj: &Value) -> String {
    let mut text = match condition(obj, "Ready") {
        Some(ready) if str_at(ready, &["status"]) == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if bool_at(obj, &["spec", "unschedulable"]) == Some(true) {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(obj: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in labels(obj) {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            if !role.is_empty() {
                roles.insert(role);
            }
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|v| !v.is_empty()));
        }
    }
    if roles.is_empty() {
        NONE.into()
    } else {
        roles.into_iter().collect::<Vec<_>>().join(",")
    }
}

fn taints(taints: &[Value], errors: &mut Errors) {
    let list = FieldPath::new("metadata.taints");
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = list.index(index);
        let key = str_at(taint, &["key"]);
        problems(&path.child("key"), key, names::qualified_name(key), errors);
        let value = str_at(taint, &["value"]);
        problems(
            &path.child("value"),
            value,
            names::label_value(value),
            errors,
        );
        let effect = str_at(taint, &["effect"]);
        if effect.is_empty() {
            errors.push(FieldError::required(path.child("effect"), ""));
        } else {
            one_of(
                &path.child("effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                errors,
            );
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_readiness_cordon_and_roles() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        let row = Node.row(&node, Timestamp::UNIX_EPOCH);
        let expected = [
            "n",
            "Ready,SchedulingDisabled",
            "edge,worker",
            "<unknown>",
            "v1.36.0",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>",
        ];
        assert_eq!(row, expected);
        assert_eq!(status(&json!({})), "Unknown");
        assert_eq!(
            status(&json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})),
            "NotReady"
        );
        assert_eq!(roles(&json!({})), "<none>");
    }

    #[test]
    fn taints_need_a_known_effect_and_a_pod_network_is_given_once() {
        let bad = json!({"spec": {"taints": [{"key": "a", "effect": "Never"}]}});
        assert_eq!(
            Node.validate_create(&bad)[0].to_string(),
            r#"metadata.taints[0].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#
        );
        let with = |cidr: &str| json!({"spec": {"podCIDRs": [cidr]}});
        let errors = Node.validate_update(&with("10.42.1.0/24"), &with("10.42.0.0/24"), None);
        assert_eq!(
            errors[0].to_string(),
            r#"spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid"#
        );
    }
}
