//! `persistentVolumeClaim` and `ephemeral` volumes: what the claim's volume is, a directory of this box.
//! <https://kubernetes.io/docs/concepts/storage/volumes/#local>

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use amphipod_api::local_volumes::{PROVISIONED_BY, PROVISIONER};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, Volume};

use super::{Context, VolumeType, host_path, ownership};
use crate::server::objects::claim_name;

pub struct Claim;

impl VolumeType for Claim {
    fn name(&self) -> &'static str {
        "local-volume"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }
    fn read_only(&self, volume: &Volume) -> bool {
        let source = volume.persistent_volume_claim.as_ref();
        source.and_then(|source| source.read_only) == Some(true)
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let name = claim_name(cx.pod, volume).unwrap_or_default();
        let claim = cx.storage.claim(cx.namespace(), &name)?;
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let owners = claim.metadata.owner_references.iter().flatten();
        let mut owners = owners.map(|owner| Some(&owner.uid));
        let own = cx.pod.metadata.uid.as_ref();
        if volume.ephemeral.is_some() && !owners.any(|owner| owner == own) {
            return Err(format!("PVC {name} was not created for this pod"));
        }
        let bound = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
        let bound = bound.filter(|name| !name.is_empty());
        let bound =
            bound.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" is not bound"))?;
        let target = cx.storage.volume(&bound)?;
        let target = target.ok_or_else(|| format!("persistentvolume \"{bound}\" not found"))?;
        let spec = target.spec.clone().unwrap_or_default();
        let owner = spec.claim_ref.as_ref().and_then(|of| of.uid.as_ref());
        if owner.is_some() && owner != claim.metadata.uid.as_ref() {
            return Err(format!(
                "persistentvolume \"{bound}\" belongs to another claim than \"{name}\""
            ));
        }
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("block devices are not supported as volumes".to_string());
        }
        if let Some(source) = &spec.host_path {
            let path = PathBuf::from(&source.path);
            host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(path);
        }
        let Some(local) = &spec.local else {
            return Err(unsupported(&spec));
        };
        let path = PathBuf::from(&local.path);
        if is_ours(&target) {
            make(&path, cx, &spec)?;
        } else if !path.exists() {
            return Err(format!("path {:?} does not exist", local.path));
        }
        if !self.read_only(volume) {
            give(&path, cx).map_err(|e| format!("set group of {}: {e}", path.display()))?;
        }
        Ok(path)
    }
}

fn unsupported(spec: &PersistentVolumeSpec) -> String {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let kinds = ["nfs", "csi", "iscsi", "cephfs", "rbd", "fc"];
    let kind = kinds.iter().find(|kind| spec.get(**kind).is_some());
    format!(
        "no volume plugin matched: volumes of type {} cannot be mounted here, only hostPath and local ones",
        kind.unwrap_or(&"unknown")
    )
}

/// The server made it, as a directory of some box.
fn is_ours(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(PROVISIONED_BY))
        .map(String::as_str)
        == Some(PROVISIONER)
}

/// Whether the path is a directory for one volume on this box: the only kind that is made, and removed again.
pub fn is_inside(storage: &Path, path: &Path) -> bool {
    let plain = path.components().next_back();
    path.parent() == Some(storage) && matches!(plain, Some(std::path::Component::Normal(_)))
}

/// Makes the directory of a volume when it is used first. Never on another box than its own.
fn make(path: &Path, cx: &Context, spec: &PersistentVolumeSpec) -> Result<(), String> {
    let home = serde_json::to_value(&spec.node_affinity).unwrap_or_default();
    let home = home
        .pointer("/required/nodeSelectorTerms/0/matchExpressions/0/values/0")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    if home != cx.facts.node_name {
        return Err(format!(
            "node affinity check failed: the volume is on node {home:?}"
        ));
    }
    if path.exists() {
        return Ok(());
    }
    if !is_inside(cx.storage_dir, path) {
        return Err(format!(
            "path {:?} does not exist, and is not below {}, where this node has its volumes",
            path,
            cx.storage_dir.display()
        ));
    }
    let fail = |e: std::io::Error| format!("make directory {}: {e}", path.display());
    // Whose directories are open to all must be closed itself.
    let mut closed = fs::DirBuilder::new();
    let above = closed.recursive(true).mode(0o700).create(cx.storage_dir);
    above.map_err(fail)?;
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(fail(e)),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(fail)
}

/// Gives the volume to the pod's `fsGroup`.
fn give(path: &Path, cx: &Context) -> std::io::Result<()> {
    let context = cx
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref());
    let policy = context.and_then(|c| c.fs_group_change_policy.as_deref());
    if policy == Some("OnRootMismatch") && ownership::is_applied(path, cx.fs_group())? {
        return Ok(());
    }
    ownership::apply(path, cx.fs_group(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_volumes_are_made_or_removed() {
        let storage = Path::new("/var/lib/amphipod/storage");
        let inside = |path: &str| is_inside(storage, Path::new(path));
        assert!(inside("/var/lib/amphipod/storage/pvc-1_shop_data"));
        for bad in [
            "/var/lib/amphipod/storage",
            "/var/lib/amphipod/storage/..",
            "/var/lib/amphipod/storage/a/b",
            "/var/lib/amphipod/storage/a/../../b",
            "/var/lib/amphipod/agent",
            "/",
            "",
        ] {
            assert!(!inside(bad), "{bad}");
        }
    }
}
