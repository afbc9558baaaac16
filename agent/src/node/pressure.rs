//! Is the node short of memory, disk or process ids? Read from the kernel; compared by a pure function.

use std::path::Path;

use super::machine::meminfo;
use crate::config::EvictionThresholds;

/// What is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    pub memory_bytes: u64,
    pub disk_percent: u8,
    pub inodes_percent: u8,
    pub pids_percent: u8,
}

/// Which resources are short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Left {
    // The C types of statvfs are narrower on 32-bit machines.
    #[allow(clippy::unnecessary_cast)]
    pub fn look(data_dir: &Path) -> Left {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let percent = |free: u64, all: u64| {
            if all == 0 {
                100
            } else {
                (free as u128 * 100 / all as u128) as u8
            }
        };
        let (disk, inodes) = match nix::sys::statvfs::statvfs(data_dir) {
            Ok(s) => (
                percent(s.blocks_available() as u64, s.blocks() as u64),
                percent(s.files_available() as u64, s.files() as u64),
            ),
            Err(_) => (100, 100),
        };
        let number = |path: &str| {
            std::fs::read_to_string(path)
                .ok()
                .and_then(|t| t.trim().parse::<u64>().ok())
        };
        let most = number("/proc/sys/kernel/pid_max").unwrap_or(32768);
        // The fourth field of loadavg is RUNNING/ALL.
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let used = load
            .split_whitespace()
            .nth(3)
            .and_then(|f| f.split('/').nth(1))
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        Left {
            memory_bytes: meminfo(&memory, "MemAvailable").unwrap_or(i64::MAX) as u64,
            disk_percent: disk,
            inodes_percent: inodes,
            pids_percent: percent(most.saturating_sub(used), most),
        }
    }
}

/// Compares with the thresholds.
pub fn pressure(left: &Left, limits: &EvictionThresholds) -> Pressure {
    Pressure {
        memory: left.memory_bytes < limits.memory_available,
        disk: left.disk_percent < limits.nodefs_available_percent
            || left.inodes_percent < limits.nodefs_inodes_free_percent,
        pids: left.pids_percent < limits.pid_available_percent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_its_threshold() {
        let limits = EvictionThresholds::default();
        let fine = Left {
            memory_bytes: 1 << 30,
            disk_percent: 50,
            inodes_percent: 50,
            pids_percent: 50,
        };
        assert_eq!(pressure(&fine, &limits), Pressure::default());
        assert!(
            pressure(
                &Left {
                    memory_bytes: 1 << 20,
                    ..fine
                },
                &limits
            )
            .memory
        );
        assert!(
            pressure(
                &Left {
                    disk_percent: 9,
                    ..fine
                },
                &limits
            )
            .disk
        );
        assert!(
            pressure(
                &Left {
                    inodes_percent: 4,
                    ..fine
                },
                &limits
            )
            .disk
        );
        assert!(
            pressure(
                &Left {
                    pids_percent: 4,
                    ..fine
                },
                &limits
            )
            .pids
        );
    }
}
