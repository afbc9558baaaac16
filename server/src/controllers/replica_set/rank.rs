//! Which pods of a replica set go first when there are too many. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#scaling-a-replicaset>

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use jiff::Timestamp;

use crate::controllers::pods::{Phase, Pod};

/// Sorts pods so that those to delete come first. `related`: the pods of all replica sets of the same owner; of nodes with
/// many of them pods go first.
pub fn sort(pods: &mut [Pod], related: &[Pod], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pod.is_active()) {
        *on_node.entry(&pod.node).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(pod.node.as_str()).copied().unwrap_or(0);
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| {
            // Those not on a node first, then those not running, then those not ready.
            (
                !pod.node.is_empty(),
                pod.phase.min(Phase::Running),
                pod.ready,
                pod.deletion_cost,
                Reverse(rank(pod)),
            )
        };
        key(a)
            .cmp(&key(b))
            .then_with(|| {
                if a.ready {
                    younger(a.ready_changed, b.ready_changed, now, a, b)
                } else {
                    Ordering::Equal
                }
            })
            .then_with(|| b.restarts.cmp(&a.restarts))
            .then_with(|| younger(a.created(), b.created(), now, a, b))
    });
}

/// The younger first, by the order of magnitude of its age: among those of about the same age chance decides.
fn younger(
    a: Option<Timestamp>,
    b: Option<Timestamp>,
    now: Timestamp,
    pod_a: &Pod,
    pod_b: &Pod,
) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) if a != b => {
            let uid = |pod: &Pod| pod.object.meta.uid.clone();
            magnitude(a, now)
                .cmp(&magnitude(b, now))
                .then_with(|| uid(pod_a).cmp(&uid(pod_b)))
        }
        // No time at all counts as the youngest.
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

fn magnitude(then: Timestamp, now: Timestamp) -> i32 {
    let age = now.as_nanosecond() - then.as_nanosecond();
    u128::try_from(age)
        .ok()
        .and_then(u128::checked_ilog2)
        .map_or(-1, |log| i32::try_from(log).unwrap_or(i32::MAX))
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::{FieldSet, detached};

    pub fn pod(name: &str, node: &str, phase: &str, ready: Option<&str>, more: Value) -> Pod {
        let mut conditions = vec![];
        if let Some(since) = ready {
            conditions
                .push(json!({"type": "Ready", "status": "True", "lastTransitionTime": since}));
        }
        let mut value = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node}, "status": {"phase": phase, "conditions": conditions},
        });
        amphipod_api::patch::apply_merge_patch(&mut value, &more);
        Pod::read(&detached(&mut value, 1, &FieldSet::default()).unwrap()).unwrap()
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T23:59:50Z"));
        let restarts = |n: i32| json!({"status": {"containerStatuses": [{"restartCount": n}]}});
        let cost = |n: &str| json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": n}}});
        let mut pods = vec![
            pod("keep", "a", "Running", early, json!({})),
            pod("young", "a", "Running", late, json!({})),
            pod("cheap", "a", "Running", early, cost("-1")),
            pod("dear", "a", "Running", late, cost("10")),
            pod("crowded", "b", "Running", early, json!({})),
            pod("restarted", "a", "Running", None, restarts(3)),
            pod("unready", "a", "Running", None, restarts(0)),
            pod("pending", "a", "Pending", None, json!({})),
            pod("nowhere", "", "Pending", None, json!({})),
        ];
        let others: Vec<Pod> = (0..9)
            .map(|n| pod(&format!("o{n}"), "b", "Running", early, json!({})))
            .collect();
        let related: Vec<Pod> = pods.iter().chain(&others).cloned().collect();
        sort(&mut pods, &related, now);
        let names: Vec<&str> = pods.iter().map(|pod| &*pod.object.meta.name).collect();
        assert_eq!(
            names,
            [
                "nowhere",
                "pending",
                "restarted",
                "unready",
                "cheap",
                "crowded",
                "young",
                "keep",
                "dear"
            ]
        );
    }
}
