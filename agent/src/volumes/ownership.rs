//! `fsGroup`: volumes belong to the pod's group and are open to it, as the kubelet's SetVolumeOwnership does.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Whether `path` itself is the group's already: what is below it is taken to be so, too, where a pod asks for that
/// (`fsGroupChangePolicy: OnRootMismatch`).
pub fn is_applied(path: &Path, group: Option<u32>) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    Ok(group.is_none_or(|group| meta.gid() == group && meta.mode() & 0o2770 == 0o2770))
}

/// Gives `path` and all below it to `group`. Links are not followed. `read_only` volumes get no write permission for it.
pub fn apply(path: &Path, group: Option<u32>, read_only: bool) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = meta.mode() & 0o7777 | if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            apply(&entry?.path(), Some(group), read_only)?;
        }
    }
    Ok(())
}
