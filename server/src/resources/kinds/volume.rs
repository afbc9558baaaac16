//! PersistentVolume: <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/persistent-volume-v1/>.

use amphipod_api::local_volumes::HOME;
use amphipod_api::meta::{at, is_deleting, map_at, str_at};
use amphipod_api::quantity::Quantity;
use amphipod_api::{FieldError, FieldPath, Status, names, time};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::resources::common::{fill_text, keep, object_mut, spec_mut};
use crate::resources::table::{age_cell, name};
use crate::resources::validate::pod::{no_backsteps, node_selector, one_source};
use crate::resources::validate::{Errors, immutable, one_of, problems};
use crate::resources::volumes::class_of;
use crate::resources::{Column, Descriptor, SelectableField, Strategy, StrategyContext};

const SPEC: FieldPath = FieldPath::new("spec");

/// Where the volume is, as the values of its node affinity: a box follows those of its own name.
const HOME_PATH: &str = "spec.nodeAffinity.required.nodeSelectorTerms.*.matchExpressions.*.values";

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::PersistentVolume>("", "v1", "PersistentVolume", "persistentvolumes")
        .cluster()
        .short(&["pv"])
        .status()
        .fields(vec![SelectableField::at(HOME, HOME_PATH)])
        .columns(vec![
            Column::name(),
            Column::new("Capacity", "How much it holds."),
            Column::new("Access Modes", "In what ways it can be used."),
            Column::new(
                "Reclaim Policy",
                "What becomes of it when its claim is gone.",
            ),
            Column::new("Status", "Available, Bound, Released or Failed."),
            Column::new("Claim", "The claim that has it."),
            Column::new("StorageClass", "StorageClass of the pv"),
            Column::new("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
            Column::new("Reason", "Why it is in this state."),
            Column::age(),
            Column::new("VolumeMode", "Whether it is a file system or a device.").wide(),
        ])
        .strategy(PersistentVolume)
        .build()
}

/// What a volume can be, in the order in which upstream looks.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        fill_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill_text(spec, "volumeMode", "Filesystem");
        if let Some(host_path) = object_mut(spec, "hostPath") {
            fill_text(host_path, "type", "");
        }
    }

    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        if let Some(map) = obj.as_object_mut() {
            let now = time::format_time(cx.now);
            map.insert(
                "status".into(),
                json!({"phase": "Pending", "lastPhaseTransitionTime": now}),
            );
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        if sub != Some("status") {
            keep(new, old, "status");
            return Ok(());
        }
        keep(new, old, "spec");
        let field = ["status", "lastPhaseTransitionTime"];
        let moved = new["status"]["phase"] != old["status"]["phase"];
        if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
            let told = status
                .get(field[1])
                .is_some_and(|time| Some(time) != at(old, &field));
            if moved && !told {
                status.insert(field[1].into(), time::format_time(cx.now).into());
            }
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = &obj["spec"];
        access_modes(spec, &SPEC, "", &mut errors);
        capacity(spec, &mut errors);
        one_of(
            &SPEC.child("persistentVolumeReclaimPolicy"),
            str_at(spec, &["persistentVolumeReclaimPolicy"]),
            &["Delete", "Recycle", "Retain"],
            &mut errors,
        );
        let affinity = at(spec, &["nodeAffinity", "required"]);
        if let Some(required) = affinity {
            let path = SPEC.child("nodeAffinity");
            node_selector(required, &path.child("required"), &mut errors);
        } else if spec.get("nodeAffinity").is_some() {
            let why = "must specify required node constraints";
            let path = SPEC.child("nodeAffinity");
            errors.push(FieldError::required(path.child("required"), why));
        }
        source(spec, affinity.is_some(), &mut errors);
        class_and_mode(spec, &SPEC, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return Vec::new();
        }
        let mut errors = self.validate_create(new);
        if SOURCES
            .iter()
            .any(|kind| new["spec"].get(*kind) != old["spec"].get(*kind))
        {
            errors.push(FieldError::forbidden(
                "spec.persistentvolumesource",
                "spec.persistentvolumesource is immutable after creation",
            ));
        }
        immutable(
            &FieldPath::new("volumeMode"),
            at(new, &["spec", "volumeMode"]),
            at(old, &["spec", "volumeMode"]),
            &mut errors,
        );
        // It may be given once.
        if let Some(before) = at(old, &["spec", "nodeAffinity"]) {
            immutable(
                &FieldPath::new("nodeAffinity"),
                at(new, &["spec", "nodeAffinity"]),
                Some(before),
                &mut errors,
            );
        }
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let text = |path: &[&str]| Value::from(str_at(obj, path));
        let claim = |field: &str| str_at(obj, &["spec", "claimRef", field]);
        let claim = match claim("name") {
            "" => String::new(),
            name => format!("{}/{name}", claim("namespace")),
        };
        vec![
            name(obj),
            text(&["spec", "capacity", "storage"]),
            modes(at(obj, &["spec", "accessModes"])),
            text(&["spec", "persistentVolumeReclaimPolicy"]),
            phase(obj),
            claim.into(),
            class_of(obj).unwrap_or_default().into(),
            or_unset(str_at(obj, &["spec", "volumeAttributesClassName"])),
            text(&["status", "reason"]),
            age_cell(obj, now),
            or_unset(str_at(obj, &["spec", "volumeMode"])),
        ]
    }
}

