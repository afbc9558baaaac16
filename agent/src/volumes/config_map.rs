//! `configMap` volumes.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMapProjection, Volume};

use super::{Context, PodDirs, VolumeType, atomic_writer, payload};

pub struct ConfigMap;

impl VolumeType for ConfigMap {
    fn name(&self) -> &'static str {
        "configmap"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }
    fn live(&self) -> bool {
        true
    }
    fn read_only(&self, _: &Volume) -> bool {
        true
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.config_map.clone().unwrap_or_default();
        let projection = ConfigMapProjection {
            name: source.name,
            items: source.items,
            optional: source.optional,
        };
        let files = payload::config_map(
            cx,
            &projection,
            source.default_mode.unwrap_or(payload::MODE),
        )?;
        let dir = PodDirs::volume(&cx.dirs.disk, self.name(), &volume.name);
        atomic_writer::write(&dir, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(dir)
    }
}
