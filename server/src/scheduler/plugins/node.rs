//! Which node a pod asks for, and which nodes ask for none.

use k8s_openapi::api::core::v1::Taint;

use crate::scheduler::framework::{Plugin, Prepared, Refusal, normalize};
use crate::scheduler::pod::{PodInfo, tolerates};
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// `kubectl cordon`.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        if !node.unschedulable {
            return Vec::new();
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        };
        if pod
            .tolerations
            .iter()
            .any(|toleration| tolerates(toleration, &taint))
        {
            return Vec::new();
        }
        vec![Refusal::final_("node(s) were unschedulable")]
    }
}

/// `spec.nodeName`: pods that name a node are not scheduled at all, so this decides only for pods that ask in other ways later.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare(&self, pod: &PodInfo, _: &Snapshot) -> Option<Prepared> {
        (!pod.node.is_empty()).then(|| Box::new(()) as Prepared)
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        if pod.node == node.name {
            return Vec::new();
        }
        vec![Refusal::final_(
            "node(s) didn't match the requested node name",
        )]
    }
}

/// `nodeSelector`, and required and preferred node affinity.
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare(&self, pod: &PodInfo, _: &Snapshot) -> Option<Prepared> {
        let says_something = !pod.node_selector.is_empty()
            || pod.required_nodes.is_some()
            || !pod.preferred_nodes.is_empty();
        says_something.then(|| Box::new(()) as Prepared)
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        if pod.selects_node(&node.name, &node.labels) {
            return Vec::new();
        }
        vec![Refusal::final_(
            "node(s) didn't match Pod's node affinity/selector",
        )]
    }

    fn score(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let matching = pod
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&node.name, &node.labels));
        matching.map(|(weight, _)| i64::from(*weight)).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, false);
    }

    fn weight(&self) -> i64 {
        2
    }
}
