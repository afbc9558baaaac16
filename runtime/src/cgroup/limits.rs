//! Limits as files to write: pure translation of [`Resources`] to version 1 and version 2.

use crate::spec::Resources;

/// One file to write in a group's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    /// Depends on what the kernel was built or booted with.
    pub may_fail: bool,
}

fn write(controller: &'static str, file: &str, value: impl ToString) -> Write {
    Write {
        controller,
        file: file.to_string(),
        value: value.to_string(),
        may_fail: false,
    }
}

fn optional(controller: &'static str, file: &str, value: impl ToString) -> Write {
    Write {
        may_fail: true,
        ..write(controller, file, value)
    }
}

/// -1 is "no limit", in the word that the file takes.
fn or(limit: i64, unlimited: &str) -> String {
    if limit < 0 {
        unlimited.to_string()
    } else {
        limit.to_string()
    }
}

/// The range that the kernel takes.
fn clamp_shares(shares: u64) -> u64 {
    shares.clamp(2, 262_144)
}

/// Shares 2..262144 to weight 1..10000, linearly: KEP-2254.
pub(super) fn weight(shares: u64) -> u64 {
    1 + ((clamp_shares(shares) - 2) * 9999) / 262_142
}

const PERIOD: u64 = 100_000;

pub(super) fn v1(r: &Resources) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(shares) = r.cpu_shares {
        writes.push(write("cpu", "cpu.shares", clamp_shares(shares)));
    }
    if let Some(period) = r.cpu_period.or(r.cpu_quota.map(|_| PERIOD)) {
        writes.push(write("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = r.cpu_quota {
        writes.push(write("cpu", "cpu.cfs_quota_us", or(quota, "-1")));
    }
    if let Some(limit) = r.memory_limit {
        let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let swap = r.memory_swap_limit.unwrap_or(limit);
        // The two may cross while they change; whichever order is right, one of these succeeds in it. memsw exists only with swap accounting.
        writes.push(optional("memory", both, or(swap, "-1")));
        writes.push(write("memory", memory, or(limit, "-1")));
        writes.push(optional("memory", both, or(swap, "-1")));
    }
    if let Some(limit) = r.pids_limit {
        writes.push(write("pids", "pids.max", or(limit, "max")));
    }
    cpuset(r, &mut writes);
    for (size, limit) in &r.hugepage_limits {
        let file = format!("hugetlb.{size}.limit_in_bytes");
        writes.push(optional("hugetlb", &file, limit));
    }
    writes
}

pub(super) fn v2(r: &Resources) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(shares) = r.cpu_shares {
        writes.push(write("cpu", "cpu.weight", weight(shares)));
    }
    if let Some(quota) = r.cpu_quota {
        let period = r.cpu_period.unwrap_or(PERIOD);
        writes.push(write(
            "cpu",
            "cpu.max",
            format!("{} {period}", or(quota, "max")),
        ));
    }
    if let Some(min) = r.memory_min {
        writes.push(write("memory", "memory.min", min.max(0)));
    }
    if let Some(high) = r.memory_high {
        writes.push(write("memory", "memory.high", or(high, "max")));
    }
    if let Some(limit) = r.memory_limit {
        writes.push(write("memory", "memory.max", or(limit, "max")));
        // Version 2 counts swap alone, OCI both together.
        let swap = match r.memory_swap_limit {
            None if limit < 0 => -1,
            None => 0,
            Some(both) if both < 0 => -1,
            Some(both) => (both - limit.max(0)).max(0),
        };
        writes.push(optional("memory", "memory.swap.max", or(swap, "max")));
    }
    if let Some(limit) = r.pids_limit {
        writes.push(write("pids", "pids.max", or(limit, "max")));
    }
    cpuset(r, &mut writes);
    for (size, limit) in &r.hugepage_limits {
        writes.push(optional("hugetlb", &format!("hugetlb.{size}.max"), limit));
    }
    for (file, value) in &r.unified {
        // A name, not a path.
        if !file.contains('/') {
            writes.push(write("", file, value));
        }
    }
    writes
}

fn cpuset(r: &Resources, writes: &mut Vec<Write>) {
    if let Some(cpus) = &r.cpuset_cpus {
        writes.push(write("cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = &r.cpuset_mems {
        writes.push(write("cpuset", "cpuset.mems", mems));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(writes: Vec<Write>) -> Vec<String> {
        writes
            .into_iter()
            .map(|w| format!("{}={}", w.file, w.value))
            .collect()
    }

    #[test]
    fn shares_become_weights_as_the_kubelet_has_it() {
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }

    #[test]
    fn a_limit_without_swap_is_written_for_both_versions() {
        let r = Resources {
            cpu_quota: Some(50_000),
            memory_limit: Some(1 << 20),
            pids_limit: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            lines(v2(&r)),
            [
                "cpu.max=50000 100000",
                "memory.max=1048576",
                "memory.swap.max=0",
                "pids.max=max"
            ]
        );
        assert_eq!(
            lines(v1(&r)),
            [
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.memsw.limit_in_bytes=1048576",
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn lifting_a_limit_is_said_in_each_versions_words() {
        let r = Resources {
            cpu_quota: Some(-1),
            memory_limit: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            lines(v2(&r)),
            [
                "cpu.max=max 100000",
                "memory.max=max",
                "memory.swap.max=max"
            ]
        );
    }
}
