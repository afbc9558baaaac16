//! What an administrator types: every kubectl verb of the first slice, on the real thing.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use amphipod_tests::{BUSYBOX, eventually, namespace, shared};
use serde_json::json;

fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {BUSYBOX}
        command: [sh, -c, 'echo started; exec sleep 3600']
"
    )
}

fn sleeper(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'echo hello from {name}; exec sleep 3600']
"
    )
}

#[test]
fn version_cluster_info_and_api_resources_answer() {
    let kubectl = shared().edge_box.kubectl();
    let version: serde_json::Value =
        serde_json::from_str(&kubectl.run(&["version", "-o", "json"]).ok()).unwrap();
    let server = version["serverVersion"]["gitVersion"].as_str().unwrap();
    assert!(server.starts_with("v1.36."), "{server}");
    assert!(
        kubectl
            .run(&["cluster-info"])
            .ok()
            .contains("Kubernetes control plane")
    );
    let resources = kubectl.run(&["api-resources"]).ok();
    for line in [
        "pods ",
        "deployments ",
        "services ",
        "leases ",
        "endpointslices ",
        "clusterroles ",
    ] {
        assert!(resources.contains(line), "no {line}in\n{resources}");
    }
    assert!(kubectl.run(&["api-versions"]).ok().contains("apps/v1"));
}

#[test]
fn a_node_is_listed_ready_with_its_version_and_addresses() {
    let shared = shared();
    let kubectl = shared.edge_box.kubectl();
    let wide = kubectl.run(&["get", "nodes", "-o", "wide"]).ok();
    let mut lines = wide.lines();
    let columns: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        columns[..5],
        ["NAME", "STATUS", "ROLES", "AGE", "VERSION"],
        "{wide}"
    );
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        row[..3],
        [shared.edge_box.name(), "Ready", "control-plane"],
        "{wide}"
    );
    assert!(wide.contains(shared.edge_box.address()), "{wide}");
    let described = kubectl
        .run(&["describe", "node", shared.edge_box.name()])
        .ok();
    for text in ["Capacity:", "Allocatable:", "PodCIDR:", "amphipod://"] {
        assert!(described.contains(text), "no {text} in\n{described}");
    }
}

#[test]
fn get_prints_tables_yaml_json_jsonpath_and_custom_columns() {
    let kubectl = namespace("get-formats");
    kubectl.apply(&sleeper("one"));
    kubectl.wait_for("pod/one", "condition=Ready", 30);
    let table = kubectl.run(&["get", "pods"]).ok();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(rows[1][..4], ["one", "1/1", "Running", "0"], "{table}");
    let wide = kubectl.run(&["get", "pods", "-o", "wide"]).ok();
    assert!(
        wide.contains("NOMINATED NODE") && wide.contains(shared().edge_box.name()),
        "{wide}"
    );
    assert!(
        kubectl
            .run(&["get", "pod", "one", "-o", "yaml"])
            .ok()
            .contains("phase: Running")
    );
    assert_eq!(kubectl.get(&["pod", "one"])["kind"], "Pod");
    assert_eq!(
        kubectl
            .run(&[
                "get",
                "pod",
                "one",
                "-o",
                "jsonpath={.spec.containers[0].name}"
            ])
            .ok(),
        "main"
    );
    let columns = kubectl
        .run(&[
            "get",
            "pods",
            "-o",
            "custom-columns=N:.metadata.name,P:.status.phase",
        ])
        .ok();
    assert_eq!(
        columns.split_whitespace().collect::<Vec<_>>(),
        ["N", "P", "one", "Running"]
    );
    assert_eq!(
        kubectl.run(&["get", "pods", "-o", "name"]).ok(),
        "pod/one\n"
    );
}

