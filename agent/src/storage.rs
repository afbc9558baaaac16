//! Local storage limits: a pod that outgrows its emptyDirs or its ephemeral-storage limits is evicted
//! (<https://kubernetes.io/docs/concepts/storage/ephemeral-storage/>). Only pods that have such limits are ever measured.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use amphipod_api::Quantity;
use k8s_openapi::api::core::v1::Pod;

use crate::deps::Deps;
use crate::events::Severity;
use crate::handle::PodView;
use crate::pod::actor::Msg;
use crate::pods::Pods;
use crate::resources::requests::{limits, pod_limits};

/// How often pods with limits are measured.
const PERIOD: Duration = Duration::from_secs(30);

/// Something to measure, and what to say when it is more than `limit` bytes.
#[derive(Debug, Clone, PartialEq)]
struct Limit {
    paths: Vec<PathBuf>,
    bytes: u64,
    message: String,
}

/// Never ends. Sleeps without waking while no pod has a limit.
pub async fn run(deps: Arc<Deps>, pods: Pods) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for actor in pods.all() {
            let view = actor.view();
            let wanted = limits_of(&deps, &view);
            if wanted.is_empty() {
                continue;
            }
            let measured = tokio::task::spawn_blocking(move || exceeded(&wanted)).await;
            if let Ok(Some(message)) = measured {
                deps.events.pod(&view.pod).tell(
                    Severity::Warning,
                    "Evicted",
                    None,
                    message.clone(),
                );
                actor.tell(Msg::Fail {
                    reason: "Evicted".into(),
                    message,
                    grace: Some(Duration::from_secs(1)),
                });
            }
        }
    }
}

fn bytes(q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Option<u64> {
    let q: Quantity = q.0.parse().ok()?;
    u64::try_from(q.value()).ok().filter(|b| *b > 0)
}

fn limits_of(deps: &Deps, view: &PodView) -> Vec<Limit> {
    let over = view
        .pod
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .is_some_and(|p| p == "Succeeded" || p == "Failed");
    if over || view.pod.metadata.deletion_timestamp.is_some() {
        return vec![];
    }
    let dirs = deps.pod_dirs(&view.uid);
    let m = &view.pod.metadata;
    let logs = deps.log_dir(
        m.namespace.as_deref().unwrap_or_default(),
        m.name.as_deref().unwrap_or_default(),
        &view.uid,
    );
    let layer = |name: &str| {
        let id = view
            .containers
            .iter()
            .find(|c| c.name == name)
            .and_then(|c| c.id.as_deref());
        id.map(|id| deps.runtime.writable_layer(id))
    };
    plan(&view.pod, &dirs.disk, &logs, layer)
}

fn plan(pod: &Pod, dir: &Path, logs: &Path, layer: impl Fn(&str) -> Option<PathBuf>) -> Vec<Limit> {
    let Some(spec) = &pod.spec else { return vec![] };
    let mut out = Vec::new();
    let mut on_disk = Vec::new();
    for v in spec.volumes.iter().flatten() {
        let Some(e) = v
            .empty_dir
            .as_ref()
            .filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())
        else {
            continue;
        };
        let path = dir.join("volumes/kubernetes.io~empty-dir").join(&v.name);
        on_disk.push(path.clone());
        if let Some((limit, text)) = e.size_limit.as_ref().and_then(|q| Some((bytes(q)?, &q.0))) {
            let message = format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ",
                v.name
            );
            out.push(Limit {
                paths: vec![path],
                bytes: limit,
                message,
            });
        }
    }
    for c in &spec.containers {
        let mine: Vec<PathBuf> = layer(&c.name)
            .into_iter()
            .chain([logs.join(&c.name)])
            .collect();
        on_disk.extend(mine.iter().cloned());
        let limit = limits(c).get("ephemeral-storage").copied().unwrap_or(0);
        if limit > 0 {
            let text = c
                .resources
                .as_ref()
                .and_then(|r| r.limits.as_ref())
                .and_then(|l| l.get("ephemeral-storage"))
                .map_or("", |q| &q.0);
            let message = format!(
                "Container {} exceeded its local ephemeral storage limit \"{text}\". ",
                c.name
            );
            out.push(Limit {
                paths: mine,
                bytes: limit as u64,
                message,
            });
        }
    }
    let total = pod_limits(spec)
        .get("ephemeral-storage")
        .copied()
        .unwrap_or(0);
    if total > 0 {
        let text = Quantity::from_bytes(total);
        let message = format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {text}. "
        );
        out.push(Limit {
            paths: on_disk,
            bytes: total as u64,
            message,
        });
    }
    out
}

fn exceeded(limits: &[Limit]) -> Option<String> {
    limits
        .iter()
        .find(|l| l.paths.iter().map(|p| usage(p)).sum::<u64>() > l.bytes)
        .map(|l| l.message.clone())
}

/// Bytes on disk at and below `path`; links are not followed.
fn usage(path: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            sum += usage(&entry.path());
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_has_a_limit_is_measured() {
        let none: Pod = serde_json::from_value(json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c"}]}})).unwrap();
        let layer = |_: &str| Some(PathBuf::from("/layer"));
        assert_eq!(plan(&none, Path::new("/d"), Path::new("/l"), layer), []);
        let some: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}}))
        .unwrap();
        let limits = plan(&some, Path::new("/d"), Path::new("/l"), layer);
        let found: Vec<(u64, &str)> = limits
            .iter()
            .map(|l| (l.bytes, l.message.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (
                    1 << 20,
                    "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
                ),
                (
                    2 << 20,
                    "Container c exceeded its local ephemeral storage limit \"2Mi\". "
                ),
                (
                    2 << 20,
                    "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "
                ),
            ]
        );
    }

    #[test]
    fn usage_counts_what_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("d/l")).unwrap();
        let used = usage(dir.path());
        assert!((100_000..200_000).contains(&used), "{used}");
    }
}
