//! Containers that want more than their share: what they fill, eat or flood hurts them alone.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A box with a registry, a ready node and a pod beside the hungry one, which must not notice anything. It has some memory, which is its
/// right, so that it could be taken for the one that has too much.
struct Host {
    kubectl: Kubectl,
    neighbour: String,
    _registry: Registry,
    edge_box: EdgeBox,
    _lan: Lan,
}

impl Host {
    #[track_caller]
    fn start(small_disk: bool) -> Host {
        let lan = Lan::new();
        let mut edge_box = if small_disk {
            EdgeBox::with_small_disk(&lan, 160)
        } else {
            EdgeBox::new(&lan)
        };
        let registry = Registry::start(&edge_box);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        let kubectl = edge_box.kubectl();
        kubectl.apply(&pod(
            "neighbour",
            "command: [sh, -c, 'x=$(head -c 4000000 /dev/zero | tr \\\\0 x); sleep 3600; :']
    resources: {limits: {memory: 24Mi, cpu: 200m}}
    livenessProbe: {periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3, exec: {command: ['true']}}",
            "",
        ));
        kubectl.wait_for("pod/neighbour", "condition=Ready", 60);
        let neighbour = status(&kubectl, "neighbour")["containerID"].to_string();
        Host {
            kubectl,
            neighbour,
            _registry: registry,
            edge_box,
            _lan: lan,
        }
    }

    /// The neighbour runs as before and is reached, and the API works.
    #[track_caller]
    fn others_are_well(&self) {
        let ran = self.kubectl.exec("neighbour", &["echo", "reached"]);
        assert_eq!(ran.stdout, "reached\n", "{ran:?}");
        let now = status(&self.kubectl, "neighbour");
        assert_eq!(now["containerID"].to_string(), self.neighbour, "{now}");
        assert_eq!(now["restartCount"], 0, "{now}");
        let create = ["create", "configmap", "well", "--dry-run=server"];
        self.kubectl.run(&create).ok();
    }

    /// The pod ends as evicted, with this message, and what it filled is given back.
    #[track_caller]
    fn is_evicted(&self, name: &str, message: &str) {
        let kubectl = &self.kubectl;
        kubectl.wait_for(
            &format!("pod/{name}"),
            "jsonpath={.status.phase}=Failed",
            90,
        );
        let pod = kubectl.get(&["pod", name]);
        assert_eq!(pod["status"]["reason"], "Evicted", "{}", pod["status"]);
        assert_eq!(pod["status"]["message"], message, "{}", pod["status"]);
        let about = format!("involvedObject.name={name},reason=Evicted");
        eventually("the eviction to be told", SOON, || {
            let events = kubectl.get(&["events", "--field-selector", &about]);
            match events["items"].as_array() {
                Some(all) if all.iter().any(|e| e["message"] == message) => Ok(()),
                _ => Err(events.to_string()),
            }
        });
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let places = format!("/var/lib/amphipod/agent/pods/{uid} /var/lib/amphipod/agent/runtime");
        let used = format!("du -sm {places} | awk '{{s += $1}} END {{print s}}'");
        let what = format!("find {places} -size +1M -ls; ps ax -o pid,stat,wchan,args");
        eventually("what it filled to be given back", SOON, || {
            let ran = self.edge_box.run(&["sh", "-c", &used]);
            match ran.stdout.trim().parse::<u64>() {
                Ok(megabytes) if megabytes < 4 => Ok(()),
                _ => Err(format!(
                    "{ran:?}: {}",
                    self.edge_box.run(&["sh", "-c", &what]).stdout
                )),
            }
        });
    }
}

fn status(kubectl: &Kubectl, pod: &str) -> Value {
    kubectl.get(&["pod", pod])["status"]["containerStatuses"][0].clone()
}

/// A pod of one container; `container` and `spec` are more fields of it.
fn pod(name: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  {spec}
  containers:
  - name: main
    image: {BUSYBOX}
    {container}
"
    )
}

#[test]
fn a_container_that_fills_its_root_filesystem_is_evicted_alone() {
    let host = Host::start(false);
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'dd if=/dev/zero of=/filled bs=1M count=40; sleep 3600']
    resources: {limits: {ephemeral-storage: 16Mi}}",
        "",
    ));
    host.is_evicted(
        "hungry",
        "Container main exceeded its local ephemeral storage limit \"16Mi\". ",
    );
    host.others_are_well();
}

#[test]
fn a_container_that_fills_its_empty_dir_is_evicted_alone() {
    let host = Host::start(false);
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'dd if=/dev/zero of=/data/filled bs=1M count=40; sleep 3600']
    volumeMounts: [{name: data, mountPath: /data}]",
        "volumes: [{name: data, emptyDir: {sizeLimit: 16Mi}}]",
    ));
    host.is_evicted(
        "hungry",
        "Usage of EmptyDir volume \"data\" exceeds the limit \"16Mi\". ",
    );
    host.others_are_well();
}

#[test]
fn an_empty_dir_in_memory_takes_no_more_than_its_limit() {
    let host = Host::start(false);
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'dd if=/dev/zero of=/data/filled bs=1M count=40; stat -c %s /data/filled; sleep 3600']
    volumeMounts: [{name: data, mountPath: /data}]",
        "volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]",
    ));
    eventually("the volume to be full", SOON, || {
        let log = host.kubectl.run(&["logs", "hungry"]).stdout;
        if log.contains("No space left on device") && log.contains("8388608") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(status(&host.kubectl, "hungry")["restartCount"], 0);
    host.others_are_well();
}

#[test]
fn a_container_that_fills_the_disk_without_a_limit_is_evicted_and_the_disk_recovers() {
    let host = Host::start(true);
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'while :; do dd if=/dev/zero bs=64k >> /data/filled 2>/dev/null; done']
    volumeMounts: [{name: data, mountPath: /data}]",
        "volumes: [{name: data, emptyDir: {}}]",
    ));
    host.is_evicted(
        "hungry",
        "The node was low on resource: ephemeral-storage. ",
    );
    // One that asked for nothing and uses nothing was not the one to go.
    host.kubectl.wait_for_writes("afterwards");
    host.others_are_well();
}

