//! Claims stay while pods use them, and volumes while they are bound.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>

use amphipod_api::local_volumes::PROTECTION;
use amphipod_api::meta::str_at;

use super::{CLAIMS, VOLUMES, change, remove_finalizer};
use crate::cache::{Event, EventType, Object};
use crate::controllers::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::resources::volumes::{CLAIM_PROTECTION, claims_of_pod};

pub struct ClaimProtection;

impl Controller for ClaimProtection {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new(CLAIMS, |tools, event| going(tools, event, CLAIM_PROTECTION)),
            Source::new("pods", of_pod),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(async move {
            let used = |tools: &Tools| is_used(tools, key);
            let_go(tools, CLAIMS, key, CLAIM_PROTECTION, used).await
        })
    }
}

pub struct VolumeProtection;

impl Controller for VolumeProtection {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(VOLUMES, |tools, event| {
            going(tools, event, PROTECTION)
        })]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(async move {
            let bound = |tools: &Tools| {
                let volume = tools.table(VOLUMES).get("", &key.name);
                volume.is_some_and(|v| str_at(&v.value(), &["status", "phase"]) == "Bound")
            };
            let_go(tools, VOLUMES, key, PROTECTION, bound).await
        })
    }
}

fn waits(object: &Object, finalizer: &str) -> bool {
    object.meta.is_deleting() && object.meta.finalizers.iter().any(|have| have == finalizer)
}

/// The object, if nothing but us keeps it.
fn going(tools: &Tools, event: &Event, finalizer: &str) -> Vec<Key> {
    if waits(&event.object, finalizer) {
        itself(tools, event)
    } else {
        Vec::new()
    }
}

/// The claims that a pod had, when it is gone.
fn of_pod(tools: &Tools, event: &Event) -> Vec<Key> {
    if event.kind != EventType::Deleted || tools.table(CLAIMS).is_empty() {
        return Vec::new();
    }
    let namespace = &event.object.meta.namespace;
    claims_of_pod(&event.object.value())
        .map(|claim| Key::new(namespace, &claim))
        .collect()
}

/// Whether a pod that has a node uses the claim. Others cannot get one any more: the scheduler sees that the claim is going.
fn is_used(tools: &Tools, key: &Key) -> bool {
    let mut used = false;
    tools
        .table("pods")
        .for_each(Some(&key.namespace), |object| {
            let pod = object.value();
            used |= !str_at(&pod, &["spec", "nodeName"]).is_empty()
                && claims_of_pod(&pod).any(|claim| claim == key.name);
        });
    used
}

async fn let_go(
    tools: &Tools,
    resource: &'static str,
    key: &Key,
    finalizer: &str,
    used: impl Fn(&Tools) -> bool,
) -> Result<Outcome> {
    let object = tools.table(resource).get(&key.namespace, &key.name);
    let Some(object) = object.filter(|object| waits(object, finalizer) && !used(tools)) else {
        return Ok(Outcome::Done);
    };
    change(tools, resource, "", &object, |value| {
        remove_finalizer(value, finalizer);
    })
    .await?;
    Ok(Outcome::Done)
}
