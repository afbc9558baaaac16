//! What this box's pods use: the kubelet's `stats/v1alpha1` Summary, and the metrics that metrics-server reads.

use std::fmt::Write;

use amphipod_runtime::Stats;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::handle::{AgentHandle, PodView};

/// Usage of a pod and of its running containers.
struct PodUsage {
    view: PodView,
    pod: Stats,
    containers: Vec<(String, Stats)>,
}

async fn usage(handle: &AgentHandle) -> Vec<PodUsage> {
    let mut pods = Vec::new();
    for view in handle.pods() {
        // A pod that is just starting or ending has no figures, and is left out.
        let Ok(pod) = handle.runtime().sandbox_stats(&view.uid).await else {
            continue;
        };
        let mut containers = Vec::new();
        for container in view.containers.iter().filter(|container| container.running) {
            let Some(id) = &container.id else { continue };
            if let Ok(stats) = handle.runtime().stats(id).await {
                containers.push((container.name.clone(), stats));
            }
        }
        pods.push(PodUsage {
            view,
            pod,
            containers,
        });
    }
    pods
}

fn cpu_and_memory(stats: &Stats, now: &str) -> Value {
    json!({
        "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_usage_ns},
        "memory": {
            "time": now, "usageBytes": stats.memory_usage, "workingSetBytes": stats.memory_working_set,
            "rssBytes": stats.memory_rss, "pageFaults": stats.page_faults, "majorPageFaults": stats.major_page_faults,
        },
    })
}

/// `/stats/summary`.
pub(super) async fn summary(handle: &AgentHandle) -> Value {
    let now = Timestamp::now().to_string();
    let with = |mut value: Value, more: Value| {
        if let (Value::Object(into), Value::Object(from)) = (&mut value, more) {
            into.extend(from);
        }
        value
    };
    let pods: Vec<Value> = usage(handle)
        .await
        .iter()
        .map(|usage| {
            let metadata = &usage.view.pod.metadata;
            let containers: Vec<Value> = usage
                .containers
                .iter()
                .map(|(name, stats)| with(json!({"name": name}), cpu_and_memory(stats, &now)))
                .collect();
            let reference = json!({"name": metadata.name, "namespace": metadata.namespace, "uid": usage.view.uid});
            with(json!({"podRef": reference, "containers": containers}), cpu_and_memory(&usage.pod, &now))
        })
        .collect();
    let node = handle.runtime().cgroup_stats("").await.unwrap_or_default();
    let node = with(
        json!({"nodeName": handle.config().node_name}),
        cpu_and_memory(&node, &now),
    );
    json!({"node": node, "pods": pods})
}

/// `/metrics/resource`.
pub(super) async fn resource_metrics(handle: &AgentHandle) -> String {
    let pods = usage(handle).await;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Stats) -> Option<f64>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for usage in &pods {
            let (namespace, pod) = (
                usage.view.pod.metadata.namespace.as_deref(),
                usage.view.pod.metadata.name.as_deref(),
            );
            for (container, stats) in &usage.containers {
                if let Some(value) = value(stats) {
                    let (namespace, pod) = (namespace.unwrap_or_default(), pod.unwrap_or_default());
                    let _ = writeln!(
                        text,
                        "{name}{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"}} {value}"
                    );
                }
            }
        }
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time used, in core-seconds",
        &|stats| stats.cpu_usage_ns.map(|ns| ns as f64 / 1e9),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Working set, in bytes",
        &|stats| stats.memory_working_set.map(|bytes| bytes as f64),
    );
    text
}
