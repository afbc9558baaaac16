//! The claims of pods: what is known of them, and what is written so that they are bound where their pods go.
//!
//! A pod whose claims are still open is not bound to its node at once: what was decided about them is written, and the pod waits in the
//! queue for what the volume controller makes of it. Meanwhile its room on the node is kept for it.

use std::sync::Arc;

use amphipod_api::{Status, meta};
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::State;
use super::framework::Hopes;
use super::plugins::volumes::Decision;
use super::pod::PodInfo;
use crate::cache::{Event, EventType, Object, Watch};
use crate::resources::volumes::{BOUND_BY_CONTROLLER, Claim, Class, SELECTED_NODE, Volume};

const NEWS: Hopes = Hopes {
    node: false,
    pod_gone: false,
    pod_came: false,
    volume: true,
};

/// What tells of changes.
pub(super) struct Volumes {
    pub claims: Watch,
    pub volumes: Watch,
    pub classes: Watch,
}

fn key(object: &Object) -> (String, String) {
    let meta = &object.meta;
    (meta.namespace.to_string(), meta.name.to_string())
}

impl State {
    pub(super) fn follow_volumes(&mut self) -> Volumes {
        Volumes {
            claims: self.follow("persistentvolumeclaims", |state, object| {
                let claim = Claim::read(&object.value());
                state.snapshot.claims.insert(key(object), claim);
            }),
            volumes: self.follow("persistentvolumes", |state, object| {
                let volume = Volume::read(&object.value());
                state.snapshot.volumes.insert(volume.name.clone(), volume);
            }),
            classes: self.follow("storageclasses.storage.k8s.io", |state, object| {
                let class = Class::read(&object.value());
                state.snapshot.classes.insert(class.name.clone(), class);
            }),
        }
    }

    pub(super) fn claim_event(&mut self, event: &Event) {
        let key = key(&event.object);
        if event.kind == EventType::Deleted {
            self.snapshot.claims.remove(&key);
        } else {
            let claim = Claim::read(&event.object.value());
            self.snapshot.claims.insert(key, claim);
        }
        self.queue.happened(NEWS, Instant::now());
    }

    pub(super) fn volume_event(&mut self, event: &Event) {
        let name = event.object.meta.name.to_string();
        if event.kind == EventType::Deleted {
            self.snapshot.volumes.remove(&name);
        } else {
            let volume = Volume::read(&event.object.value());
            self.snapshot.volumes.insert(name, volume);
        }
        self.queue.happened(NEWS, Instant::now());
    }

    pub(super) fn class_event(&mut self, event: &Event) {
        let name = event.object.meta.name.to_string();
        if event.kind == EventType::Deleted {
            self.snapshot.classes.remove(&name);
        } else {
            let class = Class::read(&event.object.value());
            self.snapshot.classes.insert(name, class);
        }
        self.queue.happened(NEWS, Instant::now());
    }

    /// Writes what was decided about the claims of a pod, which is tried again when they have changed.
    pub(super) async fn bind_claims(
        &mut self,
        pod: &Arc<PodInfo>,
        node: String,
        open: Vec<Decision>,
    ) {
        let mut failed = false;
        for decision in open {
            let written = match &decision {
                Decision::Take(volume, claim) => self.take_volume(volume, claim).await,
                Decision::Make(claim) => self.select_node(claim, &node).await,
            };
            match written {
                Ok(()) => {}
                Err(status) if status.is_conflict() || status.is_not_found() => failed = true,
                Err(status) => {
                    failed = true;
                    warn!(pod = %pod.name, namespace = %pod.namespace, %node, %status, "a pod's claim could not be decided; it is tried again");
                }
            }
        }
        let mut kept = PodInfo::clone(pod);
        kept.node = node;
        self.nominated.insert(pod.uid.clone(), Arc::new(kept));
        if failed {
            self.queue.failed(&pod.uid, Instant::now());
        } else {
            let hopes = Hopes { node: true, ..NEWS };
            self.queue.refused(&pod.uid, hopes, Instant::now());
        }
    }

    /// Keeps a volume for a claim.
    async fn take_volume(&self, name: &str, claim: &Claim) -> Result<(), Status> {
        let known = self.snapshot.volumes.get(name);
        if known.is_some_and(|volume| volume.claim.is_some()) {
            return Ok(());
        }
        let context = self.registry.context(&self.user, "persistentvolumes", "")?;
        let change = |object: &mut Value| {
            if meta::at(object, &["spec", "claimRef"]).is_some() {
                let why = "the volume was given to another claim";
                return Err(Status::conflict(&context.group_resource(), name, why));
            }
            object["spec"]["claimRef"] = claim.reference();
            meta::set_annotation(object, BOUND_BY_CONTROLLER, "yes");
            Ok(())
        };
        self.registry.update_with(&context, name, change).await?;
        Ok(())
    }

    /// Has a volume made for a claim on a node.
    async fn select_node(&self, claim: &Claim, node: &str) -> Result<(), Status> {
        if claim.selected_node.as_deref() == Some(node) {
            return Ok(());
        }
        let resource = "persistentvolumeclaims";
        let context = self
            .registry
            .context(&self.user, resource, &claim.namespace)?;
        let change = |object: &mut Value| {
            // Another pod of the claim may have come first: then this one follows it.
            let chosen = meta::annotation(object, SELECTED_NODE).is_some();
            if meta::uid(object) == claim.uid && !chosen {
                meta::set_annotation(object, SELECTED_NODE, node);
            }
            Ok(())
        };
        self.registry
            .update_with(&context, &claim.name, change)
            .await?;
        Ok(())
    }
}
