//! Each rule on small clusters, and the words in which it refuses.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use serde_json::{Value, json};

use super::volumes::{Decision, decisions};
use crate::resources::volumes::{BIND_COMPLETED, Claim, Class, SELECTED_NODE, Volume};
use crate::scheduler::framework::{Diagnosis, schedule};
use crate::scheduler::pod::PodInfo;
use crate::scheduler::snapshot::Snapshot;

/// A node with room for everything, merged with `more` at the top level.
fn node(name: &str, more: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    for (key, value) in more.as_object().unwrap() {
        for (inner, value) in value.as_object().unwrap() {
            match (&mut node[key][inner], value) {
                (Value::Object(have), Value::Object(new)) => have.extend(new.clone()),
                (slot, new) => *slot = new.clone(),
            }
        }
    }
    node
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": name}}, "spec": spec})
}

fn info(pod: Value) -> PodInfo {
    PodInfo::of(serde_json::from_value(pod).unwrap())
}

/// Nodes, and pods that stand on them.
fn cluster(nodes: &[Value], pods: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node_from(serde_json::from_value(node.clone()).unwrap());
    }
    for pod in pods {
        snapshot.put(Arc::new(info(pod.clone())));
    }
    snapshot
}

fn choose(snapshot: &Snapshot, candidate: Value) -> Result<String, Diagnosis> {
    schedule(snapshot, &info(candidate), &mut 0)
}

#[track_caller]
fn refused(snapshot: &Snapshot, candidate: Value) -> String {
    choose(snapshot, candidate).unwrap_err().message()
}

#[test]
fn without_nodes_it_says_so() {
    assert_eq!(
        refused(&cluster(&[], &[]), pod("p", json!({}))),
        "no nodes available to schedule pods"
    );
}

#[test]
fn room_is_counted_and_the_emptier_node_preferred() {
    let asks =
        |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    let on = |name: &str, node: &str, cpu: &str| {
        let mut spec = asks(cpu);
        spec["nodeName"] = json!(node);
        pod(name, spec)
    };
    let snapshot = cluster(
        &[node("a", json!({})), node("b", json!({}))],
        &[on("1", "a", "2")],
    );
    assert_eq!(choose(&snapshot, pod("p", asks("1"))), Ok("b".to_owned()));
    assert_eq!(
        refused(&snapshot, pod("p", asks("5"))),
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    let full = cluster(&[node("a", json!({}))], &[on("1", "a", "3")]);
    assert_eq!(
        refused(&full, pod("p", asks("2"))),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    let tiny = node("a", json!({"status": {"allocatable": {"pods": "1"}}}));
    assert!(
        refused(&cluster(&[tiny], &[on("1", "a", "1")]), pod("p", asks("1")))
            .contains("1 Too many pods")
    );
}

#[test]
fn cordoned_and_tainted_nodes_take_only_who_tolerates_them() {
    let cordoned = cluster(&[node("a", json!({"spec": {"unschedulable": true}}))], &[]);
    assert!(refused(&cordoned, pod("p", json!({}))).contains("1 node(s) were unschedulable"));
    let taint = json!({"key": "k", "effect": "NoSchedule"});
    let tainted = cluster(&[node("a", json!({"spec": {"taints": [taint]}}))], &[]);
    assert!(refused(&tainted, pod("p", json!({}))).contains("1 node(s) had untolerated taint(s)"));
    let tolerant = json!({"tolerations": [{"key": "k", "operator": "Exists"}]});
    assert_eq!(choose(&tainted, pod("p", tolerant)), Ok("a".to_owned()));
    let soft = json!({"key": "k", "effect": "PreferNoSchedule"});
    let both = cluster(
        &[
            node("a", json!({"spec": {"taints": [soft]}})),
            node("b", json!({})),
        ],
        &[],
    );
    assert_eq!(choose(&both, pod("p", json!({}))), Ok("b".to_owned()));
}

#[test]
fn node_selector_and_affinity_choose_by_label() {
    let labelled =
        |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let snapshot = cluster(&[labelled("a", "1"), labelled("b", "2")], &[]);
    assert_eq!(
        choose(&snapshot, pod("p", json!({"nodeSelector": {"zone": "2"}}))),
        Ok("b".to_owned())
    );
    assert!(
        refused(&snapshot, pod("p", json!({"nodeSelector": {"zone": "3"}}))).starts_with(
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
        )
    );
    let expressions = json!([{"key": "zone", "operator": "In", "values": ["1"]}]);
    let preferred = json!([{"weight": 5, "preference": {"matchExpressions": expressions}}]);
    let affinity =
        json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
    assert_eq!(
        choose(&snapshot, pod("p", json!({"affinity": affinity}))),
        Ok("a".to_owned())
    );
}

#[test]
fn a_host_port_is_given_once() {
    let spec = json!({"nodeName": "a", "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let snapshot = cluster(&[node("a", json!({}))], &[pod("1", spec.clone())]);
    assert!(
        refused(&snapshot, {
            let mut other = pod("p", spec);
            other["spec"]["nodeName"] = Value::Null;
            other
        })
        .contains("1 node(s) didn't have free ports for the requested pod ports")
    );
}

#[test]
fn pods_spread_over_domains() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let constraint = |when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let on = |uid: &str, node: &str| json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid, "labels": {"app": "web"}}, "spec": {"nodeName": node, "containers": []}});
    let snapshot = cluster(&nodes, &[on("1", "a")]);
    for when in ["DoNotSchedule", "ScheduleAnyway"] {
        assert_eq!(
            choose(&snapshot, pod("web", constraint(when))),
            Ok("b".to_owned()),
            "{when}"
        );
    }
    let only = cluster(
        &[
            node("a", json!({})),
            node("b", json!({"spec": {"unschedulable": true}})),
        ],
        &[on("1", "a")],
    );
    let message = refused(&only, pod("web", constraint("DoNotSchedule")));
    assert!(
        message.contains("1 node(s) didn't match pod topology spread constraints"),
        "{message}"
    );
}

