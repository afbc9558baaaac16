//! Quality-of-service classes (<https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>) and OOM scores.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::requests::{amounts, limits, requests};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod: by CPU and memory alone.
pub fn class(spec: &PodSpec) -> QosClass {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let mut any = false;
    let mut guaranteed = true;
    let all: Vec<(super::requests::Amounts, super::requests::Amounts)> = match &spec.resources {
        Some(r) if r.requests.is_some() || r.limits.is_some() => {
            let (mut req, lim) = (amounts(r.requests.as_ref()), amounts(r.limits.as_ref()));
            for (k, v) in &lim {
                req.entry(k.clone()).or_insert(*v);
            }
            vec![(req, lim)]
        }
        _ => spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|c| (requests(c), limits(c)))
            .collect(),
    };
    for (req, lim) in all {
        for k in COMPUTE {
            let (r, l) = (
                req.get(k).copied().unwrap_or(0),
                lim.get(k).copied().unwrap_or(0),
            );
            any |= r > 0 || l > 0;
            guaranteed &= l > 0 && r == l;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// `oom_score_adj` of a container, as the kubelet computes it: the more of the node's memory it asked for, the safer it is.
pub fn oom_score_adj(spec: &PodSpec, class: QosClass, c: &Container, memory_capacity: i64) -> i32 {
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    if spec.priority.is_some_and(|p| p >= SYSTEM_CRITICAL) {
        return -997;
    }
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let mut request = requests(c).get("memory").copied().unwrap_or(0);
            if c.restart_policy.as_deref() == Some("Always") {
                // A sidecar is never killed before the containers that it serves.
                let least = spec
                    .containers
                    .iter()
                    .map(|c| requests(c).get("memory").copied().unwrap_or(0))
                    .min();
                request = request.max(least.unwrap_or(0));
            }
            let adj =
                1000 - (1000 * i128::from(request) / i128::from(memory_capacity.max(1))) as i64;
            // 1000 - 997 = 3 is Guaranteed's neighbour; 1000 is BestEffort's.
            adj.clamp(3, 999) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(resources: serde_json::Value) -> PodSpec {
        let json = serde_json::json!({"containers": [{"name": "a", "resources": resources}]});
        serde_json::from_value(json).unwrap_or_default()
    }

    #[test]
    fn classes_follow_cpu_and_memory() {
        use serde_json::json;
        for (resources, want) in [
            (json!({}), QosClass::BestEffort),
            (
                json!({"requests": {"ephemeral-storage": "1Gi"}}),
                QosClass::BestEffort,
            ),
            (json!({"requests": {"cpu": "1"}}), QosClass::Burstable),
            (json!({"limits": {"cpu": "1"}}), QosClass::Burstable),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                QosClass::Guaranteed,
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
                QosClass::Burstable,
            ),
        ] {
            assert_eq!(class(&spec(resources.clone())), want, "{resources}");
        }
    }

    #[test]
    fn oom_scores_are_the_kubelets() {
        use serde_json::json;
        let capacity = 8_000_000_000;
        for (resources, want) in [
            (json!({}), 1000),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997),
            (json!({"requests": {"memory": "4000000000"}}), 500),
            (json!({"requests": {"memory": "8000000000"}}), 3),
            (json!({"requests": {"memory": "1"}}), 999),
        ] {
            let s = spec(resources.clone());
            assert_eq!(
                oom_score_adj(&s, class(&s), &s.containers[0], capacity),
                want,
                "{resources}"
            );
        }
    }
}
