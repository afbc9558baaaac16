//! The objects that are always there: system namespaces, default roles, priority classes, a storage class, the `kubernetes` service.
//! Made at the first start; later starts write only what differs.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use amphipod_api::{Status, local_volumes, meta};
use futures_util::future::try_join_all;
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};

use super::policy;
use crate::auth::UserInfo;
use crate::auth::rbac::rules;
use crate::registry::{DeleteOptions, Registry};

/// Namespaces that are always there.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// What the objects depend on.
#[derive(Clone)]
pub struct Facts {
    /// The `kubernetes` service's address.
    pub service_ip: IpAddr,
    /// Where the API is to be reached.
    pub endpoint: SocketAddr,
    pub ca_pem: String,
}

/// Makes what is missing and mends what differs. Everything of one stage is written together.
///
/// # Errors
/// The first write that was refused.
pub async fn ensure(registry: &Registry, facts: &Facts) -> Result<(), Status> {
    let user = Arc::new(UserInfo::apiserver());
    let namespaces = NAMESPACES.map(|name| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        keep(registry, &user, "namespaces", "", object, |_, _| false)
    });
    try_join_all(namespaces).await?;
    storage_class(registry, &user).await?;
    let roles = policy::objects().into_iter().map(|default| {
        let resource = format!("{}.rbac.authorization.k8s.io", default.plural);
        let user = &user;
        async move {
            keep(
                registry,
                user,
                &resource,
                &default.namespace,
                default.object,
                mend_rbac,
            )
            .await
        }
    });
    let priorities = priority_classes().map(|object| {
        keep(
            registry,
            &user,
            "priorityclasses.scheduling.k8s.io",
            "",
            object,
            |_, _| false,
        )
    });
    let service = kubernetes_service(registry, facts);
    let trust = keep(
        registry,
        &user,
        "configmaps",
        "kube-system",
        authentication(facts),
        mend_data,
    );
    tokio::try_join!(
        try_join_all(roles),
        try_join_all(priorities),
        service,
        trust
    )?;
    Ok(())
}

/// Creates the object if it is not there, or lets `mend` change the one that is; `mend` tells whether it did.
/// Resources that this server does not serve are passed over.
async fn keep(
    registry: &Registry,
    user: &Arc<UserInfo>,
    resource: &str,
    namespace: &str,
    wanted: Value,
    mend: impl Fn(&mut Value, &Value) -> bool + Send + Sync,
) -> Result<(), Status> {
    let Ok(cx) = registry.context(user, resource, namespace) else {
        return Ok(());
    };
    let name = meta::name(&wanted).to_owned();
    let Some(stored) = registry.table(&cx.descriptor).get(namespace, &name) else {
        return match registry.create(&cx, wanted.into()).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        };
    };
    if mend(&mut stored.value(), &wanted) {
        registry
            .update_with(&cx, &name, |object| {
                mend(object, &wanted);
                Ok(())
            })
            .await?;
    }
    Ok(())
}

/// Adds what a default role or binding lacks. What an administrator added stays; `autoupdate: "false"` opts out.
fn mend_rbac(object: &mut Value, wanted: &Value) -> bool {
    let opted_out =
        meta::annotation(object, "rbac.authorization.kubernetes.io/autoupdate") == Some("false");
    // The rules of aggregated roles are kept by the aggregation.
    if opted_out || wanted.get("aggregationRule").is_some() {
        return false;
    }
    let mut changed = false;
    if let Some(rules) = wanted.get("rules") {
        let read = |value: &Value| {
            serde_json::from_value::<Vec<PolicyRule>>(value.clone()).unwrap_or_default()
        };
        let held = read(&object["rules"]);
        let missing: Vec<Value> = rules
            .as_array()
            .into_iter()
            .flatten()
            .filter(|rule| !rules::uncovered(&held, &read(&json!([rule]))).is_empty())
            .cloned()
            .collect();
        if !missing.is_empty() {
            changed = true;
            append(&mut object["rules"], missing);
        }
    }
    if let Some(subjects) = wanted.get("subjects") {
        let have = object["subjects"].as_array().cloned().unwrap_or_default();
        let missing: Vec<Value> = subjects
            .as_array()
            .into_iter()
            .flatten()
            .filter(|s| !have.contains(s))
            .cloned()
            .collect();
        if !missing.is_empty() {
            changed = true;
            append(&mut object["subjects"], missing);
        }
    }
    changed
}

