//! Room on a node, and where there is most.

use crate::scheduler::framework::{Hopes, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::scheduler::pod::PodInfo;
use crate::scheduler::snapshot::{NodeInfo, Snapshot, weight};

/// What is asked for must be free; the emptier node is the better one (`LeastAllocated`).
pub struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        let (asked, have, taken) = (&pod.requests, &node.allocatable, &node.requested);
        let mut refusals = Vec::new();
        if node.pods.len() as i64 + 1 > have.pods {
            refusals.push(Refusal::new("Too many pods"));
        }
        let mut check = |name: &str, asked: i64, have: i64, taken: i64| {
            if asked > 0 && asked > have - taken {
                // More than the whole node has stays impossible, whoever leaves.
                let reason = format!("Insufficient {name}");
                refusals.push(Refusal {
                    reason,
                    final_: asked > have,
                });
            }
        };
        check("cpu", asked.cpu, have.cpu, taken.cpu);
        check("memory", asked.memory, have.memory, taken.memory);
        check(
            "ephemeral-storage",
            asked.storage,
            have.storage,
            taken.storage,
        );
        for (name, asked) in &asked.others {
            let of = |list: &std::collections::BTreeMap<String, i64>| {
                list.get(name).copied().unwrap_or(0)
            };
            check(name, *asked, of(&have.others), of(&taken.others));
        }
        refusals
    }

    fn score(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (cpu, memory) = weight(pod);
        let free = |have: i64, taken: i64| {
            if have <= 0 {
                0
            } else {
                (have - taken).max(0) * MAX_SCORE / have
            }
        };
        let cpu = free(node.allocatable.cpu, node.weighed.0 + cpu);
        let memory = free(node.allocatable.memory, node.weighed.1 + memory);
        (cpu + memory) / 2
    }

    fn hopes(&self) -> Hopes {
        Hopes {
            node: true,
            pod_gone: true,
            pod_came: false,
            ..Default::default()
        }
    }
}

/// A node whose CPU and memory fill up evenly is the better one.
pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// Pods that ask for nothing cannot unbalance anything.
    fn prepare(&self, pod: &PodInfo, _: &Snapshot) -> Option<Prepared> {
        (pod.requests.cpu > 0 || pod.requests.memory > 0).then(|| Box::new(()) as Prepared)
    }

    fn score(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let share = |taken: i64, have: i64| {
            if have <= 0 {
                1.0
            } else {
                (taken as f64 / have as f64).min(1.0)
            }
        };
        let cpu = share(node.requested.cpu + pod.requests.cpu, node.allocatable.cpu);
        let memory = share(
            node.requested.memory + pod.requests.memory,
            node.allocatable.memory,
        );
        // Of two figures, the standard deviation is half their distance.
        ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
    }
}
