//! A box's disk fills up, or stops taking writes: what runs goes on, what is there can be read and deleted, what is refused
//! is refused clearly, and all is well when there is space again.

#![allow(clippy::unwrap_used)]

mod failing;
mod full;
mod start;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, binary, eventually};

const SOON: Duration = Duration::from_secs(30);
/// Of a small disk: room for the image, whose tool is half as large again where the compiler comes with the debugging symbols of its library.
const DISK_MIB: u64 = 128;

/// Pods that show whether a node works: one counts aloud, one ends when it is told to, one is ready when it is told to.
fn start_pods(kubectl: &Kubectl, node: &str) {
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: counts}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo $i > /memory/count; sleep 0.1; done']
    volumeMounts: [{{name: memory, mountPath: /memory}}]
  volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: ends}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'trap \"exit 3\" TERM; echo began; while :; do sleep 0.1; done']
---
apiVersion: v1
kind: Pod
metadata: {{name: probed}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'touch /memory/ready; sleep 3600']
    readinessProbe: {{periodSeconds: 1, failureThreshold: 1, exec: {{command: [test, -e, /memory/ready]}}}}
    volumeMounts: [{{name: memory, mountPath: /memory}}]
  volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]
"
    ));
    for pod in ["counts", "ends", "probed"] {
        kubectl.wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
    }
}

/// Writes to the box's disk until nothing more fits.
fn fill(edge_box: &EdgeBox) {
    let file = edge_box.small_disk().join("filler");
    let file = file.display();
    // Large pieces first, then what is left, block by block.
    let script = format!(
        "dd if=/dev/zero of={file} bs=1M oflag=append conv=notrunc 2>/dev/null
         dd if=/dev/zero of={file} bs=4k oflag=append conv=notrunc 2>/dev/null
         sync; df --output=avail {file} | tail -n 1"
    );
    let left = edge_box.run(&["sh", "-c", &script]).ok();
    assert!(
        left.trim().parse::<u64>().unwrap() < 64,
        "{left} KiB are left"
    );
}

fn make_space(edge_box: &EdgeBox) {
    let file = edge_box.small_disk().join("filler");
    edge_box.run(&["rm", file.to_str().unwrap()]).ok();
}

/// Creates ConfigMaps of 100 kB, numbered from `first`, until several in a row are refused. Those acknowledged, and the last refusal.
fn create_until_refused(kubectl: &Kubectl, first: usize) -> (Vec<String>, String) {
    let text = "x".repeat(100_000);
    let (mut made, mut refused) = (Vec::new(), 0);
    for number in first..first + 1000 {
        let name = format!("written-{number}");
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{text: {text}}}\n"
        );
        let ran = kubectl.run_with(&["create", "-f", "-"], &yaml);
        if ran.code == 0 {
            made.push(name);
            refused = 0;
            continue;
        }
        // What was refused did not happen.
        assert_ne!(kubectl.run(&["get", "configmap", &name]).code, 0, "{name}");
        refused += 1;
        if refused == 3 {
            return (made, ran.stderr);
        }
    }
    panic!("nothing was refused");
}

