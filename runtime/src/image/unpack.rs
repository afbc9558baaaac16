//! Applies one layer to an empty directory, in the form that overlayfs takes as a lower directory.
//!
//! The layer is hostile until proven otherwise. What is refused, with an error that names the entry:
//! absolute names and names with `..`; names that pass through a link that is absolute or leads out of the layer's root;
//! hard links to what is not in the layer; owners that do not exist in Linux; block devices and all character devices but
//! those that every container gets anyway (null, zero, full, random, urandom, tty, console, ptmx); more bytes or entries
//! than [`LayerLimits`] allow. Extended attributes are kept if they are `user.*` or `security.capability`; others, above
//! all overlayfs' own, are dropped.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, makedev};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use super::compression::{Measured, decompress, read_error};
use super::digest::Digest;
use super::error::{ErrorKind, ImageError, Result, hostile};
use super::tar::{Entry, Kind, TarError, TarReader};
use super::tree::{
    DEPTH_LIMIT, Place, below, check_space, components, directory_flags, errno, is_kind,
    is_whiteout, open_at, set_metadata, set_opaque, set_owner_and_mode, stat_at, time,
};

/// Links and `..` followed for one entry.
const STEP_LIMIT: usize = 255;
/// Memory for the times of directories, which are set last.
const TIMES_LIMIT: usize = 64 << 20;
/// Bytes written between two looks at the free space.
const SPACE_INTERVAL: u64 = 16 << 20;
const COPY_BUFFER: usize = 128 << 10;

/// Character devices that the OCI runtime specification puts into every container.
const COMMON_DEVICES: [(u64, u64); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

#[derive(Debug, Clone)]
pub struct LayerLimits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    pub entries: u64,
    /// Bytes of the file system to leave free.
    pub reserved: u64,
}

/// What came out of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Disk taken, in whole pages.
    pub bytes: u64,
    pub inodes: u64,
    /// The layer hides everything below it.
    pub opaque: bool,
}

/// Reads a layer from `source` (compressed or not) into the directory `root`, which must be empty.
///
/// `parents` are the directories of the layers below, highest first: a directory that the archive implies but does not
/// hold gets its owner and mode from them. `cancel` stops the work. On an error `root` holds rubbish.
pub fn apply(
    source: impl Read,
    root: OwnedFd,
    parents: &[PathBuf],
    limits: &LayerLimits,
    cancel: &AtomicBool,
) -> Result<Applied> {
    let plain = decompress(source).map_err(|e| read_error(&e))?;
    let mut tar = TarReader::new(Measured::new(plain, limits.bytes, cancel));
    let mut applier = Applier {
        root: Rc::new(root),
        parents,
        limits,
        current: None,
        times: Vec::new(),
        times_bytes: 0,
        unchecked: SPACE_INTERVAL,
        buffer: vec![0; COPY_BUFFER],
        bytes: 0,
        inodes: 0,
        opaque: false,
    };
    let mut entries = 0;
    while let Some(entry) = tar.next().map_err(tar_error)? {
        entries += 1;
        if entries > limits.entries {
            return Err(hostile(format!(
                "it has more than {} entries",
                limits.entries
            )));
        }
        let name = String::from_utf8_lossy(&entry.path)
            .chars()
            .take(200)
            .collect::<String>();
        applier
            .entry(&entry, &mut tar)
            .map_err(|e| e.context(format!("entry {name:?}")))?;
    }
    applier.set_times()?;
    let mut measured = tar.into_inner();
    io::copy(&mut measured, &mut io::sink()).map_err(|e| read_error(&e))?;
    Ok(Applied {
        diff_id: measured.finish(),
        bytes: applier.bytes,
        inodes: applier.inodes,
        opaque: applier.opaque,
    })
}

fn tar_error(error: TarError) -> ImageError {
    match error {
        TarError::Read(e) => read_error(&e),
        TarError::Corrupt(message) => ImageError::new(ErrorKind::Corrupt, message),
        TarError::Hostile(message) => ImageError::new(ErrorKind::Hostile, message),
        TarError::Unsupported(message) => ImageError::new(ErrorKind::Unsupported, message),
    }
}

/// The directory of the last entry: entries come directory by directory, so most walks are saved.
struct Current {
    /// The components as the archive wrote them.
    wanted: Vec<Vec<u8>>,
    place: Place,
}
struct Applier<'a> {
    root: Rc<OwnedFd>,
    parents: &'a [PathBuf],
    limits: &'a LayerLimits,
    current: Option<Current>,
    times: Vec<(Vec<Vec<u8>>, TimeSpec)>,
    times_bytes: usize,
    /// Bytes to write before the free space is looked at again; starts at the end so that it is looked at first.
    unchecked: u64,
    buffer: Vec<u8>,
    bytes: u64,
    inodes: u64,
    opaque: bool,
}

