//! Files that must survive a power cut and must not be read by others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// The mode of files that hold keys or tokens.
pub const PRIVATE: u32 = 0o600;
/// The mode of files that anybody may read.
pub const PUBLIC: u32 = 0o644;

/// Replaces a file so that, whatever happens, either the old or the new content is there, whole and on disk:
/// temporary file, fsync, rename, fsync of the directory. `mode` is set exactly (the umask does not matter).
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a file path",
        ));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", crate::names::random_suffix(8)));
    let temporary = parent.join(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(e) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(e);
    }
    sync_directory(parent)
}

/// As [`write_atomic`], but does nothing (and wears no flash) if the file already holds this content. Tells whether it wrote.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    let same = File::open(path).and_then(|file| {
        let meta = file.metadata()?;
        if meta.len() != content.len() as u64 || meta.permissions().mode() & 0o7777 != mode {
            return Ok(false);
        }
        let mut old = Vec::with_capacity(content.len());
        file.take(content.len() as u64 + 1).read_to_end(&mut old)?;
        Ok(old == content)
    });
    if matches!(same, Ok(true)) {
        return Ok(false);
    }
    write_atomic(path, content, mode)?;
    Ok(true)
}

/// Makes names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a directory (and its parents) that only its owner may enter, if it is not there.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Reads a file of at most `max` bytes; a longer one is an error.
pub fn read_limited(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(max as u64 + 1)
        .read_to_end(&mut content)?;
    if content.len() > max {
        let message = format!("{} is larger than {max} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(content)
}

/// As [`read_limited`]; `None` if there is no such file.
pub fn read_optional(path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    match read_limited(path, max) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn content_and_mode_are_replaced_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"one", PUBLIC).unwrap();
        write_atomic(&path, b"two", PRIVATE).unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), mode(&path)),
            (b"two".to_vec(), 0o600)
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x", PRIVATE).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn unchanged_files_are_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(write_if_changed(&path, b"a", PUBLIC).unwrap());
        assert!(!write_if_changed(&path, b"a", PUBLIC).unwrap());
        assert!(write_if_changed(&path, b"b", PUBLIC).unwrap());
        assert!(write_if_changed(&path, b"b", PRIVATE).unwrap());
    }

    #[test]
    fn reads_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"12345", PUBLIC).unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).is_err());
        assert_eq!(read_optional(&dir.path().join("none"), 4).unwrap(), None);
    }
}
