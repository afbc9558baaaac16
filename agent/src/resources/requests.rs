//! Sums of requests and limits over a pod, as scheduler and kubelet compute them
//! (<https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>).

use std::collections::BTreeMap;

use amphipod_api::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// Amounts by resource name: CPU in thousandths, everything else in whole units.
pub type Amounts = BTreeMap<String, i64>;

/// A quantity as a number in the unit of `resource`. What cannot be parsed counts as zero (the server refused it long ago).
pub fn amount(resource: &str, q: &ApiQuantity) -> i64 {
    let q: Quantity = q.0.parse().unwrap_or(Quantity::ZERO);
    if resource == "cpu" {
        q.milli_value()
    } else {
        q.value()
    }
}

pub fn amounts(list: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    list.into_iter()
        .flatten()
        .map(|(k, q)| (k.clone(), amount(k, q)))
        .collect()
}

pub fn requests(c: &Container) -> Amounts {
    let mut r = amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    // The server defaults requests to limits; an agent that got the pod another way does the same.
    for (k, v) in limits(c) {
        r.entry(k).or_insert(v);
    }
    r
}

pub fn limits(c: &Container) -> Amounts {
    amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

fn add(to: &mut Amounts, from: &Amounts) {
    for (k, v) in from {
        let e = to.entry(k.clone()).or_default();
        *e = e.saturating_add(*v);
    }
}

fn max(to: &mut Amounts, from: &Amounts) {
    for (k, v) in from {
        let e = to.entry(k.clone()).or_default();
        *e = (*e).max(*v);
    }
}

fn total(spec: &PodSpec, of: fn(&Container) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    for c in &spec.containers {
        add(&mut sum, &of(c));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for c in spec.init_containers.iter().flatten() {
        let mine = of(c);
        if c.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &mine);
            max(&mut init, &sidecars);
        } else {
            let mut with = mine;
            add(&mut with, &sidecars);
            max(&mut init, &with);
        }
    }
    add(&mut sum, &sidecars);
    max(&mut sum, &init);
    sum
}

/// What the pod reserves on its node, overhead included.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut sum = total(spec, requests);
    if let Some(pod) = &spec.resources {
        // Pod-level resources (KEP-2837) win over the sum.
        sum.extend(amounts(pod.limits.as_ref()));
        sum.extend(amounts(pod.requests.as_ref()));
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// Limits of the whole pod for each resource that *all* containers limit (or that the pod itself limits).
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    let mut sum = total(spec, limits);
    let all = || {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    };
    sum.retain(|k, _| all().all(|c| limits(c).get(k).is_some_and(|v| *v > 0)));
    if let Some(pod) = &spec.resources {
        sum.extend(amounts(pod.limits.as_ref()));
    }
    for (k, v) in amounts(spec.overhead.as_ref()) {
        if let Some(e) = sum.get_mut(&k) {
            *e += v;
        }
    }
    sum
}

/// Whether a resource is of a domain that is not Kubernetes' own.
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap_or_default()
    }

    fn c(name: &str, cpu: &str, always: bool) -> serde_json::Value {
        let mut v = serde_json::json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        if always {
            v["restartPolicy"] = "Always".into();
        }
        v
    }

    #[test]
    fn sidecars_add_to_containers_and_init_containers_count_by_their_peak() {
        let s = spec(serde_json::json!({
            "initContainers": [c("i", "100m", false), c("s", "50m", true), c("j", "400m", false)],
            "containers": [c("a", "100m", false), c("b", "200m", false)],
            "overhead": {"cpu": "10m"},
        }));
        // containers 300 + sidecar 50 = 350; peak of init: j 400 + s 50 = 450; plus overhead 10.
        assert_eq!(pod_requests(&s)["cpu"], 460);
    }

    #[test]
    fn a_limit_of_the_pod_needs_a_limit_on_every_container() {
        let s = spec(serde_json::json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
            {"name": "b", "resources": {"limits": {"cpu": "500m"}}},
        ]}));
        assert_eq!(
            pod_limits(&s).into_iter().collect::<Vec<_>>(),
            [("cpu".to_string(), 1500)]
        );
        assert_eq!(
            pod_requests(&s)["memory"],
            1 << 30,
            "requests default to limits"
        );
    }
}
