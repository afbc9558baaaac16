//! The keeper, which is the parent of all containers, and the helpers that it forks may die as well; containers live.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amphipod_tests::holdings::{self, holdings, keeper};
use amphipod_tests::{BUSYBOX, Dice, EdgeBox, Kubectl, Lan, Registry, counters, pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A box whose counters run, and a pod that waits for its end.
fn at_work() -> (Lan, EdgeBox, Registry) {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let registry = Registry::start(&edge_box);
    let kubectl = edge_box.kubectl();
    counters::start(&kubectl, 2);
    (lan, edge_box, registry)
}

#[track_caller]
fn exec_works(kubectl: &Kubectl) {
    assert_eq!(pod::sh(kubectl, "counter-0", "echo reached"), "reached\n");
}

/// Whether the kernel tells how a process ended to one who is not its parent (PIDFD_GET_INFO): from 6.15 on.
fn kernel_tells_everybody() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    (parts.next(), parts.next()) >= (Some(6), Some(15))
}

#[track_caller]
fn ended_with_23(end: &Value) {
    assert_eq!(end["exitCode"], 23, "{end}");
    assert_eq!(end["reason"], "Error", "{end}");
}

#[track_caller]
fn ended_unknown(end: &Value) {
    assert_eq!(end["reason"], "ContainerStatusUnknown", "{end}");
    assert_eq!(end["exitCode"], 137, "{end}");
    let message = end["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty(), "{end}");
}

#[test]
fn killing_the_keeper_and_then_the_agent_kills_no_container_and_loses_no_exit_code() {
    let (_lan, mut edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    for name in ["first", "second"] {
        pod::ready(&kubectl, name, &pod::until_end(name, "exit 23"));
    }
    let before = counters::instances(&kubectl);
    let dead = keeper(&edge_box);
    edge_box.run(&["kill", "-9", &dead]).ok();
    pod::end(&edge_box, "first");
    ended_with_23(&pod::failed_with(&kubectl, "first"));
    exec_works(&kubectl);
    assert_ne!(keeper(&edge_box), dead);
    edge_box.kill_program();
    pod::end_and_wait(&edge_box, "second");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let end = pod::failed_with(&kubectl, "second");
    match kernel_tells_everybody() {
        true => ended_with_23(&end),
        // It was the dead agent's child.
        false => ended_unknown(&end),
    }
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
    exec_works(&kubectl);
}

#[test]
fn keeper_and_agent_killed_in_the_same_instant_lose_only_the_exit_codes_of_that_instant_and_say_so()
{
    let (_lan, mut edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    for name in ["early", "late"] {
        pod::ready(&kubectl, name, &pod::until_end(name, "exit 23"));
    }
    let before = counters::instances(&kubectl);
    // Frozen, the program cannot hear of the keeper's death before its own.
    edge_box.freeze_program();
    edge_box.run(&["kill", "-9", &keeper(&edge_box)]).ok();
    edge_box.kill_program();
    // Nobody is there to see how this one ends.
    pod::end_and_wait(&edge_box, "early");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    ended_unknown(&pod::failed_with(&kubectl, "early"));
    // The others were adopted: their ends are seen, their logs go on, and they can be reached.
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
    exec_works(&kubectl);
    pod::end(&edge_box, "late");
    if kernel_tells_everybody() {
        ended_with_23(&pod::failed_with(&kubectl, "late"));
    }
}

/// Kills forked children of the keeper that have not become programs, each at a random moment of its short life.
struct Hunter {
    keeper: i32,
    program: PathBuf,
    dice: Dice,
}

impl Hunter {
    fn new(edge_box: &EdgeBox) -> Hunter {
        let keepers = children(edge_box.program_pid() as i32);
        let is_keeper = |pid: &i32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.contains("\0keeper\0"))
        };
        let keeper = keepers.into_iter().find(is_keeper).expect("a keeper");
        Hunter {
            keeper,
            program: std::fs::read_link(format!("/proc/{keeper}/exe")).unwrap(),
            dice: Dice::new("kill helpers"),
        }
    }

    /// Until so many were killed, or the time is over. How many it were.
    fn hunt(mut self, wanted: usize, limit: Duration) -> usize {
        let (start, mut killed, mut spared) = (Instant::now(), 0, HashSet::new());
        while killed < wanted && start.elapsed() < limit {
            let helpers = self.helpers();
            let Some(&prey) = helpers.iter().find(|pid| !spared.contains(*pid)) else {
                std::thread::yield_now();
                continue;
            };
            // Of a hundred, two thirds live: pods are to come to something between.
            spared.insert(prey);
            if self.dice.below(3) > 0 {
                continue;
            }
            std::thread::sleep(Duration::from_micros(self.dice.below(40_000)));
            if self.helpers().contains(&prey) && kill(Pid::from_raw(prey), Signal::SIGKILL).is_ok()
            {
                killed += 1;
            }
        }
        killed
    }

    fn helpers(&self) -> Vec<i32> {
        let is_helper = |pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.program)
        };
        children(self.keeper)
            .into_iter()
            .filter(is_helper)
            .collect()
    }
}

/// Process ids as the host counts, like everything the hunter sees.
fn children(of: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{of}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<i32>>()
        })
        .collect()
}

#[test]
fn a_container_half_made_by_a_helper_that_was_killed_is_removed_and_made_again() {
    let (_lan, edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    let before = counters::instances(&kubectl);
    let held = holdings(&edge_box);
    let hunter = Hunter::new(&edge_box);
    let done = AtomicBool::new(false);
    let (killed, made) = std::thread::scope(|scope| {
        let hunt = scope.spawn(|| {
            let killed = hunter.hunt(10, Duration::from_secs(30));
            done.store(true, Ordering::Relaxed);
            killed
        });
        let mut made = 0;
        while !done.load(Ordering::Relaxed) && made < 100 {
            made += 1;
            kubectl.apply(&format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: made-{made}, labels: {{app: made}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: one, image: {BUSYBOX}, command: [sleep, '3600']}}
  - {{name: two, image: {BUSYBOX}, command: [sleep, '3600']}}
"
            ));
        }
        (hunt.join().unwrap(), made)
    });
    println!("{killed} helpers killed while {made} pods were made");
    assert!(killed >= 5, "only {killed} were hit");
    let ready = ["wait", "pods", "-l", "app=made", "--for=condition=Ready"];
    kubectl
        .run(&[&ready[..], &["--timeout=120s"]].concat())
        .ok();
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
    // What came to nothing was removed: what runs is all there is.
    let gone = ["delete", "pods", "-l", "app=made", "--timeout=60s"];
    let containers = edge_box.run(&["ls", "/var/lib/amphipod/agent/runtime/containers"]);
    assert_eq!(
        containers.ok().lines().count(),
        2 * made + before.len(),
        "containers"
    );
    kubectl.run(&gone).ok();
    holdings::are_as_before(&edge_box, &held);
}
