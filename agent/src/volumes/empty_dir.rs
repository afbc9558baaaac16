//! `emptyDir` volumes: a directory on disk, or a tmpfs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use amphipod_api::Quantity;
use k8s_openapi::api::core::v1::Volume;
use nix::mount::{MsFlags, mount};

use super::{Context, PodDirs, VolumeType, is_mount_point, ownership};

pub struct EmptyDir;

impl VolumeType for EmptyDir {
    fn name(&self) -> &'static str {
        "empty-dir"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let dir = PodDirs::volume(&cx.dirs.disk, self.name(), &volume.name);
        let fail = |what: &str, e: &dyn std::fmt::Display| format!("{what} {}: {e}", dir.display());
        let fresh = !dir.exists();
        std::fs::create_dir_all(&dir).map_err(|e| fail("make", &e))?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {
                if fresh {
                    open_to_all(&dir).map_err(|e| fail("set mode of", &e))?;
                    ownership::apply(&dir, cx.fs_group(), false)
                        .map_err(|e| fail("set group of", &e))?;
                }
            }
            "Memory" => {
                if !is_mount_point(&dir).map_err(|e| fail("look up mounts at", &e))? {
                    let options = size(&source)
                        .map(|s| format!("size={s}"))
                        .unwrap_or_default();
                    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                    mount(
                        Some("tmpfs"),
                        &dir,
                        Some("tmpfs"),
                        flags,
                        Some(options.as_str()),
                    )
                    .map_err(|e| fail("mount tmpfs on", &e))?;
                    open_to_all(&dir).map_err(|e| fail("set mode of", &e))?;
                    ownership::apply(&dir, cx.fs_group(), false)
                        .map_err(|e| fail("set group of", &e))?;
                }
            }
            other => return Err(format!("unknown storage medium {other:?}")),
        }
        Ok(dir)
    }
}

fn size(source: &k8s_openapi::api::core::v1::EmptyDirVolumeSource) -> Option<i64> {
    let q: Quantity = source.size_limit.as_ref()?.0.parse().ok()?;
    Some(q.value()).filter(|v| *v > 0)
}

fn open_to_all(dir: &std::path::Path) -> std::io::Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
}