/// The names of the ConfigMaps that a test wrote, sorted.
fn written(kubectl: &Kubectl) -> Vec<String> {
    let all = kubectl.run(&["get", "configmaps", "-o", "name"]).ok();
    let mut names: Vec<String> = all
        .lines()
        .filter_map(|line| line.strip_prefix("configmap/"))
        .filter(|name| name.starts_with("written-"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

/// A watch of the ConfigMaps, whose events come as `TYPE NAME`.
struct Watch {
    kubectl: Child,
    events: mpsc::Receiver<String>,
}

impl Watch {
    fn start(kubectl: &Kubectl) -> Watch {
        let version = kubectl.get(&["configmaps"])["metadata"]["resourceVersion"].clone();
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={}",
            version.as_str().unwrap()
        );
        let mut child = kubectl
            .command(&["get", "--raw", &path])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                let name = event["object"]["metadata"]["name"].as_str().unwrap();
                let told = format!("{} {name}", event["type"].as_str().unwrap());
                if sender.send(told).is_err() {
                    return;
                }
            }
        });
        Watch {
            kubectl: child,
            events,
        }
    }

    #[track_caller]
    fn wait_for(&self, event: &str) {
        loop {
            let told = self.events.recv_timeout(SOON);
            if told.unwrap_or_else(|e| panic!("waiting for {event:?}: {e}")) == event {
                return;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// Container IDs of the pods that must not notice anything.
fn ids(kubectl: &Kubectl) -> Vec<String> {
    ["counts", "probed"]
        .map(|pod| {
            let pod = kubectl.get(&["pod", pod]);
            let id = &pod["status"]["containerStatuses"][0]["containerID"];
            id.as_str().unwrap().to_owned()
        })
        .to_vec()
}

/// Ends the container of the pod that ends when it is told to.
#[track_caller]
fn end_one(kubectl: &Kubectl) {
    let ran = kubectl.exec("ends", &["kill", "1"]);
    // Whoever ends the first process of a PID namespace may be killed with it.
    assert!(matches!(ran.code, 0 | 137), "{ran:?}");
}

/// The pod that counts is reached, and counts.
#[track_caller]
fn counter_goes_on(kubectl: &Kubectl) {
    let count = || {
        let text = kubectl.exec("counts", &["cat", "/memory/count"]).ok();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let before = count();
    eventually("the counter to go on", SOON, || match count() {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
}

/// The pods of [`start_pods`] are looked after: they run, are reached, restarted and probed, and the API shows it.
#[track_caller]
fn pods_go_on(kubectl: &Kubectl) {
    counter_goes_on(kubectl);
    let restarts = || {
        let status = kubectl.get(&["pod", "ends"])["status"]["containerStatuses"][0].clone();
        let running = status["state"]["running"].is_object();
        (status["restartCount"].as_u64().unwrap(), running, status)
    };
    eventually("the pod that ends to run", SOON, || match restarts() {
        (_, true, _) => Ok(()),
        (.., status) => Err(status.to_string()),
    });
    let (before, ..) = restarts();
    end_one(kubectl);
    eventually("a container to be restarted", 2 * SOON, || {
        match restarts() {
            (now, true, _) if now > before => Ok(()),
            (.., status) => Err(status.to_string()),
        }
    });
}

/// What probes find is told.
#[track_caller]
fn probes_go_on(kubectl: &Kubectl) {
    kubectl.exec("probed", &["rm", "/memory/ready"]).ok();
    kubectl.wait_for("pod/probed", "condition=Ready=false", 30);
    kubectl.exec("probed", &["touch", "/memory/ready"]).ok();
    kubectl.wait_for("pod/probed", "condition=Ready", 30);
}

#[track_caller]
fn disk_pressure(kubectl: &Kubectl, node: &EdgeBox, wanted: &str) {
    let path = "jsonpath={.status.conditions[?(@.type==\"DiskPressure\")].status}";
    eventually(
        &format!("DiskPressure to be {wanted}"),
        SOON,
        || match kubectl.run(&["get", "node", node.name(), "-o", path]) {
            ran if ran.stdout == wanted => Ok(()),
            ran => Err(format!("{ran:?}\n{}", node.log())),
        },
    );
}

/// A server's box, and one with a small disk and a registry that joined it. The caller keeps all of them alive.
fn joined_box() -> (Lan, EdgeBox, EdgeBox, Registry) {
    let lan = Lan::new();
    let server = EdgeBox::ready(&lan);
    let mut agent = EdgeBox::with_small_disk(&lan, DISK_MIB);
    let registry = Registry::start(&agent);
    let line = server
        .run(&[binary().to_str().unwrap(), "token", "create"])
        .ok();
    let args: Vec<&str> = line.split_whitespace().skip(2).collect();
    agent.start_agent(&args);
    let ready = format!("node/{}", agent.name());
    eventually("the node to join", SOON, || {
        match server.kubectl().run(&["get", &ready]) {
            ran if ran.code == 0 => Ok(()),
            ran => Err(ran.stderr),
        }
    });
    server.kubectl().wait_for(&ready, "condition=Ready", 30);
    (lan, server, agent, registry)
}
