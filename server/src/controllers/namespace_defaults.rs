//! What every namespace has: the service account `default`, and the ConfigMap `kube-root-ca.crt`.

use amphipod_api::Status;
use serde_json::json;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::cache::Event;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

pub struct NamespaceDefaults;

impl Controller for NamespaceDefaults {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("namespaces", itself),
            Source::new("serviceaccounts", |_, event| namespace_of(event, ACCOUNT)),
            Source::new("configmaps", |_, event| namespace_of(event, ROOT_CA)),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, &key.name))
    }
}

/// The namespace of an object that this controller made and somebody changed or deleted.
fn namespace_of(event: &Event, name: &str) -> Vec<Key> {
    if *event.object.meta.name == *name {
        vec![Key::new("", &event.object.meta.namespace)]
    } else {
        Vec::new()
    }
}

async fn reconcile(tools: &Tools, namespace: &str) -> Result<Outcome> {
    let Some(object) = tools.table("namespaces").get("", namespace) else {
        return Ok(Outcome::Done);
    };
    if object.meta.is_deleting() {
        return Ok(Outcome::Done);
    }
    if tools
        .table("serviceaccounts")
        .get(namespace, ACCOUNT)
        .is_none()
    {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": namespace}});
        unless_there(
            tools
                .registry
                .create(
                    &tools.context("serviceaccounts", namespace)?,
                    account.into(),
                )
                .await,
        )?;
    }
    let data = json!({"ca.crt": tools.config.pki.ca_pem()});
    let context = tools.context("configmaps", namespace)?;
    match tools.table("configmaps").get(namespace, ROOT_CA) {
        None => {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA, "namespace": namespace,
                    "annotations": {"kubernetes.io/description": "The certificate authority that signs the API server's certificate."},
                },
                "data": data,
            });
            unless_there(tools.registry.create(&context, map.into()).await)?;
        }
        Some(map) if map.value()["data"] != data => {
            let set = |map: &mut serde_json::Value| {
                map["data"] = data.clone();
                Ok(())
            };
            tools.registry.update_with(&context, ROOT_CA, set).await?;
        }
        Some(_) => {}
    }
    Ok(Outcome::Done)
}

fn unless_there<T>(created: Result<T>) -> Result<(), Status> {
    match created {
        Err(status) if !status.is_already_exists() => Err(status),
        _ => Ok(()),
    }
}
