//! `metadata`: what the server fills in, what a client may not change, and what is valid, for all kinds alike.
//! Behaviour of apiserver's `registry/rest` and apimachinery's `validation/objectmeta.go` (v1.36).

use std::collections::HashSet;

use amphipod_api::{FieldError, FieldPath, meta, names, time};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::fields::Managed;

const METADATA: FieldPath<'static> = FieldPath::new("metadata");

/// The finalizer that makes the garbage collector let dependents go on without an owner.
pub const ORPHAN: &str = "orphan";
/// The finalizer that makes the garbage collector delete dependents first.
pub const FOREGROUND: &str = "foregroundDeletion";

/// Fields that only the server sets on a new object.
pub fn fill(object: &mut Value, namespace: &str, now: Timestamp) {
    let metadata = meta::metadata_mut(object);
    for field in [
        "selfLink",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), time::format_time(now).into());
}

/// Takes `managedFields` off an object.
pub fn take_managed(object: &mut Value) -> Value {
    let taken = meta::metadata_mut(object).remove("managedFields");
    taken.unwrap_or_default()
}

/// Gives an object these `managedFields`, or none.
pub fn set_managed(object: &mut Value, managed: &Managed) {
    let metadata = meta::metadata_mut(object);
    if managed.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), managed.write());
    }
}

/// Takes over from the stored object what an update may leave out or never changes.
pub fn carry_over(new: &mut Value, old: &Value) {
    let old = meta::map_at(old, &["metadata"]);
    let new = meta::metadata_mut(new);
    new.remove("selfLink");
    for field in [
        "creationTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "name",
    ] {
        copy(field, old, new);
    }
    for field in ["uid", "namespace"] {
        if new
            .get(field)
            .is_none_or(|value| value.is_null() || value == "")
        {
            copy(field, old, new);
        }
    }
    if old.contains_key("deletionTimestamp") {
        copy("deletionTimestamp", old, new);
        if !new.contains_key("deletionGracePeriodSeconds") {
            copy("deletionGracePeriodSeconds", old, new);
        }
    }
}

fn copy(field: &str, from: &Map<String, Value>, to: &mut Map<String, Value>) {
    match from.get(field) {
        Some(value) => drop(to.insert(field.to_owned(), value.clone())),
        None => drop(to.remove(field)),
    }
}

/// Everything wrong with the metadata of a new object.
pub fn validate_create(
    object: &Value,
    namespaced: bool,
    name_rule: fn(&str) -> Vec<String>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let generate = meta::str_at(object, &["metadata", "generateName"]);
    if !generate.is_empty() {
        // What counts is that names made from it are valid: a trailing dash is.
        let sample = format!("{generate}x");
        let field = METADATA.child("generateName");
        errors.extend(
            name_rule(&sample)
                .into_iter()
                .map(|why| FieldError::invalid(field, generate, why)),
        );
    }
    let name = meta::name(object);
    let field = METADATA.child("name");
    if name.is_empty() {
        errors.push(FieldError::required(
            field,
            "name or generateName is required",
        ));
    } else {
        errors.extend(
            name_rule(name)
                .into_iter()
                .map(|why| FieldError::invalid(field, name, why)),
        );
    }
    let namespace = meta::namespace(object);
    let field = METADATA.child("namespace");
    if !namespaced && !namespace.is_empty() {
        errors.push(FieldError::forbidden(field, "not allowed on this type"));
    } else if namespaced && namespace.is_empty() {
        errors.push(FieldError::required(field, ""));
    } else if namespaced {
        let problems = names::dns1123_label(namespace);
        errors.extend(
            problems
                .into_iter()
                .map(|why| FieldError::invalid(field, namespace, why)),
        );
    }
    common(object, &mut errors);
    errors
}

