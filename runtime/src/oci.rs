//! From [`ContainerSpec`] to what the keeper's children read: an OCI `config.json`, a process plan and a root plan. Pure: what the box is
//! like comes in as [`Host`].

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::devices::{device_rules, devices};
use crate::error::{Error, Result};
use crate::host::{Host, RLIMITS};
use crate::keeper::RootPlan;
use crate::process::ProcessPlan;
use crate::spec::{
    ContainerSpec, IdMapping, Mount, MountKind, NamespaceMode, PidMode, Propagation, Rlimit,
};
use crate::sys::caps;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// containerd's lists.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// What a container takes from its sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings<'a> {
    pub network: NamespaceMode,
    pub ipc: NamespaceMode,
    pub pid: PidMode,
    /// Directory of the pinned namespaces.
    pub pins: &'a Path,
    pub shm: &'a Path,
    /// The container's own group, absolute inside the hierarchies.
    pub cgroup: &'a str,
    pub run: &'a Path,
    pub state: &'a Path,
}

/// The final capability set of a container.
pub(crate) fn capabilities(spec: &ContainerSpec, host: &Host) -> Result<u64> {
    if spec.privileged {
        return Ok(host.bounding);
    }
    let mut wanted = 0;
    for name in &spec.capabilities {
        wanted |= caps::bit(name)
            .ok_or_else(|| Error::Invalid(format!("unknown capability {name:?}")))?;
    }
    let missing = wanted & !host.bounding;
    if missing != 0 {
        let names: Vec<&str> = caps::NAMES
            .iter()
            .enumerate()
            .filter(|(n, _)| missing & (1 << n) != 0)
            .map(|(_, name)| *name)
            .collect();
        tracing::warn!(
            container = spec.id,
            ?names,
            "this box does not have these capabilities: left out"
        );
    }
    Ok(wanted & host.bounding)
}

/// The number of a signal from an image's or a pod's name for it; empty = SIGTERM.
pub(crate) fn signal_number(name: &str) -> Result<i32> {
    let unknown = || Error::Invalid(format!("unknown signal {name:?}"));
    if name.is_empty() {
        return Ok(libc::SIGTERM);
    }
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    for (prefix, base, sign) in [("SIGRTMIN", 34, 1), ("SIGRTMAX", 64, -1)] {
        if let Some(rest) = full.strip_prefix(prefix) {
            let offset: i32 = match rest.trim_start_matches(['+', '-']) {
                "" => 0,
                digits => digits.parse().map_err(|_| unknown())?,
            };
            let number = base + sign * offset;
            return (34..=64)
                .contains(&number)
                .then_some(number)
                .ok_or_else(unknown);
        }
    }
    full.parse::<nix::sys::signal::Signal>()
        .map(|s| s as i32)
        .map_err(|_| unknown())
}

/// Later entries win, in the place of the first.
fn deduplicated(env: &[String]) -> Vec<String> {
    let mut result: Vec<String> = Vec::with_capacity(env.len() + 2);
    for entry in env {
        let name = entry.split('=').next().unwrap_or(entry);
        let same = |e: &&mut String| e.split('=').next() == Some(name);
        match result.iter_mut().find(same) {
            Some(earlier) => earlier.clone_from(entry),
            None => result.push(entry.clone()),
        }
    }
    result
}

fn rlimits(spec: &ContainerSpec, host: &Host) -> Result<Vec<(i32, u64, u64)>> {
    let resolve = |limit: &Rlimit| {
        let number = RLIMITS
            .iter()
            .find(|(name, _)| *name == limit.kind)
            .map(|(_, number)| *number)
            .ok_or_else(|| Error::Invalid(format!("unknown resource limit {:?}", limit.kind)))?;
        let own = host.rlimits.get(&number).copied().unwrap_or(u64::MAX);
        let ceiling = match (host.can_raise_limits, limit.kind.as_str()) {
            (false, _) => own,
            (true, "RLIMIT_NOFILE") => host.nr_open,
            (true, _) => u64::MAX,
        };
        let hard = limit.hard.min(ceiling);
        if hard < limit.hard {
            tracing::warn!(
                container = spec.id,
                kind = limit.kind,
                wanted = limit.hard,
                ceiling,
                "hard limit above this box's: clipped"
            );
        }
        Ok((number, limit.soft.min(hard), hard))
    };
    spec.rlimits.iter().map(resolve).collect()
}

