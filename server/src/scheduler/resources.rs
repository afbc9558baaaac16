//! Amounts of resources, as the scheduler adds and compares them.

use std::collections::BTreeMap;

use amphipod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What a pod asks for, or a node has. Amounts that do not parse count as zero: validation has refused them long before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of `ephemeral-storage`.
    pub storage: i64,
    /// How many pods; a node's capacity for them, or 1.
    pub pods: i64,
    /// Extended resources and huge pages, by name.
    pub others: BTreeMap<String, i64>,
}

type List = BTreeMap<String, Text>;

impl Resources {
    /// From a `requests`, `allocatable` or the like.
    pub fn of(list: Option<&List>) -> Resources {
        let mut resources = Resources::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(quantity) = text.0.parse::<Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.storage = quantity.value(),
                "pods" => resources.pods = quantity.value(),
                other => drop(resources.others.insert(other.to_owned(), quantity.value())),
            }
        }
        resources
    }

    /// What a pod occupies: its containers and sidecars together, or the largest moment of its start, whichever is more, plus overhead
    /// (<https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>).
    pub fn of_pod(spec: &PodSpec) -> Resources {
        let requests = |container: &Container| {
            Resources::of(
                container
                    .resources
                    .as_ref()
                    .and_then(|resources| resources.requests.as_ref()),
            )
        };
        let mut running = Resources::default();
        for container in &spec.containers {
            running.add(&requests(container));
        }
        let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
        for container in spec.init_containers.iter().flatten() {
            let mut moment = requests(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&moment);
                moment = sidecars.clone();
            } else {
                moment.add(&sidecars);
            }
            starting.raise_to(&moment);
        }
        running.add(&sidecars);
        running.raise_to(&starting);
        // Requests of the pod as a whole (KEP-2837) stand for the sum of its containers'.
        let whole = spec
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref());
        for name in whole.into_iter().flat_map(BTreeMap::keys) {
            match name.as_str() {
                "cpu" => running.cpu = 0,
                "memory" => running.memory = 0,
                _ => drop(running.others.remove(name)),
            }
        }
        running.add(&Resources::of(whole));
        running.add(&Resources::of(spec.overhead.as_ref()));
        running.pods = 1;
        running
    }

    pub fn add(&mut self, other: &Resources) {
        self.combine(other, |a, b| a.saturating_add(b));
    }

    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, |a, b| a.saturating_sub(b));
    }

    fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, with: impl Fn(i64, i64) -> i64) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.storage = with(self.storage, other.storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.others {
            match self.others.get_mut(name) {
                Some(have) => *have = with(*have, *amount),
                None => drop(self.others.insert(name.clone(), with(0, *amount))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn requests(spec: serde_json::Value) -> Resources {
        Resources::of_pod(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_pod_occupies_the_largest_moment_of_its_life() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        assert_eq!(
            requests(json!({"containers": [container("100m"), container("0.2")]})).cpu,
            300
        );
        let large_start =
            json!({"containers": [container("100m")], "initContainers": [container("1")]});
        assert_eq!(requests(large_start).cpu, 1000);
        let beside = json!({"containers": [container("1")], "initContainers": [sidecar("500m"), container("800m")]});
        assert_eq!(requests(beside).cpu, 1500);
        let overhead =
            json!({"containers": [container("1")], "overhead": {"cpu": "10m", "memory": "1Mi"}});
        assert_eq!(
            (requests(overhead.clone()).cpu, requests(overhead).memory),
            (1010, 1 << 20)
        );
        let whole =
            json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}});
        assert_eq!(requests(whole).cpu, 3000);
    }
}
