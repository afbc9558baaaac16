//! Each rule on small clusters, and the words in which it refuses.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use serde_json::{Value, json};

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
