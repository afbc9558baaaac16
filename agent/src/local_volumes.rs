//! Removes the data of volumes of this box that were deleted, and tells the server that it is gone. A box that was away does it when it
//! is back: a deleted volume waits for it with a finalizer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use amphipod_api::client::{Client, Target};
use amphipod_api::local_volumes::{FINALIZER, HOME, PROTECTION};
use amphipod_api::meta::{self, str_at};
use amphipod_api::patch::PatchType;
use amphipod_api::reflector::{Event, Reflector, ReflectorConfig};
use serde_json::{Value, json};

use crate::deps::Deps;
use crate::volumes;

/// Never ends.
pub async fn run(deps: Arc<Deps>, client: Client, link: crate::server::link::Link) {
    let own = ReflectorConfig {
        field_selector: format!("{HOME}={}", deps.config.node_name),
        ..ReflectorConfig::default()
    };
    let target = Target::core("persistentvolumes");
    let mut reflector = Reflector::spawn(client.clone(), target, own);
    // Names of the volumes that are being removed.
    let removing: Arc<Mutex<HashSet<String>>> = Arc::default();
    while let Some(event) = reflector.next().await {
        let changed = match event {
            Event::Applied(volume) => vec![volume],
            Event::Restarted(all) => all,
            Event::Deleted(_) => continue,
        };
        for volume in changed.iter().filter(|volume| is_to_go(volume)) {
            let name = meta::name(volume).to_owned();
            let begun = |removing: &Mutex<HashSet<String>>| {
                let mut removing = removing.lock().unwrap_or_else(PoisonError::into_inner);
                removing.insert(name.clone())
            };
            if !begun(&removing) {
                continue;
            }
            let (deps, client, link) = (deps.clone(), client.clone(), link.clone());
            let removing = removing.clone();
            let volume = volume.clone();
            tokio::spawn(async move {
                let mut failures = 0;
                while let Err(error) = remove(&deps, &client, &volume).await {
                    if failures == 0 {
                        tracing::warn!(
                            volume = name,
                            error,
                            "the data of a deleted volume is not removed yet; it is tried again"
                        );
                    }
                    failures += 1;
                    link.wait_retry(failures).await;
                }
                let mut removing = removing.lock().unwrap_or_else(PoisonError::into_inner);
                removing.remove(&name);
            });
        }
    }
}

/// It was deleted, is nobody's any more, and its data is to go with it.
fn is_to_go(volume: &Value) -> bool {
    let has = |name: &str| meta::finalizers(volume).any(|finalizer| finalizer == name);
    meta::is_deleting(volume)
        && has(FINALIZER)
        && !has(PROTECTION)
        && str_at(volume, &["spec", "persistentVolumeReclaimPolicy"]) == "Delete"
}

async fn remove(deps: &Arc<Deps>, client: &Client, volume: &Value) -> Result<(), String> {
    let name = meta::name(volume);
    let path = PathBuf::from(str_at(volume, &["spec", "local", "path"]));
    if volumes::is_volume_directory(&deps.config.storage_dir, &path) {
        remove_directory(&path).await?;
        tracing::info!(volume = name, path = %path.display(), "the data of a deleted volume was removed");
    } else {
        tracing::warn!(
            volume = name, path = %path.display(),
            "a volume was deleted whose directory is not one of this node's volumes; it was left as it is"
        );
    }
    let target = Target::core("persistentvolumes").name(name);
    let now = match client.get(&target).await {
        Ok(now) => now,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if meta::uid(&now) != meta::uid(volume) {
        return Ok(());
    }
    let left: Vec<&str> = meta::finalizers(&now)
        .filter(|finalizer| *finalizer != FINALIZER)
        .collect();
    let version = meta::resource_version(&now);
    let patch = json!({"metadata": {"finalizers": left, "resourceVersion": version}});
    match client.patch(&target, PatchType::Merge, &patch).await {
        Err(error) if !error.is_not_found() => Err(error.to_string()),
        _ => Ok(()),
    }
}

async fn remove_directory(path: &Path) -> Result<(), String> {
    let path = path.to_owned();
    let work = move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {error}", path.display()))
        }
        _ => Ok(()),
    };
    let removed = tokio::task::spawn_blocking(work).await;
    removed.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_with_a_volume_that_is_deleted_and_nobodys() {
        let volume = |deleted: bool, finalizers: Value, policy: &str| {
            let mut volume = json!({"metadata": {"finalizers": finalizers}, "spec": {"persistentVolumeReclaimPolicy": policy}});
            if deleted {
                volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            is_to_go(&volume)
        };
        assert!(volume(true, json!([FINALIZER]), "Delete"));
        assert!(!volume(false, json!([FINALIZER]), "Delete"), "it stays");
        assert!(
            !volume(true, json!([PROTECTION, FINALIZER]), "Delete"),
            "it is bound"
        );
        assert!(
            !volume(true, json!([FINALIZER]), "Retain"),
            "it is to be kept"
        );
        assert!(
            !volume(true, json!(["other"]), "Delete"),
            "it is not of our making"
        );
    }
}
