//! LimitRanger: pods get the defaults of the namespace's LimitRanges, and they and claims must keep to their bounds.
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use amphipod_api::Status;
use amphipod_api::meta::{array_at, map_at, set_annotation, str_at};
use serde_json::{Map, Value, json};

use super::{creates_pod, forbidden, is_about};
use crate::registry::{Admission, Operation, Request};
use crate::resources::amounts::{Amounts, of_list, of_pod};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

/// The items of all LimitRanges of the namespace.
fn items(request: &Request<'_>) -> Vec<Value> {
    let ranges = request
        .lookup
        .list("limitranges", Some(&request.context.namespace));
    ranges
        .iter()
        .flat_map(|range| array_at(range, &["spec", "limits"]).to_vec())
        .collect()
}

impl Admission for LimitRanger {
    fn admit(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !creates_pod(request) {
            return Ok(());
        }
        let mut told = Vec::new();
        for item in items(request) {
            if str_at(&item, &["type"]) == "Container" {
                fill_defaults(pod, &item, &mut told);
            }
        }
        if !told.is_empty() {
            let text = format!("LimitRanger plugin set: {}", told.join("; "));
            set_annotation(pod, ANNOTATION, &text);
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let changes = matches!(request.operation, Operation::Create | Operation::Update);
        let is_claim = changes && is_about(request, "persistentvolumeclaims", None);
        let Some(object) = object.filter(|_| is_claim || creates_pod(request)) else {
            return Ok(());
        };
        let mut problems = Vec::new();
        for item in items(request) {
            if is_claim {
                check_claim(object, &item, &mut problems);
            } else {
                check(object, &item, &mut problems);
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(forbidden(request, one)),
            many => Err(forbidden(request, format!("[{}]", many.join(", ")))),
        }
    }
}

fn fill_defaults(pod: &mut Value, item: &Value, told: &mut Vec<String>) {
    for (field, kind) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let containers = pod
            .pointer_mut(&format!("/spec/{field}"))
            .and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = str_at(container, &["name"]).to_owned();
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let resources = container.entry("resources").or_insert_with(|| json!({}));
            for (which, defaults, word) in [
                ("requests", "defaultRequest", "request"),
                ("limits", "default", "limit"),
            ] {
                let set = fill_list(resources, which, map_at(item, &[defaults]));
                if !set.is_empty() {
                    told.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
}

/// Adds to a list of amounts what it does not have; tells what that was.
fn fill_list(resources: &mut Value, which: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    let Some(resources) = resources.as_object_mut().filter(|_| !defaults.is_empty()) else {
        return set;
    };
    let list = resources.entry(which).or_insert_with(|| json!({}));
    for (name, amount) in defaults {
        if let Some(list) = list.as_object_mut()
            && !list.contains_key(name)
        {
            list.insert(name.clone(), amount.clone());
            set.push(name.clone());
        }
    }
    set
}

/// What of a pod is out of one item's bounds.
fn check(pod: &Value, item: &Value, problems: &mut Vec<String>) {
    match str_at(item, &["type"]) {
        "Container" => {
            let containers = array_at(pod, &["spec", "containers"]).iter();
            for container in containers.chain(array_at(pod, &["spec", "initContainers"])) {
                let of = |which: &str| of_list(container, &["resources", which]);
                bounds("Container", item, &of("requests"), &of("limits"), problems);
            }
        }
        "Pod" => {
            let of = |which: &str| of_pod(pod, which);
            bounds("Pod", item, &of("requests"), &of("limits"), problems);
        }
        _ => {}
    }
}

/// What a claim asks for out of one item's bounds.
fn check_claim(claim: &Value, item: &Value, problems: &mut Vec<String>) {
    if str_at(item, &["type"]) != "PersistentVolumeClaim" {
        return;
    }
    let asked = of_list(claim, &["spec", "resources", "requests"]);
    let sides = [("min", "minimum", 1), ("max", "maximum", -1)];
    for (side, word, sign) in sides {
        for (name, bound) in of_list(item, &[side]) {
            let rule = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
            match asked.get(&name) {
                None => problems.push(format!("{rule}.  No request is specified")),
                Some(asked) if (bound - *asked).signum() * sign > 0 => {
                    problems.push(format!("{rule}, but request is {asked}"));
                }
                Some(_) => {}
            }
        }
    }
}

fn bounds(
    kind: &str,
    item: &Value,
    requests: &Amounts,
    limits: &Amounts,
    problems: &mut Vec<String>,
) {
    for (name, least) in of_list(item, &["min"]) {
        let rule = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => problems.push(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < least => {
                problems.push(format!("{rule}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < least => {
                problems.push(format!("{rule}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, most) in of_list(item, &["max"]) {
        let rule = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => problems.push(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => {
                problems.push(format!("{rule}, but limit is {limit}"));
            }
            (Some(request), _) if *request > most => {
                problems.push(format!("{rule}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, most) in of_list(item, &["maxLimitRequestRatio"]) {
        let rule = format!("{name} max limit to request ratio per {kind} is {most}");
        let given = |amounts: &Amounts| amounts.get(&name).copied().filter(|a| !a.is_zero());
        match (given(requests), given(limits)) {
            (None, _) => {
                problems.push(format!(
                    "{rule}, but no request is specified or request is 0"
                ));
            }
            (_, None) => problems.push(format!("{rule}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                if ratio > most.as_f64() {
                    problems.push(format!("{rule}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> Value {
        json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "default": {"cpu": "500m", "memory": "500Mi"},
            "defaultRequest": {"cpu": "100m"}})
    }

    #[test]
    fn containers_get_what_they_did_not_say() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "300m"}, "requests": {"cpu": "300m"}}}, {"name": "b"}]}});
        let mut told = Vec::new();
        fill_defaults(&mut pod, &item(), &mut told);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"limits": {"cpu": "300m", "memory": "500Mi"}, "requests": {"cpu": "300m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "500m", "memory": "500Mi"}, "requests": {"cpu": "100m"}}},
            ])
        );
        assert_eq!(
            told,
            [
                "memory limit for container a",
                "cpu request for container b",
                "cpu, memory limit for container b"
            ]
        );
    }

    #[test]
    fn claims_are_neither_too_small_nor_too_large() {
        let item = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "4Gi"}});
        let problems = |size: &str| {
            let claim = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            let mut problems = Vec::new();
            check_claim(&claim, &item, &mut problems);
            problems
        };
        assert!(problems("1Gi").is_empty() && problems("4Gi").is_empty());
        assert_eq!(
            problems("500Mi"),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"]
        );
        assert_eq!(
            problems("5Gi"),
            ["maximum storage usage per PersistentVolumeClaim is 4Gi, but request is 5Gi"]
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_told() {
        let problems = |requests: Value, limits: Value| {
            let pod = json!({"spec": {"containers": [{"resources": {"requests": requests, "limits": limits}}]}});
            let mut problems = Vec::new();
            check(&pod, &item(), &mut problems);
            problems
        };
        assert!(problems(json!({"cpu": "50m"}), json!({"cpu": "500m"})).is_empty());
        assert_eq!(
            problems(json!({"cpu": "10m"}), json!({"cpu": "1"})),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum cpu usage per Container is 500m, but limit is 1"
            ]
        );
        assert_eq!(
            problems(json!({}), json!({})),
            [
                "minimum cpu usage per Container is 50m.  No request is specified",
                "maximum cpu usage per Container is 500m.  No limit is specified"
            ]
        );
    }
}
