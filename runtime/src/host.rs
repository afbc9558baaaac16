//! What the box under us can do and lets us do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cgroup::Cgroups;
use crate::error::{IoContext, Result};
use crate::sys::caps;

/// What this box lets us do.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Our own bounding set: nobody below us gets more.
    pub bounding: u64,
    pub can_raise_limits: bool,
    /// The kernel's own ceiling of open files, for anybody.
    pub nr_open: u64,
    /// Our own, which is the lowest we may give without CAP_SYS_RESOURCE.
    pub oom_score_adj: i32,
    /// Hard limits by resource number.
    pub rlimits: BTreeMap<i32, u64>,
    pub unified_cgroups: bool,
    /// Version 1 hierarchies: name in /sys/fs/cgroup, and where it is mounted.
    pub hierarchies: Vec<(String, PathBuf)>,
}

impl Host {
    pub(crate) fn detect(cgroups: &Cgroups) -> Result<Self> {
        let what = || "learn what this process may do".to_string();
        let effective = caps::from_status("CapEff").context(what)?;
        let mut rlimits = BTreeMap::new();
        for (_, number) in RLIMITS {
            // SAFETY: rlimit is plain data and lives across the call.
            unsafe {
                let mut limit: libc::rlimit = std::mem::zeroed();
                if libc::getrlimit(number as _, &raw mut limit) == 0 {
                    rlimits.insert(number, limit.rlim_max as u64);
                }
            }
        }
        Ok(Host {
            bounding: caps::from_status("CapBnd").context(what)? & effective,
            can_raise_limits: effective & caps::bit("SYS_RESOURCE").unwrap_or(0) != 0,
            nr_open: std::fs::read_to_string("/proc/sys/fs/nr_open")
                .ok()
                .and_then(|s| s.trim().parse().ok())
                .unwrap_or(1 << 20),
            oom_score_adj: std::fs::read_to_string("/proc/self/oom_score_adj")
                .ok()
                .and_then(|s| s.trim().parse().ok())
                .unwrap_or(0),
            rlimits,
            unified_cgroups: cgroups.unified(),
            hierarchies: cgroups.hierarchies(),
        })
    }
}

pub(crate) const RLIMITS: [(&str, i32); 16] = [
    ("RLIMIT_AS", libc::RLIMIT_AS as i32),
    ("RLIMIT_CORE", libc::RLIMIT_CORE as i32),
    ("RLIMIT_CPU", libc::RLIMIT_CPU as i32),
    ("RLIMIT_DATA", libc::RLIMIT_DATA as i32),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE as i32),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS as i32),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK as i32),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE as i32),
    ("RLIMIT_NICE", libc::RLIMIT_NICE as i32),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE as i32),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC as i32),
    ("RLIMIT_RSS", libc::RLIMIT_RSS as i32),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO as i32),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME as i32),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING as i32),
    ("RLIMIT_STACK", libc::RLIMIT_STACK as i32),
];
