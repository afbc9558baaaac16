//! Cgroup values from requests and limits, exactly as the kubelet computes them
//! (<https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#how-pods-with-resource-limits-are-run>).

use amphipod_api::Quantity;
use amphipod_runtime::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::config::AgentConfig;

use super::qos::{QosClass, class};
use super::requests::{Amounts, limits, pod_limits, pod_requests, requests};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const PERIOD: u64 = 100_000;
const MIN_QUOTA: i64 = 1000;

/// `cpu.shares` for so many millicores.
pub fn shares(milli: i64) -> u64 {
    if milli <= 0 {
        return MIN_SHARES;
    }
    (milli as u64 * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.cfs_quota_us` for so many millicores.
pub fn quota(milli: i64) -> i64 {
    (milli.saturating_mul(PERIOD as i64) / 1000).max(MIN_QUOTA)
}

fn apply_limits(r: &mut Resources, limits: &Amounts) {
    if let Some(milli) = limits.get("cpu").filter(|m| **m > 0) {
        r.cpu_quota = Some(quota(*milli));
        r.cpu_period = Some(PERIOD);
    }
    if let Some(bytes) = limits.get("memory").filter(|b| **b > 0) {
        r.memory_limit = Some(*bytes);
    }
    for (name, bytes) in limits {
        if let Some(size) = name.strip_prefix("hugepages-")
            && let Some(size) = kernel_page_size(size)
        {
            r.hugepage_limits.insert(size, (*bytes).max(0) as u64);
        }
    }
}

/// `2Mi` is the kernel's `2MB`.
fn kernel_page_size(size: &str) -> Option<String> {
    let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "Ki" => "KB",
        "Mi" => "MB",
        "Gi" => "GB",
        _ => return None,
    };
    Some(format!("{number}{unit}"))
}

/// Limits of one container's group.
pub fn container(c: &Container) -> Resources {
    let (request, limit) = (requests(c), limits(c));
    let mut r = Resources {
        cpu_shares: Some(shares(request.get("cpu").copied().unwrap_or(0))),
        ..Default::default()
    };
    apply_limits(&mut r, &limit);
    r
}

/// Limits of the pod's group; `pids` bounds its processes and threads.
pub fn pod(spec: &PodSpec, pids: Option<i64>) -> Resources {
    let (request, limit) = (pod_requests(spec), pod_limits(spec));
    let milli = if class(spec) == QosClass::BestEffort {
        0
    } else {
        request.get("cpu").copied().unwrap_or(0)
    };
    let mut r = Resources {
        cpu_shares: Some(shares(milli)),
        pids_limit: pids,
        ..Default::default()
    };
    apply_limits(&mut r, &limit);
    r
}

/// The pod's group below the cgroup root: Guaranteed pods stand directly in it.
pub fn pod_path(spec: &PodSpec, uid: &str) -> String {
    match class(spec) {
        QosClass::Guaranteed => format!("pod{uid}"),
        QosClass::Burstable => format!("burstable/pod{uid}"),
        QosClass::BestEffort => format!("besteffort/pod{uid}"),
    }
}

/// The groups above the pods: path below the root, and limits. All pods together never take the last of the memory, so that
/// the box itself stays usable whatever they do.
pub fn groups(capacity: &Amounts, config: &AgentConfig) -> [(&'static str, Resources); 3] {
    let reserved = |name: &str| match config
        .system_reserved
        .get(name)
        .and_then(|q| q.parse::<Quantity>().ok())
    {
        Some(q) if name == "cpu" => q.milli_value(),
        Some(q) => q.value(),
        None => 0,
    };
    let have = |name: &str| capacity.get(name).copied().unwrap_or(0) - reserved(name);
    // Half the eviction threshold: eviction comes first, the kernel second.
    let memory = have("memory") - config.eviction.memory_available as i64 / 2;
    let root = Resources {
        cpu_shares: Some(shares(have("cpu"))),
        memory_limit: (memory > 0).then_some(memory),
        ..Default::default()
    };
    let least = Resources {
        cpu_shares: Some(MIN_SHARES),
        ..Default::default()
    };
    [
        ("", root),
        ("burstable", Resources::default()),
        ("besteffort", least),
    ]
}

/// Shares of the Burstable group: what its pods request together.
pub fn burstable_group<'a>(pods: impl Iterator<Item = &'a PodSpec>) -> Resources {
    let milli = pods
        .filter(|s| class(s) == QosClass::Burstable)
        .map(|s| pod_requests(s).get("cpu").copied().unwrap_or(0))
        .fold(0i64, i64::saturating_add);
    Resources {
        cpu_shares: Some(shares(milli)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_quota_are_the_kubelets() {
        assert_eq!(
            [0, 1, 100, 1000, 1500, 1_000_000].map(shares),
            [2, 2, 102, 1024, 1536, 262_144]
        );
        assert_eq!([1, 5, 100, 1500].map(quota), [1000, 1000, 10_000, 150_000]);
    }

    #[test]
    fn a_container_gets_what_it_asked_for() {
        let c: Container = serde_json::from_value(serde_json::json!({"name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "64Mi"},
            "limits": {"cpu": "500m", "memory": "128Mi", "hugepages-2Mi": "4Mi"}}}))
        .unwrap_or_default();
        let r = container(&c);
        assert_eq!(
            (r.cpu_shares, r.cpu_quota, r.cpu_period),
            (Some(256), Some(50_000), Some(100_000))
        );
        assert_eq!(r.memory_limit, Some(128 << 20));
        assert_eq!(r.hugepage_limits["2MB"], 4 << 20);
    }
}
