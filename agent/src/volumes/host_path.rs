//! `hostPath` volumes: a file or directory of the box (<https://kubernetes.io/docs/concepts/storage/volumes/#hostpath>).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Volume;

use super::{Context, VolumeType};

pub struct HostPath;

impl VolumeType for HostPath {
    fn name(&self) -> &'static str {
        "host-path"
    }
    fn matches(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }
    fn set_up(&self, _: &Context, volume: &Volume) -> Result<PathBuf, String> {
        let source = volume.host_path.clone().unwrap_or_default();
        let path = PathBuf::from(&source.path);
        check(&path, source.type_.as_deref().unwrap_or_default())?;
        Ok(path)
    }
}

/// Whether there is at a path what its type says; makes what may be made.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let meta = || fs::metadata(path);
    let is = |test: fn(&fs::Metadata) -> bool, what: &str| {
        if meta().is_ok_and(|m| test(&m)) {
            Ok(())
        } else {
            Err(format!(
                "hostPath type check failed: {} is not {what}",
                path.display()
            ))
        }
    };
    match kind {
        "" => match meta() {
            // As runtimes do for a bind mount whose source is missing.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => make_dir(path),
            _ => Ok(()),
        },
        "DirectoryOrCreate" => {
            if meta().is_err() {
                make_dir(path)?;
            }
            is(fs::Metadata::is_dir, "a directory")
        }
        "Directory" => is(fs::Metadata::is_dir, "a directory"),
        "FileOrCreate" => {
            if meta().is_err() {
                let made = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o644)
                    .open(path);
                made.map_err(|e| format!("make file {}: {e}", path.display()))?;
            }
            is(fs::Metadata::is_file, "a file")
        }
        "File" => is(fs::Metadata::is_file, "a file"),
        "Socket" => is(|m| m.file_type().is_socket(), "a socket file"),
        "CharDevice" => is(|m| m.file_type().is_char_device(), "a character device"),
        "BlockDevice" => is(|m| m.file_type().is_block_device(), "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

fn make_dir(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|e| format!("make directory {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = std::env::temp_dir().join(format!("amphipod-hostpath-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        assert!(
            check(&dir, "Directory")
                .unwrap_err()
                .ends_with("is not a directory")
        );
        check(&dir, "DirectoryOrCreate").unwrap();
        check(&dir, "Directory").unwrap();
        let file = dir.join("f");
        assert!(check(&file, "File").is_err());
        check(&file, "FileOrCreate").unwrap();
        check(&file, "File").unwrap();
        assert!(check(&file, "Socket").is_err());
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
