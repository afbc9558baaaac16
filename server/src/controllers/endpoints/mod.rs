//! Keeps the EndpointSlices and the Endpoints of services.
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>

mod backend;
mod compute;
mod spread;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use amphipod_api::meta;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::memo::Memo;
use super::pod_control::is_namespace_going;
use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself, typed};
use crate::cache::{Event, EventType, Object};
use crate::registry::{Context, DeleteOptions};
use backend::Backend;
use compute::{MANAGED_BY, MANAGER, MIRROR, SERVICE_NAME, Wanted};
use spread::Changes;

const SLICES: &str = "endpointslices.discovery.k8s.io";

const ZONE: &str = "topology.kubernetes.io/zone";

/// Of a selector with `matchLabels` only, as services have.
type Selector = BTreeMap<String, String>;

pub struct ServiceEndpoints {
    selectors: Arc<Memo<Selector>>,
    /// Services that were deleted: their Endpoints go, whoever wrote them.
    gone: Arc<Mutex<HashSet<Key>>>,
}

impl Default for ServiceEndpoints {
    fn default() -> ServiceEndpoints {
        ServiceEndpoints {
            selectors: Arc::new(Memo::new(selector)),
            gone: Arc::default(),
        }
    }
}

/// The selector of a service; empty if it has none.
fn selector(service: &Object) -> Selector {
    #[derive(serde::Deserialize)]
    struct Selecting {
        spec: Spec,
    }
    #[derive(serde::Deserialize)]
    struct Spec {
        selector: Option<Selector>,
    }
    service
        .typed::<Selecting>()
        .ok()
        .and_then(|service| service.spec.selector)
        .unwrap_or_default()
}

fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

impl Controller for ServiceEndpoints {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let (selectors, gone) = (self.selectors.clone(), self.gone.clone());
        let service = move |tools: &Tools, event: &Event| {
            if event.kind == EventType::Deleted {
                selectors.forget(&event.object);
                let key = Key::new(&event.object.meta.namespace, &event.object.meta.name);
                gone.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(key);
            }
            itself(tools, event)
        };
        let selectors = self.selectors.clone();
        vec![
            Source::new("services", service),
            Source::new("pods", move |tools, event| {
                services_of_pod(tools, event, &selectors)
            }),
            Source::new("endpoints", itself),
            Source::new("nodes", services_after_move),
            Source::new(SLICES, |_, event| {
                let meta = &event.object.meta;
                meta.labels
                    .get(SERVICE_NAME)
                    .map(|service| Key::new(&meta.namespace, service))
                    .into_iter()
                    .collect()
            }),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.keep(tools, key))
    }
}

fn services_of_pod(tools: &Tools, event: &Event, selectors: &Memo<Selector>) -> Vec<Key> {
    let meta = &event.object.meta;
    let before = event.prev.as_ref().map(|prev| &prev.meta.labels);
    let fits = |_: &Object, selector: &Selector| {
        selects(selector, &meta.labels) || before.is_some_and(|labels| selects(selector, labels))
    };
    let names = selectors.names(&tools.table("services"), &meta.namespace, fits);
    if names.is_empty() || !backend::counts(event) {
        return Vec::new();
    }
    names
        .iter()
        .map(|name| Key::new(&meta.namespace, name))
        .collect()
}

/// A node is in another zone now: all services may have endpoints on it.
fn services_after_move(tools: &Tools, event: &Event) -> Vec<Key> {
    let zone = |object: &Object| object.meta.labels.get(ZONE).cloned();
    let stays = |prev: &Arc<Object>| zone(prev) == zone(&event.object);
    if event.prev.as_ref().is_none_or(stays) {
        return Vec::new();
    }
    let services = tools.table("services").list(None).items;
    services
        .iter()
        .map(|service| Key::new(&service.meta.namespace, &service.meta.name))
        .collect()
}

impl ServiceEndpoints {
    async fn keep(&self, tools: &Tools, key: &Key) -> Result<Outcome> {
        let object = tools.table("services").get(&key.namespace, &key.name);
        let was_deleted = self
            .gone
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        let written = tools.table("endpoints").get(&key.namespace, &key.name);
        let Some(object) = object else {
            let ours = |endpoints: &Object| {
                endpoints
                    .meta
                    .labels
                    .contains_key("endpoints.kubernetes.io/managed-by")
            };
            if written.is_some_and(|endpoints| was_deleted || ours(&endpoints)) {
                delete(
                    tools,
                    &tools.context("endpoints", &key.namespace)?,
                    &key.name,
                )
                .await?;
            }
            return done(write_slices(tools, key, None).await);
        };
        let service: Service = typed(&object)?;
        if compute::is_selecting(&service) {
            let backends = backends(tools, key, &selector(&object))?;
            let zone = |node: &str| {
                let node = tools.table("nodes").get("", node)?;
                node.meta.labels.get(ZONE).cloned()
            };
            let wanted = compute::slices(&service, &backends, &zone);
            let (labels, subsets) = compute::endpoints(&service, &backends);
            // Together: one commit, and nobody waits for the other.
            let (slices, endpoints) = tokio::join!(
                write_slices(tools, key, Some(&wanted)),
                write_endpoints(tools, key, written.as_deref(), labels, subsets)
            );
            return done(slices.and(endpoints));
        }
        let mirrored = match &written {
            Some(endpoints) => compute::mirrored(&typed::<Endpoints>(endpoints)?),
            None => None,
        };
        done(write_slices(tools, key, mirrored.as_ref()).await)
    }
}

