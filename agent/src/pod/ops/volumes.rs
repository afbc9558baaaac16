//! Makes volumes ready, and keeps them so.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::blocking;
use crate::deps::Deps;
use crate::volumes::{self};

pub type VolumePaths = BTreeMap<String, PathBuf>;

/// What a volume pass gave: paths by volume, and when (seconds since 1970) tokens must be renewed.
#[derive(Debug, Clone, Default)]
pub struct VolumesInfo {
    pub paths: VolumePaths,
    pub renew_at: Option<i64>,
}

/// Fetches what volumes need and makes them ready. The error names the volume.
pub async fn prepare_volumes(
    deps: Arc<Deps>,
    pod: Arc<Pod>,
    fresh: bool,
) -> Result<VolumesInfo, (String, String)> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let keys = crate::server::objects::references(&pod);
    deps.objects.wait(&keys).await;
    let issued = deps
        .tokens
        .get(&pod)
        .await
        .map_err(|e| (token_volume(&pod), e))?;
    let dirs = deps.pod_dirs(&uid);
    let facts = deps.facts(&[]);
    let renew_at = issued.renew_at;
    let work = move || {
        for dir in [&dirs.disk, &dirs.memory] {
            let made = std::fs::create_dir_all(dir).and_then(|()| {
                std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750))
            });
            made.map_err(|e| (String::new(), format!("make {}: {e}", dir.display())))?;
        }
        let cx = volumes::Context {
            pod: &pod,
            dirs: &dirs,
            objects: &deps.objects,
            storage: &deps.objects,
            storage_dir: &deps.config.storage_dir,
            facts: &facts,
            tokens: &issued.tokens,
        };
        if fresh {
            return volumes::set_up_all(&cx);
        }
        match volumes::refresh(&cx).into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(BTreeMap::new()),
        }
    };
    let paths = blocking(work).await.map_err(|e| (String::new(), e))??;
    Ok(VolumesInfo { paths, renew_at })
}

fn token_volume(pod: &Pod) -> String {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut with = volumes.filter(|v| {
        v.projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten())
            .any(|s| s.service_account_token.is_some())
    });
    with.next().map(|v| v.name.clone()).unwrap_or_default()
}
