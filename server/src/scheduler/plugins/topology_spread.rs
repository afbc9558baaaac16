//! Spreading pods over zones, nodes, or whatever a label names.

use std::collections::HashMap;

use crate::scheduler::framework::{Hopes, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::scheduler::pod::{PodInfo, Spread};
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// `topologySpreadConstraints` (<https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/>).
pub struct PodTopologySpread;

/// For each constraint: how many matching pods each domain has, and whether the pod itself counts.
struct Counts(Vec<(HashMap<String, i64>, bool)>);

/// Nodes that take part in a constraint.
fn counts_for(pod: &PodInfo, constraint: &Spread, node: &NodeInfo) -> bool {
    let every_key = pod
        .spread
        .iter()
        .filter(|c| c.hard == constraint.hard)
        .all(|c| node.labels.contains_key(&c.topology_key));
    every_key
        && (!constraint.honor_node_selection || pod.selects_node(&node.name, &node.labels))
        && (!constraint.honor_taints
            || pod
                .untolerated(&node.taints, &["NoSchedule", "NoExecute"])
                .is_none())
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Prepared> {
        if pod.spread.is_empty() {
            return None;
        }
        let counts = pod.spread.iter().map(|constraint| {
            let mut domains: HashMap<String, i64> = HashMap::new();
            for node in snapshot
                .nodes()
                .filter(|node| counts_for(pod, constraint, node))
            {
                let Some(domain) = node.labels.get(&constraint.topology_key) else {
                    continue;
                };
                let matching = node.pods.iter().filter(|other| {
                    other.namespace == pod.namespace
                        && !other.deleting
                        && constraint.selector.matches(&other.labels)
                });
                *domains.entry(domain.clone()).or_default() += matching.count() as i64;
            }
            (domains, constraint.selector.matches(&pod.labels))
        });
        Some(Box::new(Counts(counts.collect())))
    }

    fn filter(&self, prepared: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        let Some(Counts(counts)) = prepared.downcast_ref() else {
            return Vec::new();
        };
        for (constraint, (domains, self_counts)) in
            pod.spread.iter().zip(counts).filter(|(c, _)| c.hard)
        {
            let Some(domain) = node.labels.get(&constraint.topology_key) else {
                return vec![Refusal::final_(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                )];
            };
            let fewest = if (domains.len() as i64) < constraint.min_domains {
                0
            } else {
                domains.values().copied().min().unwrap_or(0)
            };
            let here = domains.get(domain).copied().unwrap_or(0);
            if here + i64::from(*self_counts) - fewest > constraint.max_skew {
                return vec![Refusal::new(
                    "node(s) didn't match pod topology spread constraints",
                )];
            }
        }
        Vec::new()
    }

    /// How many matching pods there are already, in all of the soft constraints' domains that the node is in.
    fn score(&self, prepared: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Counts(counts)) = prepared.downcast_ref() else {
            return 0;
        };
        let soft = pod
            .spread
            .iter()
            .zip(counts)
            .filter(|(constraint, _)| !constraint.hard);
        let crowds = soft.map(|(constraint, (domains, _))| {
            let Some(domain) = node.labels.get(&constraint.topology_key) else {
                return i64::from(i32::MAX);
            };
            // Domains of which there are many weigh more, or hostnames would drown zones.
            let weight = (domains.len() as f64 + 2.0).ln();
            (domains.get(domain).copied().unwrap_or(0) as f64 * weight * 100.0) as i64
                + constraint.max_skew
                - 1
        });
        crowds.sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (Some(least), Some(most)) =
            (scores.iter().copied().min(), scores.iter().copied().max())
        else {
            return;
        };
        for score in scores {
            *score = if most == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (most + least - *score) / most
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
