//! A box's disk fills up, or stops taking writes: what runs goes on, what is there can be read and deleted, what is refused
//! is refused clearly, and all is well when there is space again.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, binary, eventually};

const SOON: Duration = Duration::from_secs(30);

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

/// The pods of [`start_pods`] are looked after: they run, are reached, restarted and probed, and the API shows it.
#[track_caller]
fn pods_go_on(kubectl: &Kubectl) {
    let count = || {
        let text = kubectl
            .run(&["exec", "counts", "--", "cat", "/memory/count"])
            .ok();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let before = count();
    eventually("the counter to go on", SOON, || match count() {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
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
    kubectl.run(&["exec", "ends", "--", "kill", "1"]).ok();
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
    kubectl
        .run(&["exec", "probed", "--", "rm", "/memory/ready"])
        .ok();
    kubectl.wait_for("pod/probed", "condition=Ready=false", 30);
    kubectl
        .run(&["exec", "probed", "--", "touch", "/memory/ready"])
        .ok();
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

#[test]
fn on_a_full_disk_pods_reads_and_deletions_go_on_and_writes_come_back_with_the_space() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, 96);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    let before = ids(&kubectl);

    let mut kept = Vec::new();
    for round in 0..2 {
        let watch = Watch::start(&kubectl);
        fill(&edge_box);
        let (made, refusal) = create_until_refused(&kubectl, 10_000 * (round + 1));
        assert!(refusal.contains("is full"), "{refusal}");
        assert!(refusal.contains("InsufficientStorage"), "{refusal}");
        kept.extend(made);
        fill(&edge_box);

        // What is there is served, and can be deleted, pods too.
        assert_eq!(written(&kubectl), kept);
        if let Some(gone) = kept.pop() {
            kubectl.run(&["delete", "configmap", &gone]).ok();
            watch.wait_for(&format!("DELETED {gone}"));
        }
        pods_go_on(&kubectl);
        probes_go_on(&kubectl);
        disk_pressure(&kubectl, &edge_box, "True");
        eventually("the event to be told", SOON, || {
            let reasons = ["get", "events", "-A", "-o", "custom-columns=R:.reason"];
            let told = kubectl.run(&reasons).stdout;
            match told.contains("NodeHasDiskPressure") {
                true => Ok(()),
                false => Err(told),
            }
        });
        // Each start of the program says so once.
        let log = edge_box.log();
        let told = log.matches("server's state is full").count();
        assert_eq!(told, round + 1, "{log}");

        // The program is killed and started while the disk is full.
        edge_box.kill_program();
        fill(&edge_box);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        assert_eq!(written(&kubectl), kept);
        pods_go_on(&kubectl);
        probes_go_on(&kubectl);
        assert_eq!(ids(&kubectl), before);
        let (made, refusal) = create_until_refused(&kubectl, 10_000 * (round + 1) + 5000);
        assert!(refusal.contains("is full"), "{refusal}");
        kept.extend(made);
        kubectl.run(&["delete", "configmaps", &kept.remove(0)]).ok();
    }
    kubectl
        .run(&["delete", "pod", "ends", "--timeout=30s"])
        .ok();

    make_space(&edge_box);
    eventually("writes to be taken again", SOON, || {
        let ran = kubectl.run(&["create", "configmap", "afterwards"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    disk_pressure(&kubectl, &edge_box, "False");
    assert_eq!(written(&kubectl), kept);
    assert_eq!(ids(&kubectl), before);
    edge_box.kill_program();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    assert_eq!(written(&kubectl), kept);
    assert_eq!(ids(&kubectl), before);
}

/// A server's box, and one with a small disk and a registry that joined it. The caller keeps all of them alive.
fn joined_box() -> (Lan, EdgeBox, EdgeBox, Registry) {
    let lan = Lan::new();
    let server = EdgeBox::ready(&lan);
    let mut agent = EdgeBox::with_small_disk(&lan, 96);
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

#[test]
fn a_joined_box_with_a_full_disk_keeps_its_pods_and_gets_others_when_there_is_space() {
    let (_lan, server, mut agent, _registry) = joined_box();
    let kubectl = server.kubectl();
    start_pods(&kubectl, agent.name());
    let before = ids(&kubectl);

    fill(&agent);
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    disk_pressure(&kubectl, &agent, "True");
    // Nothing new is sent there.
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: later}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {}}}
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
",
        agent.name()
    ));
    kubectl.wait_for("pod/later", "condition=PodScheduled=false", 30);
    agent.kill_program();
    agent.start_agent(&[]);
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);
    kubectl
        .run(&["delete", "pod", "probed", "--timeout=30s"])
        .ok();

    make_space(&agent);
    disk_pressure(&kubectl, &agent, "False");
    kubectl.wait_for("pod/later", "condition=Ready", 60);
    kubectl
        .run(&["exec", "counts", "--", "cat", "/memory/count"])
        .ok();
    let log = agent.log();
    assert!(!log.contains("damaged"), "{log}");
}

#[test]
fn a_disk_that_failed_takes_no_writes_loses_none_and_stops_no_pod() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, 96);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    kubectl.run(&["create", "configmap", "before"]).ok();
    let watch = Watch::start(&kubectl);
    let before = ids(&kubectl);

    // The kernel finds an error and makes the file system read-only, under files that are open.
    let small = edge_box.small_disk();
    let fail = format!(
        "echo fail > /sys/fs/ext4/$(basename $(findmnt -n -o SOURCE {}))/trigger_fs_error",
        small.display()
    );
    edge_box.run(&["sh", "-c", &fail]).ok();
    for verb in [["create", "configmap"], ["delete", "configmap"]] {
        let name = if verb[0] == "create" {
            "after"
        } else {
            "before"
        };
        let refusal = kubectl.run(&[verb[0], verb[1], name]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
    }
    assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
    kubectl.run(&["get", "configmap", "before"]).ok();
    let count = || {
        let text = kubectl
            .run(&["exec", "counts", "--", "cat", "/memory/count"])
            .ok();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let first = count();
    eventually("the counter to go on", SOON, || match count() {
        now if now > first => Ok(()),
        now => Err(now.to_string()),
    });
    // Longer than a node may be silent.
    std::thread::sleep(Duration::from_secs(45));
    assert_eq!(ids(&kubectl), before);
    kubectl.wait_for(&format!("node/{}", edge_box.name()), "condition=Ready", 5);
    let log = edge_box.log();
    assert_eq!(log.matches("changes are refused").count(), 1, "{log}");
    drop(watch);

    // The box is switched off and on again, which checks the disk.
    drop(registry);
    edge_box.power_off();
    edge_box.power_on(&lan);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    kubectl_is_as_before(&edge_box);
}

/// What was acknowledged is there, what was refused is not, and the pods run again.
#[track_caller]
fn kubectl_is_as_before(edge_box: &EdgeBox) {
    let kubectl = edge_box.kubectl();
    kubectl.run(&["get", "configmap", "before"]).ok();
    assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
    for pod in ["counts", "ends", "probed"] {
        kubectl.wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
    }
    kubectl.run(&["create", "configmap", "afterwards"]).ok();
}

#[test]
fn a_disk_that_takes_writes_again_gets_them_without_a_restart() {
    let (_lan, edge_box, _registry) = {
        let lan = Lan::new();
        let mut edge_box = EdgeBox::with_small_disk(&lan, 96);
        let registry = Registry::start(&edge_box);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        (lan, edge_box, registry)
    };
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    kubectl.run(&["create", "configmap", "before"]).ok();
    let before = ids(&kubectl);
    // A file that is immutable refuses writes also through descriptors that are open (chattr(1)).
    let databases = "/var/lib/amphipod/server/state.db* /var/lib/amphipod/agent/agent.db*";
    let set = |flag: &str| {
        let command = format!("chattr {flag} {databases}");
        edge_box.run(&["sh", "-c", &command]).ok();
    };
    for round in 1..=2 {
        set("+i");
        let refusal = kubectl.run(&["create", "configmap", "after"]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
        let refusal = kubectl.run(&["delete", "configmap", "before"]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
        kubectl.run(&["get", "configmap", "before"]).ok();
        // A container that ends now is restarted, though nobody can be told yet.
        kubectl.run(&["exec", "ends", "--", "kill", "1"]).ok();
        eventually("the container to be restarted", SOON, || {
            let path = "jsonpath={.metadata.name}";
            kubectl.run(&["get", "pod", "ends", "-o", path]).ok();
            match kubectl.run(&["logs", "ends"]) {
                ran if ran.stdout == "began\n" => Ok(()),
                ran => Err(format!("{ran:?}")),
            }
        });
        set("-i");
        eventually("writes to be taken again", SOON, || {
            let name = format!("afterwards-{round}");
            match kubectl.run(&["create", "configmap", &name]) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            }
        });
        assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
        eventually("the restart to be told", SOON, || {
            let status = kubectl.get(&["pod", "ends"])["status"]["containerStatuses"][0].clone();
            if status["restartCount"] == round && status["state"]["running"].is_object() {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
        let log = edge_box.log();
        assert_eq!(log.matches("changes are refused").count(), round, "{log}");
    }
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);
}
