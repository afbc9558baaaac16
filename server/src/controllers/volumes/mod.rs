//! Brings claims and volumes together, makes volumes for `amphipod.io/local`, and says what becomes of those whose claim is gone.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>
//!
//! A key with a namespace is a claim, one without is a volume.

mod ephemeral;
mod local;
mod plan;
mod protection;

use std::sync::Arc;

use amphipod_api::local_volumes::FINALIZER;
use amphipod_api::{Status, meta};
use serde_json::{Value, json};

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::cache::{Event, EventType, Object};
use crate::events::Reference;
use crate::registry::DeleteOptions;
use crate::resources::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, Class, SELECTED_NODE, Volume, default_class,
};
pub use ephemeral::EphemeralVolumes;
use plan::{ForClaim, ForVolume, Tell, for_claim, for_volume};
pub use protection::{ClaimProtection, VolumeProtection};

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const CLASSES: &str = "storageclasses.storage.k8s.io";

/// On a claim: who is to make its volume.
const PROVISIONER_ANNOTATIONS: [&str; 2] = [
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/storage-provisioner",
];

pub struct VolumeBinder;

impl Controller for VolumeBinder {
    fn name(&self) -> &'static str {
        "persistent-volume-binder"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new(CLAIMS, of_claim),
            Source::new(VOLUMES, of_volume),
            Source::new(CLASSES, |tools, event| match event.kind {
                EventType::Deleted => Vec::new(),
                _ => open_claims(tools),
            }),
            Source::new("nodes", of_node),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(async move {
            if key.namespace.is_empty() {
                volume(tools, key).await
            } else {
                claim(tools, key).await
            }
        })
    }
}

fn volumes(tools: &Tools) -> Vec<Volume> {
    let mut all = Vec::new();
    tools.table(VOLUMES).for_each(None, |object| {
        all.push(Volume::read(&object.value()));
    });
    all
}

/// The claim, and the volumes that are its or were.
fn of_claim(tools: &Tools, event: &Event) -> Vec<Key> {
    let mut keys = itself(tools, event);
    let claim = Claim::read(&event.object.value());
    if event.kind == EventType::Deleted {
        let own = volumes(tools)
            .into_iter()
            .filter(|volume| volume.is_for(&claim));
        keys.extend(own.map(|volume| Key::new("", &volume.name)));
    } else if !claim.volume.is_empty() {
        keys.push(Key::new("", &claim.volume));
    }
    keys
}

/// The volume, the claim that has it or had it; and all that wait for one, when it became available.
fn of_volume(tools: &Tools, event: &Event) -> Vec<Key> {
    let mut keys = itself(tools, event);
    let now = Volume::read(&event.object.value());
    let before = event.prev.as_ref().map(|prev| Volume::read(&prev.value()));
    let claims = before.iter().chain([&now]).filter_map(|v| v.claim.as_ref());
    keys.extend(claims.map(|claim| Key::new(&claim.namespace, &claim.name)));
    if now.phase == "Available" || event.kind == EventType::Deleted {
        keys.extend(open_claims(tools));
    }
    keys.dedup();
    keys
}

/// Claims that are not bound.
fn open_claims(tools: &Tools) -> Vec<Key> {
    let mut keys = Vec::new();
    tools.table(CLAIMS).for_each(None, |object| {
        if !Claim::read(&object.value()).bind_completed {
            keys.push(Key::new(&object.meta.namespace, &object.meta.name));
        }
    });
    keys
}

/// When a node is gone: the volumes whose data was there, and the claims that were to get theirs there.
fn of_node(tools: &Tools, event: &Event) -> Vec<Key> {
    if event.kind != EventType::Deleted {
        return Vec::new();
    }
    let node = &*event.object.meta.name;
    let mut keys = open_claims(tools);
    let going = volumes(tools)
        .into_iter()
        .filter(|volume| volume.deleting && volume.home == node);
    keys.extend(going.map(|volume| Key::new("", &volume.name)));
    keys
}

fn tell(tools: &Tools, kind: &'static str, object: &Object, tell: Tell) {
    let about = Reference::to("v1", kind, object);
    tools
        .recorder
        .tell(about, tell.kind, tell.reason, tell.message);
}

const CLAIM: &str = "PersistentVolumeClaim";
const VOLUME: &str = "PersistentVolume";

