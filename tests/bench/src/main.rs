//! `amphipod-bench [--hold] [--out FILE] [--rows NAME,...] [--quick]`: takes the figures of docs/SPECIFICATION.md.
//!
//! Each group of rows gets an all-in-one box of its own, fresh and empty. The outer part, which makes boxes, knows the
//! harness; the inner part is this same program, run inside the box (`amphipod-bench inside GROUP`), and prints what it
//! found as JSON. Figures are told, not judged: a missed budget does not end the program with a failure, a figure that
//! could not be taken does. Run by `run.sh`, which builds what is measured.

mod api;
mod budgets;
mod client;
mod floor;
mod inside;
mod kernel;
mod pods;
mod procs;
mod services;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::JoinHandle;

use amphipod_tests::{BUSYBOX, EdgeBox, Lan, Registry, binary};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;

use crate::budgets::{BUDGETS, Budget};
use crate::inside::{Figures, Inside, percentile};

#[derive(Default)]
struct Options {
    out: Option<PathBuf>,
    /// Names of rows or groups; empty means all.
    rows: Vec<String>,
    quick: bool,
    /// A directory on a filesystem of its own, whose writes can be counted.
    own_disk: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "inside") {
        return inside_the_box(&args[1..]);
    }
    if args == ["--hold"] {
        return hold();
    }
    let options = Options::parse(args)?;
    let mut lines = String::new();
    let mut failed = Vec::new();
    let mut writes = None;
    println!(
        "{:28} {:>12} {:6} {:>10} {:4} upstream",
        "figure", "value", "unit", "budget", "ok"
    );
    let mut tell = |group: &str, figures: Result<Figures>| -> Result<()> {
        let figures = figures.unwrap_or_else(|error| {
            eprintln!("{group}: {error:#}");
            failed.push(group.to_owned());
            Figures::new()
        });
        for budget in BUDGETS.iter().filter(|budget| options.wanted(budget)) {
            if let Some(value) = figures.get(budget.row) {
                print(budget, *value);
                let ok = budget.bound.met(*value);
                let line = json!({
                    "row": budget.row, "value": value, "unit": budget.unit, "budget": budget.bound.text(), "ok": ok,
                    "upstream": budget.upstream, "how": budget.how, "quick": options.quick,
                });
                writeln!(lines, "{line}")?;
            }
        }
        if let Some(out) = &options.out {
            std::fs::write(out, &lines).with_context(|| format!("writing {}", out.display()))?;
        }
        Ok(())
    };
    for group in options.groups() {
        if group == "idle" {
            let (figures, box_at_rest) = options.idle();
            tell(group, figures)?;
            writes = box_at_rest;
        } else {
            tell(group, options.take(group))?;
        }
    }
    if let Some(writes) = writes {
        let figures = writes
            .join()
            .unwrap_or_else(|_| Err(anyhow!("measuring idle writes panicked")));
        tell("idle/writes", figures)?;
    }
    ensure!(failed.is_empty(), "no figures of: {}", failed.join(", "));
    Ok(())
}

