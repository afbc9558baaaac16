//! What goes wrong on the edge, and what must not be lost by it.
//!
//! Random choices come from a seed that is printed; `FAULT_SEED=N` repeats a run and `FAULT_ROUNDS=N` makes it longer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, eventually};
use serde_json::Value;

/// A small generator (xorshift64*): repeatable, and good enough to choose moments.
struct Dice(u64);

impl Dice {
    fn new(test: &str) -> Dice {
        let seed = std::env::var("FAULT_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap();
                now.as_nanos() as u64 | 1
            });
        println!("{test}: FAULT_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

fn rounds(default: u64) -> u64 {
    std::env::var("FAULT_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// A box with a registry and a ready node; the caller keeps all three alive.
fn ready_box() -> (Lan, EdgeBox, Registry) {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    (lan, edge_box, registry)
}

/// Pods that count aloud, ten lines a second.
fn start_counters(kubectl: &Kubectl, count: usize) {
    let pods = (0..count).map(|index| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: counter-{index}, labels: {{app: counter}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done']
---
"
        )
    });
    kubectl.apply(&pods.collect::<String>());
    kubectl
        .run(&[
            "wait",
            "pods",
            "-l",
            "app=counter",
            "--for=condition=Ready",
            "--timeout=60s",
        ])
        .ok();
}

/// Pod name to container ID and restart count.
fn instances(kubectl: &Kubectl) -> BTreeMap<String, (String, u64)> {
    let pods = kubectl.get(&["pods", "-l", "app=counter"]);
    let items = pods["items"].as_array().unwrap().iter();
    items
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            (
                pod["metadata"]["name"].as_str().unwrap().to_owned(),
                (id, status["restartCount"].as_u64().unwrap_or(0)),
            )
        })
        .collect()
}

/// Every counter's log holds 1, 2, 3, ... without a gap or a repeat.
#[track_caller]
fn check_logs(kubectl: &Kubectl, names: impl Iterator<Item = String>) {
    for name in names {
        let text = kubectl.run(&["logs", &name]).ok();
        let lines: Vec<u64> = text
            .lines()
            .map(|line| {
                line.parse()
                    .unwrap_or_else(|_| panic!("{name} logged {line:?}"))
            })
            .collect();
        let broken = lines
            .iter()
            .zip(1..)
            .find(|(line, expected)| **line != *expected);
        assert_eq!(
            broken, None,
            "the log of {name} is broken there (line, expected)"
        );
        assert!(!lines.is_empty(), "{name} has no log");
    }
}

/// What the box holds in kernel objects: they must not grow by crashes.
fn kernel_objects(edge_box: &EdgeBox) -> BTreeMap<&'static str, usize> {
    let count = |script: &str| {
        edge_box
            .run(&["sh", "-c", script])
            .ok()
            .trim()
            .parse()
            .unwrap()
    };
    BTreeMap::from([
        ("mounts", count("wc -l < /proc/self/mounts")),
        ("links", count("ip -o link | wc -l")),
        (
            "cgroups",
            count(&format!(
                "find /sys/fs/cgroup/*/{} -type d 2>/dev/null | wc -l",
                edge_box.name()
            )),
        ),
        ("nft rules", count("nft list ruleset | wc -l")),
        ("processes", count("ps ax | grep -c '[a]mphipod'")),
    ])
}