fn append(list: &mut Value, items: Vec<Value>) {
    match list {
        Value::Array(list) => list.extend(items),
        other => *other = Value::Array(items),
    }
}

/// Makes `data` what is wanted.
fn mend_data(object: &mut Value, wanted: &Value) -> bool {
    let changed = object["data"] != wanted["data"];
    object["data"] = wanted["data"].clone();
    changed
}

/// On the namespace kube-system: the storage class was made once, and is the users' from then on.
const CLASS_MADE: &str = "amphipod.io/storage-class-made";

/// The default class: volumes are directories of the box where their first pod runs. Made once only: who deletes it wants none.
async fn storage_class(registry: &Registry, user: &Arc<UserInfo>) -> Result<(), Status> {
    let system = registry.context(user, "namespaces", "")?;
    let namespace = registry.table(&system.descriptor).get("", "kube-system");
    if namespace.is_none_or(|n| meta::annotation(&n.value(), CLASS_MADE).is_some()) {
        return Ok(());
    }
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": local_volumes::PROVISIONER,
        "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    });
    let classes = "storageclasses.storage.k8s.io";
    keep(registry, user, classes, "", class, |_, _| false).await?;
    let made = |namespace: &mut Value| {
        meta::set_annotation(namespace, CLASS_MADE, "true");
        Ok(())
    };
    registry.update_with(&system, "kube-system", made).await?;
    Ok(())
}

fn priority_classes() -> impl Iterator<Item = Value> {
    let classes = [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ];
    classes.into_iter().map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
        })
    })
}

/// How extension API servers recognise our clients.
fn authentication(facts: &Facts) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": facts.ca_pem},
    })
}

/// The service by which pods reach the API, and its endpoint, which no controller keeps.
pub async fn kubernetes_service(registry: &Registry, facts: &Facts) -> Result<(), Status> {
    let user = &Arc::new(UserInfo::apiserver());
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let port = facts.endpoint.port();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": facts.service_ip.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    let mend_port = |object: &mut Value, _: &Value| {
        let have = &mut object["spec"]["ports"][0]["targetPort"];
        let changed = *have != json!(port);
        *have = port.into();
        changed
    };
    let address = facts.endpoint.ip().to_string();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if facts.endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let mend_subsets = |object: &mut Value, wanted: &Value| {
        let changed = object["subsets"] != wanted["subsets"];
        object["subsets"] = wanted["subsets"].clone();
        changed
    };
    let mend_slice = |object: &mut Value, wanted: &Value| {
        let same = object["endpoints"][0]["addresses"] == wanted["endpoints"][0]["addresses"]
            && object["ports"] == wanted["ports"];
        object["endpoints"] = wanted["endpoints"].clone();
        object["ports"] = wanted["ports"].clone();
        !same
    };
    keep(registry, user, "services", "default", service, mend_port).await?;
    // A server that listens on loopback only (a test) has no endpoint that pods could reach, and none is allowed there.
    if facts.endpoint.ip().is_loopback() {
        return Ok(());
    }
    make_way(registry, user, &slice).await?;
    tokio::try_join!(
        keep(
            registry,
            user,
            "endpoints",
            "default",
            endpoints,
            mend_subsets
        ),
        keep(
            registry,
            user,
            "endpointslices.discovery.k8s.io",
            "default",
            slice,
            mend_slice
        ),
    )?;
    Ok(())
}

/// Removes the slice of another family: the type of its addresses never changes.
async fn make_way(registry: &Registry, user: &Arc<UserInfo>, wanted: &Value) -> Result<(), Status> {
    let cx = registry.context(user, "endpointslices.discovery.k8s.io", "default")?;
    let name = meta::name(wanted);
    let stored = registry.table(&cx.descriptor).get("default", name);
    if stored.is_some_and(|slice| slice.value()["addressType"] != wanted["addressType"]) {
        registry
            .delete(&cx, name, &DeleteOptions::default())
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_role_gets_back_what_it_lost_and_keeps_what_was_added() {
        let wanted =
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
        let added = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
        let mut object = json!({"rules": [added]});
        assert!(mend_rbac(&mut object, &wanted));
        assert_eq!(object["rules"], json!([added, wanted["rules"][0]]));
        assert!(!mend_rbac(&mut object, &wanted));
        let mut opted_out = json!({
            "metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": [],
        });
        assert!(!mend_rbac(&mut opted_out, &wanted));
    }
}
