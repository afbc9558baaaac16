//! What callers ask for: sandboxes, containers, execs. Plain data, serialisable, no Kubernetes types.
//!
//! Names follow the OCI runtime specification <https://github.com/opencontainers/runtime-spec> where it has one and CRI otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Whose namespace a sandbox uses: its own, or the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    #[default]
    Pod,
    Host,
}

/// Who shares a PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PidMode {
    /// Each container is PID 1 of its own namespace (Kubernetes' default).
    #[default]
    Container,
    /// `shareProcessNamespace`: a tiny init of ours is PID 1, all containers of the pod join it.
    Pod,
    /// `hostPID`.
    Host,
}

/// A pod's environment: namespaces that outlive its containers, and its cgroup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Unique on this box; the pod's UID. `[A-Za-z0-9._-]+`.
    pub id: String,
    /// Host name inside the sandbox's UTS namespace; ignored with a host network (Kubernetes shows the host's name then).
    pub hostname: String,
    pub network: NamespaceMode,
    pub ipc: NamespaceMode,
    pub pid: PidMode,
    /// `net.*` and IPC sysctls, written in the sandbox's namespaces, e.g. `net.core.somaxconn` = `1024`.
    pub sysctls: BTreeMap<String, String>,
    /// Size limit of the pod's `/dev/shm` in bytes; `None` = 64 MiB as containerd has it. Unused with host IPC.
    pub shm_size: Option<u64>,
    /// The pod's cgroup, parent of the containers' groups.
    pub cgroup: PodCgroup,
    /// Opaque to the runtime; given back by `list_sandboxes`.
    pub labels: BTreeMap<String, String>,
}

/// A cgroup below [`crate::RuntimeConfig::cgroup_root`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodCgroup {
    /// Relative to the root, e.g. `burstable/pod<uid>`. Missing ancestors are made.
    pub path: String,
    pub resources: Resources,
}

/// A sandbox that exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    pub id: String,
    /// A bind-mounted network namespace to `setns` into; `None` with a host network.
    pub netns_path: Option<PathBuf>,
    /// Directory to bind-mount on `/dev/shm`; the runtime does so itself unless a container brings its own mount there.
    pub shm_path: PathBuf,
    /// The pod's cgroup as an absolute path inside the hierarchies, e.g. `/kubepods/burstable/pod<uid>`.
    pub cgroup_path: String,
    pub labels: BTreeMap<String, String>,
}

/// A container to create in a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique on this box. `[A-Za-z0-9._-]+`; choose 64 hexadecimal characters for what users see.
    pub id: String,
    /// [`SandboxSpec::id`].
    pub sandbox: String,
    /// Opaque to the runtime; given back by `list_containers`.
    pub labels: BTreeMap<String, String>,
    /// Overlay lower directories, **lowest first** (the order of an image's layers). Never empty.
    pub layers: Vec<PathBuf>,
    /// The whole command line; `args[0]` is looked up in `$PATH` of `env` if it holds no slash.
    pub args: Vec<String>,
    /// `NAME=value`. The runtime adds `PATH` and `HOME` when they are missing, `HOSTNAME` never, `TERM=xterm` with a terminal.
    pub env: Vec<String>,
    /// Absolute; empty = `/`. Made (mode 0755, owner root) when missing.
    pub cwd: String,
    pub user: User,
    /// A pseudo-terminal instead of pipes; stderr is then part of stdout.
    pub terminal: bool,
    /// Keep standard input open, so that `attach` can write to it. Otherwise it is /dev/null.
    pub stdin: bool,
    /// Close standard input when the first attached session's input ends.
    pub stdin_once: bool,
    /// Mounted parents first, else in this order. `/proc`, `/dev`, `/dev/pts`, `/dev/mqueue`, `/dev/shm`, `/sys`, `/sys/fs/cgroup` are added by the
    /// runtime unless named here.
    pub mounts: Vec<Mount>,
    /// The final list, e.g. `CAP_CHOWN` or `CHOWN`; see [`DEFAULT_CAPABILITIES`]. What this box does not have is left out, with a log line.
    pub capabilities: Vec<String>,
    /// All capabilities and devices, writable `/sys`, no seccomp, nothing masked.
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    pub seccomp: Seccomp,
    /// `None` = the usual list (CRI's `Default` procMount); `Some(vec![])` masks nothing (`Unmasked`).
    pub masked_paths: Option<Vec<String>>,
    /// As `masked_paths`.
    pub readonly_paths: Option<Vec<String>>,
    /// AppArmor profile name; ignored, with a log line, where the kernel has no AppArmor.
    pub apparmor_profile: Option<String>,
    pub devices: Vec<Device>,
    pub sysctls: BTreeMap<String, String>,
    pub rlimits: Vec<Rlimit>,
    /// -1000 to 1000. Lowering it needs CAP_SYS_RESOURCE: without, the nearest allowed value is used, with a log line.
    pub oom_score_adj: Option<i32>,
    pub resources: Resources,
    /// The CRI log file, e.g. `/var/log/pods/ns_name_uid/container/0.log`. Its directory must exist. `None` discards output.
    pub log_path: Option<PathBuf>,
    pub log_limits: LogLimits,
    /// From the image's `STOPSIGNAL`, e.g. `SIGQUIT` or `3`; empty = SIGTERM. Used by [`crate::Runtime::stop_signal`].
    pub stop_signal: String,
    /// User namespace maps (`hostUsers: false`); `None` = the host's user namespace.
    pub user_namespace: Option<UserNamespace>,
}