#[test]
fn killing_the_program_at_any_moment_under_load_loses_nothing() {
    let mut dice = Dice::new("kill under load");
    let (_lan, mut edge_box, _registry) = ready_box();
    let kubectl = edge_box.kubectl();
    start_counters(&kubectl, 3);
    let before = instances(&kubectl);
    let objects = kernel_objects(&edge_box);

    // Somebody writes all the time, and remembers what was acknowledged.
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let writer = std::thread::spawn({
        let (kubectl, stop, acknowledged) = (kubectl.clone(), stop.clone(), acknowledged.clone());
        move || {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("written-{number}");
                if kubectl
                    .run(&["create", "configmap", &name, "--from-literal=a=b"])
                    .code
                    == 0
                {
                    acknowledged.lock().unwrap().push(name);
                }
            }
        }
    });
    for round in 0..rounds(15) {
        std::thread::sleep(Duration::from_millis(dice.below(700)));
        edge_box.kill_program();
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        edge_box.start(&[]);
        // Some rounds kill it again while it is still starting.
        if dice.below(3) > 0 {
            edge_box.wait_until_ready();
        }
        println!(
            "round {round}: {} writes acknowledged",
            acknowledged.lock().unwrap().len()
        );
    }
    edge_box.wait_until_ready();
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();

    let kept = kubectl.run(&["get", "configmaps", "-o", "name"]).ok();
    let acknowledged = acknowledged.lock().unwrap();
    for name in acknowledged.iter() {
        assert!(
            kept.contains(&format!("configmap/{name}\n")),
            "{name} was acknowledged and is lost"
        );
    }
    assert!(!acknowledged.is_empty());
    eventually(
        "the pods to be told as before",
        Duration::from_secs(20),
        || {
            let now = instances(&kubectl);
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?} instead of {before:?}"))
            }
        },
    );
    check_logs(&kubectl, before.into_keys());
    eventually(
        "kernel objects to be as before",
        Duration::from_secs(10),
        || {
            let now = kernel_objects(&edge_box);
            if now == objects {
                Ok(())
            } else {
                Err(format!("{now:?} instead of {objects:?}"))
            }
        },
    );
}

#[test]
fn a_watch_goes_on_after_a_crash_without_a_gap_or_a_repeat() {
    let (_lan, mut edge_box, _registry) = ready_box();
    let kubectl = edge_box.kubectl();
    kubectl.run(&["create", "configmap", "it"]).ok();
    let version = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut from = version(&kubectl.get(&["configmap", "it"]));
    let mut seen = Vec::new();
    for round in 0..6u64 {
        kubectl
            .run(&[
                "annotate",
                "--overwrite",
                "configmap",
                "it",
                &format!("round={round}"),
            ])
            .ok();
        edge_box.kill_program();
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dit&resourceVersion={from}&timeoutSeconds=1"
        );
        let mut watch = kubectl
            .command(&["get", "--raw", &path])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(watch.stdout.take().unwrap()).lines() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(event["type"], "MODIFIED", "{event}");
            from = version(&event["object"]);
            seen.push(
                event["object"]["metadata"]["annotations"]["round"]
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap(),
            );
        }
        watch.wait().unwrap();
    }
    assert_eq!(seen, (0..6).collect::<Vec<_>>());
}

#[test]
fn killing_the_keeper_kills_no_container_and_loses_no_exit_code() {
    let (_lan, mut edge_box, _registry) = ready_box();
    let kubectl = edge_box.kubectl();
    start_counters(&kubectl, 2);
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: ends}}
spec:
  restartPolicy: Never
  volumes: [{{name: flag, hostPath: {{path: /var/lib/amphipod/flag, type: DirectoryOrCreate}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'while [ ! -e /flag/go ]; do sleep 0.05; done; exit 23']
    volumeMounts: [{{name: flag, mountPath: /flag}}]
"
    ));
    kubectl.wait_for("pod/ends", "condition=Ready", 30);
    let before = instances(&kubectl);
    let keeper = |edge_box: &EdgeBox| {
        edge_box
            .run(&["pgrep", "-f", "^[^ ]*amphipod keeper"])
            .ok()
            .trim()
            .to_owned()
    };
    let first = keeper(&edge_box);
    edge_box.run(&["kill", "-9", &first]).ok();
    eventually("another keeper", Duration::from_secs(10), || {
        let now = edge_box
            .run(&["pgrep", "-f", "^[^ ]*amphipod keeper"])
            .stdout;
        if now.trim().is_empty() || now.trim() == first {
            Err(now)
        } else {
            Ok(())
        }
    });
    // And the keeper and the agent, one right after the other.
    edge_box.run(&["kill", "-9", &keeper(&edge_box)]).ok();
    edge_box.kill_program();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    std::fs::write(edge_box.disk().join("lib/flag/go"), "").unwrap();
    kubectl.wait_for("pod/ends", "jsonpath={.status.phase}=Failed", 20);
    let state = kubectl.get(&["pod", "ends"])["status"]["containerStatuses"][0]["state"].clone();
    assert_eq!(state["terminated"]["exitCode"], 23, "{state}");
    eventually(
        "the counters to be told as before",
        Duration::from_secs(20),
        || {
            let now = instances(&kubectl);
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?} instead of {before:?}"))
            }
        },
    );
    // What a keeper had read and not yet written goes with it; nothing is written twice.
    for name in before.into_keys() {
        let text = kubectl.run(&["logs", &name]).ok();
        let lines: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            lines.windows(2).all(|pair| pair[0] < pair[1]),
            "{name} repeats itself: {lines:?}"
        );
    }
    assert_eq!(
        kubectl
            .run(&["exec", "counter-0", "--", "echo", "reached"])
            .ok(),
        "reached\n"
    );
}

