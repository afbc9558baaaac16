//! What may change in a pod: <https://kubernetes.io/docs/concepts/workloads/pods/#pod-update-and-replacement>.

use std::collections::{HashMap, HashSet};

use amphipod_api::meta::{array_at, at, i64_at, str_at};
use amphipod_api::text::go_json;
use amphipod_api::{FieldError, FieldPath};
use serde_json::{Map, Value, json};

use crate::resources::common::keep;
use crate::resources::validate::{Errors, immutable, pod as rules};

const SPEC: FieldPath = FieldPath::new("spec");

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// An update of the pod itself.
pub fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = rules::pod_spec(&new["spec"], &SPEC, rules::Where::Pod);
    let mut counts_differ = false;
    for (list, what) in [
        ("containers", "containers"),
        ("initContainers", "containers"),
    ] {
        if array_at(new, &["spec", list]).len() != array_at(old, &["spec", list]).len() {
            counts_differ = true;
            errors.push(FieldError::forbidden(
                SPEC.child(list),
                format!("pod updates may not add or remove {what}"),
            ));
        }
    }
    if counts_differ {
        return errors;
    }
    deadline(new, old, &mut errors);
    tolerations(new, old, &mut errors);
    let gates = |v: &'_ Value| array_at(v, &["spec", "schedulingGates"]).to_vec();
    let (now, before) = (gates(new), gates(old));
    let before: HashSet<String> = before.iter().map(Value::to_string).collect();
    for gate in now.iter().filter(|g| !before.contains(&g.to_string())) {
        let why = format!(
            "only deletion is allowed, but found new scheduling gate '{}'",
            str_at(gate, &["name"])
        );
        errors.push(FieldError::forbidden(SPEC.child("schedulingGates"), why));
    }

    // What may change is made equal; then nothing may be left over.
    let mut munged = new["spec"].clone();
    let original = &old["spec"];
    for list in ["containers", "initContainers"] {
        for index in 0..array_at(original, &[list]).len() {
            let image = original
                .pointer(&format!("/{list}/{index}/image"))
                .cloned()
                .unwrap_or_default();
            if let Some(container) = munged
                .pointer_mut(&format!("/{list}/{index}"))
                .and_then(Value::as_object_mut)
            {
                container.insert("image".into(), image);
            }
        }
    }
    let mut same = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if i64_at(original, &["terminationGracePeriodSeconds"]).is_some_and(|s| s < 0)
        && i64_at(&munged, &["terminationGracePeriodSeconds"]) == Some(1)
    {
        same.push("terminationGracePeriodSeconds");
    }
    // While gated, a pod is not scheduled: where it may go can still be narrowed.
    if !before.is_empty() {
        same.extend(["nodeSelector", "affinity"]);
    }
    for field in same {
        keep(&mut munged, original, field);
    }
    if munged != *original {
        let why = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            difference(original, &munged)
        );
        errors.push(FieldError::forbidden(SPEC, why));
    }
    errors
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    let path = SPEC.child("activeDeadlineSeconds");
    let seconds = |v: &Value| i64_at(v, &["spec", "activeDeadlineSeconds"]);
    match (seconds(new), seconds(old)) {
        (Some(now), Some(before)) if now > before => {
            errors.push(FieldError::invalid(
                path,
                now,
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

/// Tolerations may be added, and the seconds of those there are may change.
fn tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let list = |v: &'_ Value| array_at(v, &["spec", "tolerations"]).to_vec();
    // Keys of a map are in order, so equal ones print alike.
    let without_seconds = |mut t: Value| {
        if let Some(map) = t.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        t.to_string()
    };
    let now: HashSet<String> = list(new).into_iter().map(without_seconds).collect();
    let kept = list(old)
        .into_iter()
        .all(|before| now.contains(&without_seconds(before)));
    if !kept {
        errors.push(FieldError::forbidden(
            SPEC.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}

/// The fields that differ, one line for each side.
fn difference(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    diff_into("spec", Some(old), Some(new), &mut lines);
    lines.join("\n")
}

fn diff_into(path: &str, old: Option<&Value>, new: Option<&Value>, lines: &mut Vec<String>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                diff_into(&format!("{path}.{key}"), a.get(key), b.get(key), lines);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                diff_into(&format!("{path}[{index}]"), Some(a), Some(b), lines);
            }
        }
        _ => {
            for (sign, side) in [('-', old), ('+', new)] {
                if let Some(value) = side {
                    lines.push(format!("{sign} {path}: {}", go_json(value)));
                }
            }
        }
    }
}

/// Where each named item of a list is; the first of those with the same name.
fn places(list: &[Value]) -> HashMap<&str, usize> {
    let named = list
        .iter()
        .enumerate()
        .map(|(at, item)| (str_at(item, &["name"]), at));
    // The last one put in stays.
    named.rev().collect()
}

/// An update through `status`.
pub fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let status = FieldPath::new("status");
    let node = str_at(new, &["status", "nominatedNodeName"]);
    if !node.is_empty() {
        let found = amphipod_api::names::dns1123_subdomain(node);
        crate::resources::validate::problems(
            &status.child("nominatedNodeName"),
            node,
            found,
            &mut errors,
        );
    }
    if str_at(new, &["spec", "restartPolicy"]) != "Always" {
        // A container of such a pod that has ended does not come back.
        let never = str_at(new, &["spec", "restartPolicy"]) == "Never";
        let list = array_at(new, &["status", "containerStatuses"]);
        let now = places(list);
        for before in array_at(old, &["status", "containerStatuses"]) {
            let Some(end) = before.pointer("/state/terminated") else {
                continue;
            };
            if !never && i64_at(end, &["exitCode"]).unwrap_or(0) != 0 {
                continue;
            }
            let name = str_at(before, &["name"]);
            if let Some(&index) = now.get(name)
                && list[index].pointer("/state/terminated").is_none()
            {
                let path = status.child("containerStatuses");
                let path = path.index(index);
                errors.push(FieldError::forbidden(
                    path.child("state"),
                    "may not be transitioned to non-terminated state",
                ));
            }
        }
    }
    if let Some(class) = at(old, &["status", "qosClass"]) {
        immutable(
            &status.child("qosClass"),
            at(new, &["status", "qosClass"]),
            Some(class),
            &mut errors,
        );
    }
    errors
}

/// An update through `ephemeralcontainers`: they can only be added.
pub fn validate_ephemeral(new: &Value, old: &Value) -> Errors {
    let path = SPEC.child("ephemeralContainers");
    let mut errors = rules::pod_spec(&new["spec"], &SPEC, rules::Where::Pod);
    let list = array_at(new, &["spec", "ephemeralContainers"]);
    let now = places(list);
    for before in array_at(old, &["spec", "ephemeralContainers"]) {
        let name = str_at(before, &["name"]);
        match now.get(name).copied() {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(path, why));
            }
            Some(index) if list[index] != *before => {
                let mut lines = Vec::new();
                diff_into("", Some(before), Some(&list[index]), &mut lines);
                let why = format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    lines.join("\n")
                );
                errors.push(FieldError::forbidden(path, why));
            }
            Some(_) => {}
        }
    }
    errors
}