#[test]
fn pods_seek_and_avoid_each_other_both_ways() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let term = |app: &str| json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]);
    let affinity = |kind: &str, app: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(app)}}});
    let on = |name: &str, node: &str, spec: Value| {
        let mut spec = spec;
        spec["nodeName"] = json!(node);
        pod(name, spec)
    };
    let snapshot = cluster(&nodes, &[on("db", "a", json!({}))]);
    assert_eq!(
        choose(&snapshot, pod("p", affinity("podAffinity", "db"))),
        Ok("a".to_owned())
    );
    assert_eq!(
        choose(&snapshot, pod("p", affinity("podAntiAffinity", "db"))),
        Ok("b".to_owned())
    );
    assert!(
        refused(&snapshot, pod("p", affinity("podAffinity", "none")))
            .contains("2 node(s) didn't match pod affinity rules")
    );
    // The first of its kind may begin anywhere.
    assert!(choose(&snapshot, pod("self", affinity("podAffinity", "self"))).is_ok());
    let repelling = cluster(
        &nodes[..1],
        &[on("db", "a", affinity("podAntiAffinity", "p"))],
    );
    assert!(
        refused(&repelling, pod("p", json!({})))
            .contains("1 node(s) didn't satisfy existing pods anti-affinity rules")
    );
}

#[test]
fn a_node_that_has_the_image_is_preferred() {
    let images = json!([{"names": ["big:1"], "sizeBytes": 900_000_000}]);
    let snapshot = cluster(
        &[
            node("a", json!({})),
            node("b", json!({"status": {"images": images}})),
        ],
        &[],
    );
    assert_eq!(
        choose(
            &snapshot,
            pod(
                "p",
                json!({"containers": [{"name": "c", "image": "big:1"}]})
            )
        ),
        Ok("b".to_owned())
    );
}

/// A claim of the pod's namespace, and a volume, in the snapshot.
fn with_claim(snapshot: &mut Snapshot, claim: Value) {
    let claim = Claim::read(&claim);
    let key = (claim.namespace.clone(), claim.name.clone());
    snapshot.claims.insert(key, claim);
}

fn with_volume(snapshot: &mut Snapshot, name: &str, home: &str) {
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [home]});
    let volume = Volume::read(&json!({
        "metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "disks",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}},
    }));
    snapshot.volumes.insert(name.to_owned(), volume);
}

fn with_class(snapshot: &mut Snapshot, name: &str, provisioner: &str, mode: &str) {
    let class =
        json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    snapshot
        .classes
        .insert(name.to_owned(), Class::read(&class));
}

