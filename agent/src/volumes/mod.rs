//! Volumes: one file per type. A type makes a directory (or file) ready on the box; containers get it as a bind mount.
//!
//! Everything here blocks on the file system and runs in `spawn_blocking`. Nothing waits for the server: objects and tokens
//! were fetched before.

pub mod atomic_writer;
mod claim;
mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
pub mod ownership;
pub mod payload;
mod projected;
mod secret;
pub mod subpath;

pub use claim::is_inside as is_volume_directory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::env::downward::Facts;
use crate::env::{Objects, Storage};

/// Where a pod's files are.
#[derive(Debug, Clone)]
pub struct PodDirs {
    /// Durable: `DATA_DIR/pods/UID`.
    pub disk: PathBuf,
    /// In memory (a tmpfs): secrets and tokens never touch the disk. `RUN_DIR/pods/UID`.
    pub memory: PathBuf,
}

impl PodDirs {
    fn volume(base: &Path, plugin: &str, name: &str) -> PathBuf {
        base.join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(name)
    }
}

/// A token that a projected volume asks for: audience (empty: the API server's own) and lifetime in seconds.
pub type TokenKey = (String, i64);

/// What volume types may use.
pub struct Context<'a> {
    pub pod: &'a Pod,
    pub dirs: &'a PodDirs,
    pub objects: &'a dyn Objects,
    pub storage: &'a dyn Storage,
    /// Where volumes that are directories of this box are.
    pub storage_dir: &'a Path,
    pub facts: &'a Facts,
    pub tokens: &'a BTreeMap<TokenKey, String>,
}

impl Context<'_> {
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// `securityContext.fsGroup`.
    pub fn fs_group(&self) -> Option<u32> {
        let group = self
            .pod
            .spec
            .as_ref()?
            .security_context
            .as_ref()?
            .fs_group?;
        u32::try_from(group).ok()
    }

    /// The user that all containers run as, if they agree: tokens belong to it.
    pub fn fs_user(&self) -> Option<u32> {
        let spec = self.pod.spec.as_ref()?;
        let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
        let mut users = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|c| {
                c.security_context
                    .as_ref()
                    .and_then(|s| s.run_as_user)
                    .or(of_pod)
            });
        let first = users.next()??;
        users
            .all(|u| u == Some(first))
            .then(|| u32::try_from(first).ok())
            .flatten()
    }
}

/// One type of volume.
pub trait VolumeType: Sync {
    /// As in `kubernetes.io/NAME`.
    fn name(&self) -> &'static str;
    fn matches(&self, volume: &Volume) -> bool;
    /// Makes the volume ready, or brings its content up to date; idempotent. Returns what is to be bind-mounted. The error
    /// is what follows `MountVolume.SetUp failed for volume "x" : `.
    fn set_up(&self, cx: &Context, volume: &Volume) -> Result<PathBuf, String>;
    /// Whether content follows changes of API objects while the pod runs.
    fn live(&self) -> bool {
        false
    }
    /// Whether containers can never write to it.
    fn read_only(&self, _: &Volume) -> bool {
        false
    }
}

static TYPES: [&dyn VolumeType; 7] = [
    &config_map::ConfigMap,
    &secret::Secret,
    &projected::Projected,
    &downward_api::DownwardApi,
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &claim::Claim,
];

pub fn type_of(volume: &Volume) -> Option<&'static dyn VolumeType> {
    TYPES.iter().copied().find(|t| t.matches(volume))
}

/// Makes all volumes of a pod ready. Paths by volume name, or the first failure: volume name and why.
pub fn set_up_all(cx: &Context) -> Result<BTreeMap<String, PathBuf>, (String, String)> {
    let mut paths = BTreeMap::new();
    for volume in cx.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let fail = |why: String| (volume.name.clone(), why);
        let kind = type_of(volume).ok_or_else(|| fail("no volume plugin matched".into()))?;
        paths.insert(volume.name.clone(), kind.set_up(cx, volume).map_err(fail)?);
    }
    Ok(paths)
}

/// Brings volumes that follow API objects up to date. Failures are returned, not fatal: the old content stays.
pub fn refresh(cx: &Context) -> Vec<(String, String)> {
    let mut failures = Vec::new();
    for volume in cx.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if let Some(kind) = type_of(volume)
            && kind.live()
            && let Err(why) = kind.set_up(cx, volume)
        {
            failures.push((volume.name.clone(), why));
        }
    }
    failures
}

/// Unmounts and removes everything below the pod's directories; safe to repeat. Never follows links, never crosses into what
/// is still mounted.
pub fn tear_down(dirs: &PodDirs) -> std::io::Result<()> {
    for base in [&dirs.disk, &dirs.memory] {
        unmount_below(base)?;
        remove(&base.join("volumes"))?;
        remove(&base.join("volume-subpaths"))?;
    }
    Ok(())
}

/// Removes the whole directories of a pod, after [`tear_down`].
pub fn remove_pod(dirs: &PodDirs) -> std::io::Result<()> {
    tear_down(dirs)?;
    remove(&dirs.disk)?;
    remove(&dirs.memory)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Unmounts what is mounted at or below `base`, deepest first.
fn unmount_below(base: &Path) -> std::io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = mount_points(&table)
        .filter(|p| p.starts_with(base))
        .collect();
    points.reverse();
    for p in points {
        match nix::mount::umount2(
            &p,
            nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW,
        ) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Mount points of a mountinfo table (proc(5)), in the order of the table, with `\040`-like escapes undone.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|raw| {
            let mut out = String::new();
            let mut rest = raw;
            while let Some(at) = rest.find('\\') {
                out.push_str(&rest[..at]);
                match rest
                    .get(at + 1..at + 4)
                    .and_then(|o| u8::from_str_radix(o, 8).ok())
                {
                    Some(byte) => {
                        out.push(byte as char);
                        rest = &rest[at + 4..];
                    }
                    None => {
                        out.push('\\');
                        rest = &rest[at + 1..];
                    }
                }
            }
            out.push_str(rest);
            PathBuf::from(out)
        })
}

/// Whether something is mounted exactly at `path`.
pub fn is_mount_point(path: &Path) -> std::io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&table).any(|p| p == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table =
            "36 35 98:0 /m /a\\040b rw - ext4 /dev/x rw\n37 35 98:0 / /c rw - ext4 /dev/x rw\n";
        assert_eq!(
            mount_points(table).collect::<Vec<_>>(),
            [PathBuf::from("/a b"), PathBuf::from("/c")]
        );
    }
}
