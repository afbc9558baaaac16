//! The taints that follow from a node's conditions and from cordoning it. Pure.
//! <https://kubernetes.io/docs/reference/labels-annotations-taints/#node-kubernetes-io-not-ready>

use amphipod_api::meta::{array_at, bool_at, condition, str_at};
use amphipod_api::time;
use jiff::Timestamp;
use serde_json::{Value, json};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, its status, and the taint that it brings.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// What a node's Ready condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    NotReady,
    /// Nobody heard from it for too long.
    Unknown,
}

/// The health of a node; one that has not told anything yet is not ready.
pub fn health(node: &Value) -> Health {
    match condition(node, "Ready").map(|ready| str_at(ready, &["status"])) {
        Some("True") => Health::Ready,
        Some("Unknown") => Health::Unknown,
        _ => Health::NotReady,
    }
}

/// Sets the taints of a node to what its conditions ask for; all others stay. With `evict`, the taint that makes its pods
/// go is added too if the node is not well; without, it stays if it is there. True: something changed.
pub fn set(node: &mut Value, evict: bool, now: Timestamp) -> bool {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|have| str_at(have, &["status"]) == status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if condition(node, "Ready").is_none() {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if bool_at(node, &["spec", "unschedulable"]) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let evicting = match health(node) {
        Health::Ready => None,
        Health::NotReady => Some(NOT_READY),
        Health::Unknown => Some(UNREACHABLE),
    };
    let have = array_at(node, &["spec", "taints"]);
    let going = have.iter().any(evicts);
    if let Some(key) = evicting.filter(|_| evict || going) {
        wanted.push((key, "NoExecute"));
    }
    let ours = |taint: &Value| {
        let key = str_at(taint, &["key"]);
        match str_at(taint, &["effect"]) {
            "NoSchedule" => key == UNSCHEDULABLE || BY_CONDITION.iter().any(|row| row.2 == key),
            _ => evicts(taint),
        }
    };
    let is = |taint: &Value, (key, effect): &(&str, &str)| {
        str_at(taint, &["key"]) == *key && str_at(taint, &["effect"]) == *effect
    };
    let mut taints: Vec<Value> = have
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|want| is(taint, want)))
        .cloned()
        .collect();
    for want in &wanted {
        if !taints.iter().any(|taint| is(taint, want)) {
            taints.push(
                json!({"key": want.0, "effect": want.1, "timeAdded": time::format_time(now)}),
            );
        }
    }
    if taints == have {
        return false;
    }
    if let Some(spec) = node["spec"].as_object_mut() {
        if taints.is_empty() {
            spec.remove("taints");
        } else {
            spec.insert("taints".into(), taints.into());
        }
    }
    true
}

/// Whether the node's pods are to go because it is not well.
pub fn is_evicting(node: &Value) -> bool {
    array_at(node, &["spec", "taints"]).iter().any(evicts)
}

/// The taint that makes pods of a node go that is not well.
fn evicts(taint: &Value) -> bool {
    str_at(taint, &["effect"]) == "NoExecute"
        && [NOT_READY, UNREACHABLE].contains(&str_at(taint, &["key"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: &[(&str, &str)]) -> Value {
        let taints: Vec<Value> = taints
            .iter()
            .map(|(key, effect)| json!({"key": key, "effect": effect}))
            .collect();
        let conditions: Vec<Value> = ready
            .iter()
            .map(|status| json!({"type": "Ready", "status": status}))
            .collect();
        json!({"spec": {"taints": taints}, "status": {"conditions": conditions}})
    }

    fn after(mut node: Value, evict: bool) -> Vec<String> {
        set(&mut node, evict, Timestamp::UNIX_EPOCH);
        array_at(&node, &["spec", "taints"])
            .iter()
            .map(|t| format!("{}:{}", str_at(t, &["key"]), str_at(t, &["effect"])))
            .collect()
    }

    #[test]
    fn a_ready_node_loses_the_taints_of_unwell_ones_and_keeps_all_others() {
        let taints = [
            (NOT_READY, "NoSchedule"),
            (UNREACHABLE, "NoExecute"),
            ("mine", "NoExecute"),
        ];
        assert_eq!(after(node(Some("True"), &taints), true), ["mine:NoExecute"]);
        assert!(!set(
            &mut node(Some("True"), &[("mine", "NoExecute")]),
            true,
            Timestamp::UNIX_EPOCH
        ));
    }

    #[test]
    fn a_node_that_is_not_well_takes_no_pods_and_loses_them_only_when_asked() {
        let taints = |key| [format!("{key}:NoSchedule"), format!("{key}:NoExecute")];
        assert_eq!(after(node(None, &[]), false), taints(NOT_READY)[..1]);
        assert_eq!(
            after(node(Some("False"), &[]), false),
            taints(NOT_READY)[..1]
        );
        assert_eq!(after(node(Some("False"), &[]), true), taints(NOT_READY));
        assert_eq!(after(node(Some("Unknown"), &[]), true), taints(UNREACHABLE));
        let was = [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")];
        assert_eq!(
            after(node(Some("Unknown"), &was), false),
            taints(UNREACHABLE),
            "pods that were to go still are"
        );
    }

    #[test]
    fn pressure_and_cordoning_are_told_to_the_scheduler() {
        let mut node = node(Some("True"), &[]);
        node["spec"]["unschedulable"] = true.into();
        node["status"]["conditions"]
            .as_array_mut()
            .into_iter()
            .for_each(|all| all.push(json!({"type": "DiskPressure", "status": "True"})));
        assert_eq!(
            after(node, true),
            [
                "node.kubernetes.io/disk-pressure:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
    }
}
