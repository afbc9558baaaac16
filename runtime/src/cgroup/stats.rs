//! Usage figures of a group.

use std::fs;
use std::path::Path;

use super::Cgroups;
use crate::status::Stats;

/// A value of a `name value` file.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

fn number(directory: &Path, file: &str) -> Option<u64> {
    // "max" is no number: no limit.
    let text = fs::read_to_string(directory.join(file)).ok()?;
    text.trim().parse().ok()
}

fn text(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default()
}

impl Cgroups {
    /// Figures of the group; what the box cannot tell is `None`.
    pub(crate) fn stats(&self, path: &str) -> Stats {
        let mut stats = Stats {
            oom_kills: self.oom_kills(path),
            ..Stats::default()
        };
        if self.unified() {
            if let Some(directory) = self.directory("", path) {
                v2(&directory, &mut stats);
            }
        } else {
            self.v1_stats(path, &mut stats);
        }
        stats
    }

    fn v1_stats(&self, path: &str, stats: &mut Stats) {
        if let Some(directory) = self.directory("cpuacct", path) {
            stats.cpu_usage_ns = number(&directory, "cpuacct.usage");
        }
        if let Some(directory) = self.directory("cpu", path) {
            stats.cpu_throttled_periods = field(&text(&directory, "cpu.stat"), "nr_throttled");
        }
        if let Some(directory) = self.directory("memory", path) {
            let details = text(&directory, "memory.stat");
            let usage = number(&directory, "memory.usage_in_bytes");
            let inactive = field(&details, "total_inactive_file").unwrap_or(0);
            stats.memory_usage = usage;
            stats.memory_working_set = usage.map(|u| u.saturating_sub(inactive));
            stats.memory_rss = field(&details, "total_rss");
            stats.page_faults = field(&details, "total_pgfault");
            stats.major_page_faults = field(&details, "total_pgmajfault");
            // Unlimited is the greatest number of whole pages.
            stats.memory_limit =
                number(&directory, "memory.limit_in_bytes").filter(|l| *l < 1 << 62);
        }
        if let Some(directory) = self.directory("pids", path) {
            stats.pids = number(&directory, "pids.current");
        }
    }
}

fn v2(directory: &Path, stats: &mut Stats) {
    let cpu = text(directory, "cpu.stat");
    stats.cpu_usage_ns = field(&cpu, "usage_usec").map(|us| us * 1000);
    stats.cpu_throttled_periods = field(&cpu, "nr_throttled");
    let details = text(directory, "memory.stat");
    let usage = number(directory, "memory.current");
    let inactive = field(&details, "inactive_file").unwrap_or(0);
    stats.memory_usage = usage;
    stats.memory_working_set = usage.map(|u| u.saturating_sub(inactive));
    stats.memory_rss = field(&details, "anon");
    stats.page_faults = field(&details, "pgfault");
    stats.major_page_faults = field(&details, "pgmajfault");
    stats.memory_limit = number(directory, "memory.max");
    stats.pids = number(directory, "pids.current");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }
}
