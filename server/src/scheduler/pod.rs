//! What the scheduler keeps of a pod: read once from the API object, compact, shared.

use std::collections::BTreeMap;

use amphipod_api::selector::{LabelSelector, NodeSelector, NodeSelectorTerm};
use k8s_openapi::api::core::v1::{self as core, Pod, Toleration};
use serde_json::json;

use super::resources::Resources;
use crate::cache::Object;

/// The scheduler that pods name unless they name another.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The revision of the object this was read from.
    pub revision: u64,
    pub labels: BTreeMap<String, String>,
    /// Empty until it is bound.
    pub node: String,
    pub scheduler: String,
    pub priority: i32,
    /// RFC 3339, which sorts by time.
    pub created: String,
    pub requests: Resources,
    /// It asks for anything at all by name; scoring gives the others a default.
    pub node_selector: BTreeMap<String, String>,
    pub required_nodes: Option<NodeSelector>,
    pub preferred_nodes: Vec<(i32, NodeSelectorTerm)>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    pub spread: Vec<Spread>,
    /// Required and preferred (with weights) pod affinity and anti-affinity.
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    pub preferred_affinity: Vec<(i32, PodTerm)>,
    pub preferred_anti_affinity: Vec<(i32, PodTerm)>,
    pub images: Vec<String>,
    pub claims: Vec<PodClaim>,
    pub gates: Vec<String>,
    /// The message of its condition `PodScheduled=False`, as stored.
    pub told: Option<String>,
    pub deleting: bool,
    /// `preemptionPolicy: Never`
    pub never_preempts: bool,
    /// Succeeded or Failed: it occupies nothing.
    pub ended: bool,
}

/// A claim that a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    pub name: String,
    /// It is made for this pod alone.
    pub ephemeral: bool,
}

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Empty and `0.0.0.0` both mean every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts_with(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        let same_address = any(&self.ip) || any(&other.ip) || self.ip == other.ip;
        self.port == other.port && self.protocol == other.protocol && same_address
    }
}

/// A topology spread constraint.
#[derive(Debug, Clone)]
pub struct Spread {
    pub max_skew: i64,
    pub min_domains: i64,
    pub topology_key: String,
    pub hard: bool,
    pub selector: LabelSelector,
    /// `nodeAffinityPolicy: Honor`, the default: nodes that the pod's node selection excludes do not count.
    pub honor_node_selection: bool,
    /// `nodeTaintsPolicy: Honor`; ignored by default.
    pub honor_taints: bool,
}

/// A term of pod (anti-)affinity.
#[derive(Debug, Clone)]
pub struct PodTerm {
    pub selector: LabelSelector,
    /// Namespaces by name; the term's own pod's if it names none.
    pub namespaces: Vec<String>,
    /// Namespaces by label; an empty selector chooses all.
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

impl PodTerm {
    /// Whether the term chooses `pod`. `labels_of` gives the labels of a namespace.
    pub fn chooses(
        &self,
        pod: &PodInfo,
        labels_of: &dyn Fn(&str) -> BTreeMap<String, String>,
    ) -> bool {
        let by_name = self.namespaces.contains(&pod.namespace);
        let by_label = || {
            self.namespace_selector
                .as_ref()
                .is_some_and(|s| s.is_everything() || s.matches(&labels_of(&pod.namespace)))
        };
        self.selector.matches(&pod.labels) && (by_name || by_label())
    }
}

impl PodInfo {
    /// Reads a pod. Parts that do not parse, which validation lets nobody store, select nothing.
    pub fn read(object: &Object) -> Result<PodInfo, serde_json::Error> {
        let pod: Pod = object.typed()?;
        let mut info = PodInfo::of(pod);
        info.revision = object.meta.revision;
        Ok(info)
    }

