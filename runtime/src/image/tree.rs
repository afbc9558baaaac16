//! Single steps in a layer's tree, each relative to an open directory: nothing here follows a link.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::error::{ErrorKind, ImageError, Result, hostile};
use super::tar::Entry;

/// Components of one path; deeper trees could not be removed with a bounded number of descriptors.
pub(crate) const DEPTH_LIMIT: usize = 256;

/// An open directory of the layer and where it really is (no links in its path).
#[derive(Clone)]
pub(crate) struct Place {
    pub fd: Rc<OwnedFd>,
    pub path: Vec<Vec<u8>>,
}

impl Place {
    pub(crate) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
/// The directory that `layers`, highest first, show at `path`.
pub(crate) fn below(layers: &[PathBuf], path: &[Vec<u8>]) -> Option<FileStat> {
    for layer in layers {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut fd = open_at(libc::AT_FDCWD, layer.as_os_str().as_bytes(), flags, 0).ok()?;
        let mut found = true;
        for name in path {
            match open_at(
                fd.as_raw_fd(),
                name,
                OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                0,
            ) {
                Ok(next) => fd = next,
                Err(_) => {
                    found = false;
                    break;
                }
            }
        }
        if found {
            let stat = nix::sys::stat::fstat(fd.as_raw_fd()).ok()?;
            return is_kind(&stat, SFlag::S_IFDIR).then_some(stat);
        }
    }
    None
}

/// An error if fewer than `wanted` bytes would leave less than `reserved` free on the file system of `fd`.
pub(crate) fn check_space(fd: &OwnedFd, wanted: u64, reserved: u64) -> Result<()> {
    let stat = nix::sys::statvfs::fstatvfs(fd).map_err(|e| errno("asking for free space", e))?;
    let block: u64 = stat.fragment_size();
    let free = stat.blocks_available().saturating_mul(block);
    if free < wanted.saturating_add(reserved) {
        let mib = |bytes: u64| bytes >> 20;
        return Err(ImageError::new(
            ErrorKind::NoSpace,
            format!(
                "no space left on device: {} MiB free, {} MiB needed and {} MiB kept in reserve",
                mib(free),
                mib(wanted),
                mib(reserved)
            ),
        ));
    }
    Ok(())
}

/// The components of an archive's path. `./` and double slashes are harmless; leaving the root is not.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = path
        .split(|&b| b == b'/')
        .filter(|c| !matches!(*c, b"" | b"."))
        .collect();
    if path.starts_with(b"/") && !parts.is_empty() {
        return Err(hostile("an absolute path"));
    }
    if parts.contains(&&b".."[..]) {
        return Err(hostile("a path with \"..\""));
    }
    if parts.len() > DEPTH_LIMIT {
        return Err(hostile("nested too deep"));
    }
    if parts.iter().any(|c| c.len() > 255) {
        return Err(hostile("a name of more than 255 bytes"));
    }
    Ok(parts)
}

pub(crate) fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

pub(crate) fn open_at(
    dir: i32,
    name: &[u8],
    flags: OFlag,
    mode: libc::mode_t,
) -> nix::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(mode);
    let fd = nix::fcntl::openat(Some(dir), OsStr::from_bytes(name), flags, mode)?;
    // SAFETY: openat returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn stat_at(place: &Place, name: &[u8]) -> Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(
        Some(place.raw()),
        OsStr::from_bytes(name),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    ) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(errno("looking at what is there", e)),
    }
}

pub(crate) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// What overlayfs takes for "not there, whatever the layers below have".
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    is_kind(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

pub(crate) fn time(entry: &Entry) -> TimeSpec {
    let (seconds, nanos) = entry.mtime;
    // time_t has 32 bits on some ARM systems; the kernel clamps what its file system cannot hold.
    let seconds = libc::time_t::try_from(seconds).unwrap_or(if seconds < 0 {
        libc::time_t::MIN
    } else {
        libc::time_t::MAX
    });
    TimeSpec::new(seconds, nanos as _)
}

pub(crate) fn set_metadata(fd: &OwnedFd, entry: &Entry) -> Result<()> {
    set_owner_and_mode(fd, entry.uid, entry.gid, entry.mode)?;
    // After the owner: chown(2) clears capabilities.
    for (name, value) in &entry.xattrs {
        let kept = name == b"security.capability"
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        if !kept {
            continue;
        }
        match set_xattr(fd, name, value) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(e) => {
                let name = String::from_utf8_lossy(name).into_owned();
                // Not a full disk: file systems also say ENOSPC for attributes that are too large.
                return Err(ImageError::new(
                    ErrorKind::Unsupported,
                    format!("setting the extended attribute {name:?}: {}", e.desc()),
                ));
            }
        }
    }
    Ok(())
}

pub(crate) fn set_owner_and_mode(fd: &OwnedFd, uid: u32, gid: u32, mode: u32) -> Result<()> {
    nix::unistd::fchown(
        fd.as_raw_fd(),
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )
    .map_err(|e| errno("setting the owner", e))?;
    // After the owner: chown(2) clears set-user-ID.
    nix::sys::stat::fchmod(fd.as_raw_fd(), Mode::from_bits_truncate(mode))
        .map_err(|e| errno("setting the mode", e))
}

pub(crate) fn set_opaque(fd: &OwnedFd) -> Result<()> {
    set_xattr(fd, b"trusted.overlay.opaque", b"y")
        .map_err(|e| errno("marking the directory opaque", e))
}

/// Whether a directory hides what layers below have in it.
pub(crate) fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    // SAFETY: the name is zero-terminated, and the buffer has the length that is given.
    let length = unsafe {
        libc::fgetxattr(
            fd.as_raw_fd(),
            c"trusted.overlay.opaque".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    length == 1 && value == *b"y"
}

fn set_xattr(fd: &OwnedFd, name: &[u8], value: &[u8]) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is zero-terminated, and the value's pointer and length belong together.
    let result = unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// An error of a system call: some are the layer's fault, all others the box's.
pub(crate) fn errno(doing: &str, e: Errno) -> ImageError {
    match e {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EEXIST
        | Errno::ELOOP
        | Errno::EINVAL
        | Errno::EMLINK
        | Errno::ENAMETOOLONG => {
            ImageError::new(ErrorKind::Corrupt, format!("{doing}: {}", e.desc()))
        }
        _ => ImageError::io(doing, &io::Error::from(e)),
    }
}
