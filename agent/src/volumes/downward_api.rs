//! `downwardAPI` volumes.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Volume;

use super::{Context, PodDirs, VolumeType, atomic_writer, payload};

pub struct DownwardApi;

impl VolumeType for DownwardApi {
    fn name(&self) -> &'static str {
        "downward-api"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }
    fn live(&self) -> bool {
        true
    }
    fn read_only(&self, _: &Volume) -> bool {
        true
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.downward_api.clone().unwrap_or_default();
        let files = payload::downward_api(
            cx,
            source.items.as_ref(),
            source.default_mode.unwrap_or(payload::MODE),
        )?;
        let dir = PodDirs::volume(&cx.dirs.disk, self.name(), &volume.name);
        atomic_writer::write(&dir, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(dir)
    }
}
