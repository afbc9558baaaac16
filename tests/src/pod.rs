//! Pods for tests.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{BUSYBOX, EdgeBox, Kubectl, eventually};

/// A pod `name` whose spec is the busybox container `main` running `script`, merged with `more` (JSON).
pub fn pod(name: &str, script: &str, more: Value) -> String {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]}],
        },
    });
    merge(&mut object, more);
    object.to_string()
}

/// RFC 7386, except that lists merge item by item, so that `containers: [{...}]` adds to the first container.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter()
                .for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (Value::Array(into), Value::Array(from)) => {
            for (index, value) in from.into_iter().enumerate() {
                match into.get_mut(index) {
                    Some(item) => merge(item, value),
                    None => into.push(value),
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// A script that waits, and ends when it is told to.
pub const SLEEP: &str = "trap 'exit 0' TERM; sleep 3600 & wait";

/// Applies `yaml` and waits until pod `name` is Ready.
#[track_caller]
pub fn ready(kubectl: &Kubectl, name: &str, yaml: &str) {
    kubectl.apply(yaml);
    kubectl.wait_for(&format!("pod/{name}"), "condition=Ready", 30);
}

/// What `script` prints in container `main` of `pod`.
#[track_caller]
pub fn sh(kubectl: &Kubectl, pod: &str, script: &str) -> String {
    kubectl
        .run(&["exec", pod, "-c", "main", "--", "sh", "-c", script])
        .ok()
}

/// Waits until pod `name` has the phase.
#[track_caller]
pub fn wait_phase(kubectl: &Kubectl, name: &str, phase: &str) {
    kubectl.wait_for(
        &format!("pod/{name}"),
        &format!("jsonpath={{.status.phase}}={phase}"),
        30,
    );
}

/// A pod `name` that runs until [`end`] is called for it, then `last`, and is not restarted.
pub fn until_end(name: &str, last: &str) -> String {
    let script = format!("while [ ! -e /flags/{name} ]; do sleep 0.05; done; {last}");
    let flags = json!({"name": "flags", "hostPath": {"path": "/var/lib/amphipod/flags", "type": "DirectoryOrCreate"}});
    let mounts = json!([{"name": "flags", "mountPath": "/flags"}]);
    let spec = json!({"restartPolicy": "Never", "volumes": [flags], "containers": [{"volumeMounts": mounts}]});
    pod(name, &script, json!({"spec": spec}))
}

/// Lets the pod `name` of [`until_end`] end. Needs nothing of ours to run.
#[track_caller]
pub fn end(edge_box: &EdgeBox, name: &str) {
    std::fs::write(edge_box.disk().join("lib/flags").join(name), "").unwrap();
}

/// The same, and waits until its process is gone.
#[track_caller]
pub fn end_and_wait(edge_box: &EdgeBox, name: &str) {
    end(edge_box, name);
    let process = format!("[w]hile . ! -e /flags/{name} ");
    eventually("the pod to end", Duration::from_secs(10), || {
        let ran = edge_box.run(&["pgrep", "-f", &process]);
        if ran.code == 1 {
            Ok(())
        } else {
            Err(ran.stdout)
        }
    });
}

/// How the container `main` of a pod that has failed ended: `state.terminated`.
#[track_caller]
pub fn failed_with(kubectl: &Kubectl, name: &str) -> Value {
    wait_phase(kubectl, name, "Failed");
    kubectl.get(&["pod", name])["status"]["containerStatuses"][0]["state"]["terminated"].clone()
}
