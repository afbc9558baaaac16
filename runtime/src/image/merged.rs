//! Finding one file in a stack of layers, as overlayfs would show it, without mounting them.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use super::tree::{is_kind, is_opaque, is_whiteout, open_at};

/// Links followed for one path (as the kernel does).
const LINK_LIMIT: usize = 40;

/// What a name is in the merged view.
enum Found {
    Nothing,
    /// The directories that are merged there, highest first.
    Directory(Vec<OwnedFd>),
    Link(Vec<u8>),
    /// Anything else, opened with O_PATH.
    Other(OwnedFd),
}

/// Opens `path` in `layers`, which are lowest first. Links are followed as if the merged view were `/`. `None`: there is
/// no such file. Opening never blocks, whatever kind of file it is.
pub(crate) fn open_merged(layers: &[PathBuf], path: &str) -> io::Result<Option<File>> {
    let mut roots = Vec::new();
    for layer in layers.iter().rev() {
        roots.push(OwnedFd::from(File::open(layer)?));
    }
    let mut pending: Vec<Vec<u8>> = reversed(path.as_bytes());
    let mut links = 0;
    // The directories from the root to the current one.
    let mut trail: Vec<Vec<OwnedFd>> = Vec::new();
    while let Some(name) = pending.pop() {
        if name == b".." {
            trail.pop();
            continue;
        }
        match look_up(trail.last().unwrap_or(&roots), &name)? {
            Found::Nothing => return Ok(None),
            Found::Directory(merged) => trail.push(merged),
            Found::Link(target) => {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(Errno::ELOOP.into());
                }
                if target.starts_with(b"/") {
                    trail.clear();
                }
                pending.extend(reversed(&target));
            }
            Found::Other(_) if !pending.is_empty() => return Ok(None),
            Found::Other(file) => {
                // Through /proc: the very file that was found, whatever its name means by now.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let flags =
                    OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
                return match is_kind(&fstat(file.as_raw_fd())?, SFlag::S_IFREG) {
                    true => Ok(Some(
                        open_at(libc::AT_FDCWD, path.as_bytes(), flags, 0)?.into(),
                    )),
                    false => Ok(None),
                };
            }
        }
    }
    Ok(None)
}

fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path
        .split(|&b| b == b'/')
        .filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}

fn look_up(directories: &[OwnedFd], name: &[u8]) -> io::Result<Found> {
    let mut merged = Vec::new();
    for directory in directories {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = match open_at(directory.as_raw_fd(), name, flags, 0) {
            Ok(found) => found,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let stat = fstat(found.as_raw_fd())?;
        if is_kind(&stat, SFlag::S_IFDIR) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let found = open_at(directory.as_raw_fd(), name, flags, 0)?;
            let opaque = is_opaque(&found);
            merged.push(found);
            if opaque {
                break;
            }
            continue;
        }
        if !merged.is_empty() || is_whiteout(&stat) {
            // A file under a directory, or a whiteout: nothing from here on down is visible.
            break;
        }
        if is_kind(&stat, SFlag::S_IFLNK) {
            let target =
                nix::fcntl::readlinkat(Some(directory.as_raw_fd()), OsStr::from_bytes(name))?;
            return Ok(Found::Link(target.as_bytes().to_vec()));
        }
        return Ok(Found::Other(found));
    }
    Ok(match merged.is_empty() {
        true => Found::Nothing,
        false => Found::Directory(merged),
    })
}