fn print(budget: &Budget, value: f64) {
    let ok = match budget.bound.met(value) {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    let text = if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    println!(
        "{:28} {text:>12} {:6} {:>10} {ok:4} {}",
        budget.row,
        budget.unit,
        budget.bound.text(),
        budget.upstream
    );
}

impl Options {
    fn parse(args: Vec<String>) -> Result<Options> {
        let mut options = Options::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--out" => options.out = Some(value()?.into()),
                "--rows" => options.rows = value()?.split(',').map(str::to_owned).collect(),
                "--own-disk" => options.own_disk = Some(value()?.into()),
                "--quick" => options.quick = true,
                _ => bail!("unknown argument {arg:?}; see tests/bench/run.sh"),
            }
        }
        for row in &options.rows {
            ensure!(
                BUDGETS
                    .iter()
                    .any(|budget| budget.row == row || budget.group() == row),
                "there is no row or group {row:?}"
            );
        }
        Ok(options)
    }

    fn wanted(&self, budget: &Budget) -> bool {
        self.rows.is_empty()
            || self
                .rows
                .iter()
                .any(|row| row == budget.row || row == budget.group())
    }

    /// The groups to take, in the table's order.
    fn groups(&self) -> Vec<&'static str> {
        let mut groups: Vec<&'static str> = BUDGETS
            .iter()
            .filter(|budget| self.wanted(budget))
            .map(Budget::group)
            .collect();
        groups.dedup();
        groups
    }

    fn take(&self, group: &str) -> Result<Figures> {
        match group {
            "size" => sizes(),
            "start" => self.starts(),
            "crun" => {
                let lan = Lan::new();
                self.inside(&EdgeBox::new(&lan), group)
            }
            _ => {
                let lan = Lan::new();
                let mut edge_box = EdgeBox::new(&lan);
                edge_box.start(&[]);
                edge_box.wait_until_ready();
                // The registry costs memory and time that are not ours: it is there only for whoever needs an image.
                let registry = ["pods", "latency", "burst"]
                    .contains(&group)
                    .then(|| Registry::start(&edge_box));
                let figures = self.inside(&edge_box, group);
                drop(registry);
                figures
            }
        }
    }

    /// CPU and memory of a box at rest. What it writes takes long to see and is no matter of load: that is counted while
    /// other groups are taken.
    fn idle(&self) -> (Result<Figures>, Option<JoinHandle<Result<Figures>>>) {
        let (lan, edge_box, program) = match self.box_at_rest() {
            Ok(at_rest) => at_rest,
            Err(error) => return (Err(error), None),
        };
        let figures = inside(&edge_box, &program, "idle", self.quick);
        let counted = BUDGETS
            .iter()
            .any(|budget| budget.row.starts_with("idle/writes") && self.wanted(budget));
        if figures.is_err() || self.own_disk.is_none() || !counted {
            return (figures, None);
        }
        let quick = self.quick;
        let writes = std::thread::spawn(move || {
            let figures = inside(&edge_box, &program, "idle/writes", quick);
            drop(edge_box);
            drop(lan);
            figures
        });
        (figures, Some(writes))
    }

    /// A ready box, on the disk of its own if there is one, and the program that runs in it.
    fn box_at_rest(&self) -> Result<(Lan, EdgeBox, PathBuf)> {
        let lan = Lan::new();
        let whole = binary();
        let mut program = whole.clone();
        if let Some(disk) = &self.own_disk {
            // A copy of the program, lest boxes that run beside this one share its memory and seem smaller than they are.
            program = disk.join("amphipod");
            std::fs::copy(&whole, &program).context("copying the program")?;
            // SAFETY: this process has no other thread now; the harness's own are joined when its calls return.
            unsafe {
                std::env::set_var("TMPDIR", disk);
                std::env::set_var("AMPHIPOD_BINARY", &program);
            }
        }
        let mut edge_box = EdgeBox::new(&lan);
        // As if the backup of the day had just been made: it would be counted as four an hour.
        let state = edge_box.disk().join("lib/server");
        std::fs::create_dir_all(&state)?;
        std::fs::write(state.join("state.backup.db"), "")?;
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        // SAFETY: as above.
        unsafe {
            std::env::remove_var("TMPDIR");
            std::env::set_var("AMPHIPOD_BINARY", whole);
        }
        Ok((lan, edge_box, program))
    }

    /// Several starts, each on an empty disk, and the median of each figure.
    fn starts(&self) -> Result<Figures> {
        let mut all: Vec<Figures> = Vec::new();
        for _ in 0..if self.quick { 2 } else { 7 } {
            let lan = Lan::new();
            all.push(self.inside(&EdgeBox::new(&lan), "start")?);
        }
        let median = |row: &String| {
            percentile(
                &mut all.iter().map(|figures| figures[row]).collect::<Vec<_>>(),
                0.5,
            )
        };
        Ok(all[0]
            .keys()
            .map(|row| (row.clone(), median(row)))
            .collect())
    }

    fn inside(&self, edge_box: &EdgeBox, group: &str) -> Result<Figures> {
        inside(edge_box, &binary(), group, self.quick)
    }
}

/// Runs this program inside a box, in which `program` runs, and reads its figures.
fn inside(edge_box: &EdgeBox, program: &Path, group: &str, quick: bool) -> Result<Figures> {
    let myself = std::env::current_exe()?;
    let mut command = if group == "crun" {
        // crun refuses a hybrid of both versions of control groups: it is to see only the first.
        let mut command = edge_box.command("unshare");
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"";
        command
            .args(["--mount", "--propagation=private", "sh", "-c", script])
            .arg(myself);
        command
    } else {
        edge_box.command(myself.to_str().context("a path that is not UTF-8")?)
    };
    command
        .arg("inside")
        .arg(group)
        .arg(program)
        .arg(edge_box.disk());
    if quick {
        command.arg("--quick");
    }
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        let log = edge_box.log();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        bail!(
            "the measurement ended with {}; the end of the program's log:\n{}",
            output.status,
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }
    serde_json::from_slice(&output.stdout).context("reading what the measurement printed")
}

/// A ready box with a registry, kept until standard input ends: for profilers.
fn hold() -> Result<()> {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let _registry = Registry::start(&edge_box);
    println!(
        "nsenter -t {} -m -n -p -u -i -- kubectl --kubeconfig=/etc/amphipod/kubeconfig",
        edge_box.program_pid()
    );
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Sizes of the two builds; `run.sh` names the agent-only one in `AMPHIPOD_AGENT_BINARY`.
fn sizes() -> Result<Figures> {
    let megabytes = |path: PathBuf| -> Result<f64> {
        let length = std::fs::metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?
            .len();
        Ok(length as f64 / 1e6)
    };
    let mut figures = Figures::from([("size/all".to_owned(), megabytes(binary())?)]);
    if let Some(agent) = std::env::var_os("AMPHIPOD_AGENT_BINARY") {
        figures.insert("size/agent".to_owned(), megabytes(agent.into())?);
    }
    Ok(figures)
}

/// `inside GROUP PROGRAM DISK [--quick]`.
fn inside_the_box(args: &[String]) -> Result<()> {
    let [group, program, disk, more @ ..] = args else {
        bail!("usage: inside GROUP PROGRAM DISK [--quick]")
    };
    let inside = Inside {
        program: program.into(),
        disk: disk.into(),
        image: BUSYBOX.to_owned(),
        quick: more.iter().any(|arg| arg == "--quick"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let figures = runtime.block_on(inside::measure(group, &inside))?;
    println!("{}", json!(figures));
    Ok(())
}