async fn claim(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(mut object) = tools.table(CLAIMS).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let mut claim = Claim::read(&object.value());
    if claim.class.is_none() && !claim.is_bound() {
        let mut classes = Vec::new();
        tools
            .table(CLASSES)
            .for_each(None, |class| classes.push(class.value()));
        if let Some(class) = default_class(&classes) {
            let set = |value: &mut Value| value["spec"]["storageClassName"] = class.into();
            object = change(tools, CLAIMS, "", &object, set).await?;
            claim = Claim::read(&object.value());
        }
    }
    let class = claim.class.as_deref().unwrap_or_default();
    let class = tools.table(CLASSES).get("", class);
    let class = class.map(|class| Class::read(&class.value()));
    match for_claim(&claim, class.as_ref(), &volumes(tools)) {
        ForClaim::Wait(told) => {
            if let Some(told) = told {
                tell(tools, CLAIM, &object, told);
            }
        }
        ForClaim::Bind(volume) => return bind(tools, &object, &claim, &volume).await,
        ForClaim::Ask(provisioner) => ask(tools, &object, &provisioner).await?,
        ForClaim::Provision(node) => {
            let class = class.unwrap_or_default();
            if let Some(volume) = provision(tools, &object, &claim, &class, &node).await? {
                return bind(tools, &object, &claim, &volume).await;
            }
        }
        ForClaim::Lose(told) => {
            if claim.phase != "Lost" {
                let lose = |value: &mut Value| {
                    value["status"] = json!({"phase": "Lost"});
                };
                change(tools, CLAIMS, "status", &object, lose).await?;
                tell(tools, CLAIM, &object, told);
            }
        }
    }
    Ok(Outcome::Done)
}

/// Changes an object that is still the same one; does not write when nothing differs.
async fn change(
    tools: &Tools,
    resource: &'static str,
    subresource: &str,
    object: &Object,
    mut set: impl FnMut(&mut Value) + Send,
) -> Result<Arc<Object>> {
    let mut context = tools.context(resource, &object.meta.namespace)?;
    if !subresource.is_empty() {
        context = context.with_subresource(subresource);
    }
    let name = &*object.meta.name;
    let gone = Status::not_found(&context.group_resource(), name);
    let write = |value: &mut Value| {
        if meta::uid(value) != &*object.meta.uid {
            return Err(gone.clone());
        }
        set(value);
        Ok(())
    };
    tools.registry.update_with(&context, name, write).await
}

/// Makes a claim and a volume each other's, step by step: what a crash leaves undone is done the next time.
async fn bind(tools: &Tools, object: &Object, claim: &Claim, name: &str) -> Result<Outcome> {
    let Some(target) = tools.table(VOLUMES).get("", name) else {
        return Ok(Outcome::Failed);
    };
    let volume = Volume::read(&target.value());
    let mut taken = false;
    if !volume.is_for(claim) || volume.claim.as_ref().is_some_and(|of| of.uid.is_empty()) {
        let take = |value: &mut Value| {
            let now = Volume::read(value);
            taken = now.claim.is_some() && !now.is_for(claim);
            if taken {
                return;
            }
            if now.claim.is_none() {
                meta::set_annotation(value, BOUND_BY_CONTROLLER, "yes");
            }
            value["spec"]["claimRef"] = claim.reference();
        };
        change(tools, VOLUMES, "", &target, take).await?;
    }
    if taken {
        return Ok(Outcome::Failed);
    }
    if volume.phase != "Bound" {
        set_phase(tools, &target, "Bound", None).await?;
    }
    if !claim.is_bound() {
        let set = |value: &mut Value| {
            if meta::str_at(value, &["spec", "volumeName"]).is_empty() {
                value["spec"]["volumeName"] = name.into();
                meta::set_annotation(value, BOUND_BY_CONTROLLER, "yes");
            }
            meta::set_annotation(value, BIND_COMPLETED, "yes");
        };
        change(tools, CLAIMS, "", object, set).await?;
    }
    if claim.phase != "Bound" {
        let volume = target.value();
        let set = |value: &mut Value| {
            value["status"]["phase"] = "Bound".into();
            value["status"]["accessModes"] = volume["spec"]["accessModes"].clone();
            value["status"]["capacity"] = volume["spec"]["capacity"].clone();
        };
        change(tools, CLAIMS, "status", object, set).await?;
    }
    Ok(Outcome::Done)
}

