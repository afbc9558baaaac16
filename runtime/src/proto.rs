//! What goes over the keeper's socket: one JSON message per packet, descriptors beside it.
//!
//! Compatibility: an agent and a keeper of different versions meet during upgrades. Fields are only ever added, with `#[serde(default)]`.

use serde::{Deserialize, Serialize};

use crate::spec::LogLimits;

/// What the keeper knows of a container, and what is on disk beside it (`record.json`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub sandbox: String,
    /// JSON object of the caller's labels, not looked into.
    pub labels: Box<serde_json::value::RawValue>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Absolute inside the hierarchies.
    pub cgroup: String,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    #[serde(default)]
    pub log_path: Option<String>,
    #[serde(default)]
    pub log_limits: LogLimits,
    /// Has its own PID namespace: when its first process ends, the kernel ends the others.
    pub own_pid_namespace: bool,
    /// A number.
    pub stop_signal: i32,
}

/// How a container ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// A wait status: wait(2).
    pub status: i32,
    pub oom: bool,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub lost: bool,
}

/// A container's state as the keeper tells it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Life {
    /// 0 before it exists.
    pub pid: i32,
    /// See [`crate::sys::process::start_ticks`].
    pub ticks: u64,
    /// Nanoseconds since the epoch; 0 = not started.
    pub started_at: i64,
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// Number of its log cursors; 0 = none.
    #[serde(default)]
    pub cursor: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub seq: u64,
    pub op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    /// First message of a connection. With `stash` the keeper sends copies of all descriptors to keep.
    Hello {
        stash: bool,
    },
    /// After an agent has handed over what it kept of a dead keeper.
    AdoptDone,
    /// Descriptors beside it in the order of [`Held::order`].
    Adopt {
        id: String,
        held: Held,
    },
    /// A process that this keeper cannot wait for was reaped by its sub-reaper.
    Reaped {
        pid: i32,
        status: i32,
    },
    CreateSandbox(SandboxPlan),
    /// Bundle, record and life file are on disk already.
    Create {
        record: Record,
    },
    Start {
        id: String,
    },
    Kill {
        id: String,
        signal: i32,
    },
    /// Kill, wait for the end, forget.
    Remove {
        id: String,
    },
    Get {
        id: String,
    },
    List,
    /// Descriptors: stdin, stdout, stderr of the process, none with a terminal.
    Exec {
        id: String,
        plan: ExecPlan,
    },
    KillExec {
        exec_id: u64,
        signal: i32,
    },
    /// Descriptors: where to copy stdout and stderr (only the first with a terminal).
    Attach {
        id: String,
    },
    EndStdin {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    Upgrade {
        program: String,
    },
}

/// Which descriptors of a container go with a message.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Held {
    pub pidfd: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub error: bool,
}

impl Held {
    /// How many descriptors are there.
    pub(crate) fn count(&self) -> usize {
        [self.pidfd, self.stdin, self.stdout, self.stderr, self.error]
            .into_iter()
            .filter(|there| *there)
            .count()
    }
}

/// Namespaces to make and pin.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SandboxPlan {
    /// Directory with the (existing, empty) files `net`, `ipc`, `uts`, `pid` to pin on.
    pub directory: String,
    pub hostname: String,
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    pub pid: bool,
    pub sysctls: Vec<(String, String)>,
}

/// A process in a running container, in addition to the container's own [`crate::process::ProcessPlan`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ExecPlan {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: Option<String>,
    /// uid, gid, additional gids.
    pub user: Option<(u32, u32, Vec<u32>)>,
    pub tty: bool,
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Reply {
        seq: u64,
        result: Result<Reply, WireError>,
    },
    Event(Event),
    /// Only to the connection that started it. A wait status.
    ExecExited {
        exec_id: u64,
        status: i32,
    },
    /// Descriptors beside it in the order of [`Held`]'s fields: keep them until the container has exited.
    Stash {
        id: String,
        pid: i32,
        held: Held,
    },
    /// Drop the kept copy of standard input, so that the container can see its end.
    StdinClosed {
        id: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Hello {
        pid: i32,
        version: u32,
    },
    /// One of many: more replies with the same number follow, `Done` is the last.
    Container {
        record: Record,
        life: Life,
    },
    /// A terminal's master beside it if asked for.
    Exec {
        exec_id: u64,
        pid: i32,
    },
    /// Pid of the pod's init, 0 if it has none.
    Sandbox {
        pid: i32,
    },
    /// When it was started: [`Life::started_at`]. Keepers of before say `Done`.
    Started {
        at: i64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Created { id: String },
    Started { id: String, pid: i32 },
    Exited { id: String, exit: ExitRecord },
    Removed { id: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WireError {
    pub kind: WireErrorKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WireErrorKind {
    NotFound,
    Exists,
    State,
    Exec,
    Create,
    Invalid,
}

impl WireError {
    pub(crate) fn new(kind: WireErrorKind, text: impl Into<String>) -> Self {
        WireError {
            kind,
            text: text.into(),
        }
    }
}
