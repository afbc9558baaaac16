//! PersistentVolumeClaim: <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/persistent-volume-claim-v1/>.

use amphipod_api::meta::{annotation, at, str_at};
use amphipod_api::quantity::Quantity;
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::Kind;
use super::volume::{access_modes, class_and_mode, modes, or_unset, phase, positive};
use crate::resources::common::{fill_text, keep, spec_mut};
use crate::resources::table::{age_cell, name};
use crate::resources::validate::{Errors, IMMUTABLE, immutable, label_selector, problems};
use crate::resources::volumes::{BETA_CLASS, class_of};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::PersistentVolumeClaim>(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
    )
    .short(&["pvc"])
    .status()
    .columns(vec![
        Column::name(),
        Column::new("Status", "Pending, Bound or Lost."),
        Column::new("Volume", "The volume that it has."),
        Column::new("Capacity", "How much that holds."),
        Column::new("Access Modes", "In what ways that can be used."),
        Column::new("StorageClass", "StorageClass of the pvc"),
        Column::new("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
        Column::age(),
        Column::new("VolumeMode", "Whether it is a file system or a device.").wide(),
    ])
    .strategy(PersistentVolumeClaim)
    .build()
}

struct PersistentVolumeClaim;

impl Strategy for PersistentVolumeClaim {
    fn default(&self, obj: &mut Value) {
        default_claim(obj);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        if let Some(map) = obj.as_object_mut() {
            map.insert("status".into(), json!({"phase": "Pending"}));
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        let kept = if sub == Some("status") {
            "spec"
        } else {
            "status"
        };
        keep(new, old, kept);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        claim_spec(&obj["spec"], &FieldPath::new("spec"), &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if sub == Some("status") {
            let status = FieldPath::new("status");
            let capacity = status.child("capacity");
            for (name, amount) in amphipod_api::meta::map_at(new, &["status", "capacity"]) {
                positive(&capacity.key(name), amount, &mut errors);
            }
            return errors;
        }
        errors.extend(self.validate_create(new));
        if annotation(new, BETA_CLASS) != annotation(old, BETA_CLASS) {
            let path = FieldPath::new("metadata.annotations");
            let given = annotation(new, BETA_CLASS).unwrap_or_default();
            errors.push(FieldError::invalid(path.key(BETA_CLASS), given, IMMUTABLE));
        }
        if frozen(new, old) != frozen(old, old) {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden("spec", why));
        }
        let size = |obj: &Value, path: &[&str]| {
            at(obj, path).and_then(|amount| Quantity::from_value(amount).ok())
        };
        let request = ["spec", "resources", "requests", "storage"];
        let held = size(old, &["status", "capacity", "storage"]).unwrap_or(Quantity::ZERO);
        if let (Some(after), Some(before)) = (size(new, &request), size(old, &request))
            && after < before
            && after <= held
        {
            errors.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
        immutable(
            &FieldPath::new("volumeMode"),
            at(new, &["spec", "volumeMode"]),
            at(old, &["spec", "volumeMode"]),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let volume = str_at(obj, &["spec", "volumeName"]);
        let (mut capacity, mut access) = (Value::from(""), Value::from(""));
        if !volume.is_empty() {
            capacity = str_at(obj, &["status", "capacity", "storage"]).into();
            access = modes(at(obj, &["status", "accessModes"]));
        }
        vec![
            name(obj),
            phase(obj),
            volume.into(),
            capacity,
            access,
            class_of(obj).unwrap_or_default().into(),
            or_unset(str_at(obj, &["spec", "volumeAttributesClassName"])),
            age_cell(obj, now),
            or_unset(str_at(obj, &["spec", "volumeMode"])),
        ]
    }
}

/// What a claim, or a template of one, leaves out.
pub(super) fn default_claim(obj: &mut Value) {
    fill_text(spec_mut(obj), "volumeMode", "Filesystem");
}

/// The spec, of a claim or of a template of claims.
pub fn claim_spec(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    access_modes(spec, path, "at least 1 access mode is required", errors);
    if let Some(selector) = spec.get("selector") {
        label_selector(selector, &path.child("selector"), errors);
    }
    let resources = path.child("resources");
    match at(spec, &["resources", "requests", "storage"]) {
        None => errors.push(FieldError::required(resources.key("storage"), "")),
        Some(amount) => positive(&resources.key("storage"), amount, errors),
    }
    class_and_mode(spec, path, errors);
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = spec.get(field) {
            data_source(source, &path.child(field), errors);
        }
    }
}

fn data_source(source: &Value, path: &FieldPath, errors: &mut Errors) {
    for field in ["name", "kind"] {
        if str_at(source, &[field]).is_empty() {
            errors.push(FieldError::required(path.child(field), ""));
        }
    }
    let (group, kind) = (str_at(source, &["apiGroup"]), str_at(source, &["kind"]));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(path, kind, why));
    } else if !group.is_empty() {
        let found = names::dns1123_subdomain(group);
        problems(&path.child("apiGroup"), group, found, errors);
    }
}

/// What of a spec must stay as in `old`: the size of a bound claim may change, and what was open may be filled once.
fn frozen(obj: &Value, old: &Value) -> Value {
    let mut spec = obj["spec"].clone();
    let Some(map) = spec.as_object_mut() else {
        return spec;
    };
    map.remove("volumeAttributesClassName");
    if str_at(old, &["spec", "volumeName"]).is_empty() {
        map.remove("volumeName");
    }
    if class_of(old).is_none() {
        map.remove("storageClassName");
    }
    if str_at(old, &["status", "phase"]) == "Bound"
        && let Some(requests) = map
            .get_mut("resources")
            .and_then(|resources| resources.get_mut("requests"))
            .and_then(Value::as_object_mut)
    {
        requests.remove("storage");
    }
    spec
}