/// What the process shall be.
pub(crate) fn process_plan(
    spec: &ContainerSpec,
    host: &Host,
    capabilities: u64,
    seccomp: Option<PathBuf>,
) -> Result<ProcessPlan> {
    if spec.args.is_empty() {
        return Err(Error::Exec("no command specified".into()));
    }
    let zero = |s: &&String| s.contains('\0');
    if let Some(bad) = spec.args.iter().chain(&spec.env).find(zero) {
        return Err(Error::Invalid(format!("{bad:?} holds a zero byte")));
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') {
        return Err(Error::Invalid(format!(
            "working directory {:?} is not absolute",
            spec.cwd
        )));
    }
    let mut env = deduplicated(&spec.env);
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.into());
    }
    if spec.terminal && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let score = spec.oom_score_adj.unwrap_or(0).clamp(-1000, 1000);
    let lowest = if host.can_raise_limits {
        -1000
    } else {
        host.oom_score_adj
    };
    if score < lowest && spec.oom_score_adj.is_some() {
        tracing::warn!(
            container = spec.id,
            wanted = score,
            given = lowest,
            "OOM score cannot be lowered without CAP_SYS_RESOURCE"
        );
    }
    if let Some(profile) = &spec.apparmor_profile {
        tracing::debug!(
            container = spec.id,
            profile,
            "AppArmor profiles are not applied"
        );
    }
    Ok(ProcessPlan {
        args: spec.args.clone(),
        env,
        cwd: spec.cwd.clone(),
        uid: spec.user.uid,
        gid: spec.user.gid,
        groups: spec.user.additional_gids.clone(),
        capabilities,
        no_new_privileges: spec.no_new_privileges,
        seccomp,
        rlimits: rlimits(spec, host)?,
        oom_score_adj: Some(score.max(lowest)),
        terminal: spec.terminal,
    })
}

pub(crate) fn root_plan(spec: &ContainerSpec, around: &Surroundings<'_>) -> RootPlan {
    let host_id = |maps: &[IdMapping]| {
        maps.iter()
            .find(|m| m.container_id == 0)
            .map_or(0, |m| m.host_id)
    };
    RootPlan {
        layers: spec.layers.clone(),
        upper: around.state.join("upper"),
        work: around.state.join("work"),
        shared: shares_mounts(spec),
        nodev: !spec.privileged,
        propagation: propagation(spec),
        root_uid: spec
            .user_namespace
            .as_ref()
            .map_or(0, |u| host_id(&u.uid_mappings)),
    }
}

/// Kubernetes' `None` is private, which is not what a bind mount is by itself.
fn propagation(spec: &ContainerSpec) -> Vec<(PathBuf, u64)> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    if spec
        .mounts
        .iter()
        .all(|m| m.propagation == Propagation::Private)
    {
        return vec![("/".into(), private)];
    }
    spec.mounts
        .iter()
        .filter_map(|m| {
            let flags = match m.propagation {
                Propagation::Private => private,
                Propagation::HostToContainer => libc::MS_REC | libc::MS_SLAVE,
                Propagation::Bidirectional => return None,
            };
            Some((m.destination.clone(), flags))
        })
        .collect()
}

fn shares_mounts(spec: &ContainerSpec) -> bool {
    spec.mounts
        .iter()
        .any(|m| m.propagation == Propagation::Bidirectional)
}

/// The OCI configuration for libcontainer. What our own last steps do (capabilities, seccomp, arguments, terminal) is left out of it.
pub(crate) fn config(
    spec: &ContainerSpec,
    plan: &ProcessPlan,
    host: &Host,
    around: &Surroundings<'_>,
) -> Result<Value> {
    let mut readonly_paths = paths(spec, spec.readonly_paths.as_deref(), &READONLY);
    if !host.unified_cgroups && !spec.privileged {
        // The tmpfs that holds the hierarchies' mount points.
        readonly_paths.push(CGROUP_MOUNT.into());
    }
    let mut linux = json!({
        "namespaces": namespaces(spec, host, around),
        "cgroupsPath": around.cgroup,
        "resources": { "devices": device_rules(spec)? },
        "maskedPaths": paths(spec, spec.masked_paths.as_deref(), &MASKED),
        "readonlyPaths": readonly_paths,
        "devices": devices(spec)?,
    });
    if !spec.sysctls.is_empty() {
        linux["sysctl"] = json!(spec.sysctls);
    }
    if let Some(user) = &spec.user_namespace {
        let maps = |list: &[IdMapping]| -> Vec<Value> {
            list.iter()
                .map(
                    |m| json!({"containerID": m.container_id, "hostID": m.host_id, "size": m.size}),
                )
                .collect()
        };
        linux["uidMappings"] = json!(maps(&user.uid_mappings));
        linux["gidMappings"] = json!(maps(&user.gid_mappings));
    }
    if shares_mounts(spec) {
        linux["rootfsPropagation"] = json!("shared");
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": plan.uid, "gid": plan.gid },
            "args": ["program"],
            "env": [DEFAULT_PATH],
            "cwd": "/",
            "oomScoreAdj": plan.oom_score_adj.unwrap_or(0),
        },
        "root": { "path": around.run.join(crate::keeper::ROOT_DIRECTORY), "readonly": spec.read_only_root },
        "mounts": mounts(spec, host, around),
        "linux": linux,
    }))
}

