//! Storage: claims without a class get the default one, claims and volumes are protected while they are used, and claims grow only where
//! their class lets them. Upstream's DefaultStorageClass, StorageObjectInUseProtection and PersistentVolumeClaimResize.

use amphipod_api::meta::{at, child, finalizers, metadata_mut, str_at};
use amphipod_api::quantity::Quantity;
use amphipod_api::{Status, local_volumes};
use serde_json::{Value, json};

use super::{forbidden, is_about};
use crate::registry::{Admission, Operation, Request};
use crate::resources::volumes::{CLAIM_PROTECTION, class_of, default_class, may_expand};

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const CLASSES: &str = "storageclasses.storage.k8s.io";

pub struct Storage;

impl Admission for Storage {
    fn admit(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Create {
            return Ok(());
        }
        if is_about(request, VOLUMES, None) {
            protect(object, local_volumes::PROTECTION);
        }
        if is_about(request, CLAIMS, None) {
            protect(object, CLAIM_PROTECTION);
            if class_of(object).is_none()
                && let Some(class) = default_class(&request.lookup.list(CLASSES, None))
            {
                child(object, "spec").insert("storageClassName".into(), class.into());
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old), Operation::Update) = (object, request.old, request.operation)
        else {
            return Ok(());
        };
        if !is_about(request, CLAIMS, None) || size(new) <= size(old) {
            return Ok(());
        }
        if str_at(old, &["status", "phase"]) != "Bound" {
            let why = "Only bound persistent volume claims can be expanded";
            return Err(forbidden(request, why));
        }
        let class = class_of(new).filter(|class| class_of(old) == Some(class));
        let class = class.and_then(|class| request.lookup.get(CLASSES, "", class));
        if !class.is_some_and(|class| may_expand(&class)) {
            let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
            return Err(forbidden(request, why));
        }
        Ok(())
    }
}

fn size(claim: &Value) -> Quantity {
    let asked = at(claim, &["spec", "resources", "requests", "storage"]);
    asked
        .and_then(|amount| Quantity::from_value(amount).ok())
        .unwrap_or(Quantity::ZERO)
}

fn protect(object: &mut Value, finalizer: &str) {
    if finalizers(object).any(|have| have == finalizer) {
        return;
    }
    let list = metadata_mut(object)
        .entry("finalizers")
        .or_insert_with(|| json!([]));
    match list {
        Value::Array(list) => list.push(finalizer.into()),
        other => *other = json!([finalizer]),
    }
}
