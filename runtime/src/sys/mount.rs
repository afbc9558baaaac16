//! Mounts: mount(2).

use std::io;
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
    /// The option string of mount(2), with the layers called as given, lowest first.
    fn options(&self, layers: &[PathBuf]) -> Vec<u8> {
        let mut options = b"lowerdir=".to_vec();
        for (i, layer) in layers.iter().rev().enumerate() {
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
        options
    }

    /// Mounts at `target`. If the layers' names are too long for one option string, they get short ones: links in `shelf`, which becomes
    /// the working directory.
    pub(crate) fn mount(&self, target: &Path, shelf: &Path) -> io::Result<()> {
        let mut options = self.options(self.layers);
        if options.len() > MAX_OPTIONS {
            std::fs::create_dir_all(shelf)?;
            std::env::set_current_dir(shelf)?;
            let mut short = Vec::with_capacity(self.layers.len());
            for (n, layer) in self.layers.iter().enumerate() {
                let name = PathBuf::from(n.to_string());
                match std::os::unix::fs::symlink(layer, &name) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => short.push(name),
                }
            }
            options = self.options(&short);
        }
        mount(
            Some("overlay"),
            target,
            Some("overlay"),
            MsFlags::empty(),
            Some(std::ffi::OsStr::from_bytes(&options)),
        )?;
        Ok(())
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
            String::from_utf8(overlay.options(overlay.layers)),
            Ok(r"lowerdir=/b\:c:/a,upperdir=/u,workdir=/w\,x,volatile".into())
        );
    }
}