fn namespaces(spec: &ContainerSpec, host: &Host, around: &Surroundings<'_>) -> Vec<Value> {
    let pinned = |kind: &str, file: &str| json!({"type": kind, "path": around.pins.join(file)});
    let mut list = vec![json!({"type": "mount"})];
    match around.pid {
        PidMode::Container => list.push(json!({"type": "pid"})),
        PidMode::Pod => list.push(pinned("pid", "pid")),
        PidMode::Host => {}
    }
    if around.network == NamespaceMode::Pod {
        list.push(pinned("network", "net"));
        list.push(pinned("uts", "uts"));
    }
    if around.ipc == NamespaceMode::Pod {
        list.push(pinned("ipc", "ipc"));
    }
    // Under version 1 containers see only their own group by way of the mount; privileged ones see all, as with containerd.
    if host.unified_cgroups && !spec.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    if spec.user_namespace.is_some() {
        list.push(json!({"type": "user"}));
    }
    list
}

fn paths(spec: &ContainerSpec, chosen: Option<&[String]>, default: &[&str]) -> Vec<String> {
    match chosen {
        Some(list) => list.to_vec(),
        None if spec.privileged => Vec::new(),
        None => default.iter().map(|p| p.to_string()).collect(),
    }
}

fn mounts(spec: &ContainerSpec, host: &Host, around: &Surroundings<'_>) -> Vec<Value> {
    let rw = if spec.privileged { "rw" } else { "ro" };
    let standard = [
        ("/proc", "proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            vec!["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec![
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            vec!["nosuid", "noexec", "nodev"],
        ),
        (
            "/sys",
            "sysfs",
            "sysfs",
            vec!["nosuid", "noexec", "nodev", rw],
        ),
    ];
    let own = |path: &str| spec.mounts.iter().any(|m| m.destination == Path::new(path));
    let mut list: Vec<Value> = standard
        .into_iter()
        .filter(|(path, ..)| !own(path))
        .map(|(path, kind, source, options)| {
            json!({"destination": path, "type": kind, "source": source, "options": options})
        })
        .collect();
    if !own(CGROUP_MOUNT) {
        list.extend(cgroup_mounts(host, around, rw));
    }
    if !own("/dev/shm") {
        list.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": around.shm,
            "options": ["rbind", "rw", "nosuid", "noexec", "nodev"],
        }));
    }
    // What is mounted below another mount comes after it.
    let mut sorted: Vec<&Mount> = spec.mounts.iter().collect();
    sorted.sort_by_key(|m| m.destination.components().count());
    list.extend(sorted.into_iter().map(mount));
    list
}

/// Of version 1, the container's own groups by bind mounts: libcontainer's way of doing so breaks where a PID namespace is joined (it
/// takes its number there for one in the host's /proc).
fn cgroup_mounts(host: &Host, around: &Surroundings<'_>, rw: &str) -> Vec<Value> {
    let options = ["nosuid", "noexec", "nodev", "relatime"];
    let with = |more: &[&str]| -> Vec<String> {
        let all = options.iter().chain(more);
        all.map(|o| o.to_string()).collect()
    };
    if host.unified_cgroups {
        return vec![json!({
            "destination": CGROUP_MOUNT, "type": "cgroup", "source": "cgroup", "options": with(&[rw]),
        })];
    }
    let mut list = vec![json!({
        "destination": CGROUP_MOUNT, "type": "tmpfs", "source": "tmpfs", "options": with(&["mode=755", "size=64k"]),
    })];
    for (name, directory) in &host.hierarchies {
        list.push(json!({
            "destination": format!("{CGROUP_MOUNT}/{name}"), "type": "bind",
            "source": directory.join(around.cgroup.trim_start_matches('/')),
            "options": with(&["bind", rw]),
        }));
    }
    list
}

