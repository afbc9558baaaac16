#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::sync::Arc;

use amphipod_api::local_volumes;
use serde_json::json;

use super::*;
use crate::auth::{NODES, UserInfo};
use crate::registry::Context;
use crate::resources::{Catalog, Lookup};

/// Objects by `resource/namespace/name`.
#[derive(Default)]
struct Objects(BTreeMap<String, Value>);

impl Objects {
    fn with(mut self, resource: &str, object: Value) -> Self {
        let get = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        self.0.insert(
            format!("{resource}/{}/{}", get("namespace"), get("name")),
            object,
        );
        self
    }
}

impl Lookup for Objects {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0
            .get(&format!("{resource}/{namespace}/{name}"))
            .cloned()
    }

    fn list(&self, resource: &str, _: Option<&str>) -> Vec<Value> {
        self.0
            .iter()
            .filter(|(k, _)| k.starts_with(&format!("{resource}/")))
            .map(|(_, v)| v.clone())
            .collect()
    }

    fn scan_field(&self, _: &str, _: &str, _: &mut dyn FnMut(&str, &str, &str)) {}
}

fn namespace(name: &str, phase: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"phase": phase}})
}

fn context(resource: &str, namespace: &str, user: UserInfo) -> Context {
    let descriptor = Catalog::builtin().by_resource(resource).unwrap();
    Context::new(Arc::new(user), descriptor, namespace)
}

fn admin() -> UserInfo {
    UserInfo::new("admin", &[])
}

fn create(context: &Context, objects: &Objects, object: &mut Value) -> Result<(), Status> {
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let request = Request {
        context,
        operation: Operation::Create,
        name: &name,
        old: None,
        lookup: objects,
    };
    Chain::standard(DefaultTolerations::default()).admit(&request, object)?;
    Chain::standard(DefaultTolerations::default()).validate(&request, Some(object))
}

fn message(result: Result<(), Status>) -> String {
    result.unwrap_err().message.clone()
}

#[test]
fn nothing_is_made_in_a_namespace_that_is_absent_or_going() {
    let objects = Objects::default().with("namespaces", namespace("going", "Terminating"));
    let mut object = json!({"metadata": {"name": "c"}});
    let absent = create(
        &context("configmaps", "nowhere", admin()),
        &objects,
        &mut object,
    );
    assert_eq!(absent.as_ref().unwrap_err().http_code(), 404);
    assert_eq!(message(absent), r#"namespaces "nowhere" not found"#);
    let going = create(
        &context("configmaps", "going", admin()),
        &objects,
        &mut object,
    );
    assert_eq!(
        going.as_ref().unwrap_err().details.as_ref().unwrap().causes[0].reason,
        "NamespaceTerminating"
    );
    assert_eq!(
        message(going),
        r#"configmaps "c" is forbidden: unable to create new content in namespace going because it is being terminated"#
    );
}

#[test]
fn the_namespaces_of_the_system_are_not_deleted() {
    let objects = Objects::default();
    let context = context("namespaces", "", admin());
    let delete = |name: &str| {
        let request = Request {
            context: &context,
            operation: Operation::Delete,
            name,
            old: None,
            lookup: &objects,
        };
        Chain::standard(DefaultTolerations::default()).validate(&request, None)
    };
    assert_eq!(
        message(delete("default")),
        r#"namespaces "default" is forbidden: this namespace may not be deleted"#
    );
    assert!(delete("mine").is_ok());
}

#[test]
fn a_pod_gets_its_account_its_token_its_tolerations_and_a_priority() {
    let objects = Objects::default().with("namespaces", namespace("n", "Active")).with(
        "serviceaccounts",
        json!({"metadata": {"namespace": "n", "name": "default"}, "imagePullSecrets": [{"name": "s"}]}),
    );
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
    create(&context("pods", "n", admin()), &objects, &mut pod).unwrap();
    let spec = &pod["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(
        volume.starts_with("kube-api-access-") && volume.len() == 21,
        "{volume}"
    );
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3607
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{"name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
}

#[test]
fn a_pod_may_do_without_the_token() {
    let objects = Objects::default().with("namespaces", namespace("n", "Active"));
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "a"}]}});
    create(&context("pods", "n", admin()), &objects, &mut pod).unwrap();
    assert!(pod["spec"].get("volumes").is_none());
}

#[test]
fn an_unknown_account_or_priority_class_is_named() {
    let objects = Objects::default().with("namespaces", namespace("n", "Active"));
    let context = context("pods", "n", admin());
    let mut pod =
        json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "x", "containers": []}});
    assert_eq!(
        message(create(&context, &objects, &mut pod)),
        r#"pods "p" is forbidden: error looking up service account n/x: serviceaccount "x" not found"#
    );
    let mut pod =
        json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "x", "containers": []}});
    assert_eq!(
        message(create(&context, &objects, &mut pod)),
        r#"pods "p" is forbidden: no PriorityClass with name x was found"#
    );
    let mut pod =
        json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "system-node-critical"}});
    create(&context, &objects, &mut pod).unwrap();
    assert_eq!(pod["spec"]["priority"], 2_000_001_000);
}

#[test]
fn a_new_node_is_tainted_until_it_is_ready() {
    let mut node = json!({"metadata": {"name": "box"}});
    create(
        &context("nodes", "", admin()),
        &Objects::default(),
        &mut node,
    )
    .unwrap();
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
}

