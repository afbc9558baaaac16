//! The promised figures: one entry a row, in the order in which they are printed.

/// What a figure is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Printed for comparison, promised to nobody.
    Beside,
}

impl Bound {
    /// Whether `value` keeps the promise; `None` where nothing is promised.
    pub fn met(self, value: f64) -> Option<bool> {
        match self {
            Bound::AtMost(limit) => Some(value <= limit),
            Bound::AtLeast(limit) => Some(value >= limit),
            Bound::Beside => None,
        }
    }

    /// `≤ 40`, `≥ 1000`, or nothing.
    pub fn text(self) -> String {
        match self {
            Bound::AtMost(limit) => format!("≤ {limit}"),
            Bound::AtLeast(limit) => format!("≥ {limit}"),
            Bound::Beside => String::new(),
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Budget {
    /// `GROUP/NAME`: the rows of a group are measured together, on a box of their own.
    pub row: &'static str,
    pub unit: &'static str,
    pub bound: Bound,
    /// The same figure of upstream Kubernetes v1.36 on the same kind of machine, or nothing.
    pub upstream: &'static str,
    /// How it is taken.
    pub how: &'static str,
}

impl Budget {
    /// The part of the row's name before the slash.
    pub fn group(&self) -> &'static str {
        self.row
            .split_once('/')
            .map_or(self.row, |(group, _)| group)
    }
}

const fn row(
    row: &'static str,
    unit: &'static str,
    bound: Bound,
    upstream: &'static str,
    how: &'static str,
) -> Budget {
    Budget {
        row,
        unit,
        bound,
        upstream,
        how,
    }
}

use Bound::{AtLeast, AtMost, Beside};

/// Every row.
pub const BUDGETS: &[Budget] = &[
    row(
        "size/all",
        "MB",
        AtMost(25.0),
        "640 in 11 files",
        "bytes of the stripped release binary, default features",
    ),
    row(
        "size/agent",
        "MB",
        AtMost(15.0),
        "",
        "the same with --no-default-features --features agent",
    ),
    row(
        "start/readyz",
        "s",
        AtMost(0.3),
        "3.8",
        "fork of the process to 200 from /readyz, empty disk; median",
    ),
    row(
        "start/node-ready",
        "s",
        AtMost(1.0),
        "2.5",
        "fork of the process to the node's condition Ready",
    ),
    row(
        "start/pod-running",
        "s",
        AtMost(1.5),
        "10.9",
        "fork of the process to phase Running of a pod of the built-in image",
    ),
    row(
        "start/again-readyz",
        "s",
        Beside,
        "",
        "the same, on the disk of an earlier start",
    ),
    row(
        "idle/memory",
        "MiB",
        AtMost(40.0),
        "710",
        "sum of Pss in smaps_rollup of all our processes, no pods, after the rest",
    ),
    row(
        "idle/cpu",
        "%",
        AtMost(0.3),
        "9",
        "CPU clocks of all our processes, of one core, no pods, after the rest",
    ),
    row(
        "idle/writes",
        "KiB/h",
        AtMost(256.0),
        "175,000",
        "sectors written in 15 minutes to the block device below the box's disk (ext4), journal included, daily backup not",
    ),
    row(
        "idle/writes-of-processes",
        "KiB/h",
        Beside,
        "",
        "write_bytes in /proc/PID/io of all our processes, the same window",
    ),
    row(
        "pods/memory-of-each",
        "MiB",
        AtMost(0.4),
        "6.8",
        "growth of the Pss of our processes over 50 pods, divided by 50",
    ),
    row(
        "pods/cpu",
        "%",
        AtMost(1.0),
        "14",
        "CPU clocks of all our processes, of one core, beside 50 idle pods",
    ),
    row(
        "latency/p50",
        "ms",
        AtMost(80.0),
        "637",
        "POST of a pod to the watch event with phase Running, image present, one after the other",
    ),
    row("latency/p95", "ms", AtMost(150.0), "689", "the same"),
    row(
        "crun/p50",
        "ms",
        Beside,
        "14",
        "crun run of true in a box of its own: what a container costs when nothing stands around it",
    ),
    row("crun/p95", "ms", Beside, "25", "the same"),
    row(
        "burst/running",
        "s",
        AtMost(3.0),
        "10.3 to 12.1",
        "50 pods created over 8 connections: first POST to the last Running",
    ),
    row(
        "burst/deleted",
        "s",
        AtMost(3.0),
        "9.1 to 10.4",
        "the 50 deleted with 1 s of grace (they ignore SIGTERM): first DELETE to the last DELETED event",
    ),
    row(
        "creates/rate-1",
        "/s",
        AtLeast(1000.0),
        "270",
        "POSTs of 1 KB ConfigMaps over one kept-alive TLS connection",
    ),
    row(
        "creates/rate-16",
        "/s",
        AtLeast(3000.0),
        "665",
        "the same over 16",
    ),
    row(
        "creates/rate-64",
        "/s",
        AtLeast(4000.0),
        "910",
        "the same over 64",
    ),
    row(
        "creates/cpu-1",
        "ms",
        AtMost(0.15),
        "2.0",
        "CPU clock of the server during creates/rate-1, for each create",
    ),
    row(
        "creates/cpu-16",
        "ms",
        AtMost(0.15),
        "2.0",
        "the same at 16",
    ),
    row(
        "creates/cpu-64",
        "ms",
        AtMost(0.15),
        "2.0",
        "the same at 64",
    ),
    row(
        "creates/fsync-p50",
        "ms",
        Beside,
        "",
        "write of 4 KiB and fdatasync on the same disk, beside it",
    ),
    row(
        "creates/floor-cpu-1",
        "ms",
        Beside,
        "",
        "CPU of a program that makes only the system calls of such a create: read, hand over, append a page, fdatasync, answer",
    ),
    row(
        "gets/rate-1",
        "/s",
        AtLeast(4000.0),
        "510",
        "GETs of one ConfigMap over one kept-alive TLS connection",
    ),
    row(
        "gets/rate-64",
        "/s",
        AtLeast(8000.0),
        "1,600",
        "the same over 64",
    ),
    row(
        "gets/cpu-1",
        "ms",
        AtMost(0.06),
        "1.1",
        "CPU clock of the server during gets/rate-1, for each GET",
    ),
    row("gets/cpu-64", "ms", AtMost(0.06), "1.1", "the same at 64"),
    row(
        "list/plain",
        "ms",
        AtMost(60.0),
        "350 to 425",
        "LIST of 5,000 pods of 3 KB, JSON, request to last byte, p50",
    ),
    row(
        "list/gzip",
        "ms",
        Beside,
        "180 to 225",
        "the same with Accept-Encoding: gzip",
    ),
    row(
        "list/cpu",
        "ms",
        Beside,
        "",
        "CPU clock of the server for one plain LIST",
    ),
    row(
        "list/memory",
        "MiB",
        Beside,
        "",
        "Pss of our processes with the 5,000 pods stored and nothing asked",
    ),
    row(
        "watch/rate",
        "/s",
        AtLeast(40_000.0),
        "13,000",
        "200 updates back to back, 100 watchers: events delivered over first PUT to last event",
    ),
    row(
        "watch/p95",
        "ms",
        AtMost(3.0),
        "14",
        "200 updates, one each 20 ms: PUT sent to event read, over all watchers",
    ),
    row("watch/burst-p95", "ms", Beside, "", "the same back to back"),
    row(
        "watch/cpu",
        "µs",
        AtMost(8.0),
        "60",
        "CPU clock of the server during watch/rate, for each event delivered",
    ),
    row(
        "service/p50",
        "ms",
        AtMost(50.0),
        "1090",
        "POST of a service with two endpoints to the first answer by its ClusterIP",
    ),
    row(
        "service/beside-1000-p50",
        "ms",
        AtMost(50.0),
        "1200 to 1400",
        "the same beside 1,000 services with two endpoints each",
    ),
    row(
        "change/p50-10",
        "ms",
        AtMost(20.0),
        "",
        "PUT of an EndpointSlice (one of four endpoints replaced) to the kernel's notification that its address is in force, beside 10 services",
    ),
    row("change/p95-10", "ms", AtMost(20.0), "", "the same"),
    row(
        "change/cpu-10",
        "ms",
        Beside,
        "",
        "CPU clock of the program, server and agent, for one such change",
    ),
    row(
        "change/create",
        "s",
        Beside,
        "",
        "5,000 services of four endpoints created over 8 connections: first POST to the last endpoint in force",
    ),
    row(
        "change/p50-5000",
        "ms",
        AtMost(20.0),
        "",
        "as change/p50-10, beside 5,000 services",
    ),
    row("change/p95-5000", "ms", AtMost(20.0), "", "the same"),
    row(
        "change/cpu-5000",
        "ms",
        Beside,
        "",
        "as change/cpu-10, beside 5,000 services",
    ),
];
