//! What nobody needs any more: images when the disk fills up, pods when the node is short of something.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use amphipod_runtime::image::Digest;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc};

use crate::deps::Deps;
use crate::events::Severity;
use crate::node::pressure::{Left, Pressure};
use crate::pod::actor::Msg;
use crate::pods::Pods;
use crate::resources::requests::pod_requests;
use crate::storage;

/// Looks each time the node's pressure was looked at. Never ends.
pub async fn run(
    deps: Arc<Deps>,
    pods: Pods,
    mut pressures: mpsc::Receiver<Pressure>,
    changed: Arc<Notify>,
) {
    while let Some(short) = pressures.recv().await {
        let used = 100 - Left::look(&deps.config.data_dir).disk_percent.min(100);
        if used >= deps.config.image_gc_high_percent {
            collect_images(&deps, &pods).await;
            changed.notify_one();
        }
        if short.memory || short.disk || short.pids {
            evict(&deps, &pods, short).await;
        }
    }
}

/// Removes images that no container uses, until the disk is below the lower mark.
async fn collect_images(deps: &Deps, pods: &Pods) {
    let mut in_use: BTreeSet<String> = BTreeSet::new();
    for actor in pods.all() {
        let view = actor.view();
        let status = view.pod.status.clone().unwrap_or_default();
        let all = status
            .container_statuses
            .into_iter()
            .flatten()
            .chain(status.init_container_statuses.into_iter().flatten());
        in_use.extend(all.map(|c| c.image_id));
        in_use.extend(
            view.pod
                .spec
                .iter()
                .flat_map(|s| &s.containers)
                .filter_map(|c| c.image.clone()),
        );
    }
    let named = |name: &String| in_use.contains(name);
    let mut keep: BTreeSet<Digest> = BTreeSet::new();
    let mut candidates = Vec::new();
    for image in deps.images.store.list() {
        let short = image.repo_tags.iter().any(|t| {
            in_use
                .iter()
                .any(|u| t.ends_with(&format!("/{u}")) || t.ends_with(&format!("/{u}:latest")))
        });
        if short
            || image.repo_digests.iter().any(named)
            || image.repo_tags.iter().any(named)
            || named(&image.id.to_string())
        {
            keep.insert(image.id);
        } else {
            candidates.push(image);
        }
    }
    let mut freed = 0;
    for image in candidates {
        if let Err(error) = deps.images.store.remove_image(&image.id).await {
            tracing::debug!(%error, "could not remove an image");
        }
        freed += deps.images.store.gc(&keep).await.unwrap_or(0);
        if 100 - Left::look(&deps.config.data_dir).disk_percent.min(100)
            < deps.config.image_gc_low_percent
        {
            break;
        }
    }
    if freed > 0 {
        tracing::info!(
            bytes = freed,
            "removed unused images, because the disk was filling up"
        );
    }
}

/// Ends one pod: first those that use more than they asked for, then by priority, then by how much more
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#pod-selection-for-kubelet-eviction>).
///
/// For want of disk, only a pod that has at least a hundredth of it: whoever filled the disk may be none of the pods, and
/// ending them one after the other would free nothing and stop everything.
async fn evict(deps: &Arc<Deps>, pods: &Pods, short: Pressure) {
    let resource = match short {
        Pressure { memory: true, .. } => "memory",
        Pressure { disk: true, .. } => "ephemeral-storage",
        _ => "pids",
    };
    let worth = disk_bytes(&deps.config.data_dir) / 100;
    let mut ranked = Vec::new();
    for actor in pods.all() {
        let view = actor.view();
        let over = matches!(
            view.pod.status.as_ref().and_then(|s| s.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if over || view.pod.metadata.deletion_timestamp.is_some() || critical(&view.pod) {
            continue;
        }
        let used = match resource {
            "ephemeral-storage" => {
                let (deps, view) = (deps.clone(), view.clone());
                let measured =
                    tokio::task::spawn_blocking(move || storage::pod_usage(&deps, &view)).await;
                match measured {
                    Ok(used) if used >= worth => used,
                    _ => continue,
                }
            }
            _ => deps
                .runtime
                .sandbox_stats(&view.uid)
                .await
                .ok()
                .and_then(|s| s.memory_working_set)
                .unwrap_or(0),
        } as i64;
        ranked.push((rank(&view.pod, resource, used), used, actor));
    }
    ranked.sort_by_key(|(rank, ..)| *rank);
    let Some((_, used, actor)) = ranked.pop() else {
        return;
    };
    let view = actor.view();
    let message = format!("The node was low on resource: {resource}. ");
    deps.events
        .pod(&view.pod)
        .tell(Severity::Warning, "Evicted", None, message.clone());
    let meta = &view.pod.metadata;
    tracing::warn!(
        pod = meta.name,
        namespace = meta.namespace,
        used,
        resource,
        "evicting a pod, because the node is short"
    );
    // As the kubelet does beyond a hard threshold: what takes the last of something is not let go on for long.
    let grace = Some(std::time::Duration::from_secs(1));
    actor.tell(Msg::Fail {
        reason: "Evicted".into(),
        message,
        grace,
    });
}

// The C types of statvfs are narrower on 32-bit machines.
#[allow(clippy::unnecessary_cast)]
fn disk_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks() as u64 * s.fragment_size() as u64)
}

fn critical(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|s| s.priority)
        .is_some_and(|p| p >= 2_000_000_000)
}

/// The highest goes first.
fn rank(pod: &Pod, resource: &str, used: i64) -> (bool, i64, i64) {
    let Some(spec) = &pod.spec else {
        return (true, 0, used);
    };
    let measured = if resource == "pids" {
        "memory"
    } else {
        resource
    };
    let asked = pod_requests(spec).get(measured).copied().unwrap_or(0);
    (
        used > asked,
        -i64::from(spec.priority.unwrap_or(0)),
        used - asked,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn those_above_their_request_go_first_then_the_least_important() {
        let pod = |memory: &str, priority: i32| -> Pod {
            let v = json!({"spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"memory": memory}}}]}});
            serde_json::from_value(v).unwrap()
        };
        let (modest, greedy, important) = (
            rank(&pod("100", 0), "memory", 50),
            rank(&pod("100", 0), "memory", 150),
            rank(&pod("100", 10), "memory", 500),
        );
        assert!(greedy > modest && important > modest && greedy > important);
    }
}
