//! Pods that count aloud: whether a container was restarted, and whether a line of its log is lost or repeated, can be read off them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{BUSYBOX, Kubectl, eventually};

/// Pod name to container ID and restart count.
pub type Instances = BTreeMap<String, (String, u64)>;

/// Starts `counter-0` and so on, each of which counts ten lines a second, and waits until they are Ready.
#[track_caller]
pub fn start(kubectl: &Kubectl, count: usize) {
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

/// The counters as the API tells them.
#[track_caller]
pub fn instances(kubectl: &Kubectl) -> Instances {
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

/// Waits until the API tells the counters as they were `before`: the same containers, not restarted.
#[track_caller]
pub fn are_as_before(kubectl: &Kubectl, before: &Instances) {
    let what = "the counters to be told as before";
    eventually(what, Duration::from_secs(20), || {
        let now = instances(kubectl);
        if now == *before {
            Ok(())
        } else {
            Err(format!("{now:?} instead of {before:?}"))
        }
    });
}

/// Every counter's log holds 1, 2, 3, ... without a gap or a repeat, and goes on.
#[track_caller]
pub fn check_logs<'a>(kubectl: &Kubectl, names: impl IntoIterator<Item = &'a String>) {
    for name in names {
        let before = check_log(kubectl, name);
        let what = format!("the log of {name} to go on");
        eventually(&what, Duration::from_secs(10), || {
            match check_log(kubectl, name) {
                now if now > before => Ok(()),
                now => Err(format!("{now} lines, before {before}")),
            }
        });
    }
}

/// How many lines a counter's log has, which must be 1, 2, 3, ...
#[track_caller]
fn check_log(kubectl: &Kubectl, name: &str) -> usize {
    let text = kubectl.run(&["logs", name]).ok();
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
    lines.len()
}
