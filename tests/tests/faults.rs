//! What goes wrong on the edge, and what must not be lost by it.
//!
//! Random choices come from a seed that is printed; `FAULT_SEED=N` repeats a run and `FAULT_ROUNDS=N` makes it longer.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_tests::holdings::{self, holdings};
use amphipod_tests::{
    BUSYBOX, Dice, EdgeBox, Kubectl, Lan, Registry, counters, eventually, pod, rounds,
};
use serde_json::{Value, json};

/// Somebody who writes all the time, and remembers what was acknowledged.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    maps: Mutex<Vec<String>>,
    /// Of pods that end soon, each with an exit code of its own.
    pods: Mutex<Vec<String>>,
}

/// The exit code of the pod `ends-N`.
fn code_of(pod: &str) -> u64 {
    let number: u64 = pod.trim_start_matches("ends-").parse().unwrap();
    1 + number % 200
}

impl Load {
    fn write(&self, kubectl: &Kubectl) {
        for number in 0..u64::MAX {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // So that some end while nobody looks.
            let (name, tenths) = (format!("ends-{number}"), number % 15);
            let script = format!(
                "sleep {}.{}; echo last words of {name}; exit {}",
                tenths / 10,
                tenths % 10,
                code_of(&name)
            );
            let ends = json!({"metadata": {"labels": {"load": "ends"}}, "spec": {"restartPolicy": "Never"}});
            let maps = (0..15).map(|map| {
                let name = format!("written-{number}-{map}");
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
                    .to_string()
            });
            let all: Vec<String> = std::iter::once(pod::pod(&name, &script, ends))
                .chain(maps)
                .collect();
            // It goes on after what was refused, and tells what was not.
            let create = ["create", "--validate=false", "-f", "-"];
            for line in kubectl.run_with(&create, &all.join("\n")).stdout.lines() {
                let name = line.trim_end_matches(" created");
                if let Some(map) = name.strip_prefix("configmap/") {
                    self.maps.lock().unwrap().push(map.to_owned());
                } else if let Some(pod) = name.strip_prefix("pod/") {
                    self.pods.lock().unwrap().push(pod.to_owned());
                }
            }
        }
    }

    /// Follows the ConfigMaps after a version, from one crash to the next, until it has seen all that was acknowledged. Their names
    /// in the order of their events.
    fn follow(&self, kubectl: &Kubectl, mut from: u64) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let stopped = self.stop.load(Ordering::Relaxed);
            if stopped && self.maps.lock().unwrap().last() == seen.last() {
                return seen;
            }
            let path = format!(
                "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={from}&timeoutSeconds=2"
            );
            let mut watch = kubectl
                .command(&["get", "--raw", &path])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            for line in BufReader::new(watch.stdout.take().unwrap()).lines() {
                // A crash may cut the last line short.
                let Ok(event) = serde_json::from_str::<Value>(&line.unwrap()) else {
                    continue;
                };
                assert_eq!(event["type"], "ADDED", "{event}");
                let next = version(&event["object"]);
                assert!(next > from, "{event} after {from}");
                from = next;
                let name = event["object"]["metadata"]["name"].as_str().unwrap();
                seen.push(name.to_owned());
            }
            watch.wait().unwrap();
        }
    }
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.unwrap().parse().unwrap()
}

#[test]
fn killing_the_program_at_any_moment_under_load_loses_nothing() {
    let mut dice = Dice::new("kill under load");
    let lan = Lan::new();
    let mut edge_box = EdgeBox::ready(&lan);
    let _registry = Registry::start(&edge_box);
    let kubectl = edge_box.kubectl();
    counters::start(&kubectl, 3);
    let before = counters::instances(&kubectl);
    let held = holdings(&edge_box);
    let list = kubectl.run(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
    let from = version(&serde_json::from_str(&list.ok()).unwrap());

    let load = Arc::new(Load::default());
    let with = |work: fn(&Load, &Kubectl, u64) -> Vec<String>| {
        let (kubectl, load) = (kubectl.clone(), load.clone());
        std::thread::spawn(move || work(&load, &kubectl, from))
    };
    let writer = with(|load, kubectl, _| {
        load.write(kubectl);
        Vec::new()
    });
    let watcher = with(Load::follow);
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
            "round {round}: {} writes and {} pods acknowledged",
            load.maps.lock().unwrap().len(),
            load.pods.lock().unwrap().len()
        );
    }
    edge_box.wait_until_ready();
    load.stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();

    let kept = kubectl.run(&["get", "configmaps", "-o", "name"]).ok();
    let maps = load.maps.lock().unwrap().clone();
    for name in &maps {
        assert!(
            kept.contains(&format!("configmap/{name}\n")),
            "{name} was acknowledged and is lost"
        );
    }
    assert!(!maps.is_empty());
    // The watch saw each, once: its versions rise.
    let seen = watcher.join().unwrap();
    for name in &maps {
        let times = seen.iter().filter(|one| *one == name).count();
        assert_eq!(times, 1, "events of {name}");
    }
    let acknowledged = load.pods.lock().unwrap().clone();
    assert!(!acknowledged.is_empty());
    let ended = eventually("all pods to have ended", Duration::from_secs(60), || {
        let pods = kubectl.get(&["pods", "-l", "load=ends"]);
        let pods = pods["items"].as_array().unwrap().clone();
        match pods.iter().find(|pod| pod["status"]["phase"] != "Failed") {
            Some(pod) => Err(pod.to_string()),
            None => Ok(pods),
        }
    });
    let every = ["-l", "load=ends", "--tail=-1", "--max-log-requests=1000"];
    let logs = kubectl.run(&[&["logs"], &every[..]].concat()).ok();
    let mut words: Vec<&str> = logs.lines().collect();
    let mut wanted = Vec::new();
    let mut names = Vec::new();
    for pod in &ended {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(end["exitCode"], code_of(name), "{name}: {end}");
        assert_eq!(end["reason"], "Error", "{name}: {end}");
        wanted.push(format!("last words of {name}"));
        names.push(name);
    }
    words.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(words, wanted);
    for name in &acknowledged {
        assert!(names.contains(&name.as_str()), "{name} is lost");
    }
    let delete = ["delete", "pods", "-l", "load=ends", "--timeout=60s"];
    kubectl.run(&delete).ok();
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
    holdings::are_as_before(&edge_box, &held);
}

#[test]
fn a_watch_goes_on_after_a_crash_without_a_gap_or_a_repeat() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::ready(&lan);
    let kubectl = edge_box.kubectl();
    kubectl.run(&["create", "configmap", "it"]).ok();
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
fn a_container_that_forks_without_bound_hurts_itself_alone() {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let _registry = Registry::start(&edge_box);
    let kubectl = edge_box.kubectl();
    counters::start(&kubectl, 1);
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
    counters::check_logs(&kubectl, &["counter-0".to_owned()]);
}