#[test]
fn a_container_that_forks_without_bound_hurts_itself_alone() {
    let (_lan, edge_box, _registry) = ready_box();
    let kubectl = edge_box.kubectl();
    start_counters(&kubectl, 1);
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: bomb}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'bomb() {{ bomb | bomb & }}; bomb; sleep 3600']
"
    ));
    kubectl.wait_for("pod/bomb", "condition=Ready", 30);
    assert_eq!(
        kubectl
            .run(&["exec", "counter-0", "--", "echo", "reached"])
            .ok(),
        "reached\n"
    );
    kubectl
        .run(&["delete", "pod", "bomb", "--timeout=30s"])
        .ok();
    eventually(
        "the bomb's processes to be gone",
        Duration::from_secs(10),
        || {
            let left = edge_box
                .run(&["sh", "-c", "ps ax | grep -c '[b]omb()'"])
                .stdout;
            if left.trim() == "0" {
                Ok(())
            } else {
                Err(left)
            }
        },
    );
    check_logs(&kubectl, ["counter-0".to_owned()].into_iter());
}

/// Overwrites a database beyond its first bytes, as a worn-out card might.
fn corrupt(edge_box: &EdgeBox, folder: &str, name: &str) {
    let path = edge_box.disk().join(folder).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(format!("{name}{end}")));
    }
}

/// The damaged file stands beside its successor, and the log says so.
#[track_caller]
fn check_put_aside(edge_box: &EdgeBox, folder: &str) {
    let entries = std::fs::read_dir(edge_box.disk().join(folder)).unwrap();
    let names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        names.iter().any(|name| name.contains("damaged")),
        "{folder}: {names:?}"
    );
    let log = edge_box.log();
    assert!(log.contains("damaged"), "nothing was said: {log}");
}

#[test]
fn a_corrupted_agent_database_is_put_aside_and_no_container_notices() {
    let (_lan, mut edge_box, _registry) = ready_box();
    let kubectl = edge_box.kubectl();
    start_counters(&kubectl, 2);
    let before = instances(&kubectl);
    edge_box.kill_program();
    corrupt(&edge_box, "lib/agent", "agent.db");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/agent");
    eventually(
        "the pods to be told as before",
        Duration::from_secs(20),
        || {
            let now = instances(&kubectl);
            if now == before {
                Ok(())
            } else {
                Err(format!("{now:?} instead of {before:?}"))
            }
        },
    );
    check_logs(&kubectl, before.into_keys());
}

#[test]
fn a_corrupted_server_database_is_put_aside_and_told() {
    let (_lan, mut edge_box, _registry) = ready_box();
    edge_box.kill_program();
    corrupt(&edge_box, "lib/server", "state.db");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/server");
}
