//! Where pods may go: affinity, tolerations, spreading.

use std::collections::HashMap;

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use crate::resources::validate::{Errors, label_selector, one_of, problems};

/// `affinity`
pub fn affinity(affinity: &Value, path: &FieldPath, errors: &mut Errors) {
    if let Some(node) = affinity.get("nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(required) = node.get("requiredDuringSchedulingIgnoredDuringExecution") {
            node_selector(
                required,
                &path.child("requiredDuringSchedulingIgnoredDuringExecution"),
                errors,
            );
        }
        let list = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in array_at(node, &["preferredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .enumerate()
        {
            let path = list.index(index);
            weight(term, &path, errors);
            node_term(&term["preference"], &path.child("preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind) else {
            continue;
        };
        let path = path.child(kind);
        let list = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in array_at(pods, &["requiredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .enumerate()
        {
            pod_term(term, &list.index(index), errors);
        }
        let list = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in array_at(pods, &["preferredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .enumerate()
        {
            let path = list.index(index);
            weight(term, &path, errors);
            pod_term(
                &term["podAffinityTerm"],
                &path.child("podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(term: &Value, path: &FieldPath, errors: &mut Errors) {
    let weight = i64_at(term, &["weight"]).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(
            path.child("weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

/// A `v1.NodeSelector`.
pub fn node_selector(selector: &Value, path: &FieldPath, errors: &mut Errors) {
    let terms = array_at(selector, &["nodeSelectorTerms"]);
    let path = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(
            path,
            "must have at least one node selector term",
        ));
    }
    for (index, term) in terms.iter().enumerate() {
        node_term(term, &path.index(index), errors);
    }
}

fn node_term(term: &Value, path: &FieldPath, errors: &mut Errors) {
    let list = path.child("matchExpressions");
    for (index, requirement) in array_at(term, &["matchExpressions"]).iter().enumerate() {
        let path = list.index(index);
        let values = array_at(requirement, &["values"]);
        match str_at(requirement, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(path.child("values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(path.child("values"), why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(path.child("values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = str_at(requirement, &["key"]);
        problems(&path.child("key"), key, names::qualified_name(key), errors);
    }
    let list = path.child("matchFields");
    for (index, requirement) in array_at(term, &["matchFields"]).iter().enumerate() {
        let path = list.index(index);
        match str_at(requirement, &["operator"]) {
            "In" | "NotIn" => {
                if array_at(requirement, &["values"]).len() != 1 {
                    let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errors.push(FieldError::required(path.child("values"), why));
                }
            }
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = str_at(requirement, &["key"]);
        if key != "metadata.name" {
            errors.push(FieldError::invalid(
                path.child("key"),
                key,
                "not a valid field selector key",
            ));
        }
    }
}

fn pod_term(term: &Value, path: &FieldPath, errors: &mut Errors) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            label_selector(selector, &path.child(field), errors);
        }
    }
    for namespace in array_at(term, &["namespaces"]) {
        let namespace = namespace.as_str().unwrap_or_default();
        problems(
            &path.child("namespace"),
            namespace,
            names::dns1123_label(namespace),
            errors,
        );
    }
    let key = str_at(term, &["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(
            path.child("topologyKey"),
            "can not be empty",
        ));
    } else {
        problems(
            &path.child("topologyKey"),
            key,
            names::qualified_name(key),
            errors,
        );
    }
}

/// `tolerations`
pub fn tolerations(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (index, toleration) in list.iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (
            str_at(toleration, &["key"]),
            str_at(toleration, &["operator"]),
        );
        let (value, effect) = (
            str_at(toleration, &["value"]),
            str_at(toleration, &["effect"]),
        );
        if !key.is_empty() {
            problems(&path.child("key"), key, names::qualified_name(key), errors);
        }
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(path.child("operator"), operator, why));
        }
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(path.child("effect"), effect, why));
        }
        match operator {
            "Equal" | "" => {
                let found = names::label_value(value);
                if !found.is_empty() {
                    errors.push(FieldError::invalid(
                        path.child("operator"),
                        value,
                        found.join(";"),
                    ));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(
                        path.child("operator"),
                        toleration.clone(),
                        why,
                    ));
                }
            }
            other => errors.push(FieldError::not_supported(
                path.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            one_of(
                &path.child("effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                errors,
            );
        }
    }
}

/// `topologySpreadConstraints`
pub fn spread(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    // How many constraints with the same key and action are still to come.
    let mut left: HashMap<(&str, &str), usize> = HashMap::new();
    for constraint in list {
        let key = str_at(constraint, &["topologyKey"]);
        let action = str_at(constraint, &["whenUnsatisfiable"]);
        *left.entry((key, action)).or_default() += 1;
    }
    for (index, constraint) in list.iter().enumerate() {
        let here = path.index(index);
        let skew = i64_at(constraint, &["maxSkew"]).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(
                here.child("maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        let key = str_at(constraint, &["topologyKey"]);
        if key.is_empty() {
            errors.push(FieldError::required(
                here.child("topologyKey"),
                "can not be empty",
            ));
        } else {
            problems(
                &here.child("topologyKey"),
                key,
                names::qualified_name(key),
                errors,
            );
        }
        let action = str_at(constraint, &["whenUnsatisfiable"]);
        one_of(
            &here.child("whenUnsatisfiable"),
            action,
            &["DoNotSchedule", "ScheduleAnyway"],
            errors,
        );
        let rest = left.entry((key, action)).or_default();
        *rest = rest.saturating_sub(1);
        if *rest > 0 {
            let pair = format!("{{{key}, {action}}}");
            errors.push(FieldError::duplicate(
                here.child("{topologyKey, whenUnsatisfiable}"),
                pair,
            ));
        }
        if let Some(domains) = i64_at(constraint, &["minDomains"]) {
            let path = here.child("minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(
                    path,
                    domains,
                    "must be greater than zero",
                ));
            }
            if action != "DoNotSchedule" {
                let why = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                errors.push(FieldError::invalid(path, domains, why));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = constraint.get(field).and_then(Value::as_str) {
                one_of(&here.child(field), policy, &["Honor", "Ignore"], errors);
            }
        }
        if let Some(selector) = constraint.get("labelSelector") {
            label_selector(selector, &here.child("labelSelector"), errors);
        }
        let keys = array_at(constraint, &["matchLabelKeys"]);
        if !keys.is_empty() && constraint.get("labelSelector").is_none() {
            let why = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(here.child("matchLabelKeys"), why));
        }
        for (index, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            problems(
                &here.child("matchLabelKeys").index(index),
                key,
                names::qualified_name(key),
                errors,
            );
        }
    }
}
