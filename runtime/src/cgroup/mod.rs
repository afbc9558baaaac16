//! Control groups: finding the hierarchies, making, limiting, killing and removing groups. cgroups(7).
//!
//! Boxes have version 1 hierarchies, a version 2 tree, or both side by side ("hybrid", where version 1 rules); which, is looked up once.
//! Paths are absolute inside the hierarchies, e.g. `/kubepods/burstable/pod1`. We never touch a group that we did not make.
//!
//! Plain file writes rather than a crate: libcontainer's `libcgroups` makes the containers' own groups; the ready-made crates for the rest
//! bring a D-Bus stack with them.

mod devices;
mod limits;
mod stats;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{IoContext, Result};
use crate::spec::Resources;
pub(crate) use devices::{DeviceRule, MKNOD, READ, WRITE};

/// A mounted version 1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// e.g. `cpu`, `cpuacct`; empty for named ones.
    controllers: Vec<String>,
    /// As in /proc/self/cgroup: controllers joined by commas, or `name=systemd`.
    label: String,
    mount: PathBuf,
}

/// The box's hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    v1: Vec<Hierarchy>,
    /// Where the version 2 tree is mounted.
    v2: Option<PathBuf>,
}

/// How long the kernel may take to let go of a group whose processes were killed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

impl Cgroups {
    pub(crate) fn detect() -> Result<Self> {
        let what = || "read /proc/self/mountinfo for cgroups".to_string();
        let text = fs::read_to_string("/proc/self/mountinfo").context(what)?;
        Ok(Self::parse(&text))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Cgroups::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (left.next(), left.next()) else {
                continue;
            };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            // Only whole hierarchies, and each one once (containers see bind mounts of parts).
            if root != "/" && kind.starts_with("cgroup") && found.knows(mount) {
                continue;
            }
            match kind {
                "cgroup2" if found.v2.is_none() => found.v2 = Some(mount.into()),
                "cgroup" => {
                    const FLAGS: [&str; 8] = [
                        "rw",
                        "ro",
                        "xattr",
                        "noprefix",
                        "clone_children",
                        "favordynmods",
                        "nofavordynmods",
                        "cpuset_v2_mode",
                    ];
                    let words: Vec<&str> = options
                        .split(',')
                        .filter(|o| !FLAGS.contains(o) && !o.starts_with("release_agent="))
                        .collect();
                    let label = words.join(",");
                    if found.v1.iter().any(|h| h.label == label) {
                        continue;
                    }
                    found.v1.push(Hierarchy {
                        controllers: words
                            .iter()
                            .filter(|w| !w.starts_with("name="))
                            .map(|w| w.to_string())
                            .collect(),
                        label,
                        mount: mount.into(),
                    });
                }
                _ => {}
            }
        }
        found
    }

    fn knows(&self, mount: &str) -> bool {
        self.v2.as_deref() == Some(Path::new(mount))
            || self.v1.iter().any(|h| h.mount == Path::new(mount))
    }

    /// Only the version 2 tree.
    pub(crate) fn unified(&self) -> bool {
        !self.v1.iter().any(|h| !h.controllers.is_empty())
    }

    /// Version 1 hierarchies with controllers, by the names that containers know them by; a shared one under its own name and each controller's.
    pub(crate) fn hierarchies(&self) -> Vec<(String, PathBuf)> {
        let mut list = Vec::new();
        for hierarchy in self.v1.iter().filter(|h| !h.controllers.is_empty()) {
            list.push((hierarchy.label.clone(), hierarchy.mount.clone()));
            if hierarchy.controllers.len() > 1 {
                let each = hierarchy.controllers.iter();
                list.extend(each.map(|c| (c.clone(), hierarchy.mount.clone())));
            }
        }
        list
    }

    /// The directory of `path` where `controller` rules; `None` if the box has no such controller.
    pub(crate) fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mount = if self.unified() {
            self.v2.as_ref()?
        } else {
            let has = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
            &self.v1.iter().find(has)?.mount
        };
        Some(join(mount, path))
    }

    /// Every directory that belongs to the group `path`, in the hierarchies that we use.
    fn directories(&self, path: &str) -> Vec<PathBuf> {
        if self.unified() {
            return self.v2.iter().map(|m| join(m, path)).collect();
        }
        self.v1
            .iter()
            .filter(|h| !h.controllers.is_empty())
            .map(|h| join(&h.mount, path))
            .collect()
    }

    /// Makes the group and its missing ancestors and, in version 2, hands down the controllers to it.
    pub(crate) fn ensure(&self, path: &str) -> Result<()> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        if self.unified() {
            let Some(root) = &self.v2 else { return Ok(()) };
            let mut directory = root.clone();
            for part in parts {
                // Not the last one: a group that hands down controllers takes no processes.
                hand_down(&directory);
                directory.push(part);
                make(&directory)?;
            }
            return Ok(());
        }
        for hierarchy in self.v1.iter().filter(|h| !h.controllers.is_empty()) {
            let mut directory = hierarchy.mount.clone();
            for part in &parts {
                let parent = directory.clone();
                directory.push(part);
                if make(&directory)? && hierarchy.controllers.iter().any(|c| c == "cpuset") {
                    inherit_cpuset(&parent, &directory)?;
                }
            }
        }
        Ok(())
    }

    /// Sets limits of an existing group. What the box cannot do (no such controller) is left out with a log line: a pod does not fail for it.
    pub(crate) fn apply(&self, path: &str, resources: &Resources) -> Result<()> {
        let writes = if self.unified() {
            limits::v2(resources)
        } else {
            limits::v1(resources)
        };
        for write in writes {
            let Some(directory) = self.directory(write.controller, path) else {
                tracing::debug!(
                    controller = write.controller,
                    path,
                    "no such cgroup controller here: limit left out"
                );
                continue;
            };
            let file = directory.join(&write.file);
            if !file.exists() {
                if write.may_fail {
                    continue;
                }
                tracing::warn!(file = %file.display(), "this kernel has no such limit: left out");
                continue;
            }
            match fs::write(&file, &write.value) {
                Err(e) if write.may_fail => {
                    tracing::debug!(file = %file.display(), error = %e, "limit not taken");
                }
                other => {
                    other.context(|| format!("write {:?} to {}", write.value, file.display()))?
                }
            }
        }
        Ok(())
    }

    /// Restricts a container's group to the standard devices and `more`, where version 2 rules. Where the kernel cannot, a log line says so.
    pub(crate) fn restrict_devices(&self, path: &str, more: &[DeviceRule]) {
        if !self.unified() {
            return;
        }
        if let Some(directory) = self.directory("", path)
            && let Err(e) = devices::restrict(&directory, more)
        {
            tracing::warn!(path, error = %e, "devices are not restricted: the kernel takes no device filter");
        }
    }

    /// All processes in the group and below.
    pub(crate) fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for directory in self.directories(path) {
            collect_processes(&directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// SIGKILL to everything in the group and below, once. True if there was anything.
    pub(crate) fn kill(&self, path: &str) -> bool {
        let pids = self.processes(path);
        if pids.is_empty() {
            return false;
        }
        if self.unified()
            && let Some(directory) = self.directory("", path)
            && fs::write(directory.join("cgroup.kill"), "1").is_ok()
        {
            return true;
        }
        for pid in pids {
            // SAFETY: integers only. The pid was in our own group a moment ago.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        true
    }

    /// Kills what is in the group and removes it with everything below, waiting for the kernel. Blocks; for worker threads.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        if path.split('/').filter(|p| !p.is_empty()).count() == 0 {
            return Ok(());
        }
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut pause = Duration::from_millis(1);
        loop {
            let mut failure = None;
            for directory in self.directories(path) {
                if let Err(e) = remove_tree(&directory) {
                    failure = Some((directory, e));
                }
            }
            let Some((directory, error)) = failure else {
                return Ok(());
            };
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
                return Err(error).context(|| format!("remove cgroup {}", directory.display()));
            }
            self.kill(path);
            // There is no event for "the last task has left" in version 1.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// How many processes the kernel's OOM killer has killed in the group.
    pub(crate) fn oom_kills(&self, path: &str) -> Option<u64> {
        let directory = self.directory("memory", path)?;
        let file = if self.unified() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(directory.join(file)).ok()?;
        stats::field(&text, "oom_kill")
    }

    /// The directory of the group that `pid` is in, where version 2 rules.
    pub(crate) fn open_of(&self, pid: i32) -> Option<OwnedFd> {
        let mount = self.v2.as_ref().filter(|_| self.unified())?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        fs::File::open(join(mount, path)).ok().map(OwnedFd::from)
    }

    /// Puts the calling process where `pid` is, in every hierarchy in which it is elsewhere.
    pub(crate) fn join_process(&self, pid: i32) -> io::Result<()> {
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let ours = fs::read_to_string("/proc/self/cgroup")?;
        for line in theirs
            .lines()
            .filter(|line| !ours.lines().any(|l| l == *line))
        {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(label), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let mount = if label.is_empty() {
                self.v2.as_ref()
            } else {
                let same = |h: &&Hierarchy| same_words(&h.label, label);
                self.v1.iter().find(same).map(|h| &h.mount)
            };
            if let Some(mount) = mount {
                fs::write(join(mount, path).join("cgroup.procs"), "0")?;
            }
        }
        Ok(())
    }
}

/// The order of co-mounted controllers differs between mountinfo and /proc/self/cgroup.
fn same_words(a: &str, b: &str) -> bool {
    a == b || {
        let sorted = |s: &str| {
            let mut words: Vec<String> = s.split(',').map(str::to_string).collect();
            words.sort_unstable();
            words
        };
        sorted(a) == sorted(b)
    }
}

fn join(mount: &Path, path: &str) -> PathBuf {
    let relative = path.trim_matches('/');
    if relative.is_empty() {
        mount.to_path_buf()
    } else {
        mount.join(relative)
    }
}

/// True if it was not there.
fn make(directory: &Path) -> Result<bool> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).context(|| format!("make cgroup {}", directory.display())),
    }
}

