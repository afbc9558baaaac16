//! Images come from a real registry, whole or not at all.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{EdgeBox, Image, Kubectl, Lan, Registry, Tar, eventually, namespace, shared};
use serde_json::{Value, json};
use tar::EntryType;

fn run(kubectl: &Kubectl, name: &str, image: &str) {
    kubectl
        .run(&[
            "run",
            name,
            "--image",
            image,
            "--restart=Never",
            "--command",
            "--",
            "sh",
            "-c",
            "cat /added; sleep 3600",
        ])
        .ok();
}

/// A pod that `kubectl run`, which checks image names itself, would not make.
fn of(name: &str, image: &str, policy: &str) -> String {
    let containers = json!([{"name": "main", "image": image, "imagePullPolicy": policy}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}}).to_string()
}

/// Waits until the pod's container waits for `reason`; returns the message.
fn waiting(kubectl: &Kubectl, name: &str, reason: &[&str]) -> String {
    eventually(
        &format!("{name} to say {reason:?}"),
        Duration::from_secs(30),
        || {
            let state: Value =
                kubectl.get(&["pod", name])["status"]["containerStatuses"][0]["state"]["waiting"]
                    .clone();
            if reason.contains(&state["reason"].as_str().unwrap_or_default()) {
                Ok(state["message"].as_str().unwrap_or_default().to_owned())
            } else {
                Err(state.to_string())
            }
        },
    )
}

fn layer(fill: impl FnOnce(&mut Tar)) -> Image {
    let mut tar = Tar::default();
    fill(&mut tar);
    Image::busybox().layer(tar)
}

#[test]
fn a_pod_runs_an_image_from_the_registry_and_says_which() {
    let kubectl = namespace("pulling");
    let digest = shared().registry.add(
        &layer(|tar| {
            tar.file("added", "here\n");
        }),
        "good",
        "1",
    );
    run(&kubectl, "it", "127.0.0.1:5000/good:1");
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    assert_eq!(kubectl.run(&["logs", "it"]).ok(), "here\n");
    let status = kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
    assert!(
        status["imageID"].as_str().unwrap().ends_with(&digest),
        "{status}"
    );
    let described = kubectl.run(&["describe", "pod", "it"]).ok();
    assert!(
        described.contains("Successfully pulled image \"127.0.0.1:5000/good:1\""),
        "{described}"
    );
    run(
        &kubectl,
        "by-digest",
        &format!("127.0.0.1:5000/good@{digest}"),
    );
    kubectl.wait_for("pod/by-digest", "condition=Ready", 30);
}

#[test]
fn a_missing_or_misnamed_image_is_told_as_kubernetes_does() {
    let kubectl = namespace("missing");
    run(&kubectl, "gone", "127.0.0.1:5000/no-such:1");
    let message = waiting(&kubectl, "gone", &["ErrImagePull", "ImagePullBackOff"]);
    assert!(message.contains("no-such"), "{message}");
    waiting(&kubectl, "gone", &["ImagePullBackOff"]);
    kubectl.apply(&of("misnamed", "127.0.0.1:5000/UPPER:1", "Always"));
    waiting(&kubectl, "misnamed", &["InvalidImageName"]);
    kubectl.apply(&of("never", "127.0.0.1:5000/no-such:2", "Never"));
    waiting(&kubectl, "never", &["ErrImageNeverPull"]);
}

#[test]
fn hostile_layers_are_refused_and_leave_nothing_behind() {
    let kubectl = namespace("hostile");
    let cases: [(&str, Image); 5] = [
        (
            "dotdot",
            layer(|tar| {
                tar.file("../../../../../../hostile-dotdot", "x");
            }),
        ),
        (
            "through-link",
            layer(|tar| {
                tar.entry("out", EntryType::Symlink, 0o777, b"", "/");
                tar.file("out/hostile-link", "x");
            }),
        ),
        (
            "hard-link",
            layer(|tar| {
                tar.entry(
                    "shadow",
                    EntryType::Link,
                    0o644,
                    b"",
                    "../../../../../../../etc/shadow",
                );
            }),
        ),
        (
            "device",
            layer(|tar| {
                tar.entry("disk", EntryType::Block, 0o666, b"", "");
            }),
        ),
        (
            "huge",
            layer(|tar| {
                tar.claiming("huge", EntryType::Regular, 0o644, b"x", "", 1 << 42);
            }),
        ),
    ];
    for (name, image) in &cases {
        shared()
            .registry
            .add(image, &format!("hostile-{name}"), "1");
        run(&kubectl, name, &format!("127.0.0.1:5000/hostile-{name}:1"));
    }
    for (name, _) in &cases {
        // A link inside the image that points out of it may be honoured within the image's own root instead.
        if *name == "through-link" {
            continue;
        }
        let message = waiting(&kubectl, name, &["ErrImagePull", "ImagePullBackOff"]);
        assert!(!message.is_empty(), "{name} has no message");
    }
    for path in [
        "/hostile-dotdot",
        "/hostile-link",
        "/var/lib/amphipod/hostile-dotdot",
    ] {
        shared().edge_box.run(&["test", "!", "-e", path]).ok();
    }
}

#[test]
fn a_private_registry_is_opened_by_pull_secrets_only() {
    let kubectl = namespace("private");
    let registry = Registry::start_private(&shared().edge_box, 5001, "user", "right");
    registry.add(
        &layer(|tar| {
            tar.file("added", "secret\n");
        }),
        "hidden",
        "1",
    );
    run(&kubectl, "without", "127.0.0.1:5001/hidden:1");
    let message = waiting(&kubectl, "without", &["ErrImagePull", "ImagePullBackOff"]);
    assert!(
        message.to_lowercase().contains("auth") || message.contains("Back-off"),
        "{message}"
    );
    for (name, password) in [("wrong", "wrong"), ("right", "right")] {
        let server = "--docker-server=127.0.0.1:5001";
        let password = format!("--docker-password={password}");
        kubectl
            .run(&[
                "create",
                "secret",
                "docker-registry",
                name,
                server,
                "--docker-username=user",
                &password,
            ])
            .ok();
        let mut pod: Value =
            serde_json::from_str(&of(name, "127.0.0.1:5001/hidden:1", "Always")).unwrap();
        pod["spec"]["imagePullSecrets"] = json!([{"name": name}]);
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", "cat /added; sleep 3600"]);
        kubectl.apply(&pod.to_string());
    }
    waiting(&kubectl, "wrong", &["ErrImagePull", "ImagePullBackOff"]);
    kubectl.wait_for("pod/right", "condition=Ready", 30);
    assert_eq!(kubectl.run(&["logs", "right"]).ok(), "secret\n");
}

#[test]
fn mirrors_and_plain_http_are_used_as_configured() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let registry = Registry::start(&edge_box);
    registry.add(
        &layer(|tar| {
            tar.file("added", "mirrored\n");
        }),
        "library/mirrored",
        "1",
    );
    let config = "mirrors: {docker.io: ['http://127.0.0.1:5000']}\n";
    std::fs::write(edge_box.disk().join("etc/registries.yaml"), config).unwrap();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    eventually(
        "the default service account",
        Duration::from_secs(10),
        || {
            let ran = kubectl.run(&["get", "serviceaccount", "default"]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        },
    );
    run(&kubectl, "it", "mirrored:1");
    kubectl.wait_for("pod/it", "condition=Ready", 30);
    assert_eq!(kubectl.run(&["logs", "it"]).ok(), "mirrored\n");
}