/// containerd's and Docker's default capability set.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Numeric identity of a process. Names are resolved by [`crate::image::user`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub container_id: u32,
    pub host_id: u32,
    pub size: u32,
}

/// How mounts made on one side of a bind mount reach the other. Kubernetes: None, HostToContainer, Bidirectional.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    /// Privileged containers only, says the API; the runtime does not check.
    Bidirectional,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// `source` is a file or directory of the host.
    #[default]
    Bind,
    /// A fresh tmpfs; `size` in bytes, `None` = half of memory; `mode` as in chmod.
    Tmpfs { size: Option<u64>, mode: u32 },
    /// Any other filesystem type by name, with its mount options, e.g. `proc`.
    Other {
        fs_type: String,
        options: Vec<String>,
    },
}

/// One mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    pub source: PathBuf,
    /// Absolute path in the container; made when missing.
    pub destination: PathBuf,
    pub readonly: bool,
    /// Bind mounts: also what is mounted below `source` (`rbind`). With `readonly`, that becomes read-only too if the kernel can
    /// (`recursiveReadOnly`).
    pub recursive: bool,
    pub recursive_readonly: bool,
    pub propagation: Propagation,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    /// The well-known default profile; which system calls it allows depends on the capabilities.
    RuntimeDefault,
    /// A profile in Docker's or OCI's JSON form.
    Localhost(PathBuf),
}

/// A host device to give to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

/// `kind` as in setrlimit(2), e.g. `RLIMIT_NOFILE`. Clipped to this box's hard limits, with a log line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// Limits of a cgroup in the units of cgroup v1 (as OCI has them); translated where v2 is used. `None` = leave alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// 2 to 262144; 1024 is one CPU's worth.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; -1 lifts the limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds; 100000 when a quota is set without it.
    pub cpu_period: Option<u64>,
    /// Bytes; -1 lifts the limit.
    pub memory_limit: Option<i64>,
    /// cgroup v2 `memory.min` / `memory.high`, bytes.
    pub memory_min: Option<i64>,
    pub memory_high: Option<i64>,
    /// Memory plus swap in bytes; `None` = equal to `memory_limit`: no swap.
    pub memory_swap_limit: Option<i64>,
    /// e.g. `0-2,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// -1 lifts the limit.
    pub pids_limit: Option<i64>,
    /// Page size as the kernel names it (`2MB`, `1GB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// cgroup v2 files, verbatim.
    pub unified: BTreeMap<String, String>,
}

/// When and how far a container's log is rotated: `0.log` becomes `0.log.<UTC yyyymmdd-hhmmss.nanoseconds>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes.
    pub max_size: u64,
    /// Files in all, the current one included; at least 2.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// The kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        LogLimits {
            max_size: 10 * 1024 * 1024,
            max_files: 5,
        }
    }
}

/// A process to run in a running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub args: Vec<String>,
    /// Added to, and stronger than, the container's environment.
    pub env: Vec<String>,
    /// `None` = the container's.
    pub cwd: Option<String>,
    /// `None` = the container's.
    pub user: Option<User>,
    pub tty: bool,
    pub stdin: bool,
    /// Killed with SIGKILL after this time; `wait` then says [`crate::ExecOutcome::timed_out`].
    pub timeout: Option<Duration>,
}
