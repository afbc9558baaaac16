//! Empties a namespace that is being deleted, tells what it still waits for, and lets it go.
//! <https://kubernetes.io/docs/tasks/administer-cluster/namespaces/#deleting-a-namespace>

use std::collections::BTreeMap;

use amphipod_api::{meta, time};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::cache::{Event, EventType, Object};
use crate::registry::{Context, DeleteOptions, Propagation};
use crate::resources::Descriptor;

/// The finalizer in `spec.finalizers` that is this controller's.
const FINALIZER: &str = "kubernetes";

/// Deletions under way at once.
const TOGETHER: usize = 64;

pub struct NamespaceDeletion;

impl Controller for NamespaceDeletion {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("namespaces", itself), Source::all(emptied)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, &key.name))
    }
}

/// An object of a namespace that is being deleted has gone.
fn emptied(tools: &Tools, _: &Descriptor, event: &Event) -> Vec<Key> {
    let namespace = &*event.object.meta.namespace;
    if event.kind != EventType::Deleted || namespace.is_empty() {
        return Vec::new();
    }
    let going = tools
        .table("namespaces")
        .get("", namespace)
        .is_some_and(|namespace| namespace.meta.is_deleting());
    going.then(|| Key::new("", namespace)).into_iter().collect()
}

/// What is left in a namespace.
#[derive(Debug, Default, PartialEq)]
struct Left {
    /// Objects of each resource.
    resources: BTreeMap<String, usize>,
    /// Objects that each finalizer holds.
    finalizers: BTreeMap<String, usize>,
    /// Why objects could not be deleted.
    failures: Vec<String>,
}

