//! Local storage limits: a pod that outgrows its emptyDirs or its ephemeral-storage limits is evicted
//! (<https://kubernetes.io/docs/concepts/storage/ephemeral-storage/>). Only pods that have such limits are ever measured, and
//! only after the file system has become fuller, which is one system call to know.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphipod_api::Quantity;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Volume};

use crate::deps::Deps;
use crate::events::Severity;
use crate::handle::PodView;
use crate::pod::actor::{ActorHandle, Msg};
use crate::pods::Pods;
use crate::resources::requests::{limits, pod_limits};

/// How often the file system is asked whether it has become fuller, while there are pods with limits.
const PERIOD: Duration = Duration::from_secs(5);
/// Pods are measured so often at the least: what one pod frees another may take.
const MEASURE: Duration = Duration::from_secs(60);
/// By how much the file system must have become fuller before.
const GROWTH: u64 = 1 << 20;

/// Something to measure, and what to say when it is more than `limit` bytes.
#[derive(Debug, Clone, PartialEq)]
struct Limit {
    paths: Vec<PathBuf>,
    bytes: u64,
    message: String,
}

/// Never ends. Does nothing while no pod has a limit.
pub async fn run(deps: Arc<Deps>, pods: Pods) {
    let mut last: Option<(Instant, u64)> = None;
    loop {
        let limited: Vec<_> = pods
            .all()
            .into_iter()
            .map(|actor| (limits_of(&deps, &actor.view()), actor))
            .filter(|(limits, _)| !limits.is_empty())
            .collect();
        if limited.is_empty() {
            pods.begun().await;
            continue;
        }
        let used = used_bytes(&deps.config.data_dir);
        let due = last.is_none_or(|(at, before)| {
            at.elapsed() >= MEASURE || used.saturating_sub(before) >= GROWTH
        });
        if due {
            for (limits, actor) in limited {
                let measured = tokio::task::spawn_blocking(move || exceeded(&limits)).await;
                if let Ok(Some(message)) = measured {
                    evict(&deps, &actor, message);
                }
            }
            last = Some((Instant::now(), used));
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn evict(deps: &Deps, actor: &ActorHandle, message: String) {
    let view = actor.view();
    let told = message.clone();
    deps.events
        .pod(&view.pod)
        .tell(Severity::Warning, "Evicted", None, told);
    actor.tell(Msg::Fail {
        reason: "Evicted".into(),
        message,
        grace: Some(Duration::from_secs(1)),
    });
}

/// Bytes in use on the file system of `path`; 0 if it does not say.
// The C types of statvfs are narrower on 32-bit machines.
#[allow(clippy::unnecessary_cast)]
fn used_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| {
        (s.blocks() as u64).saturating_sub(s.blocks_free() as u64) * s.fragment_size() as u64
    })
}

/// What the files of a pod take up on disk: its containers' layers and logs, and its `emptyDir`s. Reads all its directories.
pub fn pod_usage(deps: &Deps, view: &PodView) -> u64 {
    places(deps, view)
        .on_disk()
        .iter()
        .map(|path| usage(path))
        .sum()
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
    places(deps, view).limits()
}

fn places<'a>(deps: &Deps, view: &'a PodView) -> Places<'a> {
    let m = &view.pod.metadata;
    let logs = deps.log_dir(
        m.namespace.as_deref().unwrap_or_default(),
        m.name.as_deref().unwrap_or_default(),
        &view.uid,
    );
    let ids = view.containers.iter();
    Places {
        pod: &view.pod,
        dir: deps.pod_dirs(&view.uid).disk,
        logs,
        layers: ids
            .filter_map(|c| Some((&*c.name, deps.runtime.writable_layer(c.id.as_deref()?))))
            .collect(),
    }
}

/// Where the files of a pod are.
struct Places<'a> {
    pod: &'a Pod,
    dir: PathBuf,
    logs: PathBuf,
    /// Writable layers by container.
    layers: Vec<(&'a str, PathBuf)>,
}

impl Places<'_> {
    fn spec(&self) -> impl Iterator<Item = &PodSpec> {
        self.pod.spec.iter()
    }

    /// `emptyDir`s that are directories on disk.
    fn empty_dirs(&self) -> impl Iterator<Item = (&Volume, PathBuf)> {
        let all = self.spec().flat_map(|s| s.volumes.iter().flatten());
        let on_disk = |v: &&Volume| {
            let source = v.empty_dir.as_ref();
            source.is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty())
        };
        let base = self.dir.join("volumes/kubernetes.io~empty-dir");
        all.filter(on_disk).map(move |v| (v, base.join(&v.name)))
    }

    /// Writable layer and logs of a container.
    fn of_container(&self, name: &str) -> Vec<PathBuf> {
        let layer = self.layers.iter().find(|(of, _)| *of == name);
        layer
            .map(|(_, path)| path.clone())
            .into_iter()
            .chain([self.logs.join(name)])
            .collect()
    }

    fn on_disk(&self) -> Vec<PathBuf> {
        let containers = self.spec().flat_map(|s| &s.containers);
        self.empty_dirs()
            .map(|(_, path)| path)
            .chain(containers.flat_map(|c| self.of_container(&c.name)))
            .collect()
    }

    fn limits(&self) -> Vec<Limit> {
        let mut out = Vec::new();
        for (v, path) in self.empty_dirs() {
            let limit = v.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
            if let Some((bytes, text)) = limit.and_then(|q| Some((bytes(q)?, &q.0))) {
                let message = format!(
                    "Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ",
                    v.name
                );
                out.push(Limit {
                    paths: vec![path],
                    bytes,
                    message,
                });
            }
        }
        for c in self.spec().flat_map(|s| &s.containers) {
            let limit = limits(c).get("ephemeral-storage").copied().unwrap_or(0);
            if limit > 0 {
                let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
                let text = limits
                    .and_then(|l| l.get("ephemeral-storage"))
                    .map_or("", |q| &q.0);
                let message = format!(
                    "Container {} exceeded its local ephemeral storage limit \"{text}\". ",
                    c.name
                );
                out.push(Limit {
                    paths: self.of_container(&c.name),
                    bytes: limit as u64,
                    message,
                });
            }
        }
        let of_pod = |s: &PodSpec| pod_limits(s).get("ephemeral-storage").copied();
        let total = self.spec().find_map(of_pod).unwrap_or(0);
        if total > 0 {
            let text = Quantity::from_bytes(total);
            let message = format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {text}. "
            );
            out.push(Limit {
                paths: self.on_disk(),
                bytes: total as u64,
                message,
            });
        }
        out
    }
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
        let places = |pod| Places {
            pod,
            dir: "/d".into(),
            logs: "/l".into(),
            layers: vec![("c", "/layer".into())],
        };
        assert_eq!(places(&none).limits(), []);
        let on_disk = ["/d/volumes/kubernetes.io~empty-dir/v", "/layer", "/l/c"];
        assert_eq!(places(&none).on_disk(), on_disk.map(PathBuf::from));
        let some: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}}))
        .unwrap();
        let limits = places(&some).limits();
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
