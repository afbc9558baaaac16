//! Deletes what its owners no longer hold: dependents of objects that are gone (background), dependents first and then their owner
//! (foreground), or lets dependents go on alone (orphan).
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>
//!
//! Each object is looked at by itself, as it is now; the index of owners finds the dependents.

use std::sync::Arc;

use amphipod_api::{Status, meta};
use futures_util::future::try_join_all;
use serde_json::Value;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools};
use crate::cache::{Event, EventType, Meta, Object, Owner};
use crate::registry::{DeleteOptions, Propagation};
use crate::resources::Descriptor;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

pub struct GarbageCollector;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::all(concerned)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// Objects of all resources are in one queue: the name in the key is `RESOURCE/NAME`.
fn key_of(descriptor: &Descriptor, meta: &Meta) -> Key {
    Key::new(
        &meta.namespace,
        &format!("{}/{}", descriptor.resource(), meta.name),
    )
}

/// What a change asks to look at.
fn concerned(tools: &Tools, descriptor: &Descriptor, event: &Event) -> Vec<Key> {
    let meta = &event.object.meta;
    let mut keys = Vec::new();
    match &event.prev {
        _ if event.kind == EventType::Deleted => {
            // Dependents may have lost their last owner, and owners that wait for dependents their last one.
            keys.extend(
                dependents(tools, &meta.uid)
                    .iter()
                    .map(|(descriptor, object)| key_of(descriptor, &object.meta)),
            );
            keys.extend(waiting_owners(tools, meta));
        }
        None => {
            if !meta.owners.is_empty() || is_collected(meta) {
                keys.push(key_of(descriptor, meta));
            }
        }
        Some(prev) => {
            let prev = &prev.meta;
            let begins = meta.is_deleting() && !prev.is_deleting();
            if meta.owners != prev.owners {
                keys.push(key_of(descriptor, meta));
                keys.extend(waiting_owners(tools, prev));
            } else if is_collected(meta) && (begins || meta.finalizers != prev.finalizers) {
                keys.push(key_of(descriptor, meta));
            }
            if begins && has(meta, FOREGROUND) {
                keys.extend(
                    dependents(tools, &meta.uid)
                        .iter()
                        .map(|(descriptor, object)| key_of(descriptor, &object.meta)),
                );
            }
        }
    }
    keys
}

fn has(meta: &Meta, finalizer: &str) -> bool {
    meta.finalizers.iter().any(|have| have == finalizer)
}

/// It is being deleted in a way that is ours to carry out.
fn is_collected(meta: &Meta) -> bool {
    meta.is_deleting() && (has(meta, ORPHAN) || has(meta, FOREGROUND))
}

/// All objects that name this uid as an owner.
fn dependents(tools: &Tools, uid: &str) -> Vec<(Arc<Descriptor>, Arc<Object>)> {
    let mut found = Vec::new();
    for descriptor in tools.stored() {
        let objects = tools.registry.table(&descriptor).by_owner(uid);
        found.extend(
            objects
                .into_iter()
                .map(|object| (descriptor.clone(), object)),
        );
    }
    found
}

/// The owners of an object that wait for it to go.
fn waiting_owners(tools: &Tools, meta: &Meta) -> Vec<Key> {
    let owners = meta
        .owners
        .iter()
        .filter_map(|owner| match find(tools, owner, &meta.namespace) {
            Found::There(descriptor, object) if is_collected(&object.meta) => {
                Some(key_of(&descriptor, &object.meta))
            }
            _ => None,
        });
    owners.collect()
}

enum Found {
    There(Arc<Descriptor>, Arc<Object>),
    Absent,
    /// Nobody knows: the kind is not served here, or cannot own this object.
    Unknown,
}