#[test]
fn selectors_by_label_and_field_choose_objects() {
    let kubectl = namespace("selectors");
    for (name, tier) in [("a", "front"), ("b", "back"), ("c", "back")] {
        kubectl.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{tier: {tier}}}}}\n"
        ));
    }
    let names = |args: &[&str]| {
        let args: Vec<&str> = ["get", "configmaps", "-o", "name"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        kubectl
            .run(&args)
            .ok()
            .replace("configmap/", "")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(names(&["-l", "tier=back"]), "b c");
    assert_eq!(names(&["-l", "tier!=back,tier"]), "a");
    assert_eq!(names(&["-l", "tier in (front, middle)"]), "a");
    assert_eq!(names(&["-l", "!tier"]), "kube-root-ca.crt");
    assert_eq!(names(&["--field-selector", "metadata.name=b"]), "b");
    assert_eq!(names(&["-l", "tier", "--chunk-size=1"]), "a b c");
    assert_eq!(
        kubectl.run(&["get", "cm", "-l", "tier=none"]).stderr.trim(),
        "No resources found in selectors namespace."
    );
}

#[test]
fn watching_shows_changes_as_they_happen() {
    let kubectl = namespace("watching");
    let mut watch = kubectl
        .command(&["get", "configmap", "-w", "-o", "name", "-l", "seen"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for name in ["first", "second"] {
        kubectl.run(&["create", "configmap", name]).ok();
        kubectl.run(&["label", "configmap", name, "seen=yes"]).ok();
        assert_eq!(lines.next().unwrap().unwrap(), format!("configmap/{name}"));
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn apply_merges_what_changed_and_keeps_what_others_wrote() {
    let kubectl = namespace("apply");
    let first = deployment("web", 1);
    assert_eq!(kubectl.apply(&first), "deployment.apps/web created\n");
    assert_eq!(kubectl.apply(&first), "deployment.apps/web unchanged\n");
    kubectl
        .run(&["scale", "deployment/web", "--replicas=2"])
        .ok();
    kubectl
        .run(&["annotate", "deployment/web", "note=other"])
        .ok();
    let second = first.replace("  replicas: 1\n", "").replace(
        "- name: main",
        "- name: main\n        env: [{name: A, value: b}]",
    );
    assert_eq!(kubectl.apply(&second), "deployment.apps/web configured\n");
    let object = kubectl.get(&["deployment", "web"]);
    assert_eq!(object["metadata"]["annotations"]["note"], "other");
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"][0]["env"],
        json!([{"name": "A", "value": "b"}])
    );
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"][0]["image"],
        BUSYBOX
    );
    let diff = kubectl.run_with(
        &["diff", "-f", "-"],
        &second.replace("value: b", "value: c"),
    );
    assert_eq!(diff.code, 1, "{diff:?}");
    assert!(
        diff.stdout.contains("-          value: b") || diff.stdout.contains("value: b"),
        "{}",
        diff.stdout
    );
    assert_eq!(kubectl.run_with(&["diff", "-f", "-"], &second).code, 0);
    let dry = kubectl
        .run_with(
            &["apply", "--dry-run=server", "-f", "-"],
            &second.replace("value: b", "value: c"),
        )
        .ok();
    assert!(dry.contains("(server dry run)"), "{dry}");
    let object = kubectl.get(&["deployment", "web"]);
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"],
        "b"
    );
}

#[test]
fn edit_label_annotate_and_patch_change_an_object() {
    let kubectl = namespace("editing");
    kubectl
        .run(&["create", "configmap", "it", "--from-literal=key=old"])
        .ok();
    let mut edit = kubectl.command(&["edit", "configmap", "it"]);
    amphipod_tests::Ran::of(edit.env("KUBE_EDITOR", "sed -i s/old/new/"), b"").ok();
    kubectl.run(&["label", "configmap", "it", "color=red"]).ok();
    assert!(
        kubectl
            .run(&["label", "configmap", "it", "color=blue"])
            .refused()
            .contains("--overwrite is false")
    );
    kubectl
        .run(&["label", "configmap", "it", "color=blue", "--overwrite"])
        .ok();
    kubectl
        .run(&["annotate", "configmap", "it", "why=because"])
        .ok();
    kubectl
        .run(&[
            "patch",
            "configmap",
            "it",
            "--type=merge",
            "-p",
            r#"{"data":{"merge":"1"}}"#,
        ])
        .ok();
    kubectl
        .run(&[
            "patch",
            "configmap",
            "it",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/data/json","value":"1"}]"#,
        ])
        .ok();
    kubectl
        .run(&[
            "patch",
            "configmap",
            "it",
            "-p",
            r#"{"data":{"strategic":"1"}}"#,
        ])
        .ok();
    let object = kubectl.get(&["configmap", "it"]);
    assert_eq!(
        object["data"],
        json!({"key": "new", "merge": "1", "json": "1", "strategic": "1"})
    );
    assert_eq!(object["metadata"]["labels"]["color"], "blue");
    assert_eq!(object["metadata"]["annotations"]["why"], "because");
    kubectl.run(&["label", "configmap", "it", "color-"]).ok();
    assert_eq!(
        kubectl.get(&["configmap", "it"])["metadata"]["labels"],
        json!(null)
    );
}

#[test]
fn a_deployment_rolls_out_back_and_again() {
    let kubectl = namespace("rollout");
    kubectl.apply(&deployment("web", 2));
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    kubectl
        .run(&["set", "env", "deployment/web", "STEP=2"])
        .ok();
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    let history = kubectl.run(&["rollout", "history", "deployment/web"]).ok();
    assert_eq!(
        history
            .lines()
            .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()))
            .count(),
        2,
        "{history}"
    );
    kubectl.run(&["rollout", "undo", "deployment/web"]).ok();
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    let template = kubectl.get(&["deployment", "web"])["spec"]["template"].clone();
    assert_eq!(template["spec"]["containers"][0]["env"], json!(null));
    kubectl.run(&["rollout", "restart", "deployment/web"]).ok();
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    kubectl
        .run(&[
            "set",
            "image",
            "deployment/web",
            "main=127.0.0.1:5000/no-such-image:1",
        ])
        .ok();
    let stuck = kubectl.run(&["rollout", "status", "deployment/web", "--timeout=2s"]);
    assert_ne!(stuck.code, 0, "{stuck:?}");
    assert_eq!(
        kubectl.get(&["deployment", "web"])["status"]["availableReplicas"],
        2,
        "a bad rollout must not take old pods down"
    );
    kubectl.run(&["rollout", "undo", "deployment/web"]).ok();
    kubectl
        .run(&["scale", "deployment/web", "--replicas=3"])
        .ok();
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    assert_eq!(
        kubectl.get(&["deployment", "web"])["status"]["readyReplicas"],
        3
    );
}

