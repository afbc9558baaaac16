//! Pods that want to be near other pods, or far from them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::scheduler::framework::{Hopes, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::scheduler::pod::{PodInfo, PodTerm};
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// `podAffinity` and `podAntiAffinity`, in both directions: a pod that is there may repel the one that comes.
pub struct InterPodAffinity;

/// A domain: the topology key, and the nodes' value for it.
type Domain = (String, String);

struct Near {
    /// Domains where each required affinity term finds a pod; `None` where the pod itself may be the first.
    wanted: Vec<Option<HashSet<String>>>,
    /// Domains that the pod's own anti-affinity forbids.
    avoided: HashSet<Domain>,
    /// Domains that pods there forbid to it.
    repelled: HashSet<Domain>,
    /// What preferences add to, or take from, each domain.
    preferences: HashMap<Domain, i64>,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Prepared> {
        let own = !(pod.affinity.is_empty()
            && pod.anti_affinity.is_empty()
            && pod.preferred_affinity.is_empty()
            && pod.preferred_anti_affinity.is_empty());
        if !own && snapshot.choosy == 0 {
            return None;
        }
        let labels_of = |namespace: &str| -> BTreeMap<String, String> {
            snapshot.labels_of_namespace(namespace)
        };
        let chooses = |term: &PodTerm, other: &PodInfo| term.chooses(other, &labels_of);
        let mut near = Near {
            wanted: vec![Some(HashSet::new()); pod.affinity.len()],
            avoided: HashSet::new(),
            repelled: HashSet::new(),
            preferences: HashMap::new(),
        };
        let mut found_any = false;
        for node in snapshot.nodes() {
            let domain = |term: &PodTerm| {
                Some((
                    term.topology_key.clone(),
                    node.labels.get(&term.topology_key)?.clone(),
                ))
            };
            for other in &node.pods {
                // Upstream asks for all terms at once: a pod counts only if every term chooses it.
                if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| chooses(term, other))
                {
                    found_any = true;
                    for (term, domains) in pod.affinity.iter().zip(&mut near.wanted) {
                        if let (Some(domains), Some((_, value))) = (domains, domain(term)) {
                            domains.insert(value);
                        }
                    }
                }
                near.avoided.extend(
                    pod.anti_affinity
                        .iter()
                        .filter(|term| chooses(term, other))
                        .filter_map(domain),
                );
                near.repelled.extend(
                    other
                        .anti_affinity
                        .iter()
                        .filter(|term| chooses(term, pod))
                        .filter_map(domain),
                );
                let mut prefer = |terms: &[(i32, PodTerm)], of: &PodInfo, sign: i64| {
                    for (weight, term) in terms.iter().filter(|(_, term)| chooses(term, of)) {
                        if let Some(domain) = domain(term) {
                            *near.preferences.entry(domain).or_default() +=
                                sign * i64::from(*weight);
                        }
                    }
                };
                prefer(&pod.preferred_affinity, other, 1);
                prefer(&pod.preferred_anti_affinity, other, -1);
                prefer(&other.preferred_affinity, pod, 1);
                prefer(&other.preferred_anti_affinity, pod, -1);
            }
        }
        // The first of a group that wants to be together finds nobody yet, and may begin anywhere.
        if !found_any && pod.affinity.iter().all(|term| chooses(term, pod)) {
            near.wanted.iter_mut().for_each(|domains| *domains = None);
        }
        Some(Box::new(near))
    }

    fn filter(&self, prepared: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        let Some(near) = prepared.downcast_ref::<Near>() else {
            return Vec::new();
        };
        let is_in = |domains: &HashSet<Domain>| {
            domains
                .iter()
                .any(|(key, value)| node.labels.get(key) == Some(value))
        };
        for (term, domains) in pod.affinity.iter().zip(&near.wanted) {
            let here = node.labels.get(&term.topology_key);
            if !here.is_some_and(|here| {
                domains
                    .as_ref()
                    .is_none_or(|domains| domains.contains(here))
            }) {
                return vec![Refusal::final_("node(s) didn't match pod affinity rules")];
            }
        }
        if is_in(&near.avoided) {
            return vec![Refusal::new("node(s) didn't match pod anti-affinity rules")];
        }
        if is_in(&near.repelled) {
            return vec![Refusal::new(
                "node(s) didn't satisfy existing pods anti-affinity rules",
            )];
        }
        Vec::new()
    }

    fn score(&self, prepared: &Prepared, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(near) = prepared.downcast_ref::<Near>() else {
            return 0;
        };
        near.preferences
            .iter()
            .filter(|((key, value), _)| node.labels.get(key) == Some(value))
            .map(|(_, sum)| sum)
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (Some(least), Some(most)) =
            (scores.iter().copied().min(), scores.iter().copied().max())
        else {
            return;
        };
        for score in scores {
            *score = if most == least {
                0
            } else {
                MAX_SCORE * (*score - least) / (most - least)
            };
        }
    }

    fn weight(&self) -> i64 {
        2
    }

    fn hopes(&self) -> Hopes {
        Hopes {
            node: true,
            pod_gone: true,
            pod_came: true,
            ..Default::default()
        }
    }
}
