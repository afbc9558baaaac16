//! Workloads beyond Deployments: StatefulSet and DaemonSet.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{BUSYBOX, Kubectl, eventually, namespace, shared};

fn workload(kind: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: {kind}
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  {more}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
"
    )
}

/// Names of the pods that are not going, in order.
fn pods(kubectl: &Kubectl) -> Vec<String> {
    let list = kubectl.get(&["pods", "--selector=app=web"]);
    let mut names: Vec<String> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn become_pods(kubectl: &Kubectl, wanted: &[&str]) {
    eventually("the pods", Duration::from_secs(30), || {
        let names = pods(kubectl);
        if names == wanted {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
}

#[test]
fn pods_of_a_stateful_set_keep_their_names_and_are_updated_in_order() {
    let kubectl = namespace("stateful");
    kubectl.apply(&workload("StatefulSet", "replicas: 2\n  serviceName: web"));
    let rolled_out = || {
        kubectl
            .run(&["rollout", "status", "sts/web", "--timeout=60s"])
            .ok()
    };
    rolled_out();
    become_pods(&kubectl, &["web-0", "web-1"]);
    let uid = |pod: &str| kubectl.get(&["pod", pod])["metadata"]["uid"].clone();
    let (first, second) = (uid("web-0"), uid("web-1"));
    // One that is lost comes back under its name.
    kubectl.run(&["delete", "pod", "web-1"]).ok();
    rolled_out();
    eventually("web-1 again", Duration::from_secs(30), || {
        match pods(&kubectl).contains(&"web-1".to_owned()) && uid("web-1") != second {
            true => Ok(()),
            false => Err(String::new()),
        }
    });
    assert_eq!(uid("web-0"), first);
    // A canary: only pods from the partition on are updated.
    kubectl
        .run(&["patch", "sts", "web", "-p", r#"{"spec": {"updateStrategy": {"rollingUpdate": {"partition": 1}}, "template": {"metadata": {"annotations": {"v": "2"}}}}}"#])
        .ok();
    let version = |pod: &str| kubectl.get(&["pod", pod])["metadata"]["annotations"]["v"].clone();
    eventually("web-1 to be updated", Duration::from_secs(30), || {
        match pods(&kubectl) == ["web-0", "web-1"] && version("web-1") == "2" {
            true => Ok(()),
            false => Err(format!("{:?}", pods(&kubectl))),
        }
    });
    assert_eq!(uid("web-0"), first);
    kubectl.run(&["scale", "sts", "web", "--replicas=1"]).ok();
    become_pods(&kubectl, &["web-0"]);
    kubectl
        .run(&["rollout", "undo", "sts/web", "--to-revision=1"])
        .ok();
    let table = kubectl.run(&["get", "sts,controllerrevisions"]).ok();
    assert!(table.contains("1/1"), "{table}");
}

#[test]
fn a_daemon_set_has_a_pod_on_each_node_that_it_selects() {
    let kubectl = namespace("daemons");
    kubectl.apply(&workload("DaemonSet", "minReadySeconds: 0"));
    let rolled_out = || {
        kubectl
            .run(&["rollout", "status", "ds/web", "--timeout=60s"])
            .ok()
    };
    rolled_out();
    let first = pods(&kubectl);
    assert_eq!(first.len(), 1);
    let node = kubectl.get(&["pod", &first[0]])["spec"]["nodeName"].clone();
    assert_eq!(node, shared().edge_box.name());
    kubectl.run(&["set", "env", "ds/web", "VERSION=2"]).ok();
    rolled_out();
    let second = pods(&kubectl);
    assert_eq!(second.len(), 1);
    assert_ne!(first, second);
    kubectl.run(&["rollout", "undo", "ds/web"]).ok();
    rolled_out();
    // Nowhere to be.
    kubectl
        .run(&[
            "patch",
            "ds",
            "web",
            "-p",
            r#"{"spec": {"template": {"spec": {"nodeSelector": {"color": "blue"}}}}}"#,
        ])
        .ok();
    become_pods(&kubectl, &[]);
    kubectl.wait_for("ds/web", "jsonpath={.status.desiredNumberScheduled}=0", 10);
}
