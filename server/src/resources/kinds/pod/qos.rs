//! The quality-of-service class: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>.

use std::collections::BTreeMap;

use amphipod_api::Quantity;
use amphipod_api::meta::{array_at, map_at};
use serde_json::Value;

/// `Guaranteed`, `Burstable` or `BestEffort`, of a pod's spec.
pub fn qos_class(spec: &Value) -> &'static str {
    let pod_level = map_at(spec, &["resources"]);
    let everyone: Vec<&Value> = if pod_level.is_empty() {
        ["initContainers", "containers"]
            .iter()
            .flat_map(|list| array_at(spec, &[*list]))
            .map(|c| &c["resources"])
            .collect()
    } else {
        vec![&spec["resources"]]
    };
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let mut guaranteed = true;
    for resources in everyone {
        add(resources, "requests", &mut requests);
        let limited = add(resources, "limits", &mut limits);
        guaranteed &= limited == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds what is asked of CPU and memory; how many of the two are.
fn add(resources: &Value, field: &str, sums: &mut BTreeMap<&'static str, Quantity>) -> usize {
    let asked = map_at(resources, &[field]);
    let mut count = 0;
    for name in ["cpu", "memory"] {
        let Some(quantity) = asked.get(name).and_then(|v| Quantity::from_value(v).ok()) else {
            continue;
        };
        if quantity.signum() <= 0 {
            continue;
        }
        count += 1;
        let sum = match sums.remove(name) {
            Some(sum) => sum + quantity,
            None => quantity,
        };
        sums.insert(name, sum);
    }
    count
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (json!({"containers": [{"name": "a"}]}), "BestEffort"),
            (
                json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"requests": both, "limits": both}}]}),
                "Guaranteed",
            ),
            (
                json!({"containers": [{"resources": {"requests": both, "limits": both}}, {"name": "b"}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"requests": {"cpu": "1"}, "limits": both}}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}),
                "BestEffort",
            ),
        ];
        for (spec, class) in cases {
            assert_eq!(qos_class(&spec), class, "{spec}");
        }
    }
}