#[test]
fn a_node_touches_only_what_is_its_own() {
    let node = || UserInfo::new("system:node:a", &[NODES]);
    let objects = Objects::default().with("namespaces", namespace("n", "Active")).with(
        "pods",
        json!({"metadata": {"namespace": "n", "name": "p", "uid": "1"}, "spec": {"nodeName": "b", "serviceAccountName": "s"}}),
    );
    let mut other = json!({"metadata": {"name": "b"}});
    assert_eq!(
        message(create(&context("nodes", "", node()), &objects, &mut other)),
        r#"nodes "b" is forbidden: node "a" is not allowed to modify node "b""#
    );
    let mut own = json!({"metadata": {"name": "a"}});
    create(&context("nodes", "", node()), &objects, &mut own).unwrap();
    for label in [
        "node-role.kubernetes.io/control-plane",
        "team.node-restriction.kubernetes.io/a",
        "k8s.io/x",
    ] {
        let mut own = json!({"metadata": {"name": "a", "labels": {label: ""}}});
        assert_eq!(
            message(create(&context("nodes", "", node()), &objects, &mut own)),
            format!(r#"nodes "a" is forbidden: is not allowed to modify labels: {label}"#)
        );
    }
    let mut own = json!({"metadata": {"name": "a", "labels": {
        "kubernetes.io/arch": "amd64", "edge.example.com/site": "x", "x.node.kubernetes.io/y": "", "plain": ""}}});
    create(&context("nodes", "", node()), &objects, &mut own).unwrap();

    let mut pod = json!({"metadata": {"name": "q"}, "spec": {"nodeName": "a"}});
    assert!(
        message(create(&context("pods", "n", node()), &objects, &mut pod))
            .contains("can only create mirror pods")
    );

    let token = context("serviceaccounts", "n", node()).with_subresource("token");
    let request = Request {
        context: &token,
        operation: Operation::Create,
        name: "s",
        old: None,
        lookup: &objects,
    };
    let body = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "1"}}});
    assert_eq!(
        message(Chain::standard(DefaultTolerations::default()).validate(&request, Some(&body))),
        r#"serviceaccounts "s" is forbidden: node requested token bound to a pod scheduled on a different node"#
    );
}

#[test]
fn claims_and_volumes_are_protected_and_claims_get_the_default_class() {
    let default = json!({"metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    let objects = Objects::default().with("storageclasses.storage.k8s.io", default);
    let admitted = |resource: &str, mut object: Value| {
        let context = context(resource, "shop", admin());
        let request = Request {
            context: &context,
            operation: Operation::Create,
            name: "data",
            old: None,
            lookup: &objects,
        };
        Storage.admit(&request, &mut object).unwrap();
        object
    };
    let claim = admitted(
        "persistentvolumeclaims",
        json!({"metadata": {}, "spec": {}}),
    );
    assert_eq!(claim["spec"]["storageClassName"], "local");
    assert_eq!(
        claim["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
    let none = admitted(
        "persistentvolumeclaims",
        json!({"spec": {"storageClassName": ""}}),
    );
    assert_eq!(none["spec"]["storageClassName"], "");
    let protected = json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}});
    assert_eq!(admitted("persistentvolumes", protected.clone()), protected);
}

#[test]
fn a_claim_grows_only_when_it_is_bound_and_its_class_lets_it() {
    let claim = |size: &str, class: &str, phase: &str| json!({"spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": phase}});
    let class =
        |name: &str, may: bool| json!({"metadata": {"name": name}, "allowVolumeExpansion": may});
    let objects = Objects::default()
        .with("storageclasses.storage.k8s.io", class("stiff", false))
        .with("storageclasses.storage.k8s.io", class("soft", true));
    let refused = |new: Value, old: Value| {
        let context = context("persistentvolumeclaims", "shop", admin());
        let request = Request {
            context: &context,
            operation: Operation::Update,
            name: "data",
            old: Some(&old),
            lookup: &objects,
        };
        Storage
            .validate(&request, Some(&new))
            .err()
            .map(|s| s.message.clone())
    };
    let grown =
        |class: &str, phase: &str| refused(claim("2Gi", class, phase), claim("1Gi", class, phase));
    assert_eq!(grown("soft", "Bound"), None);
    assert!(
        grown("soft", "Pending")
            .unwrap()
            .ends_with("Only bound persistent volume claims can be expanded")
    );
    assert!(
        grown("stiff", "Bound")
            .unwrap()
            .ends_with("the storageclass that provisions the pvc must support resize")
    );
    assert_eq!(
        refused(
            claim("1Gi", "stiff", "Bound"),
            claim("1Gi", "stiff", "Bound")
        ),
        None
    );
}

#[test]
fn of_a_volume_a_node_tells_only_that_its_data_is_gone() {
    let volume = |finalizers: Value, deleting: bool| {
        let mut volume = json!({"metadata": {"name": "v", "finalizers": finalizers}, "spec": {"local": {"path": "/a"}}});
        if deleting {
            volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        volume
    };
    let ours = local_volumes::FINALIZER;
    let refused = |new: Value, old: Value| {
        let node = UserInfo::new("system:node:box", &[NODES]);
        let context = context("persistentvolumes", "", node);
        let request = Request {
            context: &context,
            operation: Operation::Update,
            name: "v",
            old: Some(&old),
            lookup: &Objects::default(),
        };
        NodeRestriction.validate(&request, Some(&new)).is_err()
    };
    let going = || volume(json!(["other", ours]), true);
    assert!(!refused(volume(json!(["other"]), true), going()));
    assert!(
        refused(volume(json!([]), true), going()),
        "another's finalizer"
    );
    assert!(refused(going(), going()), "nothing told");
    assert!(
        refused(volume(json!([]), false), volume(json!([ours]), false)),
        "a volume that stays"
    );
    let mut moved = volume(json!(["other"]), true);
    moved["spec"]["local"]["path"] = "/b".into();
    assert!(refused(moved, going()), "something else");
}
