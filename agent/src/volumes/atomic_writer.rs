//! Replaces the files of a volume all at once, so that a reader sees the old set or the new one.
//!
//! ```text
//! VOLUME/..2026_11_21_08_30_00.123/key    the files
//! VOLUME/..data -> ..2026_11_21_...       swapped by rename(2)
//! VOLUME/key    -> ..data/key             what users see; for `a/b`, the link is `a`
//! ```
//! The same layout as the kubelet's: programs that watch `..data` rely on it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::ownership;
use super::payload::Payload;

const DATA: &str = "..data";

/// Makes `dir` hold exactly `files`. Does nothing when it already does.
pub fn write(dir: &Path, files: &Payload, group: Option<u32>) -> io::Result<()> {
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && matches(&dir.join(old), files, group)
    {
        return link_names(dir, files);
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!(
        "..{}.{:09}",
        jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
        stamp % 1_000_000_000
    );
    let target = dir.join(&fresh);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = target.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chown(&path, Some(owner), None)?;
        }
    }
    ownership::apply(&target, group, true)?;
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&fresh, &temporary)?;
    fs::rename(&temporary, dir.join(DATA))?;
    link_names(dir, files)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != fresh {
            let _ = if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
        }
    }
    ownership::apply(dir, group, true)
}

/// Makes the visible links and removes those whose files are gone.
fn link_names(dir: &Path, files: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(&*name) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    for name in names {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    Ok(())
}

fn matches(dir: &Path, files: &Payload, group: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if list(dir, "", &mut found).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let at = dir.join(path);
        let Ok(meta) = fs::symlink_metadata(&at) else {
            return false;
        };
        let mode = file.mode | if group.is_some() { 0o440 } else { 0 };
        meta.is_file()
            && meta.mode() & 0o7777 == mode
            && meta.len() == file.data.len() as u64
            && fs::read(&at).is_ok_and(|d| d == file.data)
    })
}

fn list(dir: &Path, prefix: &str, into: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), into)?;
        } else {
            into.insert(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::payload::File;
    use super::*;

    fn file(s: &str) -> File {
        File {
            data: s.into(),
            mode: 0o640,
            owner: None,
        }
    }

    #[test]
    fn content_is_swapped_at_once_and_only_when_it_differs() {
        let dir = std::env::temp_dir().join(format!("amphipod-atomic-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let one: Payload = [("a".to_string(), file("1")), ("d/x".to_string(), file("x"))].into();
        write(&dir, &one, None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.join("d/x")).unwrap(), "x");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o777, 0o640);
        let first = fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &one, None).unwrap();
        assert_eq!(
            fs::read_link(dir.join(DATA)).unwrap(),
            first,
            "nothing changed"
        );
        let two: Payload = [("a".to_string(), file("2"))].into();
        write(&dir, &two, None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "2");
        assert!(fs::symlink_metadata(dir.join("d")).is_err());
        assert!(!dir.join(first).exists(), "the old set is gone");
        fs::remove_dir_all(&dir).unwrap();
    }
}