/// Everything wrong with the metadata of a changed object, after [`carry_over`].
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::is_deleting(old) {
        let had: HashSet<&str> = meta::finalizers(old).collect();
        let mut added: Vec<&str> = meta::finalizers(new)
            .filter(|finalizer| !had.contains(finalizer))
            .collect();
        if !added.is_empty() {
            added.sort_unstable();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added
                    .iter()
                    .map(|finalizer| format!("{finalizer:?}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            errors.push(FieldError::forbidden(METADATA.child("finalizers"), why));
        }
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (now, was) = (&new["metadata"][field], &old["metadata"][field]);
        if now != was {
            errors.push(FieldError::invalid(
                METADATA.child(field),
                now.clone(),
                "field is immutable",
            ));
        }
    }
    common(new, &mut errors);
    errors
}

fn common(object: &Value, errors: &mut Vec<FieldError>) {
    fn texts(map: &Map<String, Value>) -> impl Iterator<Item = (&str, &str)> {
        map.iter()
            .map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
    }
    errors.extend(names::labels(
        texts(meta::labels(object)),
        &METADATA.child("labels"),
    ));
    errors.extend(names::annotations(
        texts(meta::annotations(object)),
        &METADATA.child("annotations"),
    ));
    owners(object, errors);
    finalizers(object, errors);
}

fn owners(object: &Value, errors: &mut Vec<FieldError>) {
    let path = METADATA.child("ownerReferences");
    let mut controllers = Vec::new();
    for (index, owner) in meta::owner_references(object).iter().enumerate() {
        let path = path.index(index);
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "kind must not be empty"),
            ("name", "name must not be empty"),
            ("uid", "uid must not be empty"),
        ] {
            if meta::str_at(owner, &[field]).is_empty() {
                errors.push(FieldError::invalid(path.child(field), "", why));
            }
        }
        if meta::str_at(owner, &["apiVersion"]) == "v1" && meta::str_at(owner, &["kind"]) == "Event"
        {
            errors.push(FieldError::invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner["controller"] == true {
            controllers.push(meta::str_at(owner, &["name"]));
        }
    }
    if let [first, second, ..] = controllers[..] {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(
            path,
            Value::from(meta::owner_references(object)),
            why,
        ));
    }
}

fn finalizers(object: &Value, errors: &mut Vec<FieldError>) {
    let path = METADATA.child("finalizers");
    let mut both = (false, false);
    for (index, finalizer) in meta::finalizers(object).enumerate() {
        errors.extend(
            names::qualified_name(finalizer)
                .into_iter()
                .map(|why| FieldError::invalid(path, finalizer, why)),
        );
        both = (
            both.0 || finalizer == ORPHAN,
            both.1 || finalizer == FOREGROUND,
        );
        if !finalizer.contains('/') && ![ORPHAN, FOREGROUND, "kubernetes"].contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(path.index(index), finalizer, why));
        }
    }
    if both == (true, true) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(FieldError::invalid(
            path,
            object["metadata"]["finalizers"].clone(),
            why,
        ));
    }
}

/// Sets `metadata.finalizers`, or removes it if there are none.
pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let metadata = meta::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

/// Marks the object as being deleted at `when`, with so much grace. The generation grows, as upstream has it.
pub fn mark_deleting(object: &mut Value, when: Timestamp, grace: i64) {
    let generation = meta::generation(object);
    let first = !meta::is_deleting(object);
    let metadata = meta::metadata_mut(object);
    if first && generation > 0 {
        metadata.insert("generation".into(), json!(generation + 1));
    }
    metadata.insert("deletionTimestamp".into(), time::format_time(when).into());
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bad_metadata_is_told_field_by_field() {
        let object = json!({"metadata": {"name": "A_", "namespace": "n", "labels": {"a b": "c"}, "finalizers": ["x"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "controller": true},
                {"apiVersion": "v1", "kind": "Pod", "name": "q", "uid": "u", "controller": true}]}});
        let found = texts(&validate_create(&object, true, names::dns1123_subdomain)).join("\n");
        for part in [
            "metadata.name: Invalid value: \"A_\": a lowercase RFC 1123 subdomain",
            "metadata.labels: Invalid value: \"a b\": name part must consist",
            "metadata.ownerReferences[0].uid: Invalid value: \"\": uid must not be empty",
            "Only one reference can have Controller set to true. Found \"true\" in references for p and q",
            "metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name",
        ] {
            assert!(found.contains(part), "{part:?} not in {found}");
        }
        let namespaced = json!({"metadata": {"name": "a", "namespace": "n"}});
        assert_eq!(
            texts(&validate_create(
                &namespaced,
                false,
                names::dns1123_subdomain
            )),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
    }

    #[test]
    fn an_object_being_deleted_gets_no_new_finalizers() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        assert_eq!(
            texts(&validate_update(&new, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}"
            ]
        );
    }

    #[test]
    fn an_update_cannot_take_back_a_deletion() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "deletionTimestamp": "d",
            "deletionGracePeriodSeconds": 3, "resourceVersion": "4", "generation": 2}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9, "managedFields": []}});
        carry_over(&mut new, &old);
        assert_eq!(new, old);
    }
}