    /// As [`PodInfo::read`], of a pod that is not in the cache.
    pub fn of(pod: Pod) -> PodInfo {
        let metadata = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        let labels = metadata.labels.unwrap_or_default();
        let requests = Resources::of_pod(&spec);
        let claims = claims(spec.volumes, &name);
        let affinity = spec.affinity.unwrap_or_default();
        let nodes = affinity.node_affinity.unwrap_or_default();
        let (pods, anti) = (
            affinity.pod_affinity.unwrap_or_default(),
            affinity.pod_anti_affinity.unwrap_or_default(),
        );
        let term = |term: core::PodAffinityTerm| pod_term(term, &namespace, &labels);
        let weighted = |terms: Option<Vec<core::WeightedPodAffinityTerm>>| {
            terms
                .into_iter()
                .flatten()
                .map(|t| (t.weight, term(t.pod_affinity_term)))
                .collect()
        };
        let host_ports = spec
            .containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some(HostPort {
                    ip: port.host_ip.clone().unwrap_or_default(),
                    protocol,
                    port: number,
                })
            });
        let scheduled = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled");
        PodInfo {
            name,
            uid: metadata.uid.unwrap_or_default(),
            revision: 0,
            node: spec.node_name.unwrap_or_default(),
            scheduler: spec
                .scheduler_name
                .unwrap_or_else(|| DEFAULT_SCHEDULER.to_owned()),
            priority: spec.priority.unwrap_or(0),
            created: metadata
                .creation_timestamp
                .map(|time| time.0.to_string())
                .unwrap_or_default(),
            node_selector: spec.node_selector.unwrap_or_default(),
            required_nodes: nodes
                .required_during_scheduling_ignored_during_execution
                .and_then(|selector| NodeSelector::from_object(&json!(selector)).ok()),
            preferred_nodes: nodes
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .filter_map(|term| {
                    Some((
                        term.weight,
                        NodeSelectorTerm::from_object(&json!(term.preference)).ok()?,
                    ))
                })
                .collect(),
            tolerations: spec.tolerations.unwrap_or_default(),
            host_ports: host_ports.collect(),
            spread: spec
                .topology_spread_constraints
                .into_iter()
                .flatten()
                .map(|s| spread(s, &labels))
                .collect(),
            affinity: pods
                .required_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(term)
                .collect(),
            anti_affinity: anti
                .required_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(term)
                .collect(),
            preferred_affinity: weighted(pods.preferred_during_scheduling_ignored_during_execution),
            preferred_anti_affinity: weighted(
                anti.preferred_during_scheduling_ignored_during_execution,
            ),
            images: spec
                .containers
                .iter()
                .filter_map(|container| container.image.clone())
                .collect(),
            claims,
            gates: spec
                .scheduling_gates
                .into_iter()
                .flatten()
                .map(|gate| gate.name)
                .collect(),
            told: scheduled
                .filter(|condition| condition.status == "False")
                .map(|c| c.message.clone().unwrap_or_default()),
            deleting: metadata.deletion_timestamp.is_some(),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            requests,
            namespace,
            labels,
        }
    }

    /// It waits for this scheduler.
    pub fn is_waiting(&self) -> bool {
        self.node.is_empty() && !self.deleting && !self.ended && self.scheduler == DEFAULT_SCHEDULER
    }

    /// It occupies a node.
    pub fn occupies(&self) -> bool {
        !self.node.is_empty() && !self.ended
    }

    /// The node passes the pod's nodeSelector and required node affinity.
    pub fn selects_node(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .required_nodes
                .as_ref()
                .is_none_or(|selector| selector.matches(name, labels))
    }

    /// The first taint with one of `effects` that the pod does not tolerate.
    pub fn untolerated<'a>(
        &self,
        taints: &'a [core::Taint],
        effects: &[&str],
    ) -> Option<&'a core::Taint> {
        let mut harmful = taints
            .iter()
            .filter(|taint| effects.contains(&taint.effect.as_str()));
        harmful.find(|taint| {
            !self
                .tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
        })
    }
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
pub fn tolerates(toleration: &Toleration, taint: &core::Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    let (ours, theirs) = (
        toleration.value.as_deref().unwrap_or_default(),
        taint.value.as_deref().unwrap_or_default(),
    );
    let numbers = || Some((ours.parse::<i64>().ok()?, theirs.parse::<i64>().ok()?));
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => ours == theirs,
        Some("Lt") => numbers().is_some_and(|(ours, theirs)| theirs < ours),
        Some("Gt") => numbers().is_some_and(|(ours, theirs)| theirs > ours),
        Some(_) => false,
    }
}