fn claim(class: &str, volume: &str) -> Value {
    let mut claim = json!({
        "metadata": {"name": "data", "namespace": "ns", "uid": "c"}, "status": {"phase": "Pending"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}},
    });
    if !volume.is_empty() {
        claim["spec"]["volumeName"] = volume.into();
        claim["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
    }
    claim
}

fn user(name: &str) -> Value {
    let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
    pod(name, json!({"volumes": [volume]}))
}

#[test]
fn a_pod_waits_for_claims_that_are_missing_going_lost_or_not_bound() {
    let mut snapshot = cluster(&[node("a", json!({}))], &[]);
    let all = |why: &str| {
        format!(
            "0/1 nodes are available: {why}. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        )
    };
    assert_eq!(
        refused(&snapshot, user("p")),
        all("persistentvolumeclaim \"data\" not found")
    );
    with_claim(&mut snapshot, claim("slow", ""));
    assert_eq!(
        refused(&snapshot, user("p")),
        all("pod has unbound immediate PersistentVolumeClaims")
    );
    let mut going = claim("slow", "");
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    with_claim(&mut snapshot, going);
    assert_eq!(
        refused(&snapshot, user("p")),
        all("persistentvolumeclaim \"data\" is being deleted")
    );
    let mut lost = claim("slow", "v");
    lost["status"]["phase"] = "Lost".into();
    with_claim(&mut snapshot, lost);
    assert_eq!(
        refused(&snapshot, user("p")),
        all("persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"v\"")
    );
    let mine = json!({"volumes": [{"name": "e", "ephemeral": {}}]});
    assert_eq!(
        refused(&snapshot, pod("p", mine)),
        all("waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-e\"")
    );
}

#[test]
fn a_pod_goes_where_its_volume_is() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut snapshot = cluster(&nodes, &[]);
    with_claim(&mut snapshot, claim("disks", "v"));
    assert!(
        refused(&snapshot, user("p")).contains(
            "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
        )
    );
    with_volume(&mut snapshot, "v", "b");
    assert_eq!(choose(&snapshot, user("p")), Ok("b".to_owned()));
    assert!(decisions(&snapshot, &info(user("p")), "b").is_empty());
    snapshot.remove_node("b");
    assert!(
        refused(&snapshot, user("p"))
            .contains("1 node(s) didn't match PersistentVolume's node affinity")
    );
}

#[test]
fn a_claim_that_waits_for_its_first_pod_is_decided_with_it() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut snapshot = cluster(&nodes, &[]);
    with_class(
        &mut snapshot,
        "disks",
        "kubernetes.io/no-provisioner",
        "WaitForFirstConsumer",
    );
    with_claim(&mut snapshot, claim("disks", ""));
    assert!(
        refused(&snapshot, user("p"))
            .contains("2 node(s) didn't find available persistent volumes to bind")
    );
    with_volume(&mut snapshot, "v", "b");
    assert_eq!(choose(&snapshot, user("p")), Ok("b".to_owned()));
    let decided = decisions(&snapshot, &info(user("p")), "b");
    assert!(matches!(&decided[..], [Decision::Take(volume, _)] if volume == "v"));
    // A class that makes volumes makes them anywhere, but where it has begun it goes on.
    with_class(
        &mut snapshot,
        "local",
        "amphipod.io/local",
        "WaitForFirstConsumer",
    );
    with_claim(&mut snapshot, claim("local", ""));
    let decided = decisions(&snapshot, &info(user("p")), "a");
    assert!(matches!(&decided[..], [Decision::Make(claim)] if claim.name == "data"));
    let mut begun = claim("local", "");
    begun["metadata"]["annotations"] = json!({SELECTED_NODE: "b"});
    with_claim(&mut snapshot, begun);
    assert_eq!(choose(&snapshot, user("p")), Ok("b".to_owned()));
}

#[test]
fn a_claim_for_one_pod_is_not_anothers() {
    let mut snapshot = cluster(&[node("a", json!({}))], &[]);
    let mut alone = claim("disks", "v");
    alone["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    with_claim(&mut snapshot, alone);
    with_volume(&mut snapshot, "v", "a");
    assert!(choose(&snapshot, user("p")).is_ok());
    let mut other = user("other");
    other["spec"]["nodeName"] = "a".into();
    snapshot.put(Arc::new(info(other)));
    assert!(refused(&snapshot, user("p")).contains(
        "1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
    ));
}
