//! The program, the box and the server may go away at any time; pods stay.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Lan, Registry, eventually, pod};

fn workload(edge_box: &EdgeBox) {
    let kubectl = edge_box.kubectl();
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: it, labels: {{app: it}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done']
"
    ));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
}

#[test]
fn killing_the_program_restarts_no_container_and_loses_no_line() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    workload(&edge_box);
    let kubectl = edge_box.kubectl();
    let before = kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
    for _ in 0..3 {
        edge_box.kill_program();
        edge_box.start(&[]);
        edge_box.wait_until_ready();
    }
    kubectl.wait_for("pod/it", "condition=Ready", 10);
    let after = kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
    assert_eq!(before["containerID"], after["containerID"]);
    assert_eq!(after["restartCount"], 0);
    let lines: Vec<u32> = kubectl
        .run(&["logs", "it"])
        .ok()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(
        lines,
        (1..=lines.len() as u32).collect::<Vec<_>>(),
        "lines are missing or repeated"
    );
    assert_eq!(
        kubectl.run(&["exec", "it", "--", "echo", "reached"]).ok(),
        "reached\n"
    );
}

#[test]
fn an_exit_while_the_program_was_away_is_told_afterwards() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    pod::ready(&kubectl, "it", &pod::until_end("it", "exit 17"));
    edge_box.kill_program();
    pod::end_and_wait(&edge_box, "it");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let end = pod::failed_with(&kubectl, "it");
    assert_eq!(end["exitCode"], 17, "{end}");
}

#[test]
fn a_pod_that_became_unready_while_the_program_was_away_is_told_so_afterwards() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let flag = edge_box.disk().join("lib/flag");
    std::fs::create_dir_all(&flag).unwrap();
    std::fs::write(flag.join("ready"), "").unwrap();
    let kubectl = edge_box.kubectl();
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: it}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{{name: flag, hostPath: {{path: /var/lib/amphipod/flag}}}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sleep, '3600']
    readinessProbe: {{periodSeconds: 1, failureThreshold: 1, exec: {{command: [test, -e, /flag/ready]}}}}
    volumeMounts: [{{name: flag, mountPath: /flag}}]
"
    ));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    edge_box.kill_program();
    std::fs::remove_file(flag.join("ready")).unwrap();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    kubectl.wait_for("pod/it", "condition=Ready=false", 20);
    std::fs::write(flag.join("ready"), "").unwrap();
    kubectl.wait_for("pod/it", "condition=Ready", 20);
}

#[test]
fn a_box_that_lost_its_power_brings_its_pods_back() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    workload(&edge_box);
    let uid = edge_box.kubectl().get(&["pod", "it"])["metadata"]["uid"].clone();
    drop(registry);
    edge_box.power_off();
    edge_box.power_on(&lan);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    eventually("the pod to run again", Duration::from_secs(30), || {
        let pod = kubectl.get(&["pod", "it"]);
        let status = &pod["status"]["containerStatuses"][0];
        if pod["metadata"]["uid"] == uid && status["restartCount"] == 1 && status["ready"] == true {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
    assert_eq!(
        kubectl.run(&["exec", "it", "--", "echo", "reached"]).ok(),
        "reached\n"
    );
}
