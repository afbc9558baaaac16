//! What our processes cost, read from /proc. Runs inside the box, so that it sees the box's processes and no others.
//!
//! Ours are the processes that run the program under test in the box's own PID namespace. A container of the built-in
//! image runs the same program, but in a PID namespace of its own: it is not ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The program under test.
pub struct Program {
    path: PathBuf,
    /// The process that is both server and agent.
    pub main: u32,
}

/// What was used so far, in total.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// CPU time of all our processes and of the helpers they reaped, in seconds.
    pub cpu: f64,
    /// CPU time of the main process alone, in seconds.
    pub main_cpu: f64,
    /// Bytes that our processes caused to be written to block devices.
    pub written: u64,
}

impl Program {
    /// Finds the running program.
    ///
    /// # Errors
    /// When it does not run.
    pub fn find(path: &Path) -> Result<Program> {
        let mut program = Program {
            path: path.canonicalize()?,
            main: 0,
        };
        let pids = program.pids();
        program.main = *pids
            .first()
            .with_context(|| format!("{} does not run here", path.display()))?;
        Ok(program)
    }

    /// Our processes, oldest (the main one) first.
    pub fn pids(&self) -> Vec<u32> {
        let home = fs::read_link("/proc/self/ns/pid").ok();
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let proc = PathBuf::from(format!("/proc/{pid}"));
                fs::read_link(proc.join("exe")).is_ok_and(|exe| exe == self.path)
                    && fs::read_link(proc.join("ns/pid")).ok() == home
            })
            .collect();
        pids.sort_unstable();
        pids
    }

    /// Sum of the proportional set sizes of our processes, in MiB.
    pub fn pss(&self) -> f64 {
        let kib = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .unwrap_or_default()
                .to_owned();
            line.trim()
                .trim_end_matches(" kB")
                .parse::<f64>()
                .unwrap_or(0.0)
        };
        self.pids().iter().map(kib).sum::<f64>() / 1024.0
    }

    /// A line a process: what it is and its memory, for whoever looks for the cause of a missed budget.
    pub fn describe(&self) -> String {
        let one = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .unwrap_or_default()
                .replace('\0', " ");
            let rollup =
                fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let fields: Vec<String> = rollup
                .lines()
                .filter(|line| {
                    ["Rss:", "Pss:", "Pss_Anon:", "Pss_File:", "Private_Dirty:"]
                        .iter()
                        .any(|f| line.starts_with(f))
                })
                .map(|line| {
                    line.split_whitespace()
                        .take(2)
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .collect();
            format!("{pid} {name}: {}", fields.join(", "))
        };
        self.pids().iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// What our processes have used until now.
    ///
    /// # Errors
    /// When the main process is gone.
    pub fn used(&self) -> Result<Used> {
        let main_cpu = cpu_clock(self.main).context("the program ended")?;
        let mut used = Used {
            main_cpu,
            ..Used::default()
        };
        for pid in self.pids() {
            used.cpu += cpu_clock(pid).unwrap_or(0.0) + cpu_of_reaped(pid).unwrap_or(0.0);
            used.written += written(pid).unwrap_or(0);
        }
        Ok(used)
    }
}

/// The CPU clock of another process, in seconds; exact to the nanosecond, where /proc/PID/stat counts in hundredths.
fn cpu_clock(pid: u32) -> Result<f64> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to live locals of the types that the calls fill.
    let ok = unsafe {
        libc::clock_getcpuclockid(pid as i32, &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0
    };
    ensure!(ok, "process {pid} is gone");
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// The CPU time of a process's ended and reaped children, in seconds.
fn cpu_of_reaped(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): after the name in brackets comes field 3; cutime and cstime are fields 16 and 17.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(13)?.parse::<f64>().ok()? + fields.get(14)?.parse::<f64>().ok()?;
    // SAFETY: sysconf takes and returns numbers.
    Some(ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64)
}

fn written(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))?
        .parse()
        .ok()
}

/// Bytes written so far to the block device that holds `path`.
///
/// # Errors
/// When the path is on no block device.
pub fn device_written(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path)?.dev();
    let stat = format!(
        "/sys/dev/block/{}:{}/stat",
        libc::major(device),
        libc::minor(device)
    );
    let text = fs::read_to_string(&stat).with_context(|| format!("reading {stat}"))?;
    // Documentation/block/stat.rst: field 7 is the number of 512-byte sectors written.
    let sectors: u64 = text
        .split_whitespace()
        .nth(6)
        .context("a short stat file")?
        .parse()?;
    Ok(sectors * 512)
}