/// Enables, for the children of a version 2 group, all controllers that it has and we use. Best effort, one by one: a controller may
/// refuse (real-time tasks, threads), and limits that need it are left out then.
fn hand_down(directory: &Path) {
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let control = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
        let has = |list: &str| list.split_whitespace().any(|c| c == controller);
        if has(&available) && !has(&enabled) {
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

/// A new version 1 cpuset takes no task before it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let what = || format!("set up {}", child.join(file).display());
        let have = fs::read_to_string(child.join(file)).context(what)?;
        if have.trim().is_empty() {
            let value = fs::read_to_string(parent.join(file)).context(what)?;
            fs::write(child.join(file), value.trim()).context(what)?;
        }
    }
    Ok(())
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    }
    for child in children(directory) {
        collect_processes(&child, pids);
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_box_is_ruled_by_version_1() {
        let found = Cgroups::parse(HYBRID);
        assert!(!found.unified());
        assert_eq!(
            found.directory("cpuacct", "/a/b"),
            Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into())
        );
        assert_eq!(found.directory("pids", "/a"), None);
        assert_eq!(
            found.directories("/x").len(),
            2,
            "named hierarchies are not ours"
        );
    }

    #[test]
    fn a_pure_version_2_box_has_one_tree() {
        let found =
            Cgroups::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(found.unified());
        assert_eq!(
            found.directory("memory", "/a"),
            Some("/sys/fs/cgroup/a".into())
        );
    }

    #[test]
    fn comounted_controllers_match_in_any_order() {
        assert!(same_words("cpu,cpuacct", "cpuacct,cpu"));
        assert!(!same_words("cpu", "cpuset"));
    }
}
