//! The nodes as the scheduler sees them: what they have, and what is taken. Changed step by step, never rebuilt.
//!
//! Invariant: `requested` of a node is the sum over its `pods`; a pod stands on one node at most.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod::PodInfo;
use super::resources::Resources;
use crate::cache::Object;
use crate::resources::volumes::{Claim, Class, Volume};

/// A node, and the pods on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub requested: Resources,
    /// As `requested`, where pods that ask for no CPU or memory count as [`LITTLE_CPU`] and [`LITTLE_MEMORY`]: for scoring.
    pub weighed: (i64, i64),
    /// Image name to size in bytes.
    pub images: HashMap<String, i64>,
    pub pods: Vec<Arc<PodInfo>>,
    /// The node object exists. False while only pods on it are known.
    pub exists: bool,
}

/// What scoring takes a container without a CPU request for, in thousandths of a CPU. Upstream's figure.
const LITTLE_CPU: i64 = 100;
/// And without a memory request, in bytes.
const LITTLE_MEMORY: i64 = 200 << 20;

/// What scoring takes a pod for: (thousandths of a CPU, bytes).
pub fn weight(pod: &PodInfo) -> (i64, i64) {
    let or = |amount: i64, default: i64| if amount == 0 { default } else { amount };
    (
        or(pod.requests.cpu, LITTLE_CPU),
        or(pod.requests.memory, LITTLE_MEMORY),
    )
}

impl NodeInfo {
    fn put(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        let (cpu, memory) = weight(&pod);
        self.weighed.0 += cpu;
        self.weighed.1 += memory;
        self.pods.push(pod);
    }

    fn take(&mut self, uid: &str) {
        let Some(at) = self.pods.iter().position(|pod| pod.uid == uid) else {
            return;
        };
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        let (cpu, memory) = weight(&pod);
        self.weighed.0 -= cpu;
        self.weighed.1 -= memory;
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Where each pod stands, by UID.
    places: HashMap<String, usize>,
    /// Pods on nodes that have required anti-affinity, which binds others too.
    pub repelling: usize,
    /// Pods on nodes that have any pod affinity.
    pub choosy: usize,
    /// Labels of the namespaces, for namespace selectors.
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
    /// Claims by namespace and name, volumes and classes by name.
    pub claims: HashMap<(String, String), Claim>,
    pub volumes: BTreeMap<String, Volume>,
    pub classes: HashMap<String, Class>,
}

/// What changed about a node that can make room for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeChange {
    /// Nothing that matters here, like a heartbeat.
    Nothing,
    Useful,
}

