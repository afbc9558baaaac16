//! Server-side apply by real kubectl: who owns what, conflicts, taking over, and the way from client-side apply.

#![allow(clippy::unwrap_used)]

use amphipod_tests::{BUSYBOX, Kubectl, namespace};
use serde_json::Value;

fn deployment(replicas: &str, environment: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, labels: {{app: web}}}}
spec:
  {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {BUSYBOX}
        command: [sleep, '3600']
        env: [{environment}]
"
    )
}

fn apply(kubectl: &Kubectl, args: &[&str], manifest: &str) -> amphipod_tests::Ran {
    let args: Vec<&str> = ["apply", "--server-side", "-f", "-"]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    kubectl.run_with(&args, manifest)
}

/// `OPERATION MANAGER`, a line each.
fn managers(kubectl: &Kubectl, object: &str) -> Vec<String> {
    let all = kubectl
        .run(&["get", object, "-o", "json", "--show-managed-fields"])
        .ok();
    let all: Value = serde_json::from_str(&all).unwrap();
    let entries = all["metadata"]["managedFields"].as_array().cloned();
    entries
        .unwrap_or_default()
        .iter()
        .map(|entry| {
            let [operation, manager] = ["operation", "manager"].map(|f| entry[f].as_str().unwrap());
            format!("{operation} {manager}")
        })
        .collect()
}

#[test]
fn what_is_applied_on_the_server_is_owned_and_others_are_told_of_conflicts() {
    let kubectl = namespace("apply-server-side");
    let made = apply(
        &kubectl,
        &[],
        &deployment("replicas: 1", "{name: A, value: a}, {name: B, value: b}"),
    );
    assert_eq!(made.ok(), "deployment.apps/web serverside-applied\n");
    kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    assert!(managers(&kubectl, "deployment/web").contains(&"Apply kubectl".to_owned()));
    assert!(
        !kubectl
            .run(&["get", "deployment/web", "-o", "yaml"])
            .ok()
            .contains("managedFields")
    );

    // What is left out goes; what the server filled in stays.
    apply(
        &kubectl,
        &[],
        &deployment("replicas: 1", "{name: B, value: b}"),
    )
    .ok();
    let container =
        &kubectl.get(&["deployment", "web"])["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["env"].as_array().unwrap().len(), 1, "{container}");
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");

    // Somebody else scales; who applies is told, may take it back, or may let it go.
    kubectl
        .run(&["scale", "deployment/web", "--replicas=2"])
        .ok();
    let refused = apply(
        &kubectl,
        &[],
        &deployment("replicas: 1", "{name: B, value: b}"),
    )
    .refused();
    assert!(
        refused.contains(
            "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\""
        ) && refused.contains(".spec.replicas"),
        "{refused}"
    );
    apply(
        &kubectl,
        &["--force-conflicts"],
        &deployment("replicas: 1", "{name: B, value: b}"),
    )
    .ok();
    assert_eq!(kubectl.get(&["deployment", "web"])["spec"]["replicas"], 1);
    kubectl
        .run(&["scale", "deployment/web", "--replicas=2"])
        .ok();
    apply(&kubectl, &[], &deployment("", "{name: B, value: b}")).ok();
    assert_eq!(kubectl.get(&["deployment", "web"])["spec"]["replicas"], 2);

    // Another manager, asked for by name.
    let other = apply(
        &kubectl,
        &["--field-manager=other"],
        &deployment("", "{name: B, value: x}"),
    )
    .refused();
    assert!(other.contains("conflict with \"kubectl\": .spec.template.spec.containers[name=\"main\"].env[name=\"B\"].value"), "{other}");
    let dry = apply(
        &kubectl,
        &["--dry-run=server"],
        &deployment("", "{name: C, value: c}"),
    )
    .ok();
    assert_eq!(
        dry,
        "deployment.apps/web serverside-applied (server dry run)\n"
    );
    let difference = kubectl.run_with(
        &["diff", "--server-side", "-f", "-"],
        &deployment("", "{name: C, value: c}"),
    );
    assert!(
        difference.code == 1 && difference.stdout.contains("+        - name: C"),
        "{difference:?}"
    );
}

#[test]
fn what_was_applied_on_the_clients_side_goes_on_on_the_servers() {
    let kubectl = namespace("apply-both-sides");
    let map = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{{data}}}\n")
    };
    kubectl.apply(&map("a: '1', b: '2'"));
    assert!(managers(&kubectl, "configmap/settings").is_empty());
    apply(&kubectl, &[], &map("a: '3', b: '2'")).ok();
    assert_eq!(
        managers(&kubectl, "configmap/settings"),
        ["Apply kubectl", "Apply kubectl-last-applied"]
    );
    // kubectl took over what its other side had: nothing holds `b`.
    apply(&kubectl, &[], &map("a: '3'")).ok();
    let data = || kubectl.get(&["configmap", "settings"])["data"].to_string();
    assert_eq!(data(), r#"{"a":"3"}"#);
    // And back.
    kubectl.apply(&map("c: '4'"));
    assert_eq!(data(), r#"{"c":"4"}"#);
}

#[test]
fn an_apply_that_does_not_say_who_applies_is_refused() {
    let kubectl = namespace("apply-refused");
    kubectl.run(&["create", "configmap", "a"]).ok();
    let refused = apply(
        &kubectl,
        &["--field-manager="],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n",
    );
    assert!(refused.code != 0, "{refused:?}");
    let twice = apply(
        &kubectl,
        &[],
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80, name: a}, {port: 80, name: b}]}\n",
    )
    .refused();
    assert!(
        twice.contains("two items have the key {\"port\":80,\"protocol\":\"TCP\"}"),
        "{twice}"
    );
}
