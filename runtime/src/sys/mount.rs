//! Mounts: mount(2), and fsopen(2) where an overlay has more layers than an option string can hold.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A page, less the terminating zero: what mount(2) takes.
const MAX_OPTIONS: usize = 4095;

pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

pub(crate) fn tmpfs(target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))?;
    Ok(())
}

/// Changes how the mount at `target` and those below it propagate.
pub(crate) fn propagation(target: &Path, flags: MsFlags) -> io::Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// Detaches whatever is mounted at `target`; no error if nothing is.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// An overlay root filesystem.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// Lowest first.
    pub layers: &'a [PathBuf],
    pub upper: &'a Path,
    pub work: &'a Path,
    /// Upper layers die with their container: `volatile` saves the whole-filesystem sync that each unmount would cost otherwise.
    pub volatile: bool,
}

impl Overlay<'_> {
    /// The option string of mount(2), or `None` if it would be too long.
    fn options(&self) -> Option<Vec<u8>> {
        let mut options = b"lowerdir=".to_vec();
        for (i, layer) in self.layers.iter().rev().enumerate() {
            if i > 0 {
                options.push(b':');
            }
            escape(layer, &mut options);
        }
        options.extend_from_slice(b",upperdir=");
        escape(self.upper, &mut options);
        options.extend_from_slice(b",workdir=");
        escape(self.work, &mut options);
        if self.volatile {
            options.extend_from_slice(b",volatile");
        }
        (options.len() <= MAX_OPTIONS).then_some(options)
    }

    pub(crate) fn mount(&self, target: &Path) -> io::Result<()> {
        match self.options() {
            Some(options) => {
                mount(
                    Some("overlay"),
                    target,
                    Some("overlay"),
                    MsFlags::empty(),
                    Some(std::ffi::OsStr::from_bytes(&options)),
                )?;
                Ok(())
            }
            None => self.mount_new_api(target),
        }
    }

    /// One `lowerdir+` at a time (Linux 6.5).
    fn mount_new_api(&self, target: &Path) -> io::Result<()> {
        const FSCONFIG_SET_FLAG: u32 = 0;
        const FSCONFIG_SET_STRING: u32 = 1;
        const FSCONFIG_CMD_CREATE: u32 = 6;
        let fs = {
            // SAFETY: a constant C string; the result is a new descriptor or an error.
            let fd = check(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), 1) })?;
            // SAFETY: as above.
            unsafe { OwnedFd::from_raw_fd(fd as i32) }
        };
        let config = |command: u32, key: Option<&str>, value: Option<&Path>| -> io::Result<()> {
            let key = key.map(CString::new).transpose()?;
            let value = value
                .map(|v| CString::new(v.as_os_str().as_bytes()))
                .transpose()?;
            let ptr = |s: &Option<CString>| s.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
            // SAFETY: both strings live across the call.
            check(unsafe {
                libc::syscall(
                    libc::SYS_fsconfig,
                    fs.as_raw_fd(),
                    command,
                    ptr(&key),
                    ptr(&value),
                    0,
                )
            })
            .map(drop)
        };
        for layer in self.layers.iter().rev() {
            config(FSCONFIG_SET_STRING, Some("lowerdir+"), Some(layer))?;
        }
        config(FSCONFIG_SET_STRING, Some("upperdir"), Some(self.upper))?;
        config(FSCONFIG_SET_STRING, Some("workdir"), Some(self.work))?;
        if self.volatile {
            config(FSCONFIG_SET_FLAG, Some("volatile"), None)?;
        }
        config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: integers only; the result is a new descriptor or an error.
        let tree = check(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, 0) })?;
        // SAFETY: as above.
        let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
        let target = CString::new(target.as_os_str().as_bytes())?;
        const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
        // SAFETY: both paths live across the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        })
        .map(drop)
    }
}

fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// overlayfs separates layers by `:` and options by `,`; a backslash takes their meaning away.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_given_topmost_first_and_escaped() {
        let overlay = Overlay {
            layers: &["/a".into(), "/b:c".into()],
            upper: Path::new("/u"),
            work: Path::new("/w,x"),
            volatile: true,
        };
        assert_eq!(
            String::from_utf8(overlay.options().unwrap_or_default()),
            Ok(r"lowerdir=/b\:c:/a,upperdir=/u,workdir=/w\,x,volatile".into())
        );
    }

    #[test]
    fn too_many_layers_for_an_option_string_take_the_other_road() {
        let layers: Vec<PathBuf> = (0..200)
            .map(|n| format!("/var/lib/images/layer{n:040}").into())
            .collect();
        let overlay = Overlay {
            layers: &layers,
            upper: Path::new("/u"),
            work: Path::new("/w"),
            volatile: false,
        };
        assert_eq!(overlay.options(), None);
    }
}
