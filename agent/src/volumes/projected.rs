//! `projected` volumes: ConfigMaps, Secrets, downward API and service account tokens in one directory; in memory.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Volume;

use super::payload::Payload;
use super::{Context, PodDirs, VolumeType, atomic_writer, payload};

pub struct Projected;

impl VolumeType for Projected {
    fn name(&self) -> &'static str {
        "projected"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }
    fn live(&self) -> bool {
        true
    }
    fn read_only(&self, _: &Volume) -> bool {
        true
    }
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.projected.clone().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(payload::MODE);
        let mut files = Payload::new();
        for s in source.sources.iter().flatten() {
            if let Some(p) = &s.config_map {
                files.extend(payload::config_map(cx, p, mode)?);
            } else if let Some(p) = &s.secret {
                files.extend(payload::secret(cx, p, mode)?);
            } else if let Some(p) = &s.downward_api {
                files.extend(payload::downward_api(cx, p.items.as_ref(), mode)?);
            } else if let Some(p) = &s.service_account_token {
                files.extend(payload::token(cx, p, mode)?);
            } else {
                return Err("projected source is of a kind that this node does not support".into());
            }
        }
        let dir = PodDirs::volume(&cx.dirs.memory, self.name(), &volume.name);
        atomic_writer::write(&dir, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(dir)
    }
}