/// What cannot be made because the namespace is going needs not be made.
fn done(outcome: Result<()>) -> Result<Outcome> {
    match outcome {
        Err(status) if !is_namespace_going(&status) => Err(status),
        _ => Ok(Outcome::Done),
    }
}

/// The pods that a service selects, by name.
fn backends(tools: &Tools, key: &Key, selector: &Selector) -> Result<Vec<Backend>> {
    let mut pods = Vec::new();
    tools.table("pods").for_each(Some(&key.namespace), |pod| {
        if selects(selector, &pod.meta.labels) {
            pods.push(pod.clone());
        }
    });
    pods.iter().map(|pod| Backend::read(pod)).collect()
}

async fn write_slices(tools: &Tools, key: &Key, wanted: Option<&Wanted>) -> Result<()> {
    let ours = |slice: &&Arc<Object>| {
        let manager = slice.meta.labels.get(MANAGED_BY).map(String::as_str);
        [Some(MANAGER), Some(MIRROR)].contains(&manager) && !slice.meta.is_deleting()
    };
    let existing = tools.table(SLICES).by_label(&key.namespace, &key.name);
    let existing = existing
        .iter()
        .filter(ours)
        .map(|slice| typed(slice))
        .collect::<Result<Vec<EndpointSlice>>>()?;
    let Changes {
        create,
        update,
        delete: gone,
    } = spread::changes(existing, wanted);
    if create.is_empty() && update.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let context = tools.context(SLICES, &key.namespace)?;
    let registry = &tools.registry;
    try_join_all(
        create
            .iter()
            .map(|slice| registry.create(&context, json!(slice).into())),
    )
    .await?;
    try_join_all(update.iter().map(|slice| {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        registry.update_with(&context, name, |value: &mut Value| {
            if meta::uid(value) == slice.metadata.uid.as_deref().unwrap_or_default() {
                value["endpoints"] = json!(slice.endpoints);
                let metadata = meta::metadata_mut(value);
                metadata.insert("labels".into(), json!(slice.metadata.labels));
                metadata.insert(
                    "ownerReferences".into(),
                    json!(slice.metadata.owner_references),
                );
                match &slice.metadata.annotations {
                    Some(annotations) => {
                        drop(metadata.insert("annotations".into(), json!(annotations)))
                    }
                    None => drop(metadata.remove("annotations")),
                }
            }
            Ok(())
        })
    }))
    .await?;
    try_join_all(gone.iter().map(|slice| {
        delete(
            tools,
            &context,
            slice.metadata.name.as_deref().unwrap_or_default(),
        )
    }))
    .await?;
    Ok(())
}

async fn write_endpoints(
    tools: &Tools,
    key: &Key,
    written: Option<&Object>,
    labels: BTreeMap<String, String>,
    subsets: Vec<EndpointSubset>,
) -> Result<()> {
    let context = tools.context("endpoints", &key.namespace)?;
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let Some(written) = written else {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": key.name, "namespace": key.namespace, "labels": labels},
        });
        if let Some(subsets) = subsets {
            object["subsets"] = json!(subsets);
        }
        return tools
            .registry
            .create(&context, object.into())
            .await
            .map(drop);
    };
    let have: Endpoints = typed(written)?;
    if have.subsets.unwrap_or_default() == subsets.clone().unwrap_or_default()
        && written.meta.labels == labels
    {
        return Ok(());
    }
    let set = |value: &mut Value| {
        meta::metadata_mut(value).insert("labels".into(), json!(labels));
        match (&subsets, value.as_object_mut()) {
            (Some(subsets), _) => value["subsets"] = json!(subsets),
            (None, Some(map)) => drop(map.remove("subsets")),
            (None, None) => {}
        }
        Ok(())
    };
    tools
        .registry
        .update_with(&context, &key.name, set)
        .await
        .map(drop)
}

async fn delete(tools: &Tools, context: &Context, name: &str) -> Result<()> {
    match tools
        .registry
        .delete(context, name, &DeleteOptions::default())
        .await
    {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}
