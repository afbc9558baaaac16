//! Room for a pod by taking others of lower priority away. Pure.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>

use std::cmp::Reverse;
use std::sync::Arc;

use super::framework::refusals;
use super::pod::PodInfo;
use super::snapshot::Snapshot;

/// A node, and the pods that must go from it.
#[derive(Clone, Debug)]
pub struct Victims {
    pub node: String,
    pub pods: Vec<Arc<PodInfo>>,
}

/// Whom to take away, and from where: the node whose victims are the least important. `None`: nobody, because it would not help, or
/// because pods are going already that make room. The snapshot is as before when this returns.
pub fn find(snapshot: &mut Snapshot, pod: &PodInfo) -> Option<Victims> {
    if pod.never_preempts {
        return None;
    }
    let lower = |other: &PodInfo| other.priority < pod.priority;
    let nodes: Vec<String> = snapshot
        .nodes()
        .filter(|node| node.pods.iter().any(|other| lower(other)))
        .map(|node| node.name.clone())
        .collect();
    let mut best: Option<Victims> = None;
    for node in nodes {
        let going = without(snapshot, &node, |other| lower(other) && other.deleting);
        let enough = !going.is_empty() && fits(snapshot, pod, &node);
        restore(snapshot, going);
        if enough {
            return None;
        }
        let Some(pods) = on_node(snapshot, pod, &node) else {
            continue;
        };
        let victims = Victims { node, pods };
        if best.as_ref().is_none_or(|best| cost(&victims) < cost(best)) {
            best = Some(victims);
        }
    }
    best
}

/// How much is lost: upstream's order of criteria.
fn cost(victims: &Victims) -> (i32, i64, usize, Reverse<&str>) {
    let most = victims.pods.iter().map(|pod| pod.priority).max();
    let sum = victims
        .pods
        .iter()
        .map(|pod| i64::from(pod.priority) - i64::from(i32::MIN))
        .sum();
    // Of those that are as important, the youngest.
    let oldest = victims
        .pods
        .iter()
        .filter(|pod| Some(pod.priority) == most)
        .map(|pod| pod.created.as_str())
        .min();
    (
        most.unwrap_or(i32::MIN),
        sum,
        victims.pods.len(),
        Reverse(oldest.unwrap_or_default()),
    )
}

fn fits(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> bool {
    snapshot
        .node(node)
        .is_some_and(|node| refusals(snapshot, pod, node).is_empty())
}

/// Takes the pods of a node away for which `which` holds.
fn without(
    snapshot: &mut Snapshot,
    node: &str,
    which: impl Fn(&PodInfo) -> bool,
) -> Vec<Arc<PodInfo>> {
    let pods: Vec<Arc<PodInfo>> = snapshot
        .node(node)
        .into_iter()
        .flat_map(|node| &node.pods)
        .filter(|pod| which(pod))
        .cloned()
        .collect();
    for pod in &pods {
        snapshot.take(&pod.uid);
    }
    pods
}

fn restore(snapshot: &mut Snapshot, pods: Vec<Arc<PodInfo>>) {
    pods.into_iter().for_each(|pod| snapshot.put(pod));
}

/// The fewest and least important pods of a node that must go.
fn on_node(snapshot: &mut Snapshot, pod: &PodInfo, node: &str) -> Option<Vec<Arc<PodInfo>>> {
    let now = refusals(snapshot, pod, snapshot.node(node)?);
    if now.iter().any(|refusal| refusal.final_) {
        return None;
    }
    let mut lower = without(snapshot, node, |other| other.priority < pod.priority);
    let mut victims = Vec::new();
    let helps = fits(snapshot, pod, node);
    if helps {
        // Those that can stay do, the most important and oldest first.
        lower.sort_by(|a, b| {
            let key = |pod: &PodInfo| (Reverse(pod.priority), pod.created.clone());
            key(a).cmp(&key(b))
        });
        for other in &lower {
            snapshot.put(other.clone());
            if !fits(snapshot, pod, node) {
                snapshot.take(&other.uid);
                victims.push(other.clone());
            }
        }
    }
    restore(snapshot, lower);
    (helps && !victims.is_empty()).then_some(victims)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, priority: i32, cpu: &str, more: Value) -> PodInfo {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": node, "priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        });
        amphipod_api::patch::apply_merge_patch(&mut value, &more);
        PodInfo::of(serde_json::from_value(value).unwrap())
    }

    fn snapshot(pods: Vec<PodInfo>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "pods": "10"}}});
            snapshot.set_node_from(serde_json::from_value(node).unwrap());
        }
        pods.into_iter().for_each(|pod| snapshot.put(Arc::new(pod)));
        snapshot
    }

    fn found(pods: Vec<PodInfo>, new: &PodInfo) -> Option<(String, Vec<String>)> {
        let mut snapshot = snapshot(pods);
        let count = |s: &Snapshot| s.nodes().map(|node| node.pods.len()).sum::<usize>();
        let before = count(&snapshot);
        let victims = find(&mut snapshot, new);
        assert_eq!(count(&snapshot), before);
        victims.map(|v| (v.node, v.pods.iter().map(|p| p.name.clone()).collect()))
    }

    #[test]
    fn the_least_important_pods_go_and_no_more_than_needed() {
        let none = || json!({});
        let new = pod("new", "", 100, "1", none());
        let pods = || {
            vec![
                pod("a1", "a", 10, "1", none()),
                pod("a2", "a", 1, "1", none()),
                pod("b1", "b", 10, "2", none()),
            ]
        };
        assert_eq!(found(pods(), &new), Some(("a".into(), vec!["a2".into()])));
        let large = pod("new", "", 100, "2", none());
        assert_eq!(found(pods(), &large), Some(("b".into(), vec!["b1".into()])));
        // Nobody is less important, or nothing would help.
        assert_eq!(found(pods(), &pod("new", "", 1, "1", none())), None);
        assert_eq!(found(pods(), &pod("new", "", 100, "3", none())), None);
        let polite = pod(
            "new",
            "",
            100,
            "1",
            json!({"spec": {"preemptionPolicy": "Never"}}),
        );
        assert_eq!(found(pods(), &polite), None);
        let elsewhere = pod(
            "new",
            "",
            100,
            "1",
            json!({"spec": {"nodeSelector": {"x": "y"}}}),
        );
        assert_eq!(found(pods(), &elsewhere), None);
    }

    #[test]
    fn pods_that_are_going_already_are_waited_for() {
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let pods = vec![
            pod("a1", "a", 1, "2", going),
            pod("b1", "b", 1, "2", json!({})),
        ];
        assert_eq!(found(pods, &pod("new", "", 100, "1", json!({}))), None);
    }
}