/// The owner that an object in `namespace` names.
fn find(tools: &Tools, owner: &Owner, namespace: &str) -> Found {
    let group = owner
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    let all = tools.registry.catalog().snapshot();
    let Some(descriptor) = all
        .iter()
        .find(|d| d.stored && d.group == group && d.kind == owner.kind)
    else {
        return Found::Unknown;
    };
    if descriptor.namespaced() && namespace.is_empty() {
        return Found::Unknown;
    }
    let namespace = if descriptor.namespaced() {
        namespace
    } else {
        ""
    };
    match tools.registry.table(descriptor).get(namespace, &owner.name) {
        Some(object) if *object.meta.uid == *owner.uid => Found::There(descriptor.clone(), object),
        _ => Found::Absent,
    }
}

/// What an object's owners say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// An owner is there and wants it.
    Solid,
    /// The owner is gone.
    Dangling,
    /// The owner goes when its dependents have gone.
    Waiting,
}

/// What to do with an object that is not being deleted.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Some owners hold it, these do not.
    Disown(Vec<String>),
    Delete {
        foreground: bool,
    },
}

/// Decides over an object by its owners, and whether it has dependents itself.
fn judge(owners: &[(String, Hold)], has_dependents: bool) -> Verdict {
    let with = |wanted: Hold| owners.iter().any(|(_, hold)| *hold == wanted);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if with(Hold::Solid) {
        let lost: Vec<String> = owners
            .iter()
            .filter(|(_, hold)| *hold != Hold::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return if lost.is_empty() {
            Verdict::Keep
        } else {
            Verdict::Disown(lost)
        };
    }
    Verdict::Delete {
        foreground: with(Hold::Waiting) && has_dependents,
    }
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some((resource, name)) = key.name.split_once('/') else {
        return Ok(Outcome::Done);
    };
    let Some(descriptor) = tools.registry.catalog().by_resource(resource) else {
        return Ok(Outcome::Done);
    };
    let Some(object) = tools.registry.table(&descriptor).get(&key.namespace, name) else {
        return Ok(Outcome::Done);
    };
    let outcome = if object.meta.is_deleting() {
        finish(tools, resource, &object).await
    } else {
        collect(tools, resource, &object).await
    };
    match outcome {
        Err(status) if status.is_not_found() => Ok(Outcome::Done),
        outcome => outcome.map(|()| Outcome::Done),
    }
}

/// An object that is not being deleted: do its owners want it?
async fn collect(tools: &Tools, resource: &str, object: &Object) -> Result<()> {
    let meta = &object.meta;
    let owners: Vec<(String, Hold)> = meta
        .owners
        .iter()
        .map(|owner| {
            let hold = match find(tools, owner, &meta.namespace) {
                Found::Absent => Hold::Dangling,
                Found::There(_, owner)
                    if owner.meta.is_deleting() && has(&owner.meta, FOREGROUND) =>
                {
                    Hold::Waiting
                }
                Found::There(..) | Found::Unknown => Hold::Solid,
            };
            (owner.uid.clone(), hold)
        })
        .collect();
    let dependents = match owners.iter().any(|(_, hold)| *hold == Hold::Waiting) {
        true => dependents(tools, &meta.uid),
        false => Vec::new(),
    };
    match judge(&owners, !dependents.is_empty()) {
        Verdict::Keep => Ok(()),
        Verdict::Disown(uids) => disown(tools, resource, object, &uids).await,
        Verdict::Delete { foreground } => {
            // In a circle of owners each would wait for the other.
            if dependents.iter().any(|(_, dependent)| {
                dependent.meta.is_deleting() && has(&dependent.meta, FOREGROUND)
            }) {
                unblock(tools, resource, object).await?;
            }
            let propagation = if has(meta, ORPHAN) {
                Propagation::Orphan
            } else if foreground || has(meta, FOREGROUND) {
                Propagation::Foreground
            } else {
                Propagation::Background
            };
            let options = DeleteOptions {
                uid: Some(meta.uid.to_string()),
                propagation: Some(propagation),
                ..DeleteOptions::default()
            };
            match tools
                .registry
                .delete(
                    &tools.context(resource, &meta.namespace)?,
                    &meta.name,
                    &options,
                )
                .await
            {
                // It is another object now.
                Err(status) if status.is_conflict() => Ok(()),
                outcome => outcome.map(drop),
            }
        }
    }
}

/// An object that is being deleted and has one of our finalizers.
async fn finish(tools: &Tools, resource: &str, object: &Object) -> Result<()> {
    let meta = &object.meta;
    if has(meta, ORPHAN) {
        let uids = [meta.uid.to_string()];
        let dependents = dependents(tools, &meta.uid);
        let names: Vec<(String, Arc<Object>)> = dependents
            .into_iter()
            .map(|(d, object)| (d.resource(), object))
            .collect();
        try_join_all(
            names
                .iter()
                .map(|(resource, object)| disown(tools, resource, object, &uids)),
        )
        .await?;
        return remove_finalizer(tools, resource, object, ORPHAN).await;
    }
    if has(meta, FOREGROUND) {
        let blocks = |object: &Object| {
            object
                .meta
                .owners
                .iter()
                .any(|o| *o.uid == *meta.uid && o.block_owner_deletion)
        };
        if !dependents(tools, &meta.uid)
            .iter()
            .any(|(_, dependent)| blocks(dependent))
        {
            return remove_finalizer(tools, resource, object, FOREGROUND).await;
        }
    }
    Ok(())
}

/// Takes owners away from an object.
async fn disown(tools: &Tools, resource: &str, object: &Object, uids: &[String]) -> Result<()> {
    change(tools, resource, object, |value| {
        let metadata = meta::metadata_mut(value);
        if let Some(Value::Array(owners)) = metadata.get_mut("ownerReferences") {
            owners.retain(|owner| !uids.iter().any(|uid| owner["uid"] == **uid));
            if owners.is_empty() {
                metadata.remove("ownerReferences");
            }
        }
    })
    .await
}

/// Lets none of the object's owners wait for it.
async fn unblock(tools: &Tools, resource: &str, object: &Object) -> Result<()> {
    change(tools, resource, object, |value| {
        let owners = value
            .pointer_mut("/metadata/ownerReferences")
            .and_then(Value::as_array_mut);
        for owner in owners.into_iter().flatten() {
            owner["blockOwnerDeletion"] = false.into();
        }
    })
    .await
}

async fn remove_finalizer(
    tools: &Tools,
    resource: &str,
    object: &Object,
    finalizer: &str,
) -> Result<()> {
    change(tools, resource, object, |value| {
        meta::remove_finalizer(value, finalizer);
    })
    .await
}

/// Changes an object that may be gone, and another of its name in its place.
async fn change(
    tools: &Tools,
    resource: &str,
    object: &Object,
    change: impl Fn(&mut Value) + Send + Sync,
) -> Result<()> {
    let context = tools.context(resource, &object.meta.namespace)?;
    let write = |value: &mut Value| {
        if meta::uid(value) == &*object.meta.uid {
            change(value);
        }
        Ok::<(), Status>(())
    };
    match tools
        .registry
        .update_with(&context, &object.meta.name, write)
        .await
    {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_goes_when_nobody_holds_it_and_forgets_those_that_do_not() {
        let owners = |holds: &[Hold]| -> Vec<(String, Hold)> {
            holds
                .iter()
                .enumerate()
                .map(|(n, hold)| (n.to_string(), *hold))
                .collect()
        };
        use Hold::{Dangling, Solid, Waiting};
        for (holds, has_dependents, verdict) in [
            (&[][..], false, Verdict::Keep),
            (&[Solid, Solid], true, Verdict::Keep),
            (
                &[Solid, Dangling, Waiting],
                true,
                Verdict::Disown(vec!["1".into(), "2".into()]),
            ),
            (&[Dangling], true, Verdict::Delete { foreground: false }),
            (&[Waiting], false, Verdict::Delete { foreground: false }),
            (
                &[Dangling, Waiting],
                true,
                Verdict::Delete { foreground: true },
            ),
        ] {
            assert_eq!(judge(&owners(holds), has_dependents), verdict, "{holds:?}");
        }
    }
}
