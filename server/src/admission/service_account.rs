//! ServiceAccount: every pod has one, with its token, the cluster's CA and its namespace mounted.

use amphipod_api::meta::{annotation, array_at, bool_at, child, str_at};
use amphipod_api::{Status, names};
use serde_json::{Map, Value, json};

use super::{creates_pod, forbidden};
use crate::registry::{Admission, Request};

/// Where containers find what the pod's service account has.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour, and a little that tells tokens mounted by default from those asked for.
const EXPIRATION_SECONDS: i64 = 3607;
const DEFAULT: &str = "default";

pub struct ServiceAccount;

impl Admission for ServiceAccount {
    fn admit(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !creates_pod(request) {
            return Ok(());
        }
        if annotation(pod, "kubernetes.io/config.mirror").is_some() {
            // Pods that an agent shows for its own files have no service account.
            let named = !str_at(pod, &["spec", "serviceAccountName"]).is_empty();
            return if named {
                Err(forbidden(
                    request,
                    "a mirror pod may not reference service accounts",
                ))
            } else {
                Ok(())
            };
        }
        let spec = child(pod, "spec");
        let mut name = spec
            .get("serviceAccountName")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if name.is_empty() {
            name = DEFAULT.to_owned();
            spec.insert("serviceAccountName".into(), DEFAULT.into());
            spec.insert("serviceAccount".into(), DEFAULT.into());
        }
        let namespace = &request.context.namespace;
        let account = match request.lookup.get("serviceaccounts", namespace, &name) {
            Some(account) => account,
            // A controller makes it for every namespace, very soon: there is no need to wait.
            None if name == DEFAULT => Value::Null,
            None => {
                let why = format!(
                    "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
                );
                return Err(forbidden(request, why));
            }
        };
        let wanted = bool_at(pod, &["spec", "automountServiceAccountToken"])
            .or_else(|| bool_at(&account, &["automountServiceAccountToken"]))
            .unwrap_or(true);
        if wanted {
            mount(pod);
        }
        let secrets = array_at(&account, &["imagePullSecrets"]);
        if array_at(pod, &["spec", "imagePullSecrets"]).is_empty() && !secrets.is_empty() {
            child(pod, "spec").insert("imagePullSecrets".into(), Value::Array(secrets.to_vec()));
        }
        Ok(())
    }
}

/// Adds the volume, and a mount to each container that has none there.
fn mount(pod: &mut Value) {
    let existing = array_at(pod, &["spec", "volumes"])
        .iter()
        .map(|v| str_at(v, &["name"]))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", names::random_suffix(5)));
    let spec = child(pod, "spec");
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            used |= add_mount(container, &volume);
        }
    }
    if used && existing.is_none() {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&volume));
        }
    }
}

fn add_mount(container: &mut Map<String, Value>, volume: &str) -> bool {
    let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
    let Some(mounts) = mounts.as_array_mut() else {
        return false;
    };
    if mounts
        .iter()
        .any(|m| str_at(m, &["mountPath"]) == MOUNT_PATH)
    {
        return false;
    }
    mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
    true
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}