#[test]
fn deleting_follows_the_propagation_policy() {
    let kubectl = namespace("deleting");
    let pods = |app: &str| {
        kubectl.get(&["pods", "-l", &format!("app={app}")])["items"]
            .as_array()
            .unwrap()
            .len()
    };
    for (name, cascade) in [("background", "background"), ("foreground", "foreground")] {
        kubectl.apply(&deployment(name, 1));
        kubectl
            .run(&[
                "rollout",
                "status",
                &format!("deployment/{name}"),
                "--timeout=60s",
            ])
            .ok();
        kubectl
            .run(&[
                "delete",
                "deployment",
                name,
                &format!("--cascade={cascade}"),
                "--timeout=30s",
            ])
            .ok();
        if cascade == "foreground" {
            assert_eq!(
                pods(name),
                0,
                "foreground deletion ends after the dependents"
            );
        }
        eventually("the pods to go", Duration::from_secs(30), || {
            match pods(name) {
                0 => Ok(()),
                n => Err(format!("{n} pods")),
            }
        });
    }
    kubectl.apply(&deployment("orphan", 1));
    kubectl
        .run(&["rollout", "status", "deployment/orphan", "--timeout=60s"])
        .ok();
    kubectl
        .run(&["delete", "deployment", "orphan", "--cascade=orphan"])
        .ok();
    let sets = kubectl.get(&["replicasets", "-l", "app=orphan"]);
    assert_eq!(sets["items"][0]["metadata"]["ownerReferences"], json!(null));
    assert_eq!(pods("orphan"), 1);
    kubectl
        .run(&["delete", "replicasets", "--all", "--now"])
        .ok();
    kubectl.apply(&sleeper("stubborn"));
    kubectl.wait_for("pod/stubborn", "condition=Ready", 30);
    kubectl.run(&["delete", "pod", "stubborn", "--force"]).ok();
    assert!(
        kubectl
            .run(&["get", "pod", "stubborn"])
            .refused()
            .contains("NotFound")
    );
}

#[test]
fn deleting_a_namespace_deletes_all_that_is_in_it() {
    let kubectl = namespace("doomed");
    kubectl.apply(&deployment("web", 2));
    kubectl
        .run(&["create", "secret", "generic", "s", "--from-literal=a=b"])
        .ok();
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    kubectl
        .run(&["delete", "namespace", "doomed", "--timeout=60s"])
        .ok();
    assert!(
        kubectl
            .run(&["get", "namespace", "doomed"])
            .refused()
            .contains("NotFound")
    );
    assert_eq!(
        kubectl.get(&["pods,secrets,deployments,replicasets"])["items"],
        json!([])
    );
    assert!(
        kubectl
            .run(&["create", "configmap", "x"])
            .refused()
            .contains("namespaces \"doomed\" not found")
    );
}