/// Of an update through `resize`, takes the resources of containers and how they are resized.
pub fn take_resize(new: &mut Value, old: &Value) {
    let wanted = new["spec"].clone();
    keep(new, old, "spec");
    keep(new, old, "metadata");
    for list in ["containers", "initContainers"] {
        let before = places(array_at(old, &["spec", list]));
        for container in array_at(&wanted, &[list]) {
            let index = before.get(str_at(container, &["name"]));
            let Some(target) = index.and_then(|i| new.pointer_mut(&format!("/spec/{list}/{i}")))
            else {
                continue;
            };
            for field in ["resources", "resizePolicy"] {
                keep(target, container, field);
            }
        }
    }
}

/// An update through `resize`.
pub fn validate_resize(new: &Value, old: &Value) -> Errors {
    let mut errors = rules::pod_spec(&new["spec"], &SPEC, rules::Where::Pod);
    let (now, before) = (
        super::qos_class(&new["spec"]),
        super::qos_class(&old["spec"]),
    );
    if now != before {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid(SPEC, json!(now), why));
    }
    let names = |resources: &Value| -> Map<String, Value> {
        let mut out = Map::new();
        for kind in ["limits", "requests"] {
            for name in resources
                .get(kind)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(k, _)| k)
            {
                out.insert(format!("{kind}.{name}"), Value::Null);
            }
        }
        out
    };
    for list in ["containers", "initContainers"] {
        let path = SPEC.child(list);
        for (index, (a, b)) in array_at(new, &["spec", list])
            .iter()
            .zip(array_at(old, &["spec", list]))
            .enumerate()
        {
            let path = path.index(index);
            let kept = names(&a["resources"]);
            for gone in names(&b["resources"])
                .keys()
                .filter(|k| !kept.contains_key(*k))
            {
                let (kind, _) = gone.split_once('.').unwrap_or_default();
                let path = path.child("resources");
                errors.push(FieldError::forbidden(
                    path.child(kind),
                    format!("resource {kind} cannot be removed"),
                ));
            }
        }
    }
    errors
}