fn capacity(spec: &Value, errors: &mut Errors) {
    let amounts = map_at(spec, &["capacity"]);
    let path = SPEC.child("capacity");
    if amounts.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if !amounts.contains_key("storage") || amounts.len() > 1 {
        let given = Value::Object(amounts.clone());
        errors.push(FieldError::not_supported(path, given, &["storage"]));
    }
    for (name, amount) in amounts {
        positive(&path.key(name), amount, errors);
    }
}

/// `must be greater than zero`
pub(super) fn positive(path: &FieldPath, amount: &Value, errors: &mut Errors) {
    if Quantity::from_value(amount).is_ok_and(|amount| amount.signum() <= 0) {
        errors.push(FieldError::invalid(
            path,
            amount.clone(),
            "must be greater than zero",
        ));
    }
}

fn source(spec: &Value, has_affinity: bool, errors: &mut Errors) {
    let none = Map::new();
    let spec = spec.as_object().unwrap_or(&none);
    let mut found = SOURCES
        .iter()
        .filter_map(|kind| Some((*kind, spec.get(*kind)?)));
    let Some((kind, source)) = found.next() else {
        errors.push(FieldError::required(SPEC, "must specify a volume type"));
        return;
    };
    let path = SPEC.child(kind);
    one_source(kind, source, &path, errors);
    match kind {
        "local" => {
            let target = str_at(source, &["path"]);
            if target.is_empty() {
                errors.push(FieldError::required(path.child("path"), ""));
            } else {
                no_backsteps(&path.child("path"), target, errors);
            }
            if !has_affinity {
                let why = "Local volume requires node affinity";
                errors.push(FieldError::required(SPEC.child("nodeAffinity"), why));
            }
        }
        "csi" if str_at(source, &["volumeHandle"]).is_empty() => {
            errors.push(FieldError::required(path.child("volumeHandle"), ""));
        }
        _ => {}
    }
    for (kind, _) in found {
        let why = "may not specify more than 1 volume type";
        errors.push(FieldError::forbidden(SPEC.child(kind), why));
    }
    let policy = str_at(&spec["persistentVolumeReclaimPolicy"], &[]);
    if kind == "hostPath" && policy == "Recycle" && str_at(source, &["path"]) == "/" {
        errors.push(FieldError::forbidden(
            SPEC.child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        ));
    }
}

/// The access modes of a volume or a claim.
pub(super) fn access_modes(spec: &Value, path: &FieldPath, missing: &str, errors: &mut Errors) {
    const MODES: [&str; 4] = [
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    let path = path.child("accessModes");
    let modes = amphipod_api::meta::array_at(spec, &["accessModes"]);
    if modes.is_empty() {
        errors.push(FieldError::required(path, missing));
    }
    for mode in modes.iter().filter_map(Value::as_str) {
        one_of(&path, mode, &MODES, errors);
    }
    let alone = |mode: &&Value| **mode == "ReadWriteOncePod";
    if modes.iter().any(|mode| alone(&mode)) && !modes.iter().all(|mode| alone(&mode)) {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(path, why));
    }
}

/// `storageClassName` and `volumeMode` of a volume or a claim.
pub(super) fn class_and_mode(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let class = str_at(spec, &["storageClassName"]);
    if !class.is_empty() {
        problems(
            &path.child("storageClassName"),
            class,
            names::dns1123_subdomain(class),
            errors,
        );
    }
    if let Some(mode) = spec.get("volumeMode").and_then(Value::as_str) {
        one_of(
            &path.child("volumeMode"),
            mode,
            &["Block", "Filesystem"],
            errors,
        );
    }
}

/// `RWO,RWX`: access modes as tables have them.
pub(super) fn modes(list: Option<&Value>) -> Value {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let list = list.and_then(Value::as_array).map_or(&[][..], |l| l);
    let short: Vec<&str> = SHORT
        .iter()
        .filter(|(mode, _)| list.iter().any(|have| have == mode))
        .map(|(_, short)| *short)
        .collect();
    short.join(",").into()
}

/// `status.phase`, or that it is going.
pub(super) fn phase(obj: &Value) -> Value {
    if is_deleting(obj) {
        return "Terminating".into();
    }
    str_at(obj, &["status", "phase"]).into()
}

pub(super) fn or_unset(text: &str) -> Value {
    Value::from(if text.is_empty() { "<unset>" } else { text })
}