async fn reconcile(tools: &Tools, name: &str) -> Result<Outcome> {
    let Some(namespace) = tools
        .table("namespaces")
        .get("", name)
        .filter(|namespace| namespace.meta.is_deleting())
    else {
        return Ok(Outcome::Done);
    };
    let value = namespace.value();
    if !meta::array_at(&value, &["spec", "finalizers"])
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
    {
        return Ok(Outcome::Done);
    }
    let left = empty(tools, name).await?;
    let done = left.resources.is_empty() && left.failures.is_empty();
    let told = told(&left, &value, Timestamp::now());
    if value["status"]["conditions"] != told && !(done && value["status"]["conditions"].is_null()) {
        let tell = |namespace: &mut Value| {
            namespace["status"]["phase"] = "Terminating".into();
            namespace["status"]["conditions"] = told.clone();
            Ok(())
        };
        tools
            .registry
            .update_with(&tools.sub_context("namespaces", "", "status")?, name, tell)
            .await?;
    }
    if done {
        let finalize = |namespace: &mut Value| {
            if let Some(Value::Array(finalizers)) = namespace.pointer_mut("/spec/finalizers") {
                finalizers.retain(|finalizer| finalizer != FINALIZER);
            }
            Ok(())
        };
        tools
            .registry
            .update_with(
                &tools.sub_context("namespaces", "", "finalize")?,
                name,
                finalize,
            )
            .await?;
    }
    // Deletions wake this controller; only what was refused is tried again by the clock.
    Ok(if left.failures.is_empty() {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}

/// Deletes what is in a namespace, and tells what is left. Pods go first: what they need until they have ended stays that long.
async fn empty(tools: &Tools, namespace: &str) -> Result<Left> {
    let mut left = Left::default();
    let mut resources: Vec<String> = tools
        .stored()
        .iter()
        .filter(|descriptor| descriptor.namespaced())
        .map(|descriptor| descriptor.resource())
        .collect();
    resources.sort_by_key(|resource| resource != "pods");
    // Events are not worth watching, but they go too.
    resources.push("events".to_owned());
    for resource in resources {
        let context = tools.context(&resource, namespace)?;
        let objects = tools
            .registry
            .table(&context.descriptor)
            .list(Some(namespace))
            .items;
        for some in objects.chunks(TOGETHER) {
            let refusals =
                join_all(some.iter().map(|object| delete(tools, &context, object))).await;
            left.failures.extend(refusals.into_iter().flatten());
        }
        let remaining = tools
            .registry
            .table(&context.descriptor)
            .list(Some(namespace))
            .items;
        if !remaining.is_empty() {
            left.resources.insert(named(&resource), remaining.len());
        }
        for finalizer in remaining.iter().flat_map(|object| &object.meta.finalizers) {
            *left.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        if resource == "pods" && !left.resources.is_empty() {
            break;
        }
    }
    Ok(left)
}

/// Deletes one object unless that has begun already; the reason if it is refused.
async fn delete(tools: &Tools, context: &Context, object: &Object) -> Option<String> {
    if object.meta.is_deleting() {
        return None;
    }
    let options = DeleteOptions {
        uid: Some(object.meta.uid.to_string()),
        propagation: Some(Propagation::Background),
        ..DeleteOptions::default()
    };
    let refusal = tools
        .registry
        .delete(context, &object.meta.name, &options)
        .await
        .err()?;
    (!refusal.is_not_found() && !refusal.is_conflict()).then(|| refusal.message.clone())
}

/// A resource as upstream's messages name it: with a dot also in the core group.
fn named(resource: &str) -> String {
    if resource.contains('.') {
        resource.to_owned()
    } else {
        format!("{resource}.")
    }
}

/// The conditions of a namespace that is being deleted.
fn told(left: &Left, namespace: &Value, now: Timestamp) -> Value {
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let each: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{name} {word} {count} resource instances"))
            .collect();
        each.join(", ")
    };
    let failure = left.failures.first().map(|first| {
        format!(
            "Failed to delete all resource types, {} remaining: {first}",
            left.failures.len()
        )
    });
    let remaining = (!left.resources.is_empty()).then(|| {
        format!(
            "Some resources are remaining: {}",
            list(&left.resources, "has")
        )
    });
    let held = (!left.finalizers.is_empty()).then(|| {
        format!(
            "Some content in the namespace has finalizers remaining: {}",
            list(&left.finalizers, "in")
        )
    });
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            "",
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "",
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            failure,
            "ContentDeletionFailed",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            held,
            "SomeFinalizersRemain",
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    let conditions = all.map(|(kind, trouble, bad, (good, message))| {
        let status = if trouble.is_some() { "True" } else { "False" };
        let had = meta::condition(namespace, kind).filter(|had| had["status"] == status);
        json!({
            "type": kind, "status": status,
            "reason": if trouble.is_some() { bad } else { good },
            "message": trouble.unwrap_or_else(|| message.to_owned()),
            "lastTransitionTime": had.map_or_else(|| json!(time::format_time(now)), |had| had["lastTransitionTime"].clone()),
        })
    });
    conditions.as_slice().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_namespace_tells_what_it_waits_for_in_upstreams_words() {
        let left = Left {
            resources: [("pods.".to_owned(), 2), ("deployments.apps".to_owned(), 1)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            failures: vec![],
        };
        let first = told(&left, &json!({}), Timestamp::UNIX_EPOCH);
        let text = |kind: &str| {
            let condition = first
                .as_array()
                .unwrap()
                .iter()
                .find(|c| c["type"] == kind)
                .unwrap();
            ["status", "reason", "message"]
                .map(|field| condition[field].as_str().unwrap())
                .join("|")
        };
        assert_eq!(
            text("NamespaceContentRemaining"),
            "True|SomeResourcesRemain|Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
        );
        assert_eq!(
            text("NamespaceFinalizersRemaining"),
            "True|SomeFinalizersRemain|Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert_eq!(
            text("NamespaceDeletionContentFailure"),
            "False|ContentDeleted|All content successfully deleted, may be waiting on finalization"
        );
        let namespace = json!({"status": {"conditions": first}});
        assert_eq!(
            told(&left, &namespace, Timestamp::now()),
            namespace["status"]["conditions"],
            "nothing new is not told"
        );
    }
}
