//! `secret` volumes: in memory, never on disk.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{SecretProjection, Volume};

use super::{Context, PodDirs, VolumeType, atomic_writer, payload};

pub struct Secret;

impl VolumeType for Secret {
    fn name(&self) -> &'static str {
        "secret"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }
    fn live(&self) -> bool {
        true
    }
    fn read_only(&self, _: &Volume) -> bool {
        true
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.secret.clone().unwrap_or_default();
        let projection = SecretProjection {
            name: source.secret_name.unwrap_or_default(),
            items: source.items,
            optional: source.optional,
        };
        let files = payload::secret(
            cx,
            &projection,
            source.default_mode.unwrap_or(payload::MODE),
        )?;
        let dir = PodDirs::volume(&cx.dirs.memory, self.name(), &volume.name);
        atomic_writer::write(&dir, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(dir)
    }
}