fn selector(selector: Option<impl serde::Serialize>) -> LabelSelector {
    selector
        .and_then(|selector| LabelSelector::from_object(&json!(selector)).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// `matchLabelKeys`: the pod's own values of some labels join the selector.
fn with_keys(
    selector: LabelSelector,
    keys: Option<Vec<String>>,
    mismatched: Option<Vec<String>>,
    labels: &BTreeMap<String, String>,
) -> LabelSelector {
    use amphipod_api::selector::{Operator, Requirement};
    if selector.is_nothing() {
        return selector;
    }
    let mut requirements = selector.requirements().to_vec();
    for (keys, operator) in [(keys, Operator::In), (mismatched, Operator::NotIn)] {
        for key in keys.into_iter().flatten() {
            let Some(value) = labels.get(&key) else {
                continue;
            };
            requirements.extend(Requirement::new(&key, operator, vec![value.clone()]).ok());
        }
    }
    LabelSelector::new(requirements)
}

fn spread(constraint: core::TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Spread {
    Spread {
        max_skew: i64::from(constraint.max_skew),
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
        topology_key: constraint.topology_key,
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
        selector: with_keys(
            selector(constraint.label_selector),
            constraint.match_label_keys,
            None,
            labels,
        ),
        honor_node_selection: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn claims(volumes: Option<Vec<core::Volume>>, pod: &str) -> Vec<PodClaim> {
    let volumes = volumes.into_iter().flatten();
    volumes
        .filter_map(|volume| {
            let ephemeral = volume.ephemeral.is_some();
            let name = match volume.persistent_volume_claim {
                Some(source) => source.claim_name,
                None if ephemeral => format!("{pod}-{}", volume.name),
                None => return None,
            };
            Some(PodClaim { name, ephemeral })
        })
        .collect()
}

fn pod_term(
    term: core::PodAffinityTerm,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> PodTerm {
    let namespace_selector = term.namespace_selector.map(|s| selector(Some(s)));
    let mut namespaces = term.namespaces.unwrap_or_default();
    if namespaces.is_empty() && namespace_selector.is_none() {
        namespaces.push(namespace.to_owned());
    }
    PodTerm {
        selector: with_keys(
            selector(term.label_selector),
            term.match_label_keys,
            term.mismatch_label_keys,
            labels,
        ),
        namespaces,
        namespace_selector,
        topology_key: term.topology_key,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let taint: core::Taint =
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"}))
                .unwrap();
        let tolerated =
            |toleration| tolerates(&serde_json::from_value(toleration).unwrap(), &taint);
        assert!(tolerated(json!({"operator": "Exists"})));
        assert!(tolerated(json!({"key": "k", "operator": "Exists"})));
        assert!(tolerated(
            json!({"key": "k", "value": "v", "effect": "NoSchedule"})
        ));
        assert!(!tolerated(json!({"key": "k", "value": "w"})));
        assert!(!tolerated(
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})
        ));
        assert!(!tolerated(json!({"key": "j", "operator": "Exists"})));
    }

    #[test]
    fn host_ports_conflict_on_equal_or_wild_addresses() {
        let port = |ip: &str, port| HostPort {
            ip: ip.into(),
            protocol: "TCP".into(),
            port,
        };
        assert!(port("", 80).conflicts_with(&port("10.0.0.1", 80)));
        assert!(!port("10.0.0.2", 80).conflicts_with(&port("10.0.0.1", 80)));
        assert!(!port("", 81).conflicts_with(&port("", 80)));
    }
}