/// What stood where an entry is to be made.
#[derive(PartialEq, Eq)]
enum Before {
    Nothing,
    Directory,
    Whiteout,
}

impl Applier<'_> {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<()> {
        if entry.size > self.limits.bytes {
            return Err(hostile(format!(
                "declares {} bytes, more than the limit of {}",
                entry.size, self.limits.bytes
            )));
        }
        let components = components(&entry.path)?;
        let Some((name, parent)) = components.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(hostile("the root is not a directory"));
            }
            let root = Place {
                fd: self.root.clone(),
                path: Vec::new(),
            };
            return self.directory_metadata(&root, entry);
        };
        let place = self.enter(parent)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(&place, hidden);
        }
        match entry.kind {
            Kind::Directory => self.directory(&place, name, entry),
            Kind::File => self.file(&place, name, entry, content),
            Kind::Symlink => self.symlink(&place, name, entry),
            Kind::HardLink => self.hard_link(&place, name, entry),
            Kind::Fifo => self.node(&place, name, entry, SFlag::S_IFIFO, 0),
            Kind::Char if COMMON_DEVICES.contains(&entry.device) => {
                let (major, minor) = entry.device;
                self.node(&place, name, entry, SFlag::S_IFCHR, makedev(major, minor))
            }
            Kind::Char | Kind::Block => {
                let kind = if entry.kind == Kind::Char {
                    "character"
                } else {
                    "block"
                };
                let (major, minor) = entry.device;
                Err(hostile(format!(
                    "{kind} device {major}:{minor} is not allowed in images"
                )))
            }
        }
    }

    fn directory(&mut self, parent: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        let place = match self.clear(parent, name, true)? {
            Before::Directory => self.open_directory(parent, name)?,
            before => self.make_directory(parent, name, before == Before::Whiteout)?,
        };
        self.directory_metadata(&place, entry)
    }

    fn directory_metadata(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        set_metadata(&place.fd, entry)?;
        self.times_bytes += place.path.iter().map(|c| c.len() + 32).sum::<usize>() + 64;
        if self.times_bytes > TIMES_LIMIT {
            return Err(hostile("too many directories"));
        }
        self.times.push((place.path.clone(), time(entry)));
        Ok(())
    }

    fn file(
        &mut self,
        parent: &Place,
        name: &[u8],
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<()> {
        self.clear(parent, name, false)?;
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            open_at(parent.raw(), name, flags, 0o600).map_err(|e| errno("creating the file", e))?;
        let mut file = std::fs::File::from(fd);
        let mut left = entry.size;
        while left > 0 {
            let n = content.read(&mut self.buffer).map_err(|e| read_error(&e))?;
            if n == 0 {
                return Err(ImageError::new(
                    ErrorKind::Corrupt,
                    "the archive ends too early",
                ));
            }
            self.take_space(n as u64)?;
            file.write_all(&self.buffer[..n])
                .map_err(|e| ImageError::io("writing the file", &e))?;
            left -= n as u64;
        }
        let fd = OwnedFd::from(file);
        set_metadata(&fd, entry)?;
        let time = time(entry);
        nix::sys::stat::futimens(fd.as_raw_fd(), &time, &time)
            .map_err(|e| errno("setting the time", e))?;
        self.count(entry.size)
    }

    fn symlink(&mut self, parent: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        self.clear(parent, name, false)?;
        nix::unistd::symlinkat(
            OsStr::from_bytes(&entry.link),
            Some(parent.raw()),
            OsStr::from_bytes(name),
        )
        .map_err(|e| errno("creating the link", e))?;
        self.node_metadata(parent, name, entry)?;
        self.count(0)
    }

    fn node(
        &mut self,
        parent: &Place,
        name: &[u8],
        entry: &Entry,
        kind: SFlag,
        device: libc::dev_t,
    ) -> Result<()> {
        self.clear(parent, name, false)?;
        let mode = Mode::from_bits_truncate(entry.mode);
        let os_name = OsStr::from_bytes(name);
        nix::sys::stat::mknodat(Some(parent.raw()), os_name, kind, mode, device)
            .map_err(|e| errno("creating the node", e))?;
        self.node_metadata(parent, name, entry)?;
        // The node was made just now and is no link: following is safe. Needed because of the umask.
        nix::sys::stat::fchmodat(
            Some(parent.raw()),
            os_name,
            mode,
            FchmodatFlags::FollowSymlink,
        )
        .map_err(|e| errno("setting the mode", e))?;
        self.count(0)
    }

    /// Owner and time of what cannot be opened.
    fn node_metadata(&self, parent: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        let name = OsStr::from_bytes(name);
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        nix::unistd::fchownat(
            Some(parent.raw()),
            name,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(|e| errno("setting the owner", e))?;
        let time = time(entry);
        let flag = UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(Some(parent.raw()), name, &time, &time, flag)
            .map_err(|e| errno("setting the time", e))
    }

    fn hard_link(&mut self, parent: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        let target =
            components(&entry.link).map_err(|e| e.context(format!("hard link to {shown:?}")))?;
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(hostile("a hard link to the root"));
        };
        let missing = || {
            ImageError::new(
                ErrorKind::Corrupt,
                format!("hard link to {shown:?}, which is not in this layer"),
            )
        };
        let from = self.walk(target_parent, false)?.ok_or_else(missing)?;
        let there = stat_at(&from, target_name)?.ok_or_else(missing)?;
        if is_kind(&there, SFlag::S_IFDIR) {
            return Err(hostile(format!("hard link to the directory {shown:?}")));
        }
        if let Some(here) = stat_at(parent, name)?
            && (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
        {
            return Ok(());
        }
        self.clear(parent, name, false)?;
        nix::unistd::linkat(
            Some(from.raw()),
            OsStr::from_bytes(target_name),
            Some(parent.raw()),
            OsStr::from_bytes(name),
            AtFlags::empty(),
        )
        .map_err(|e| errno("creating the hard link", e))
    }

    /// `.wh.NAME` hides NAME of the layers below; `.wh..wh..opq` hides all of the directory's content below
    /// (image-spec, layer.md#whiteouts). Whatever this layer itself holds there stays, in any order of entries.
    fn whiteout(&mut self, place: &Place, hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            self.opaque |= place.path.is_empty();
            return set_opaque(&place.fd);
        }
        if hidden.starts_with(b".wh.") {
            // Leftovers of aufs (.wh..wh.plnk and the like) mean nothing here.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(hostile("a whiteout of no file"));
        }
        match stat_at(place, hidden)? {
            None => {
                let flags = Mode::empty();
                let device = makedev(0, 0);
                nix::sys::stat::mknodat(
                    Some(place.raw()),
                    OsStr::from_bytes(hidden),
                    SFlag::S_IFCHR,
                    flags,
                    device,
                )
                .map_err(|e| errno("creating the whiteout", e))?;
                self.count(0)
            }
            Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => {
                set_opaque(&self.open_directory(place, hidden)?.fd)
            }
            Some(_) => Ok(()),
        }
    }

    /// Opens the directory that `wanted` names, making what is missing.
    fn enter(&mut self, wanted: &[&[u8]]) -> Result<Place> {
        if let Some(current) = &self.current
            && current.wanted.len() == wanted.len()
            && current.wanted.iter().zip(wanted).all(|(a, b)| a == b)
        {
            return Ok(current.place.clone());
        }
        let Some(place) = self.walk(wanted, true)? else {
            return Err(ImageError::new(ErrorKind::Store, "a directory vanished"));
        };
        self.current = Some(Current {
            wanted: wanted.iter().map(|c| c.to_vec()).collect(),
            place: place.clone(),
        });
        Ok(place)
    }

    /// Walks from the root by descriptors, one component at a time. Relative links that stay inside are followed, as
    /// the image's own processes would; any other link is an attack or a mistake. `None`: missing, and not to be made.
    fn walk(&mut self, wanted: &[&[u8]], create: bool) -> Result<Option<Place>> {
        let mut pending: Vec<Vec<u8>> = wanted.iter().rev().map(|c| c.to_vec()).collect();
        let mut place = Place {
            fd: self.root.clone(),
            path: Vec::new(),
        };
        let mut steps = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                if place.path.pop().is_none() {
                    return Err(hostile("passes through a link that leads out of the layer"));
                }
                pending.extend(place.path.drain(..).rev());
                place.fd = self.root.clone();
                continue;
            }
            if place.path.len() >= DEPTH_LIMIT {
                return Err(hostile("nested too deep"));
            }
            match open_at(place.raw(), &name, directory_flags(), 0) {
                Ok(fd) => {
                    place.fd = Rc::new(fd);
                    place.path.push(name);
                }
                Err(Errno::ENOENT) if create => {
                    place = self.make_directory(&place, &name, false)?
                }
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    match nix::fcntl::readlinkat(Some(place.raw()), OsStr::from_bytes(&name)) {
                        Ok(target) => {
                            let target = target.as_bytes();
                            if target.starts_with(b"/") {
                                return Err(hostile(
                                    "passes through a link that leads out of the layer",
                                ));
                            }
                            let parts = target
                                .split(|&b| b == b'/')
                                .filter(|c| !matches!(*c, b"" | b"."));
                            steps += 1 + parts.clone().filter(|c| *c == b"..").count();
                            if steps > STEP_LIMIT {
                                return Err(hostile("passes through too many links"));
                            }
                            pending.extend(parts.rev().map(<[u8]>::to_vec));
                        }
                        Err(_)
                            if create
                                && stat_at(&place, &name)?.is_some_and(|s| is_whiteout(&s)) =>
                        {
                            self.clear(&place, &name, false)?;
                            place = self.make_directory(&place, &name, true)?;
                        }
                        Err(_) => {
                            let name = String::from_utf8_lossy(&name).into_owned();
                            return Err(ImageError::new(
                                ErrorKind::Corrupt,
                                format!("{name:?} is not a directory"),
                            ));
                        }
                    }
                }
                Err(e) => return Err(errno("opening the directory", e)),
            }
        }
        Ok(Some(place))
    }

    fn open_directory(&self, parent: &Place, name: &[u8]) -> Result<Place> {
        let fd = open_at(parent.raw(), name, directory_flags(), 0)
            .map_err(|e| errno("opening the directory", e))?;
        let mut path = parent.path.clone();
        path.push(name.to_vec());
        Ok(Place {
            fd: Rc::new(fd),
            path,
        })
    }

    /// Makes a directory with the owner and mode that it has in the layers below. `opaque`: it replaces a whiteout, so
    /// what it hid stays hidden.
    fn make_directory(&mut self, parent: &Place, name: &[u8], opaque: bool) -> Result<Place> {
        if parent.path.len() >= DEPTH_LIMIT {
            return Err(hostile("nested too deep"));
        }
        nix::sys::stat::mkdirat(
            Some(parent.raw()),
            OsStr::from_bytes(name),
            Mode::from_bits_truncate(0o755),
        )
        .map_err(|e| errno("creating the directory", e))?;
        let place = self.open_directory(parent, name)?;
        let (mode, uid, gid) = match below(self.parents, &place.path) {
            Some(stat) => (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid),
            None => (0o755, 0, 0),
        };
        set_owner_and_mode(&place.fd, uid, gid, mode)?;
        if opaque {
            set_opaque(&place.fd)?;
        }
        self.count(4096)?;
        Ok(place)
    }

    /// Makes room for a new entry: whatever this layer had there goes, except a directory if `keep_directory`.
    fn clear(&mut self, parent: &Place, name: &[u8], keep_directory: bool) -> Result<Before> {
        let Some(stat) = stat_at(parent, name)? else {
            return Ok(Before::Nothing);
        };
        if is_kind(&stat, SFlag::S_IFDIR) {
            if keep_directory {
                return Ok(Before::Directory);
            }
            self.current = None;
            let mut path = format!("/proc/self/fd/{}/", parent.raw()).into_bytes();
            path.extend_from_slice(name);
            std::fs::remove_dir_all(OsStr::from_bytes(&path))
                .map_err(|e| ImageError::io("replacing the directory", &e))?;
            return Ok(Before::Nothing);
        }
        // What is removed may be, or lead to, the directory of the last entry.
        self.current = None;
        let whiteout = is_whiteout(&stat);
        nix::unistd::unlinkat(
            Some(parent.raw()),
            OsStr::from_bytes(name),
            UnlinkatFlags::NoRemoveDir,
        )
        .map_err(|e| errno("replacing the file", e))?;
        Ok(if whiteout {
            Before::Whiteout
        } else {
            Before::Nothing
        })
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.inodes += 1;
        self.bytes += bytes.next_multiple_of(4096);
        // An inode takes space too.
        self.take_space(1024)
    }

    fn take_space(&mut self, bytes: u64) -> Result<()> {
        self.unchecked += bytes;
        if self.unchecked < SPACE_INTERVAL {
            return Ok(());
        }
        self.unchecked = 0;
        check_space(&self.root, 0, self.limits.reserved)
    }

    fn set_times(&mut self) -> Result<()> {
        for (path, time) in std::mem::take(&mut self.times) {
            let mut fd = self.root.clone();
            let mut found = true;
            for name in &path {
                match open_at(fd.as_raw_fd(), name, directory_flags(), 0) {
                    Ok(next) => fd = Rc::new(next),
                    // Replaced by a later entry.
                    Err(_) => {
                        found = false;
                        break;
                    }
                }
            }
            if found {
                nix::sys::stat::futimens(fd.as_raw_fd(), &time, &time)
                    .map_err(|e| errno("setting the time", e))?;
            }
        }
        Ok(())
    }
}
