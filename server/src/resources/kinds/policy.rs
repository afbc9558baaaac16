//! NetworkPolicy and PriorityClass: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/>.

use amphipod_api::ip::{contains, parse_cidr};
use amphipod_api::meta::{array_at, at, bool_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::{networking, scheduling};
use serde_json::{Map, Value, json};

use super::Kind;
use crate::resources::common::{fill_text, items_mut, raise_generation, set_generation, spec_mut};
use crate::resources::table::{age_cell, name, selector};
use crate::resources::validate::{
    Errors, immutable, label_selector, one_of, pod::port_number_or_name, problems,
};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn network_policy() -> Descriptor {
    Kind::new::<networking::v1::NetworkPolicy>(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
    )
    .short(&["netpol"])
    .columns(vec![
        Column::name(),
        Column::new("Pod-Selector", "Pods the policy is for."),
        Column::age(),
    ])
    .strategy(NetworkPolicy)
    .build()
}

pub fn priority_class() -> Descriptor {
    Kind::new::<scheduling::v1::PriorityClass>(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
    )
    .cluster()
    .short(&["pc"])
    .columns(vec![
        Column::name(),
        Column::new("Value", "Priority of pods of this class.").of_type("integer"),
        Column::new(
            "Global-Default",
            "Whether pods without a class get this one.",
        )
        .of_type("boolean"),
        Column::age(),
        Column::new(
            "PreemptionPolicy",
            "Whether pods of this class may take the place of others.",
        ),
    ])
    .strategy(PriorityClass)
    .build()
}

struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        spec.entry("podSelector").or_insert_with(|| json!({}));
        let has_egress = spec
            .get("egress")
            .and_then(Value::as_array)
            .is_some_and(|e| !e.is_empty());
        if spec
            .get("policyTypes")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
        {
            let types = if has_egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
            spec.insert("policyTypes".into(), types);
        }
        for direction in ["ingress", "egress"] {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    fill_text(port, "protocol", "TCP");
                }
            }
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
        raise_generation(new, old, &["spec"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = FieldPath::new("spec");
        if let Some(pods) = at(obj, &["spec", "podSelector"]) {
            label_selector(pods, &spec.child("podSelector"), &mut errors);
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            let list = spec.child(direction);
            for (index, rule) in array_at(obj, &["spec", direction]).iter().enumerate() {
                let path = list.index(index);
                for (index, port) in array_at(rule, &["ports"]).iter().enumerate() {
                    policy_port(&path.child("ports").index(index), port, &mut errors);
                }
                for (index, peer) in array_at(rule, &[peers]).iter().enumerate() {
                    policy_peer(&path.child(peers).index(index), peer, &mut errors);
                }
            }
        }
        let types = array_at(obj, &["spec", "policyTypes"]);
        let path = spec.child("policyTypes");
        if types.len() > 2 {
            errors.push(FieldError::invalid(
                path,
                Value::Array(types.to_vec()),
                "may not specify more than two policyTypes",
            ));
            return errors;
        }
        for (index, kind) in types.iter().enumerate() {
            one_of(
                &path.index(index),
                kind.as_str().unwrap_or_default(),
                &["Ingress", "Egress"],
                &mut errors,
            );
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            selector(at(obj, &["spec", "podSelector"])).into(),
            age_cell(obj, now),
        ]
    }
}

fn policy_port(path: &FieldPath, port: &Value, errors: &mut Errors) {
    let protocol = str_at(port, &["protocol"]);
    if !protocol.is_empty() {
        one_of(
            &path.child("protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
    let number = port.get("port");
    if let Some(number) = number {
        port_number_or_name(&path.child("port"), number, errors);
    }
    if let Some(end) = i64_at(port, &["endPort"]) {
        let path = path.child("endPort");
        match number {
            None => errors.push(FieldError::invalid(
                path,
                end,
                "may not be specified when `port` is not specified",
            )),
            Some(Value::String(_)) => {
                errors.push(FieldError::invalid(
                    path,
                    end,
                    "may not be specified when `port` is non-numeric",
                ));
            }
            Some(start) if start.as_i64().is_some_and(|start| end < start) => {
                errors.push(FieldError::invalid(
                    path,
                    end,
                    "must be greater than or equal to `port`",
                ));
            }
            Some(_) => {
                for problem in names::port_number(end) {
                    errors.push(FieldError::invalid(path, end, problem));
                }
            }
        }
    }
}

fn policy_peer(path: &FieldPath, peer: &Value, errors: &mut Errors) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.get(field) {
            count += 1;
            label_selector(selector, &path.child(field), errors);
        }
    }
    if let Some(block) = peer.get("ipBlock") {
        if count > 0 {
            errors.push(FieldError::forbidden(
                path,
                "may not specify both ipBlock and another peer",
            ));
        }
        count += 1;
        ip_block(&path.child("ipBlock"), block, errors);
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn ip_block(path: &FieldPath, block: &Value, errors: &mut Errors) {
    let cidr = str_at(block, &["cidr"]);
    if cidr.is_empty() {
        errors.push(FieldError::required(path.child("cidr"), ""));
        return;
    }
    problems(&path.child("cidr"), cidr, names::cidr(cidr), errors);
    let Some((network, prefix)) = parse_cidr(cidr) else {
        return;
    };
    for (index, except) in array_at(block, &["except"]).iter().enumerate() {
        let list = path.child("except");
        let path = list.index(index);
        let text = except.as_str().unwrap_or_default();
        problems(&path, text, names::cidr(text), errors);
        if let Some((ip, bits)) = parse_cidr(text)
            && (!contains(network, prefix, ip) || bits <= prefix)
        {
            let why = format!("must be a strict subset of `{cidr}`");
            errors.push(FieldError::invalid(path, text, why));
        }
    }
}

/// The largest priority that users may give.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM_CLASSES: &[(&str, i64)] = &[
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, obj: &mut Value) {
        let Some(map): Option<&mut Map<String, Value>> = obj.as_object_mut() else {
            return;
        };
        fill_text(map, "preemptionPolicy", "PreemptLowerPriority");
        map.entry("value").or_insert_with(|| 0.into());
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        set_generation(obj, 1);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let name = str_at(obj, &["metadata", "name"]);
        let value = i64_at(obj, &["value"]).unwrap_or(0);
        if name.starts_with("system-") {
            if !SYSTEM_CLASSES.contains(&(name, value)) {
                let why = "priority class names with 'system-' prefix are reserved for system use only. error: only system-node-critical and system-cluster-critical with their own values are allowed";
                errors.push(FieldError::forbidden("metadata.name", why));
            }
        } else if value > HIGHEST_USER_PRIORITY {
            let why = format!(
                "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            );
            errors.push(FieldError::forbidden("value", why));
        }
        let policy = str_at(obj, &["preemptionPolicy"]);
        one_of(
            &FieldPath::new("preemptionPolicy"),
            policy,
            &["Never", "PreemptLowerPriority"],
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if new.get("value") != old.get("value") {
            errors.push(FieldError::forbidden(
                "value",
                "may not be changed in an update.",
            ));
        }
        let path = FieldPath::new("preemptionPolicy");
        immutable(
            &path,
            new.get("preemptionPolicy"),
            old.get("preemptionPolicy"),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            i64_at(obj, &["value"]).unwrap_or(0).into(),
            bool_at(obj, &["globalDefault"]).unwrap_or(false).into(),
            age_cell(obj, now),
            str_at(obj, &["preemptionPolicy"]).into(),
        ]
    }
}
