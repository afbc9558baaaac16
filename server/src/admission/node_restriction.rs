//! NodeRestriction: an agent changes its own node, its own lease and the pods bound to it, nothing else.

use amphipod_api::Status;
use amphipod_api::local_volumes::FINALIZER;
use amphipod_api::meta::{
    annotation, at, finalizers, is_deleting, labels, metadata_mut, name, str_at,
};
use serde_json::{Map, Value};

use super::forbidden;
use crate::registry::{Admission, Operation, Request};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Labels that administrators use to keep pods apart: no node gives itself one.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io";
/// Kubernetes' own labels that a node may give itself, beside all of these two domains
/// (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>).
const NODE_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
];
const NODE_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub struct NodeRestriction;

impl Admission for NodeRestriction {
    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let context = request.context;
        let Some(node) = context.user.node_name() else {
            return Ok(());
        };
        let descriptor = &context.descriptor;
        match (
            &*descriptor.group,
            &*descriptor.plural,
            context.subresource.as_deref(),
        ) {
            ("", "pods", None) => pod(request, node, object),
            ("", "pods", Some(part @ ("status" | "eviction"))) => pod_part(request, node, part),
            ("", "nodes", None | Some("status")) => own_node(request, node, object),
            ("", "persistentvolumes", None) => volume(request, node, object),
            ("", "serviceaccounts", Some("token")) => token(request, node, object),
            ("coordination.k8s.io", "leases", None) => lease(request, node, object),
            _ => Ok(()),
        }
    }
}

fn pod(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    match (request.operation, object) {
        (Operation::Create, Some(pod)) => {
            if annotation(pod, "kubernetes.io/config.mirror").is_none() {
                let why = format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                );
                return Err(forbidden(request, why));
            }
            if str_at(pod, &["spec", "nodeName"]) != node {
                return Err(forbidden(
                    request,
                    format!("node {node:?} can only create pods with spec.nodeName set to itself"),
                ));
            }
            Ok(())
        }
        (Operation::Delete, _) => match request.old {
            Some(old) if str_at(old, &["spec", "nodeName"]) != node => Err(forbidden(
                request,
                format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
            )),
            _ => Ok(()),
        },
        _ => Err(forbidden(
            request,
            format!("unexpected operation, node {node:?} can only create and delete mirror pods"),
        )),
    }
}

fn pod_part(request: &Request<'_>, node: &str, part: &str) -> Result<(), Status> {
    let stored;
    let pod = match request.old {
        Some(old) => old,
        None => {
            stored = request
                .lookup
                .get("pods", &request.context.namespace, request.name)
                .unwrap_or_default();
            &stored
        }
    };
    if str_at(pod, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    let what = if part == "status" {
        "update pod status for"
    } else {
        "evict"
    };
    Err(forbidden(
        request,
        format!("node {node:?} can only {what} pods with spec.nodeName set to itself"),
    ))
}

/// A node may say one thing of a volume that is going: that its data is gone.
fn volume(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    let without = |volume: &Value| {
        let mut volume = volume.clone();
        let metadata = metadata_mut(&mut volume);
        for field in ["finalizers", "managedFields", "resourceVersion"] {
            metadata.remove(field);
        }
        volume
    };
    let left = |volume: &Value| -> Vec<String> {
        let others = finalizers(volume).filter(|finalizer| *finalizer != FINALIZER);
        others.map(str::to_owned).collect()
    };
    match (request.old, object) {
        (Some(old), Some(new))
            if is_deleting(old)
                && without(old) == without(new)
                && left(old) == left(new)
                && finalizers(new).all(|finalizer| finalizer != FINALIZER) =>
        {
            Ok(())
        }
        _ => Err(forbidden(
            request,
            format!(
                "node {node:?} can only take away the finalizer {FINALIZER:?} of a volume that is being deleted"
            ),
        )),
    }
}

/// Whether a node may set or remove this label on itself.
fn may_set(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| {
        domain
            .strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let kubernetes_own = below("kubernetes.io") || below("k8s.io");
    !below(RESTRICTED_LABELS)
        && (!kubernetes_own
            || NODE_LABELS.contains(&key)
            || NODE_DOMAINS.iter().any(|domain| below(domain)))
}

fn own_node(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    let target = object
        .map(name)
        .filter(|n| !n.is_empty())
        .unwrap_or(request.name);
    if target != node {
        return Err(forbidden(
            request,
            format!("node {node:?} is not allowed to modify node {target:?}"),
        ));
    }
    let (Some(new), None) = (object, &request.context.subresource) else {
        return Ok(());
    };
    let after = labels(new);
    let none = Map::new();
    let before = request.old.map_or(&none, labels);
    let mut changed: Vec<&str> = before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key) && !may_set(key))
        .map(String::as_str)
        .collect();
    changed.sort_unstable();
    changed.dedup();
    if !changed.is_empty() {
        let why = format!("is not allowed to modify labels: {}", changed.join(", "));
        return Err(forbidden(request, why));
    }
    if let Some(old) = request.old
        && at(old, &["spec", "taints"]) != at(new, &["spec", "taints"])
    {
        return Err(forbidden(
            request,
            format!("node {node:?} is not allowed to modify taints"),
        ));
    }
    Ok(())
}

/// A token only for a pod that runs on the node.
fn token(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    let bound = object.and_then(|o| at(o, &["spec", "boundObjectRef"]));
    let Some(bound) =
        bound.filter(|b| str_at(b, &["kind"]) == "Pod" && str_at(b, &["apiVersion"]) == "v1")
    else {
        return Err(forbidden(
            request,
            "node requested token not bound to a pod",
        ));
    };
    let uid = str_at(bound, &["uid"]);
    if uid.is_empty() {
        return Err(forbidden(
            request,
            "node requested token with a pod binding without a uid",
        ));
    }
    let pod_name = str_at(bound, &["name"]);
    let pod = request
        .lookup
        .get("pods", &request.context.namespace, pod_name);
    match pod {
        Some(pod) if str_at(&pod, &["metadata", "uid"]) != uid => Err(forbidden(
            request,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record"
            ),
        )),
        Some(pod) if str_at(&pod, &["spec", "nodeName"]) != node => Err(forbidden(
            request,
            "node requested token bound to a pod scheduled on a different node",
        )),
        Some(pod) if str_at(&pod, &["spec", "serviceAccountName"]) != request.name => {
            Err(forbidden(
                request,
                "node requested token for a service account that the pod does not use",
            ))
        }
        Some(_) => Ok(()),
        None => Err(Status::not_found(
            &amphipod_api::GroupResource::new("", "pods"),
            pod_name,
        )),
    }
}

fn lease(request: &Request<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    if request.context.namespace != LEASE_NAMESPACE {
        let why = format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace");
        return Err(forbidden(request, why));
    }
    let target = object
        .map(name)
        .filter(|n| !n.is_empty())
        .unwrap_or(request.name);
    if target != node {
        return Err(forbidden(
            request,
            "can only access node lease with the same name as the requesting node",
        ));
    }
    Ok(())
}
