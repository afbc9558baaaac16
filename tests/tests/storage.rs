//! Persistent storage: claims, volumes, and the data in them.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use amphipod_tests::{
    BUSYBOX, EdgeBox, Kubectl, Lan, Registry, binary, eventually, namespace, pod, shared,
};
use serde_json::{Value, json};

/// A claim of so much; `more` goes into its spec.
fn claim(name: &str, more: Value) -> String {
    let mut spec =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A volume `name` that is a directory of the box; `more` goes into its spec.
fn volume(name: &str, more: Value) -> String {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "by-hand",
        "hostPath": {"path": format!("/var/lib/amphipod/disks/{name}"), "type": "DirectoryOrCreate"},
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A pod with a claim at /data, which notes there that it started.
fn user(name: &str, claim: &str, more: Value) -> String {
    let mut spec = json!({
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        "containers": [{"volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let script = format!("echo {name} >>/data/starts; {}", pod::SLEEP);
    pod::pod(name, &script, json!({"spec": spec}))
}

fn starts(kubectl: &Kubectl, pod: &str) -> String {
    pod::sh(kubectl, pod, "cat /data/starts")
}

/// The volume of a bound claim.
#[track_caller]
fn volume_of(kubectl: &Kubectl, claim: &str) -> Value {
    kubectl.wait_for(
        &format!("pvc/{claim}"),
        "jsonpath={.status.phase}=Bound",
        30,
    );
    let claim = kubectl.get(&["pvc", claim]);
    kubectl.get(&["pv", claim["spec"]["volumeName"].as_str().unwrap()])
}

/// Where a box has the data of a volume, seen from outside.
fn directory(on: &EdgeBox, volume: &Value) -> PathBuf {
    let path = volume["spec"]["local"]["path"].as_str().unwrap();
    let inside = path.strip_prefix("/var/lib/amphipod/").unwrap();
    on.disk().join("lib").join(inside)
}

/// The events about an object, one line each: reason and message.
fn events(kubectl: &Kubectl, name: &str) -> String {
    let about = format!("involvedObject.name={name}");
    let list = kubectl.get(&["events", "--field-selector", &about]);
    let line = |event: &Value| {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("reason"), text("message"))
    };
    let lines: Vec<String> = list["items"].as_array().unwrap().iter().map(line).collect();
    lines.join("\n")
}

#[track_caller]
fn told(kubectl: &Kubectl, name: &str, wanted: &str) {
    eventually(
        &format!("{name} to be told {wanted:?}"),
        Duration::from_secs(30),
        || {
            let events = events(kubectl, name);
            if events.contains(wanted) {
                Ok(())
            } else {
                Err(events)
            }
        },
    );
}

#[track_caller]
fn gone(kubectl: &Kubectl, what: &str) {
    eventually(
        &format!("{what} to be gone"),
        Duration::from_secs(30),
        || {
            let ran = kubectl.run(&["get", what, "-o", "yaml"]);
            if ran.stderr.contains("NotFound") {
                Ok(())
            } else {
                Err(ran.stdout)
            }
        },
    );
}

#[track_caller]
fn delete_pod(kubectl: &Kubectl, name: &str) {
    kubectl.run(&["delete", "pod", name]).ok();
}

/// A server's box, and one that joined it, with a registry.
struct Fleet {
    kubectl: Kubectl,
    agent: EdgeBox,
    server: EdgeBox,
    _registry: Registry,
    lan: Lan,
}

impl Fleet {
    #[track_caller]
    fn start() -> Fleet {
        let lan = Lan::new();
        let server = EdgeBox::ready(&lan);
        let mut agent = EdgeBox::new(&lan);
        let line = server.run(&[binary().to_str().unwrap(), "token", "create"]);
        let line = line.ok();
        agent.start_agent(&line.split_whitespace().skip(2).collect::<Vec<_>>());
        let fleet = Fleet {
            kubectl: server.kubectl(),
            _registry: Registry::start(&agent),
            agent,
            server,
            lan,
        };
        fleet.until_ready();
        fleet
    }

    #[track_caller]
    fn until_ready(&self) {
        eventually(
            "the joined box to be Ready",
            Duration::from_secs(60),
            || {
                let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
                let node = self.agent.name();
                let ran = self.kubectl.run(&["get", "node", node, "-o", ready]);
                if ran.stdout == "True" {
                    Ok(())
                } else {
                    Err(format!("{ran:?}\n{}", self.agent.log()))
                }
            },
        );
    }

    /// On the joined box.
    fn there(&self) -> Value {
        json!({"nodeSelector": {"kubernetes.io/hostname": self.agent.name()}})
    }
}

#[test]
fn a_claim_of_the_default_class_gets_a_volume_on_its_pods_node_and_keeps_the_data() {
    let kubectl = namespace("claims");
    kubectl.apply(&claim("data", json!({})));
    let waits = "WaitForFirstConsumer waiting for first consumer to be created before binding";
    told(&kubectl, "data", waits);
    let pending = kubectl.get(&["pvc", "data"]);
    assert_eq!(pending["status"]["phase"], "Pending");
    assert_eq!(pending["spec"]["storageClassName"], "local");
    pod::ready(&kubectl, "one", &user("one", "data", json!({})));
    let volume = volume_of(&kubectl, "data");
    let edge_box = &shared().edge_box;
    let home = volume
        .pointer("/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0")
        .unwrap();
    assert_eq!(
        *home,
        json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [edge_box.name()]})
    );
    assert_eq!(volume["status"]["phase"], "Bound");
    assert_eq!(volume["spec"]["capacity"]["storage"], "64Mi");
    let directory = directory(edge_box, &volume);
    let named = directory.file_name().unwrap().to_str().unwrap();
    let name = volume["metadata"]["name"].as_str().unwrap();
    assert_eq!(named, format!("{name}_{}_data", "claims"));
    let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
    told(
        &kubectl,
        "data",
        "ProvisioningSucceeded Successfully provisioned volume pvc-",
    );
    // Another pod finds what the first one left.
    delete_pod(&kubectl, "one");
    pod::ready(&kubectl, "two", &user("two", "data", json!({})));
    assert_eq!(starts(&kubectl, "two"), "one\ntwo\n");
    // People see it.
    let table = kubectl.run(&["get", "pvc"]).ok();
    let row: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[..6], ["data", "Bound", name, "64Mi", "RWO", "local"]);
    let table = kubectl.run(&["get", "pv", name]).ok();
    let row: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(
        row[..7],
        [
            name,
            "64Mi",
            "RWO",
            "Delete",
            "Bound",
            "claims/data",
            "local"
        ]
    );
    let classes = kubectl.run(&["get", "sc"]).ok();
    assert!(
        classes
            .contains("local (default)   amphipod.io/local   Delete          WaitForFirstConsumer"),
        "{classes}"
    );
    let described = kubectl.run(&["describe", "pvc", "data"]).ok();
    assert!(described.contains("Used By:       two"), "{described}");
    let described = kubectl.run(&["describe", "pv", name]).ok();
    assert!(
        described.contains("LocalVolume (a persistent volume backed by local storage on a node)"),
        "{described}"
    );
    // A pod that may only read, in a part of the volume, and the group that it asks for.
    delete_pod(&kubectl, "two");
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/part", "subPath": "part"}]);
    let grouped =
        json!({"securityContext": {"fsGroup": 4242}, "containers": [{"volumeMounts": mounts}]});
    pod::ready(&kubectl, "three", &user("three", "data", grouped));
    pod::sh(&kubectl, "three", "echo part >/part/file");
    let group = pod::sh(&kubectl, "three", "stat -c %g /data/starts");
    assert_eq!(group, "4242\n");
    delete_pod(&kubectl, "three");
    let volumes =
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    let reader = json!({"volumes": volumes, "containers": [{"volumeMounts": [{"name": "data", "mountPath": "/data"}]}]});
    pod::ready(
        &kubectl,
        "reader",
        &pod::pod("reader", pod::SLEEP, json!({"spec": reader})),
    );
    assert_eq!(
        pod::sh(
            &kubectl,
            "reader",
            "cat /data/part/file; touch /data/no 2>/dev/null || echo refused"
        ),
        "part\nrefused\n"
    );
}

#[test]
fn a_pod_finds_its_volume_after_a_power_cut_while_the_server_is_away() {
    let mut fleet = Fleet::start();
    fleet.kubectl.apply(&claim("data", json!({})));
    pod::ready(&fleet.kubectl, "it", &user("it", "data", fleet.there()));
    let directory = directory(&fleet.agent, &volume_of(&fleet.kubectl, "data"));
    fleet.server.kill_program();
    fleet.agent.power_off();
    fleet.agent.power_on(&fleet.lan);
    fleet.agent.start_agent(&[]);
    eventually(
        "the pod to start again",
        Duration::from_secs(60),
        || match std::fs::read_to_string(directory.join("starts")) {
            Ok(starts) if starts == "it\nit\n" => Ok(()),
            seen => Err(format!("{seen:?}\n{}", fleet.agent.log())),
        },
    );
    fleet.server.start(&[]);
    fleet.server.wait_until_ready();
    fleet.until_ready();
    fleet.kubectl.wait_for("pod/it", "condition=Ready", 60);
    assert_eq!(starts(&fleet.kubectl, "it"), "it\nit\n");
}

#[test]
fn deleting_a_claim_removes_its_data_and_retain_keeps_it() {
    let kubectl = namespace("reclaim");
    let edge_box = &shared().edge_box;
    let mut volumes = Vec::new();
    for name in ["thrown", "kept"] {
        kubectl.apply(&claim(name, json!({})));
        pod::ready(&kubectl, name, &user(name, name, json!({})));
        volumes.push(volume_of(&kubectl, name));
    }
    let name = |at: usize| volumes[at]["metadata"]["name"].as_str().unwrap();
    let directory = |at: usize| directory(edge_box, &volumes[at]);
    let retain = r#"{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}"#;
    kubectl.run(&["patch", "pv", name(1), "-p", retain]).ok();
    kubectl.run(&["delete", "pod", "thrown", "kept"]).ok();
    kubectl.run(&["delete", "pvc", "thrown", "kept"]).ok();
    gone(&kubectl, &format!("pv/{}", name(0)));
    assert!(!directory(0).exists());
    kubectl.wait_for(
        &format!("pv/{}", name(1)),
        "jsonpath={.status.phase}=Released",
        10,
    );
    assert_eq!(
        std::fs::read_to_string(directory(1).join("starts")).unwrap(),
        "kept\n"
    );
    // Its own end does not take the data, either.
    kubectl.run(&["delete", "pv", name(1)]).ok();
    gone(&kubectl, &format!("pv/{}", name(1)));
    assert!(directory(1).join("starts").exists());
}

#[test]
fn a_claim_that_a_pod_uses_and_a_volume_that_is_bound_are_not_removed() {
    let kubectl = namespace("protected");
    kubectl.apply(&claim("data", json!({})));
    pod::ready(&kubectl, "it", &user("it", "data", json!({})));
    let volume = volume_of(&kubectl, "data")["metadata"]["name"].clone();
    let volume = volume.as_str().unwrap();
    kubectl.run(&["delete", "pv", volume, "--wait=false"]).ok();
    kubectl.run(&["delete", "pvc", "data", "--wait=false"]).ok();
    let table = kubectl.run(&["get", "pvc", "data"]).ok();
    assert!(table.contains("Terminating"), "{table}");
    // Whoever comes now gets nothing of it.
    kubectl.apply(&user("late", "data", json!({})));
    told(
        &kubectl,
        "late",
        "persistentvolumeclaim \"data\" is being deleted",
    );
    assert_eq!(starts(&kubectl, "it"), "it\n");
    let finalizers = |what: &[&str]| kubectl.get(what)["metadata"]["finalizers"].to_string();
    assert!(finalizers(&["pvc", "data"]).contains("kubernetes.io/pvc-protection"));
    assert!(finalizers(&["pv", volume]).contains("kubernetes.io/pv-protection"));
    delete_pod(&kubectl, "it");
    gone(&kubectl, "pvc/data");
    gone(&kubectl, &format!("pv/{volume}"));
}

#[test]
fn a_volume_made_by_hand_is_bound_to_the_claim_that_it_fits() {
    let kubectl = namespace("by-hand");
    for (name, size) in [("small", "32Mi"), ("right", "100Mi"), ("large", "1Gi")] {
        kubectl.apply(&volume(name, json!({"capacity": {"storage": size}})));
        kubectl.wait_for(
            &format!("pv/{name}"),
            "jsonpath={.status.phase}=Available",
            10,
        );
    }
    kubectl.apply(&claim("data", json!({"storageClassName": "by-hand"})));
    kubectl.apply(&claim(
        "named",
        json!({"storageClassName": "by-hand", "volumeName": "large"}),
    ));
    kubectl.apply(&claim("late", json!({"storageClassName": "by-hand"})));
    pod::ready(&kubectl, "it", &user("it", "data", json!({})));
    assert_eq!(volume_of(&kubectl, "data")["metadata"]["name"], "right");
    assert_eq!(volume_of(&kubectl, "named")["metadata"]["name"], "large");
    let file = shared().edge_box.disk().join("lib/disks/right/starts");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "it\n");
    // One that nothing fits waits, and its pod with it, until there is a volume.
    kubectl.apply(&user("waiting", "late", json!({})));
    told(
        &kubectl,
        "waiting",
        "pod has unbound immediate PersistentVolumeClaims",
    );
    told(
        &kubectl,
        "late",
        "storageclass.storage.k8s.io \"by-hand\" not found",
    );
    let reserved = json!({"claimRef": {"namespace": "by-hand", "name": "late"}});
    kubectl.apply(&volume("more", reserved));
    kubectl.wait_for("pod/waiting", "condition=Ready", 30);
    assert_eq!(volume_of(&kubectl, "late")["metadata"]["name"], "more");
    // What cannot be mounted is said at the pod.
    let nfs = json!({"nfs": {"server": "nas", "path": "/x"}, "hostPath": null});
    kubectl.apply(&volume("remote", nfs));
    kubectl.apply(&claim(
        "remote",
        json!({"storageClassName": "by-hand", "volumeName": "remote"}),
    ));
    kubectl.apply(&user("far", "remote", json!({})));
    told(
        &kubectl,
        "far",
        "volumes of type nfs cannot be mounted here",
    );
    // A volume whose claim is gone is kept, and is no other claim's.
    kubectl.run(&["delete", "pvc", "named"]).ok();
    kubectl.wait_for("pv/large", "jsonpath={.status.phase}=Released", 10);
}

#[test]
fn a_pod_without_its_claim_is_told_which_is_missing() {
    let kubectl = namespace("missing");
    kubectl.apply(&user("it", "data", json!({})));
    let message = "0/1 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    told(&kubectl, "it", &format!("FailedScheduling {message}"));
    eventually("the condition", Duration::from_secs(10), || {
        let status = kubectl.get(&["pod", "it"])["status"].clone();
        if status["conditions"][0]["message"] == message {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    kubectl.apply(&claim("data", json!({})));
    kubectl.wait_for("pod/it", "condition=Ready", 30);
}

#[test]
fn a_pod_whose_volume_is_on_another_box_is_not_scheduled_elsewhere() {
    let fleet = Fleet::start();
    let kubectl = &fleet.kubectl;
    kubectl.apply(&claim("data", json!({})));
    pod::ready(kubectl, "it", &user("it", "data", fleet.there()));
    let here = json!({"nodeSelector": {"kubernetes.io/hostname": fleet.server.name()}});
    kubectl.apply(&user("wrong", "data", here));
    told(
        kubectl,
        "wrong",
        "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
    );
    delete_pod(kubectl, "it");
    kubectl.run(&["cordon", fleet.agent.name()]).ok();
    kubectl.apply(&user("again", "data", json!({})));
    told(
        kubectl,
        "again",
        "1 node(s) didn't match PersistentVolume's node affinity",
    );
    kubectl.run(&["uncordon", fleet.agent.name()]).ok();
    kubectl.wait_for("pod/again", "condition=Ready", 30);
    assert_eq!(starts(kubectl, "again"), "it\nagain\n");
}

#[test]
fn a_box_that_was_away_removes_data_when_it_is_back_and_one_that_was_removed_keeps_nobody_waiting()
{
    let mut fleet = Fleet::start();
    let kubectl = fleet.kubectl.clone();
    let mut volumes = Vec::new();
    for name in ["first", "second"] {
        kubectl.apply(&claim(name, json!({})));
        pod::ready(&kubectl, name, &user(name, name, fleet.there()));
        volumes.push(volume_of(&kubectl, name));
        delete_pod(&kubectl, name);
    }
    let name = |at: usize| format!("pv/{}", volumes[at]["metadata"]["name"].as_str().unwrap());
    let directories: Vec<PathBuf> = volumes.iter().map(|v| directory(&fleet.agent, v)).collect();
    fleet.agent.kill_program();
    kubectl.run(&["delete", "pvc", "first"]).ok();
    kubectl.wait_for(&name(0), "jsonpath={.status.phase}=Released", 10);
    assert!(directories[0].join("starts").exists());
    fleet.agent.start_agent(&[]);
    gone(&kubectl, &name(0));
    assert!(!directories[0].exists());
    // A node speaks of its own volumes, and says nothing of them but that their data is gone.
    fleet.agent.kill_program();
    kubectl.run(&["delete", "pvc", "second"]).ok();
    kubectl.wait_for(&name(1), "jsonpath={.status.phase}=Released", 10);
    kubectl.run(&["delete", "node", fleet.agent.name()]).ok();
    gone(&kubectl, &name(1));
    assert!(directories[1].join("starts").exists());
}

#[test]
fn a_default_class_that_was_deleted_does_not_come_back() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::ready(&lan);
    let kubectl = edge_box.kubectl();
    assert!(
        kubectl
            .run(&["get", "sc", "local"])
            .ok()
            .contains("(default)")
    );
    kubectl.run(&["delete", "sc", "local"]).ok();
    edge_box.kill_program();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    gone(&kubectl, "sc/local");
    // Without a default class a claim is of none.
    kubectl.apply(&claim("data", json!({})));
    told(
        &kubectl,
        "data",
        "no persistent volumes available for this claim and no storage class is set",
    );
}

#[test]
fn a_stateful_set_gets_a_claim_for_each_pod_and_finds_its_data_after_being_scaled_down_and_up() {
    let kubectl = namespace("set");
    let script = format!("echo started >>/data/starts; {}", pod::SLEEP);
    let claims = |kubectl: &Kubectl| kubectl.run(&["get", "pvc", "-o", "name"]).ok();
    let set = |policy: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
            "spec": {
                "replicas": 2, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
                "persistentVolumeClaimRetentionPolicy": {"whenScaled": policy, "whenDeleted": policy},
                "volumeClaimTemplates": [serde_json::from_str::<Value>(&claim("data", json!({}))).unwrap()],
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                }},
            },
        })
        .to_string()
    };
    let rolled_out = || {
        kubectl
            .run(&["rollout", "status", "sts/web", "--timeout=60s"])
            .ok()
    };
    kubectl.apply(&set("Retain"));
    rolled_out();
    assert_eq!(
        claims(&kubectl),
        "persistentvolumeclaim/data-web-0\npersistentvolumeclaim/data-web-1\n"
    );
    pod::sh(&kubectl, "web-1", "echo mine >/data/name");
    kubectl.run(&["scale", "sts", "web", "--replicas=1"]).ok();
    gone(&kubectl, "pod/web-1");
    kubectl.run(&["scale", "sts", "web", "--replicas=2"]).ok();
    kubectl.wait_for("pod/web-0", "condition=Ready", 30);
    eventually("web-1", Duration::from_secs(30), || {
        let ran = kubectl.run(&[
            "wait",
            "pod/web-1",
            "--for=condition=Ready",
            "--timeout=30s",
        ]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    assert_eq!(
        pod::sh(&kubectl, "web-1", "cat /data/name /data/starts"),
        "mine\nstarted\nstarted\n"
    );
    // Claims that are to go with their pods, and with the set.
    kubectl.apply(&set("Delete"));
    kubectl.run(&["scale", "sts", "web", "--replicas=1"]).ok();
    gone(&kubectl, "pvc/data-web-1");
    kubectl.run(&["delete", "sts", "web"]).ok();
    gone(&kubectl, "pvc/data-web-0");
}

#[test]
fn an_ephemeral_volume_goes_with_its_pod() {
    let kubectl = namespace("ephemeral");
    let template: Value = serde_json::from_str(&claim("unused", json!({}))).unwrap();
    let volumes =
        json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": template["spec"]}}}]);
    pod::ready(&kubectl, "it", &user("it", "", json!({"volumes": volumes})));
    assert_eq!(starts(&kubectl, "it"), "it\n");
    let directory = directory(&shared().edge_box, &volume_of(&kubectl, "it-data"));
    delete_pod(&kubectl, "it");
    gone(&kubectl, "pvc/it-data");
    eventually("the data to be gone", Duration::from_secs(30), || {
        if directory.exists() {
            Err(String::new())
        } else {
            Ok(())
        }
    });
}

#[test]
fn quotas_and_limit_ranges_bound_claims() {
    let kubectl = namespace("bounded-claims");
    let per_class = "local.storageclass.storage.k8s.io/requests.storage";
    let hard =
        json!({"persistentvolumeclaims": "2", "requests.storage": "200Mi", (per_class): "150Mi"});
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}).to_string());
    let limits = json!([{"type": "PersistentVolumeClaim", "min": {"storage": "10Mi"}, "max": {"storage": "100Mi"}}]);
    kubectl.apply(&json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}}).to_string());
    let sized =
        |name: &str, size: &str| claim(name, json!({"resources": {"requests": {"storage": size}}}));
    let refused = |name: &str, size: &str, why: &str| {
        let said = kubectl
            .run_with(&["apply", "-f", "-"], &sized(name, size))
            .refused();
        assert!(said.contains(why), "{said}");
    };
    refused(
        "tiny",
        "1Mi",
        "minimum storage usage per PersistentVolumeClaim is 10Mi, but request is 1Mi",
    );
    refused(
        "huge",
        "1Gi",
        "maximum storage usage per PersistentVolumeClaim is 100Mi, but request is 1Gi",
    );
    kubectl.apply(&sized("one", "90Mi"));
    refused(
        "two",
        "80Mi",
        &format!(
            "exceeded quota: q, requested: {per_class}=80Mi, used: {per_class}=90Mi, limited: {per_class}=150Mi"
        ),
    );
    kubectl.apply(&sized("two", "20Mi"));
    refused(
        "three",
        "20Mi",
        "exceeded quota: q, requested: persistentvolumeclaims=1, used: persistentvolumeclaims=2, limited: persistentvolumeclaims=2",
    );
    kubectl.wait_for(
        "quota/q",
        "jsonpath={.status.used.requests\\.storage}=110Mi",
        10,
    );
}

#[test]
fn a_reset_would_remove_the_data_of_volumes_unless_it_is_told_to_keep_it() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    kubectl.apply(&claim("data", json!({})));
    pod::ready(&kubectl, "it", &user("it", "data", json!({})));
    edge_box.stop_program();
    let program = binary();
    let cgroup = format!("--cgroup-root=/{}", edge_box.name());
    // Without --yes, which would remove what the box shares with the machine.
    let named = |more: &[&str]| {
        let args = [program.to_str().unwrap(), "reset", &cgroup];
        let said = edge_box.run(&[&args, more].concat()).ok();
        said.lines().any(|line| line == "/var/lib/amphipod/storage")
    };
    assert!(named(&[]));
    assert!(!named(&["--keep-volumes"]));
}
