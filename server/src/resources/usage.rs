//! What objects use of a ResourceQuota. <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

use amphipod_api::meta::{array_at, str_at};
use amphipod_api::quantity::{Format, Quantity};
use serde_json::Value;

use super::Lookup;
use super::amounts::{Amounts, add, of_list, of_pod};
use super::kinds::{quota_covers, quota_is_scoped};
use super::volumes::class_of;

/// Kinds that quotas count by the plural alone, too.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// Between a class and what of it is limited: `fast.storageclass.storage.k8s.io/requests.storage`.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// What one object of a resource (`pods`, `deployments.apps`) uses, by the names in which quotas are written.
pub fn of_object(resource: &str, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let mut count = |name: &str, number: usize| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        used.insert(
            name.to_owned(),
            Quantity::from_units(number, Format::DecimalSi),
        );
    };
    count(&format!("count/{resource}"), 1);
    if COUNTED.contains(&resource) {
        count(resource, 1);
    }
    match resource {
        "services" => {
            let kind = str_at(object, &["spec", "type"]);
            let ports = array_at(object, &["spec", "ports"]);
            let node_ports = match kind {
                "NodePort" => ports.len(),
                "LoadBalancer" => ports.iter().filter(|p| p.get("nodePort").is_some()).count(),
                _ => 0,
            };
            count("services.nodeports", node_ports);
            count(
                "services.loadbalancers",
                usize::from(kind == "LoadBalancer"),
            );
        }
        "persistentvolumeclaims" => {
            let of_class = class_of(object).filter(|class| !class.is_empty());
            let of_class = of_class.map(|class| format!("{class}{OF_CLASS}"));
            let one = Quantity::from_units(1, Format::DecimalSi);
            if let Some(class) = &of_class {
                used.insert(format!("{class}persistentvolumeclaims"), one);
            }
            let asked = of_list(object, &["spec", "resources", "requests"]);
            if let Some(size) = asked.get("storage") {
                let class = of_class.unwrap_or_default();
                used.insert("requests.storage".to_owned(), *size);
                used.insert(format!("{class}requests.storage"), *size);
            }
        }
        // One that is over holds nothing any more.
        "pods" if !matches!(str_at(object, &["status", "phase"]), "Succeeded" | "Failed") => {
            count("pods", 1);
            for (name, amount) in of_pod(object, "requests") {
                if ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str())
                    || name.starts_with("hugepages-")
                {
                    used.insert(name.clone(), amount);
                }
                used.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in of_pod(object, "limits") {
                used.insert(format!("limits.{name}"), amount);
            }
        }
        _ => {}
    }
    used
}

/// Whether a quota looks at objects of a resource at all, and at this one.
pub fn concerns(quota: &Value, resource: &str, object: &Value) -> bool {
    if resource == "pods" {
        quota_covers(quota, object)
    } else {
        !quota_is_scoped(quota)
    }
}

/// The resource whose objects use what has this name in a quota.
fn resource_of(name: &str) -> &str {
    match name {
        "services.nodeports" | "services.loadbalancers" => "services",
        "requests.storage" => "persistentvolumeclaims",
        _ if name.contains(OF_CLASS) => "persistentvolumeclaims",
        _ => match name.strip_prefix("count/") {
            Some(resource) => resource,
            None if COUNTED.contains(&name) => name,
            None => "pods",
        },
    }
}

/// What all objects of the quota's namespace use of it: an amount for each that it limits.
pub fn of_namespace(lookup: &dyn Lookup, namespace: &str, quota: &Value) -> Amounts {
    let hard = of_list(quota, &["spec", "hard"]);
    let mut resources: Vec<&str> = hard.keys().map(|name| resource_of(name)).collect();
    resources.sort_unstable();
    resources.dedup();
    let mut all = Amounts::new();
    for resource in resources {
        for object in lookup.list(resource, Some(namespace)) {
            if concerns(quota, resource, &object) {
                add(&mut all, &of_object(resource, &object));
            }
        }
    }
    hard.into_keys()
        .map(|name| {
            let used = all.get(&name).copied().unwrap_or(Quantity::ZERO);
            (name, used)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_counted_and_measured() {
        let used = |resource: &str, object: Value, name: &str| {
            of_object(resource, &object)
                .get(name)
                .map(Quantity::to_string)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(used("secrets", json!({}), "secrets"), some("1"));
        assert_eq!(
            used("deployments.apps", json!({}), "count/deployments.apps"),
            some("1")
        );
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(used("services", service, "services.nodeports"), some("2"));
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        for (name, amount) in [
            ("persistentvolumeclaims", "1"),
            ("requests.storage", "2Gi"),
            ("fast.storageclass.storage.k8s.io/requests.storage", "2Gi"),
            (
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims",
                "1",
            ),
        ] {
            let claim = claim.clone();
            assert_eq!(
                used("persistentvolumeclaims", claim, name),
                some(amount),
                "{name}"
            );
        }
        let pod = |phase: &str| {
            json!({"status": {"phase": phase}, "spec": {"containers": [{"resources": {
            "requests": {"cpu": "500m", "example.com/dongle": "2"}, "limits": {"cpu": "1"}}}]}})
        };
        assert_eq!(used("pods", pod("Running"), "cpu"), some("500m"));
        assert_eq!(used("pods", pod("Running"), "limits.cpu"), some("1"));
        assert_eq!(
            used("pods", pod("Running"), "requests.example.com/dongle"),
            some("2")
        );
        assert_eq!(used("pods", pod("Failed"), "pods"), None);
        assert_eq!(used("pods", pod("Failed"), "count/pods"), some("1"));
    }

    #[test]
    fn scoped_quotas_are_for_their_pods_only() {
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let deadline = json!({"spec": {"activeDeadlineSeconds": 1, "containers": [{"name": "a"}]}});
        let forever = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        for (scope, with_deadline, without) in [
            ("Terminating", true, false),
            ("NotTerminating", false, true),
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
        ] {
            assert_eq!(
                concerns(&quota(scope), "pods", &deadline),
                with_deadline,
                "{scope}"
            );
            assert_eq!(
                concerns(&quota(scope), "pods", &forever),
                without,
                "{scope}"
            );
            assert!(!concerns(&quota(scope), "secrets", &json!({})));
        }
        let classes = json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        let high = json!({"spec": {"priorityClassName": "high"}});
        assert!(concerns(&classes, "pods", &high));
        assert!(!concerns(&classes, "pods", &forever));
    }
}
