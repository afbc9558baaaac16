//! `metadata`, which all kinds have. Source: apimachinery `pkg/api/validation/objectmeta.go`.

use amphipod_api::meta::{annotations, array_at, bool_at, generation, labels, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::{Map, Value};

use super::{Errors, immutable, non_negative, problems};
use crate::resources::Descriptor;

const METADATA: FieldPath = FieldPath::new("metadata");

/// Everything wrong with the metadata of an object of this kind.
pub fn metadata_create(descriptor: &Descriptor, obj: &Value) -> Errors {
    let mut errors = Vec::new();
    let rule = descriptor.strategy.name_rule();
    let generate_name = str_at(obj, &["metadata", "generateName"]);
    if !generate_name.is_empty() {
        // What is appended later is alphanumeric: a prefix may end with a dash.
        let prefix = generate_name.strip_suffix('-').unwrap_or(generate_name);
        let prefix = if prefix.is_empty() { "-" } else { prefix };
        for problem in rule(prefix) {
            errors.push(FieldError::invalid(
                METADATA.child("generateName"),
                generate_name,
                problem,
            ));
        }
    }
    let name = str_at(obj, &["metadata", "name"]);
    if name.is_empty() {
        errors.push(FieldError::required(
            METADATA.child("name"),
            "name or generateName is required",
        ));
    } else {
        problems(&METADATA.child("name"), name, rule(name), &mut errors);
    }
    let namespace = str_at(obj, &["metadata", "namespace"]);
    if descriptor.namespaced() {
        if namespace.is_empty() {
            errors.push(FieldError::required(METADATA.child("namespace"), ""));
        } else {
            problems(
                &METADATA.child("namespace"),
                namespace,
                names::dns1123_label(namespace),
                &mut errors,
            );
        }
    } else if !namespace.is_empty() {
        errors.push(FieldError::forbidden(
            METADATA.child("namespace"),
            "not allowed on this type",
        ));
    }
    errors.extend(common(obj));
    errors
}

/// Everything wrong with a change of metadata. The new object must already carry what the server fills in
/// (uid, creationTimestamp, resourceVersion).
pub fn metadata_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let field = |v: &'_ Value, f: &str| v.get("metadata").and_then(|m| m.get(f)).cloned();
    if generation(new) < generation(old) {
        errors.push(FieldError::invalid(
            METADATA.child("generation"),
            generation(new),
            "must not be decremented",
        ));
    }
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, old) = (field(new, name), field(old, name));
        immutable(
            &METADATA.child(name),
            new.as_ref(),
            old.as_ref(),
            &mut errors,
        );
    }
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        // Only deletion sets them; an update may leave them out or repeat them.
        if let Some(value) = field(new, name)
            && Some(&value) != field(old, name).as_ref()
        {
            errors.push(FieldError::invalid(
                METADATA.child(name),
                value,
                super::IMMUTABLE,
            ));
        }
    }
    if !str_at(old, &["metadata", "deletionTimestamp"]).is_empty() {
        let before = array_at(old, &["metadata", "finalizers"]);
        let added: Vec<Value> = array_at(new, &["metadata", "finalizers"])
            .iter()
            .filter(|f| !before.contains(f))
            .cloned()
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                METADATA.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
    }
    errors.extend(common(new));
    errors
}

fn common(obj: &Value) -> Errors {
    let mut errors = Vec::new();
    let generation = obj.get("metadata").and_then(|m| m.get("generation"));
    non_negative(&METADATA.child("generation"), generation, &mut errors);
    errors.extend(names::labels(pairs(labels(obj)), &METADATA.child("labels")));
    errors.extend(names::annotations(
        pairs(annotations(obj)),
        &METADATA.child("annotations"),
    ));
    owners(obj, &mut errors);
    let path = METADATA.child("finalizers");
    for (index, finalizer) in array_at(obj, &["metadata", "finalizers"])
        .iter()
        .enumerate()
    {
        finalizer_name(
            &path.index(index),
            finalizer.as_str().unwrap_or_default(),
            &mut errors,
        );
    }
    conflicting_finalizers(obj, &mut errors);
    errors
}

pub(super) fn pairs(map: &Map<String, Value>) -> impl Iterator<Item = (&str, &str)> {
    map.iter()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn finalizer_name(path: &FieldPath, name: &str, errors: &mut Errors) {
    problems(path, name, names::qualified_name(name), errors);
    if !name.contains('/') && !["orphan", "foregroundDeletion", "kubernetes"].contains(&name) {
        errors.push(FieldError::invalid(
            path,
            name,
            "name is neither a standard finalizer name nor is it fully qualified",
        ));
    }
}

fn conflicting_finalizers(obj: &Value, errors: &mut Errors) {
    let finalizers = array_at(obj, &["metadata", "finalizers"]);
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(FieldError::invalid(
            METADATA.child("finalizers"),
            Value::Array(finalizers.to_vec()),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

fn owners(obj: &Value, errors: &mut Errors) {
    let path = METADATA.child("ownerReferences");
    let mut controller = "";
    for (index, owner) in array_at(obj, &["metadata", "ownerReferences"])
        .iter()
        .enumerate()
    {
        let path = path.index(index);
        let (version, kind) = (str_at(owner, &["apiVersion"]), str_at(owner, &["kind"]));
        let name = str_at(owner, &["name"]);
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(FieldError::invalid(
                path.child("apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        for (field, value) in [
            ("kind", kind),
            ("name", name),
            ("uid", str_at(owner, &["uid"])),
        ] {
            if value.is_empty() {
                errors.push(FieldError::invalid(
                    path.child(field),
                    value,
                    "must not be empty",
                ));
            }
        }
        if version == "v1" && kind == "Event" {
            errors.push(FieldError::invalid(
                path,
                "",
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if bool_at(owner, &["controller"]) == Some(true) {
            if controller.is_empty() {
                controller = name;
            } else {
                errors.push(FieldError::invalid(
                    METADATA.child("ownerReferences"),
                    Value::Array(array_at(obj, &["metadata", "ownerReferences"]).to_vec()),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                    ),
                ));
            }
        }
    }
}
