//! What the runtime tells: states, events, figures.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code as a shell says it: 0 to 255; 128 + signal when killed by one.
    pub code: i32,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// The kernel's OOM killer struck in the container's cgroup.
    pub oom_killed: bool,
    pub finished_at: Timestamp,
    /// The exit was noticed only afterwards and its code could not be learnt (code is 255): the machine rebooted, or keeper and
    /// agent both died on a kernel before 6.15.
    pub lost: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Its process exists and waits to be started.
    Created,
    Running {
        pid: i32,
        started_at: Timestamp,
    },
    /// `started_at` is `None` if it never ran.
    Exited {
        started_at: Option<Timestamp>,
        exit: Exit,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox: String,
    pub labels: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub state: ContainerState,
}

/// Something happened. Events are hints to look again: after [`EventKind::Resync`] list everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// Container id; empty for `Resync`.
    pub id: String,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started {
        pid: i32,
    },
    /// All output written before the exit is in the log when this is sent.
    Exited(Exit),
    Removed,
    /// The connection to the keeper was made anew: events may have been missed.
    Resync,
}

/// Usage figures of one cgroup. `None` where the box cannot tell (controller missing).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nanoseconds of CPU time since creation.
    pub cpu_usage_ns: Option<u64>,
    /// Bytes; usage minus inactive file cache, as the kubelet computes it.
    pub memory_working_set: Option<u64>,
    pub memory_usage: Option<u64>,
    pub memory_rss: Option<u64>,
    pub memory_limit: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_throttled_periods: Option<u64>,
    pub oom_kills: Option<u64>,
}