fn mount(mount: &Mount) -> Value {
    let access = if mount.readonly { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind => {
            let mut options = vec![if mount.recursive { "rbind" } else { "bind" }, access];
            if mount.readonly && mount.recursive_readonly {
                options.push("rro");
            }
            options.push(match mount.propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            });
            json!({"destination": mount.destination, "type": "bind", "source": mount.source, "options": options})
        }
        MountKind::Tmpfs { size, mode } => {
            let mut options = vec![access.to_string(), format!("mode={mode:o}")];
            options.extend(size.map(|s| format!("size={s}")));
            json!({"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
        MountKind::Other { fs_type, options } => {
            let mut options = options.clone();
            options.push(access.into());
            json!({"destination": mount.destination, "type": fs_type, "source": mount.source, "options": options})
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host() -> Host {
        Host {
            bounding: !(1 << 24),
            can_raise_limits: false,
            nr_open: 1 << 20,
            oom_score_adj: 0,
            rlimits: [(libc::RLIMIT_NOFILE as i32, 1000)].into(),
            unified_cgroups: false,
            hierarchies: vec![("cpu".into(), "/sys/fs/cgroup/cpu,cpuacct".into())],
        }
    }

    fn around<'a>() -> Surroundings<'a> {
        Surroundings {
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: PidMode::Container,
            pins: Path::new("/run/a/s/p/ns"),
            shm: Path::new("/run/a/s/p/shm"),
            cgroup: "/kubepods/pod1/c1",
            run: Path::new("/run/a/c/c1"),
            state: Path::new("/var/a/containers/c1"),
        }
    }

    fn spec() -> ContainerSpec {
        ContainerSpec {
            id: "c1".into(),
            args: vec!["sh".into()],
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn signals_are_known_by_every_name_that_images_use() {
        let numbers = ["", "SIGQUIT", "quit", "9", "SIGRTMIN+3", "rtmax-1"]
            .map(|n| signal_number(n).unwrap());
        assert_eq!(numbers, [15, 3, 3, 9, 37, 63]);
        for bad in ["SIGNOPE", "0", "99", "RTMIN+99"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_above_the_box_are_clipped_not_refused() {
        let mut s = spec();
        s.rlimits = vec![Rlimit {
            kind: "RLIMIT_NOFILE".into(),
            soft: 5000,
            hard: 5000,
        }];
        s.oom_score_adj = Some(-997);
        s.capabilities = vec!["CAP_SYS_RESOURCE".into(), "CAP_CHOWN".into()];
        let caps = capabilities(&s, &host()).unwrap();
        assert_eq!(caps, 1);
        let plan = process_plan(&s, &host(), caps, None).unwrap();
        assert_eq!(plan.rlimits, [(libc::RLIMIT_NOFILE as i32, 1000, 1000)]);
        assert_eq!(plan.oom_score_adj, Some(0));
    }

    #[test]
    fn the_environment_keeps_one_entry_per_name_and_gets_a_path() {
        let mut s = spec();
        s.env = vec!["A=1".into(), "B=2".into(), "A=3".into()];
        s.terminal = true;
        let plan = process_plan(&s, &host(), 0, None).unwrap();
        assert_eq!(plan.env, ["A=3", "B=2", DEFAULT_PATH, "TERM=xterm"]);
    }

    #[test]
    fn a_mount_of_the_callers_replaces_the_standard_one_and_parents_come_first() {
        let mut s = spec();
        let bind = |destination: &str| Mount {
            destination: destination.into(),
            source: "/src".into(),
            ..Mount::default()
        };
        s.mounts = vec![bind("/a/b"), bind("/dev/shm"), bind("/a")];
        let plan = process_plan(&s, &host(), 0, None).unwrap();
        let config = config(&s, &plan, &host(), &around()).unwrap();
        let destinations: Vec<&str> = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["destination"].as_str().unwrap())
            .collect();
        let standard = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys"];
        assert_eq!(destinations[..5], standard);
        assert_eq!(destinations[5..7], ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]);
        assert_eq!(destinations[7..], ["/a", "/a/b", "/dev/shm"]);
    }

    #[test]
    fn a_host_network_pod_joins_no_network_namespace() {
        let mut place = around();
        place.network = NamespaceMode::Host;
        let kinds: Vec<Value> = namespaces(&spec(), &host(), &place)
            .iter()
            .map(|n| n["type"].clone())
            .collect();
        assert_eq!(kinds, ["mount", "pid", "ipc"]);
    }

    #[test]
    fn nothing_to_run_is_the_callers_error() {
        let mut s = spec();
        s.args.clear();
        assert!(process_plan(&s, &host(), 0, None).is_err());
        let mut s = spec();
        s.cwd = "relative".into();
        assert!(process_plan(&s, &host(), 0, None).is_err());
    }
}
