//! Whether this node can run a pod that was bound to it, told as the kubelet tells it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::container::security::forbidden_sysctl;
use crate::resources::requests::{Amounts, is_extended, pod_requests};

/// What admission knows of the node.
pub struct Node<'a> {
    pub allocatable: &'a Amounts,
    pub max_pods: u32,
    pub labels: &'a BTreeMap<String, String>,
    pub allowed_sysctls: &'a [String],
}

/// Why not: `status.reason` and `status.message`.
pub type Refusal = (String, String);

fn host_ports(pod: &Pod) -> Vec<(i32, String, String)> {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let ip = p
                .host_ip
                .clone()
                .filter(|ip| ip != "0.0.0.0" && ip != "::")
                .unwrap_or_default();
            Some((port, p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip))
        })
        .collect()
}

/// `others`: the pods that hold resources here.
pub fn admit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    node: &Node,
) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let refuse = |reason: &str, message: String| Err((reason.to_string(), message));
    if let Some(name) = forbidden_sysctl(pod, node.allowed_sysctls) {
        return refuse(
            "SysctlForbidden",
            format!("forbidden sysctl: \"{name}\" not allowlisted"),
        );
    }
    if spec.host_users == Some(false) {
        return refuse("UnexpectedAdmissionError", "Allocate failed due to user namespaces are not supported on this node, which is unexpected".into());
    }
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(k, v)| node.labels.get(k) == Some(v));
    if !selected && !node.labels.is_empty() {
        return refuse("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into());
    }
    let mine = host_ports(pod);
    let taken = others
        .clone()
        .flat_map(host_ports)
        .any(|(port, protocol, ip)| {
            mine.iter().any(|(p, pr, i)| {
                *p == port && *pr == protocol && (i.is_empty() || ip.is_empty() || *i == ip)
            })
        });
    if taken {
        return refuse("NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into());
    }
    let count = others.clone().count() as i64;
    if count + 1 > i64::from(node.max_pods) {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {}",
            node.max_pods
        );
        return refuse("OutOfpods", message);
    }
    let mut used = Amounts::new();
    for other in others.filter_map(|p| p.spec.as_ref()) {
        for (k, v) in pod_requests(other) {
            *used.entry(k).or_default() += v;
        }
    }
    for (name, wanted) in pod_requests(spec) {
        let used = used.get(&name).copied().unwrap_or(0);
        let capacity = node.allocatable.get(&name).copied();
        if capacity.is_none() && is_extended(&name) {
            // Advertised by others, who know how much there is; the scheduler has counted it.
            continue;
        }
        let capacity = capacity.unwrap_or(0);
        if wanted > 0 && used + wanted > capacity {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return refuse(&format!("OutOf{name}"), message);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn ask(new: serde_json::Value, others: &[Pod]) -> Result<(), Refusal> {
        let allocatable = [("cpu".to_string(), 2000), ("memory".to_string(), 1 << 30)].into();
        let labels = [("a".to_string(), "b".to_string())].into();
        admit(
            &pod(new),
            others.iter(),
            &Node {
                allocatable: &allocatable,
                max_pods: 2,
                labels: &labels,
                allowed_sysctls: &[],
            },
        )
    }

    #[test]
    fn refusals_are_the_kubelets() {
        let big =
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]});
        assert_eq!(ask(big.clone(), &[]), Ok(()));
        let dongle = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/dongle": "1"}}}]});
        assert_eq!(ask(dongle, &[]), Ok(()), "others advertise it");
        let (reason, message) = ask(big.clone(), &[pod(big.clone())]).unwrap_err();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000"
        );
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        assert_eq!(ask(port.clone(), &[pod(port)]).unwrap_err().0, "NodePorts");
        let small = json!({"containers": [{"name": "c"}]});
        assert_eq!(
            ask(small.clone(), &[pod(small.clone()), pod(small)])
                .unwrap_err()
                .0,
            "OutOfpods"
        );
        assert_eq!(
            ask(json!({"containers": [], "nodeSelector": {"a": "x"}}), &[])
                .unwrap_err()
                .0,
            "NodeAffinity"
        );
    }
}
