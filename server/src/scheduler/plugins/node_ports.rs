//! Ports of the node that pods take for themselves.

use crate::scheduler::framework::{Hopes, Plugin, Prepared, Refusal};
use crate::scheduler::pod::PodInfo;
use crate::scheduler::snapshot::{NodeInfo, Snapshot};

/// `hostPort`: one pod for each on a node.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare(&self, pod: &PodInfo, _: &Snapshot) -> Option<Prepared> {
        (!pod.host_ports.is_empty()).then(|| Box::new(()) as Prepared)
    }

    fn filter(&self, _: &Prepared, pod: &PodInfo, node: &NodeInfo) -> Vec<Refusal> {
        let mut taken = node.pods.iter().flat_map(|other| &other.host_ports);
        if taken.any(|taken| pod.host_ports.iter().any(|port| port.conflicts_with(taken))) {
            return vec![Refusal::new(
                "node(s) didn't have free ports for the requested pod ports",
            )];
        }
        Vec::new()
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