/// Makes a volume for a claim on a node; its name if it is there now.
async fn provision(
    tools: &Tools,
    object: &Object,
    claim: &Claim,
    class: &Class,
    node: &str,
) -> Result<Option<String>> {
    let failed = |why: String| {
        let message = format!(
            "failed to provision volume with StorageClass {:?}: {why}",
            class.name
        );
        tell(
            tools,
            CLAIM,
            object,
            Tell::warning("ProvisioningFailed", message),
        );
    };
    let Some(home) = tools.table("nodes").get("", node) else {
        failed(format!("node \"{node}\" not found"));
        // The scheduler chooses again.
        let forget = |value: &mut Value| {
            if let Some(annotations) = meta::child(value, "metadata")
                .get_mut("annotations")
                .and_then(Value::as_object_mut)
            {
                annotations.remove(SELECTED_NODE);
            }
        };
        change(tools, CLAIMS, "", object, forget).await?;
        return Ok(None);
    };
    let volume = match local::volume(claim, class, &home.value()) {
        Ok(volume) => volume,
        Err(why) => {
            failed(why);
            return Ok(None);
        }
    };
    let name = local::name(claim);
    let context = tools.context(VOLUMES, "")?;
    match tools.registry.create(&context, volume.into()).await {
        Ok(_) => {
            let message = format!("Successfully provisioned volume {name}");
            let told = Tell::normal("ProvisioningSucceeded", message);
            tell(tools, CLAIM, object, told);
        }
        Err(status) if status.is_already_exists() => {}
        Err(status) => {
            failed(status.to_string());
            return Err(status);
        }
    }
    Ok(Some(name))
}

/// Leaves a claim to a provisioner outside.
async fn ask(tools: &Tools, object: &Object, provisioner: &str) -> Result<()> {
    let value = object.value();
    let told = PROVISIONER_ANNOTATIONS.map(|key| meta::annotation(&value, key));
    if told != [Some(provisioner); 2] {
        let set = |value: &mut Value| {
            for key in PROVISIONER_ANNOTATIONS {
                meta::set_annotation(value, key, provisioner);
            }
        };
        change(tools, CLAIMS, "", object, set).await?;
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        let told = Tell::normal("ExternalProvisioning", message);
        tell(tools, CLAIM, object, told);
    }
    Ok(())
}

async fn volume(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(VOLUMES).get("", &key.name) else {
        return Ok(Outcome::Done);
    };
    let volume = Volume::read(&object.value());
    let claim = volume.claim.as_ref().and_then(|of| {
        let claim = tools.table(CLAIMS).get(&of.namespace, &of.name)?;
        Some(Claim::read(&claim.value()))
    });
    let home_exists = tools.table("nodes").get("", &volume.home).is_some();
    for step in for_volume(&volume, claim.as_ref(), home_exists) {
        match step {
            ForVolume::Phase(phase, why) => set_phase(tools, &object, phase, why).await?,
            ForVolume::Unbind { whole } => {
                let unbind = |value: &mut Value| {
                    let spec = meta::child(value, "spec");
                    if whole {
                        spec.remove("claimRef");
                    } else if let Some(Value::Object(of)) = spec.get_mut("claimRef") {
                        of.remove("uid");
                    }
                };
                change(tools, VOLUMES, "", &object, unbind).await?;
            }
            ForVolume::Delete => {
                let context = tools.context(VOLUMES, "")?;
                let options = DeleteOptions {
                    uid: Some(object.meta.uid.to_string()),
                    ..DeleteOptions::default()
                };
                tools.registry.delete(&context, &key.name, &options).await?;
            }
            ForVolume::LetGo(told) => {
                if let Some(told) = told {
                    tracing::warn!(volume = key.name, "{}", told.message);
                    tell(tools, VOLUME, &object, told);
                }
                change(tools, VOLUMES, "", &object, |value| {
                    remove_finalizer(value, FINALIZER);
                })
                .await?;
            }
        }
    }
    Ok(Outcome::Done)
}

async fn set_phase(tools: &Tools, object: &Object, phase: &str, why: Option<Tell>) -> Result<()> {
    let set = |value: &mut Value| {
        let status = meta::child(value, "status");
        status.insert("phase".into(), phase.into());
        for (field, text) in [
            ("reason", why.as_ref().map(|why| why.reason.to_owned())),
            ("message", why.as_ref().map(|why| why.message.clone())),
        ] {
            match text {
                Some(text) => drop(status.insert(field.into(), text.into())),
                None => drop(status.remove(field)),
            }
        }
    };
    change(tools, VOLUMES, "status", object, set).await?;
    if let Some(why) = why {
        tell(tools, VOLUME, object, why);
    }
    Ok(())
}

fn remove_finalizer(value: &mut Value, name: &str) {
    let finalizers = meta::metadata_mut(value).get_mut("finalizers");
    if let Some(Value::Array(list)) = finalizers {
        list.retain(|finalizer| finalizer != name);
    }
}