#[test]
fn what_fills_the_disk_can_be_deleted_while_it_takes_every_block() {
    let host = Host::start(true);
    // Important pods are not evicted: somebody has to do it.
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'while :; do dd if=/dev/zero bs=4k >> /data/filled 2>/dev/null; done']
    volumeMounts: [{name: data, mountPath: /data}]",
        "priorityClassName: system-node-critical
  volumes: [{name: data, emptyDir: {}}]",
    ));
    let text = "x".repeat(100_000);
    let mut number = 0;
    let refusal = eventually("a refusal", 2 * SOON, || {
        number += 1;
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: fill-{number}}}\ndata: {{text: {text}}}\n"
        );
        let ran = host.kubectl.run_with(&["create", "-f", "-"], &yaml);
        if ran.code == 0 {
            Err(ran.stdout)
        } else {
            Ok(ran.stderr)
        }
    });
    assert!(refusal.contains("is full"), "{refusal}");
    for gone in ["fill-1", "fill-2"] {
        host.kubectl.run(&["delete", "configmap", gone]).ok();
    }
    host.kubectl
        .run(&["delete", "pod", "hungry", "--timeout=60s"])
        .ok();
    host.kubectl.wait_for_writes("afterwards");
    host.others_are_well();
}

#[test]
fn a_container_that_eats_memory_is_killed_and_restarted_alone() {
    let host = Host::start(false);
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'x=x; while :; do x=$x$x; done']
    resources: {limits: {memory: 24Mi}}",
        "",
    ));
    eventually("the container to be restarted", 2 * SOON, || {
        let status = status(&host.kubectl, "hungry");
        let last = &status["lastState"]["terminated"];
        if status["restartCount"].as_u64() >= Some(1)
            && last["reason"] == "OOMKilled"
            && last["exitCode"] == 137
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    host.others_are_well();
}

#[test]
fn a_container_that_floods_its_log_keeps_the_last_of_it_and_hurts_nobody() {
    let host = Host::start(false);
    let memory = |edge_box: &EdgeBox| -> u64 {
        let script = "for p in $(pgrep amphipod); do grep -h ^RssAnon /proc/$p/status; done | awk '{s += $2} END {print s}'";
        edge_box
            .run(&["sh", "-c", script])
            .ok()
            .trim()
            .parse()
            .unwrap()
    };
    let before = memory(&host.edge_box);
    // As fast as it can, far more than is kept: 10 MiB a file, five files.
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'yes a line that is written again and again and again | head -c 98000000; echo; echo done; sleep 3600']",
        "",
    ));
    host.kubectl.wait_for("pod/hungry", "condition=Ready", 60);
    let folder = "/var/log/pods/default_hungry_*/main";
    let script = format!("ls {folder} | wc -l; du -sm {folder}");
    let files = || -> (u64, u64) {
        let seen = host.edge_box.run(&["sh", "-c", &script]).ok();
        let mut lines = seen.split_whitespace().map(str::parse);
        let mut next = || lines.next().unwrap().unwrap();
        (next(), next())
    };
    eventually("the flood to end", 4 * SOON, || {
        let (count, megabytes) = files();
        assert!(count <= 5 && megabytes <= 51, "{count}, {megabytes} MiB");
        host.others_are_well();
        let last = host.kubectl.run(&["logs", "hungry", "--tail=2"]).ok();
        assert!(last.lines().count() <= 2, "{} lines", last.lines().count());
        if last == "\ndone\n" {
            Ok(())
        } else {
            Err(last)
        }
    });
    // The rotated files are part of the log.
    assert_eq!(files().0, 5);
    let log = host.kubectl.run(&["logs", "hungry"]).ok();
    assert!(log.len() > 20 << 20, "{} bytes", log.len());
    assert!(log.ends_with("again\n\ndone\n"));
    let after = memory(&host.edge_box);
    assert!(after < before + 16 * 1024, "{before} kB, then {after} kB");
    host.kubectl
        .run(&["delete", "pod", "hungry", "--timeout=30s"])
        .ok();
    host.others_are_well();
}

#[test]
fn a_container_without_a_limit_that_eats_all_the_memory_is_the_one_to_be_killed() {
    let host = Host::start(false);
    // What pods may have together; the machine that runs the tests must not come to harm.
    let name = host.edge_box.name();
    let (v1, v2) = (
        format!("memory/{name}/memory.limit_in_bytes"),
        format!("{name}/memory.max"),
    );
    let set = format!(
        "cd /sys/fs/cgroup; if [ -e {v1} ]; then echo 96M > {v1}; else echo 96M > {v2}; fi"
    );
    host.edge_box.run(&["sh", "-c", &set]).ok();
    host.kubectl.apply(&pod(
        "hungry",
        "command: [sh, -c, 'x=x; while :; do x=$x$x; done']",
        "",
    ));
    eventually("the container to be restarted", 2 * SOON, || {
        let status = status(&host.kubectl, "hungry");
        let last = &status["lastState"]["terminated"];
        if status["restartCount"].as_u64() >= Some(1) && last["exitCode"] == 137 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    host.others_are_well();
}
