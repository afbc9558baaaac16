//! Taints and tolerations.

use crate::scheduler::framework::{Plugin, Prepared, Refusal, normalize};
use crate::scheduler::pod::{PodInfo, tolerates};
use crate::scheduler::snapshot::NodeInfo;

/// Nodes repel pods that do not tolerate their taints.
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        match pod.untolerated(&node.taints, &["NoSchedule", "NoExecute"]) {
            None => Vec::new(),
            Some(_) => vec![Refusal::final_("node(s) had untolerated taint(s)")],
        }
    }

    /// The number of `PreferNoSchedule` taints that are not tolerated.
    fn score(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let unwelcome = node.taints.iter().filter(|taint| {
            taint.effect == "PreferNoSchedule"
                && !pod
                    .tolerations
                    .iter()
                    .any(|toleration| tolerates(toleration, taint))
        });
        unwelcome.count() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, true);
    }

    fn weight(&self) -> i64 {
        3
    }
}
