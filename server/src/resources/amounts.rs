//! Amounts of resources by name, as objects ask for them: what LimitRange and ResourceQuota compare.

use std::collections::BTreeMap;

use amphipod_api::meta::{array_at, map_at, str_at};
use amphipod_api::quantity::Quantity;
use serde_json::Value;

/// Amounts by the name of the resource: `cpu`, `memory`, `example.com/gpu`.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts in a list as the API has it. What does not parse was refused long before, and is left out.
pub fn of_list(object: &Value, path: &[&str]) -> Amounts {
    map_at(object, path)
        .iter()
        .filter_map(|(name, text)| Some((name.clone(), Quantity::from_value(text).ok()?)))
        .collect()
}

/// Adds amounts to others.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).copied().unwrap_or(Quantity::ZERO);
        // The format is that of the first that is not nothing.
        let sum = if sum.is_zero() {
            *amount
        } else {
            sum + *amount
        };
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        let have = to.entry(name.clone()).or_insert(*amount);
        *have = (*have).max(*amount);
    }
}

/// What a pod (or a template) has of `requests` or `limits`: its containers and sidecars together, or the largest moment of its start,
/// whichever is more, plus overhead
/// (<https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>). Amounts of the
/// pod as a whole stand for the sum of its containers'.
pub fn of_pod(pod: &Value, which: &str) -> Amounts {
    let mut running = Amounts::new();
    for container in array_at(pod, &["spec", "containers"]) {
        add(&mut running, &of_list(container, &["resources", which]));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in array_at(pod, &["spec", "initContainers"]) {
        let own = of_list(container, &["resources", which]);
        if str_at(container, &["restartPolicy"]) == "Always" {
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &own);
            raise(&mut starting, &moment);
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &starting);
    running.extend(of_list(pod, &["spec", "resources", which]));
    let overhead = of_list(pod, &["spec", "overhead"]);
    if which == "requests" {
        add(&mut running, &overhead);
    } else {
        // Without a limit of its own, overhead does not make one.
        let limited = overhead
            .into_iter()
            .filter(|(name, _)| running.contains_key(name))
            .collect();
        add(&mut running, &limited);
    }
    running
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_its_containers_or_for_the_largest_moment_of_its_start() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}}});
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({"spec": {
            "initContainers": [sidecar, container("1")],
            "containers": [container("300m"), container("300m")],
            "overhead": {"cpu": "10m", "memory": "1Gi"},
        }});
        let text = |amounts: Amounts| -> Vec<String> {
            amounts.iter().map(|(n, a)| format!("{n} {a}")).collect()
        };
        assert_eq!(text(of_pod(&pod, "requests")), ["cpu 1210m", "memory 1Gi"]);
        assert_eq!(text(of_pod(&pod, "limits")), ["memory 4Gi"]);
    }
}
