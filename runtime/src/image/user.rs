//! Users and groups of an image, read from its own `/etc/passwd` and `/etc/group` (runc's rules for `USER`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

use super::merged::open_merged;

/// A file of users longer than this is not read to its end.
const FILE_LIMIT: u64 = 4 << 20;

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Groups of `/etc/group` that list the user by name; without `gid`.
    pub additional_gids: Vec<u32>,
    /// The user's name, if `/etc/passwd` has one.
    pub name: Option<String>,
    /// The home directory, if `/etc/passwd` has one.
    pub home: Option<PathBuf>,
}

/// Why a user could not be resolved; the texts are those of runc and containerd.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("no users found: unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("no groups found: unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("uids and gids must be in range 0-4294967294: {0:?}")]
    Range(String),
    #[error("reading /etc/{file} of the image: {source}")]
    Read {
        file: &'static str,
        source: io::Error,
    },
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` (any mix; empty is root) against the root file system at `rootfs`.
///
/// Links inside are followed as if `rootfs` were `/` (openat2(2), RESOLVE_IN_ROOT), so none leads out. Missing files
/// are empty files. A number that no entry has stands for itself, with group 0.
pub fn resolve(rootfs: &Path, spec: &str) -> Result<ResolvedUser, UserError> {
    let root = File::open(rootfs).map_err(|source| UserError::Read { file: "", source })?;
    resolve_at(root.as_fd(), spec)
}

/// As [`resolve`], with the root file system as an open directory.
pub fn resolve_at(rootfs: BorrowedFd<'_>, spec: &str) -> Result<ResolvedUser, UserError> {
    let passwd = read(rootfs, "passwd")?;
    let group = read(rootfs, "group")?;
    resolve_in(&passwd, &group, spec)
}

/// As [`resolve`], before the layers are mounted: `layers` are an image's, **lowest first**, seen as overlayfs would
/// show them.
pub fn resolve_in_layers(layers: &[PathBuf], spec: &str) -> Result<ResolvedUser, UserError> {
    let read = |file: &'static str| {
        let found = open_merged(layers, &format!("etc/{file}"));
        let content = found.and_then(|found| found.map_or(Ok(Vec::new()), read_bounded));
        content.map_err(|source| UserError::Read { file, source })
    };
    resolve_in(&read("passwd")?, &read("group")?, spec)
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // Never read from what could block or never end.
    if file.metadata()?.is_file() {
        file.take(FILE_LIMIT).read_to_end(&mut content)?;
    }
    Ok(content)
}

fn read(rootfs: BorrowedFd<'_>, file: &'static str) -> Result<Vec<u8>, UserError> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = format!("etc/{file}");
    let opened = match nix::fcntl::openat2(rootfs.as_raw_fd(), path.as_str(), how) {
        // SAFETY: openat2 returned a new descriptor that nothing else owns.
        Ok(fd) => unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) },
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(Vec::new()),
        Err(errno) => {
            return Err(UserError::Read {
                file,
                source: errno.into(),
            });
        }
    };
    read_bounded(opened).map_err(|source| UserError::Read { file, source })
}

struct PasswdLine {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct GroupLine {
    name: String,
    gid: u32,
    members: Vec<String>,
}

fn lines(file: &[u8]) -> impl Iterator<Item = String> {
    BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn passwd_lines(file: &[u8]) -> impl Iterator<Item = PasswdLine> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let mut numbers = fields.skip(1);
        let uid = id(numbers.next()?)?;
        let gid = id(numbers.next()?)?;
        let home = numbers.nth(1).unwrap_or_default().to_owned();
        Some(PasswdLine {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn group_lines(file: &[u8]) -> impl Iterator<Item = GroupLine> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let gid = id(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        let members = members
            .split(',')
            .filter(|m| !m.is_empty())
            .map(str::to_owned)
            .collect();
        Some(GroupLine { name, gid, members })
    })
}

/// A user's or group's number in a file; a line with the number that is none (-1) is no line.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// A number, if `text` is one; -1 means "no change" to the kernel and is never a user.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(UserError::Range(text.to_owned())),
        Ok(number) => Ok(Some(number)),
    }
}

/// As [`resolve`], with the two files' contents.
pub fn resolve_in(passwd: &[u8], group: &[u8], spec: &str) -> Result<ResolvedUser, UserError> {
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let uid = number(user)?;
    // A name that is made of digits is looked up as a name first, as runc does.
    let found = passwd_lines(passwd).find(|line| line.name == user || Some(line.uid) == uid);
    let mut resolved = match (found, uid) {
        (Some(line), _) => ResolvedUser {
            uid: line.uid,
            gid: line.gid,
            additional_gids: Vec::new(),
            home: (!line.home.is_empty()).then(|| PathBuf::from(line.home)),
            name: Some(line.name),
        },
        (None, Some(uid)) => ResolvedUser {
            uid,
            ..ResolvedUser::default()
        },
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    if !wanted_group.is_empty() {
        let gid = number(wanted_group)?;
        let found =
            group_lines(group).find(|line| line.name == wanted_group || Some(line.gid) == gid);
        resolved.gid = match (found, gid) {
            (Some(line), _) => line.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::NoGroup(wanted_group.to_owned())),
        };
    }
    if let Some(name) = &resolved.name {
        let mut gids: Vec<u32> = group_lines(group)
            .filter(|line| line.members.contains(name) && line.gid != resolved.gid)
            .map(|line| line.gid)
            .collect();
        gids.sort_unstable();
        gids.dedup();
        resolved.additional_gids = gids;
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\napp:x:1000:1001:,,,:/home/app:/bin/sh\n\
        web:x:33:33::/var/www:/usr/sbin/nologin\n";
    /// -1 to the kernel, which takes it for "leave as it is".
    #[test]
    fn the_number_that_is_none_is_nobodys() {
        let passwd = b"ghost:x:4294967295:0::/:\nhalf:x:7:4294967295::/:\n";
        let group = b"ghosts:x:4294967295:half\n";
        for spec in ["ghost", "half", "0:ghosts", "4294967295"] {
            assert!(resolve_in(passwd, group, spec).is_err(), "{spec}");
        }
    }

    const GROUP: &[u8] =
        b"root:x:0:\napp:x:1001:\nwww:x:33:web\ndisk:x:6:app,web\naudio:x:29:app\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve_in(PASSWD, GROUP, spec).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        assert_eq!(ids(""), (0, 0, vec![]));

        assert_eq!(ids("app"), (1000, 1001, vec![6, 29]));
        assert_eq!(ids("1000"), (1000, 1001, vec![6, 29]));
        assert_eq!(ids("app:www"), (1000, 33, vec![6, 29]));
        assert_eq!(ids("app:29"), (1000, 29, vec![6]));
        assert_eq!(ids("4242"), (4242, 0, vec![]));
        assert_eq!(ids("4242:4243"), (4242, 4243, vec![]));
        assert_eq!(ids(":6"), (0, 6, vec![]));
        assert_eq!(
            resolve_in(PASSWD, GROUP, "web").unwrap().home,
            Some(PathBuf::from("/var/www"))
        );
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_errors() {
        assert!(matches!(
            resolve_in(PASSWD, GROUP, "nobody"),
            Err(UserError::NoUser(_))
        ));
        assert!(matches!(
            resolve_in(PASSWD, GROUP, "app:nogroup"),
            Err(UserError::NoGroup(_))
        ));
        assert!(matches!(
            resolve_in(PASSWD, GROUP, "4294967295"),
            Err(UserError::Range(_))
        ));
        assert!(matches!(
            resolve_in(PASSWD, GROUP, "99999999999"),
            Err(UserError::Range(_))
        ));
        assert!(matches!(
            resolve_in(b"", b"", "-1"),
            Err(UserError::NoUser(_))
        ));
    }
}
