//! What a box holds in the kernel and on its disk: none of it may grow by crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{EdgeBox, eventually};

/// Kind of thing to how many there are.
pub type Holdings = BTreeMap<&'static str, usize>;

/// The keeper's process, as the box counts.
#[track_caller]
pub fn keeper(edge_box: &EdgeBox) -> String {
    // Its forked helpers have the same command line, and are younger.
    let ran = edge_box.run(&["pgrep", "-o", "-f", "^[^ ]*amphipod keeper"]);
    ran.ok().trim().to_owned()
}

/// Counts what the box holds.
#[track_caller]
pub fn holdings(edge_box: &EdgeBox) -> Holdings {
    let cgroups = format!(
        "find /sys/fs/cgroup/*/{} -type d 2>/dev/null | wc -l",
        edge_box.name()
    );
    let files = "cd /var/lib/amphipod/agent && find runtime/containers pods /run/amphipod /var/log/pods /var/log/containers 2>/dev/null | wc -l";
    let scripts = [
        ("mounts", "wc -l < /proc/self/mounts"),
        ("links", "ip -o link | wc -l"),
        ("control groups", &cgroups),
        ("nft rules", "nft list ruleset | wc -l"),
        ("processes", "ps ax | grep -c '[a]mphipod'"),
        (
            "the keeper's children",
            "pgrep -P $(pgrep -o -f '^[^ ]*amphipod keeper') | wc -l",
        ),
        (
            "the keeper's descriptors",
            "ls /proc/$(pgrep -o -f '^[^ ]*amphipod keeper')/fd | wc -l",
        ),
        ("files", files),
    ];
    // One program, for it is asked again and again.
    let all: Vec<&str> = scripts.iter().map(|(_, script)| *script).collect();
    let text = edge_box
        .run(&["sh", "-c", &format!("({})", all.join("); ("))])
        .ok();
    let counts = text.lines().map(|line| line.trim().parse().unwrap());
    let kinds = scripts.iter().map(|(kind, _)| *kind);
    let found: Holdings = kinds.zip(counts).collect();
    assert_eq!(found.len(), scripts.len(), "{text}");
    found
}

/// Waits until the box holds what it held `before`.
#[track_caller]
pub fn are_as_before(edge_box: &EdgeBox, before: &Holdings) {
    let what = "the box to hold what it held before";
    eventually(what, Duration::from_secs(20), || {
        let now = holdings(edge_box);
        if now == *before {
            Ok(())
        } else {
            Err(format!("{now:?} instead of {before:?}"))
        }
    });
}
