//! `subPath`: one file or directory of a volume. The volume's content is the pod's to choose, so the path is walked with
//! openat2(2) and RESOLVE_BENEATH: a link that leads out of the volume is an error, also when it appears meanwhile. What was
//! found is pinned by a bind mount of its descriptor, which no later rename can redirect.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

/// Opens `path` below `volume` (O_PATH), making missing directories.
fn open_beneath(volume: &Path, path: &str) -> io::Result<OwnedFd> {
    let root = File::open(volume)?;
    match open(&root, path, OFlag::O_PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let mode = root.metadata()?.mode() & 0o777;
    let (uid, gid) = (root.metadata()?.uid(), root.metadata()?.gid());
    let mut so_far = PathBuf::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "must not contain '..'",
            ));
        }
        let parent = if so_far.as_os_str().is_empty() {
            OwnedFd::from(root.try_clone()?)
        } else {
            open(
                &root,
                &so_far.to_string_lossy(),
                OFlag::O_PATH | OFlag::O_DIRECTORY,
            )?
        };
        let name = CString::new(part)?;
        // SAFETY: a plain system call with a valid descriptor and C string.
        if unsafe {
            nix::libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), mode as nix::libc::mode_t)
        } == 0
        {
            let flags = nix::libc::AT_SYMLINK_NOFOLLOW;
            // SAFETY: as above.
            unsafe {
                nix::libc::fchownat(parent.as_raw_fd(), name.as_ptr(), uid, gid, flags);
                nix::libc::fchmodat(
                    parent.as_raw_fd(),
                    name.as_ptr(),
                    mode as nix::libc::mode_t,
                    0,
                );
            }
        } else {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::AlreadyExists {
                return Err(e);
            }
        }
        so_far.push(part);
    }
    open(&root, path, OFlag::O_PATH)
}

fn open(root: &File, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(root.as_raw_fd(), path, how)?;
    // SAFETY: openat2 has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins `volume`/`path` at `at` and returns `at`. Idempotent: an older pin is replaced.
pub fn pin(volume: &Path, path: &str, at: &Path) -> Result<PathBuf, String> {
    let fail = |e: io::Error| format!("failed to prepare subPath {path:?} of volume: {e}");
    // A volume can be a single file (hostPath); then there is nothing below it.
    let fd = open_beneath(volume, path).map_err(fail)?;
    let is_dir = File::from(fd.try_clone().map_err(fail)?)
        .metadata()
        .map_err(fail)?
        .is_dir();
    while super::is_mount_point(at).map_err(fail)? {
        nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).map_err(|e| fail(e.into()))?;
    }
    let make = || -> io::Result<()> {
        if let Some(parent) = at.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match (is_dir, at.is_dir()) {
            (true, _) => std::fs::create_dir_all(at)?,
            (false, true) => {
                std::fs::remove_dir(at)?;
                File::create(at)?;
            }
            (false, false) => drop(File::create(at)?),
        }
        Ok(())
    };
    make().map_err(fail)?;
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source.as_str()), at, None::<&str>, flags, None::<&str>)
        .map_err(|e| fail(e.into()))?;
    Ok(at.to_path_buf())
}

/// Where the `index`-th mount of a container pins its subPath.
pub fn pin_path(pod_dir: &Path, volume: &str, container: &str, index: usize) -> PathBuf {
    debug_assert!(
        !container.as_bytes().contains(&b'/')
            && pod_dir.as_os_str().as_bytes().first() == Some(&b'/')
    );
    pod_dir
        .join("volume-subpaths")
        .join(volume)
        .join(container)
        .join(index.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        let dir = std::env::temp_dir().join(format!("amphipod-subpath-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("v/in")).unwrap();
        std::fs::create_dir_all(dir.join("outside")).unwrap();
        let v = dir.join("v");
        std::os::unix::fs::symlink("in", v.join("good")).unwrap();
        std::os::unix::fs::symlink("../outside", v.join("bad")).unwrap();
        std::os::unix::fs::symlink("/etc", v.join("worse")).unwrap();
        assert!(open_beneath(&v, "good").is_ok());
        assert!(open_beneath(&v, "new/deep").is_ok());
        assert!(v.join("new/deep").is_dir());
        for bad in [
            "bad",
            "worse",
            "bad/x",
            "../outside",
            "in/../../outside",
            "/etc",
        ] {
            assert!(open_beneath(&v, bad).is_err(), "{bad}");
        }
        assert!(!dir.join("outside/x").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