impl Snapshot {
    /// Nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().filter(|node| node.exists)
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name
            .get(name)
            .map(|at| &self.nodes[*at])
            .filter(|node| node.exists)
    }

    pub fn labels_of_namespace(&self, name: &str) -> BTreeMap<String, String> {
        self.namespaces.get(name).cloned().unwrap_or_default()
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(at) = self.by_name.get(name) {
            return *at;
        }
        self.nodes.push(NodeInfo {
            name: name.to_owned(),
            ..Default::default()
        });
        self.by_name.insert(name.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// A node was added or changed.
    pub fn set_node(&mut self, object: &Object) -> Result<NodeChange, serde_json::Error> {
        Ok(self.set_node_from(object.typed()?))
    }

    /// As [`Snapshot::set_node`], of a node that is not in the cache.
    pub fn set_node_from(&mut self, node: Node) -> NodeChange {
        let name = node.metadata.name.unwrap_or_default();
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let at = self.slot(&name);
        let info = &mut self.nodes[at];
        let labels = node.metadata.labels.unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let unschedulable = spec.unschedulable.unwrap_or(false);
        let allocatable = Resources::of(status.allocatable.as_ref().or(status.capacity.as_ref()));
        let same = info.exists
            && info.labels == labels
            && info.taints == taints
            && info.unschedulable == unschedulable
            && info.allocatable == allocatable;
        let images = status.images.into_iter().flatten();
        info.images = images
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image
                    .names
                    .into_iter()
                    .flatten()
                    .map(move |name| (name, size))
            })
            .collect();
        (
            info.labels,
            info.taints,
            info.unschedulable,
            info.allocatable,
        ) = (labels, taints, unschedulable, allocatable);
        info.exists = true;
        if same {
            NodeChange::Nothing
        } else {
            NodeChange::Useful
        }
    }

    /// A node was deleted. Its slot stays while pods stand on it.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(at) = self.by_name.get(name).copied() {
            self.nodes[at].exists = false;
            self.sweep(at);
        }
    }

    /// A pod stands on its node from now on; replaces what was known of it.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        self.take(&pod.uid);
        let at = self.slot(&pod.node);
        self.repelling += usize::from(!pod.anti_affinity.is_empty());
        self.choosy += usize::from(is_choosy(&pod));
        self.places.insert(pod.uid.clone(), at);
        self.nodes[at].put(pod);
    }

    /// A pod stands nowhere any more. False if it stood nowhere before.
    pub fn take(&mut self, uid: &str) -> bool {
        let Some(at) = self.places.remove(uid) else {
            return false;
        };
        if let Some(pod) = self.nodes[at].pods.iter().find(|pod| pod.uid == uid) {
            self.repelling -= usize::from(!pod.anti_affinity.is_empty());
            self.choosy -= usize::from(is_choosy(pod));
        }
        self.nodes[at].take(uid);
        self.sweep(at);
        true
    }

    /// What is known of a pod on a node.
    pub fn find(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.nodes[*self.places.get(uid)?]
            .pods
            .iter()
            .find(|pod| pod.uid == uid)
    }

    /// Removes a slot that stands for nothing.
    fn sweep(&mut self, at: usize) {
        if self.nodes[at].exists || !self.nodes[at].pods.is_empty() {
            return;
        }
        let gone = self.nodes.swap_remove(at);
        self.by_name.remove(&gone.name);
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.name.clone(), at);
            for pod in &moved.pods {
                self.places.insert(pod.uid.clone(), at);
            }
        }
    }
}

fn is_choosy(pod: &PodInfo) -> bool {
    !pod.affinity.is_empty()
        || !pod.preferred_affinity.is_empty()
        || !pod.preferred_anti_affinity.is_empty()
        || !pod.anti_affinity.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn node(name: &str, cpu: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": cpu, "pods": "10"}}})).unwrap()
    }

    fn pod(uid: &str, node: &str) -> Arc<PodInfo> {
        let requests = Resources {
            cpu: 100,
            pods: 1,
            ..Default::default()
        };
        Arc::new(PodInfo {
            uid: uid.into(),
            node: node.into(),
            requests,
            ..Default::default()
        })
    }

    #[test]
    fn sums_follow_the_pods() {
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.set_node_from(node("a", "1")), NodeChange::Useful);
        assert_eq!(snapshot.set_node_from(node("a", "1")), NodeChange::Nothing);
        snapshot.put(pod("1", "a"));
        snapshot.put(pod("1", "a"));
        snapshot.put(pod("2", "a"));
        assert_eq!(snapshot.node("a").unwrap().requested.cpu, 200);
        assert!(snapshot.take("1") && !snapshot.take("1"));
        assert_eq!(
            snapshot.node("a").unwrap().requested,
            pod("2", "a").requests
        );
    }

    #[test]
    fn a_pod_known_before_its_node_is_not_lost() {
        let mut snapshot = Snapshot::default();
        snapshot.put(pod("1", "late"));
        assert_eq!(snapshot.nodes().count(), 0);
        snapshot.set_node_from(node("late", "1"));
        snapshot.set_node_from(node("other", "1"));
        assert_eq!(snapshot.node("late").unwrap().requested.cpu, 100);
        snapshot.remove_node("late");
        assert_eq!(snapshot.nodes().count(), 1);
        snapshot.take("1");
        snapshot.put(pod("2", "other"));
        assert_eq!(snapshot.node("other").unwrap().requested.cpu, 100);
    }
}
