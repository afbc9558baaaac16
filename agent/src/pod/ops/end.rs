//! Takes a pod apart that has ended, and removes its last traces once it is deleted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{blocking, describe};
use crate::deps::Deps;
use crate::volumes::{self};

/// Network, sandbox, volumes of a pod that has ended.
pub async fn tear_down(deps: Arc<Deps>, pod: Arc<Pod>) -> Result<(), String> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let host_network = pod
        .spec
        .as_ref()
        .is_some_and(|s| s.host_network == Some(true));
    let network = deps.network.borrow().clone();
    if let (false, Some(network)) = (host_network, network) {
        let id = uid.clone();
        blocking(move || network.detach(&id))
            .await?
            .map_err(|e| describe(&e))?;
    }
    deps.runtime
        .remove_sandbox(&uid)
        .await
        .map_err(|e| describe(&e))?;
    let dirs = deps.pod_dirs(&uid);
    blocking(move || volumes::tear_down(&dirs))
        .await?
        .map_err(|e| format!("removing volumes: {e}"))
}

/// The last traces of a deleted pod: its directories and logs.
pub async fn forget(deps: Arc<Deps>, pod: Arc<Pod>) {
    let m = &pod.metadata;
    let (namespace, name, uid) = (
        m.namespace.clone().unwrap_or_default(),
        m.name.clone().unwrap_or_default(),
        m.uid.clone().unwrap_or_default(),
    );
    let logs = deps.log_dir(&namespace, &name, &uid);
    let links = deps.config.log_dir.join("containers");
    let dirs = deps.pod_dirs(&uid);
    let work = move || {
        if let Err(error) = volumes::remove_pod(&dirs) {
            tracing::warn!(pod = format!("{namespace}/{name}"), %error, "a deleted pod's directory could not be removed; it is tried again at the next start");
        }
        let prefix = format!("{name}_{namespace}_");
        for entry in std::fs::read_dir(&links).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix)
                && std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(&logs))
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&logs);
    };
    let _ = blocking(work).await;
}