#[test]
fn describe_events_and_explain_tell_what_is_going_on() {
    let kubectl = namespace("telling");
    kubectl.apply(&sleeper("one"));
    kubectl.wait_for("pod/one", "condition=Ready", 30);
    let described = kubectl.run(&["describe", "pod", "one"]).ok();
    for text in [
        "Successfully assigned telling/one",
        "Created",
        "Started",
        "QoS Class:",
        "BestEffort",
    ] {
        assert!(described.contains(text), "no {text} in\n{described}");
    }
    let events = kubectl.run(&["events", "--for", "pod/one"]).ok();
    assert!(events.contains("Scheduled"), "{events}");
    assert!(kubectl.run(&["get", "events"]).ok().contains("Started"));
    let explained = kubectl.run(&["explain", "deployment.spec.replicas"]).ok();
    assert!(
        explained.contains("Number of desired pods") && explained.contains("<integer>"),
        "{explained}"
    );
    kubectl.apply(&sleeper("nowhere").replace("spec:\n", "spec:\n  nodeSelector: {no: such}\n"));
    eventually(
        "the scheduler to say why not",
        Duration::from_secs(10),
        || {
            let text = kubectl.run(&["describe", "pod", "nowhere"]).ok();
            if text.contains(
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
            ) {
                Ok(())
            } else {
                Err(text)
            }
        },
    );
}

#[test]
fn auth_can_i_answers_from_the_roles() {
    let kubectl = namespace("authority");
    assert_eq!(
        kubectl
            .run(&["auth", "can-i", "delete", "nodes"])
            .ok()
            .trim(),
        "yes"
    );
    let as_account = "--as=system:serviceaccount:authority:default";
    let no = kubectl.run(&["auth", "can-i", "list", "pods", as_account]);
    assert_eq!((no.code, no.stdout.trim()), (1, "no"));
    assert!(
        kubectl.run(&["get", "pods", as_account]).refused().contains(
            "pods is forbidden: User \"system:serviceaccount:authority:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"authority\""
        )
    );
    kubectl
        .run(&["create", "role", "reader", "--verb=list", "--resource=pods"])
        .ok();
    kubectl
        .run(&[
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--serviceaccount=authority:default",
        ])
        .ok();
    eventually("the binding to count", Duration::from_secs(5), || {
        let ran = kubectl.run(&["get", "pods", as_account]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    assert!(
        kubectl
            .run(&["auth", "can-i", "--list", as_account])
            .ok()
            .contains("pods")
    );
    assert!(
        kubectl
            .run(&["auth", "whoami"])
            .ok()
            .contains("system:masters")
    );
}

#[test]
fn run_expose_and_wait_work_together() {
    let kubectl = namespace("run");
    kubectl
        .run(&[
            "run",
            "web",
            &format!("--image={BUSYBOX}"),
            "--port=80",
            "--",
            "httpd",
            "-f",
            "-p",
            "80",
            "-h",
            "/etc",
        ])
        .ok();
    kubectl.wait_for("pod/web", "condition=Ready", 30);
    kubectl.run(&["expose", "pod", "web"]).ok();
    let page = eventually("the service to answer", Duration::from_secs(10), || {
        let ran = kubectl.run(&[
            "exec",
            "web",
            "--",
            "peer",
            "get",
            "http://web.run.svc.cluster.local/passwd",
        ]);
        if ran.code == 0 {
            Ok(ran.stdout)
        } else {
            Err(ran.stderr)
        }
    });
    assert!(page.contains("root:x:0:0"), "{page}");
    let once = kubectl.run(&[
        "run",
        "once",
        "-i",
        "--rm",
        "--restart=Never",
        "--quiet",
        &format!("--image={BUSYBOX}"),
        "--",
        "echo",
        "done",
    ]);
    assert!(once.clone().ok().contains("done"), "{once:?}");
    assert!(
        kubectl
            .run(&["get", "pod", "once"])
            .refused()
            .contains("NotFound")
    );
}
