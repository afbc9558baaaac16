//! Readers and small writers of object metadata over `serde_json::Value`.
//!
//! Readers never fail: what is missing or of the wrong type reads as absent.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::time;

static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// The value at a path of field names.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter()
        .try_fold(object, |value, field| value.get(field))
}

/// The string at a path, `""` if absent.
pub fn str_at<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// The integer at a path.
pub fn i64_at(object: &Value, path: &[&str]) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

/// The boolean at a path.
pub fn bool_at(object: &Value, path: &[&str]) -> Option<bool> {
    at(object, path).and_then(Value::as_bool)
}

/// The items of the array at a path; none if absent.
pub fn array_at<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The map at a path; empty if absent.
pub fn map_at<'a>(object: &'a Value, path: &[&str]) -> &'a Map<String, Value> {
    at(object, path)
        .and_then(Value::as_object)
        .unwrap_or(&EMPTY)
}

fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    str_at(object, &["metadata", field])
}

pub fn name(object: &Value) -> &str {
    meta_str(object, "name")
}

/// `""` for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    meta_str(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    meta_str(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    meta_str(object, "resourceVersion")
}

/// `namespace/name`, or `name` for cluster-scoped objects.
pub fn key(object: &Value) -> String {
    join_key(namespace(object), name(object))
}

/// `namespace/name`, or `name` if the namespace is empty.
pub fn join_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_string()
    } else {
        format!("{namespace}/{name}")
    }
}

/// The reverse of [`join_key`].
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

pub fn generation(object: &Value) -> i64 {
    i64_at(object, &["metadata", "generation"]).unwrap_or(0)
}

pub fn labels(object: &Value) -> &Map<String, Value> {
    map_at(object, &["metadata", "labels"])
}

pub fn annotations(object: &Value) -> &Map<String, Value> {
    map_at(object, &["metadata", "annotations"])
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object).get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object).get(key)?.as_str()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    array_at(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
}

/// Adds a finalizer, unless it is there.
pub fn add_finalizer(object: &mut Value, finalizer: &str) {
    let list = metadata_mut(object)
        .entry("finalizers")
        .or_insert_with(|| json!([]));
    if let Value::Array(list) = list
        && !list.iter().any(|have| have == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// Takes a finalizer away.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let metadata = metadata_mut(object);
    if let Some(Value::Array(list)) = metadata.get_mut("finalizers") {
        list.retain(|have| have != finalizer);
        if list.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

pub fn creation_timestamp(object: &Value) -> Option<Timestamp> {
    time::parse_time(meta_str(object, "creationTimestamp"))
}

/// Set once the object is being deleted.
pub fn deletion_timestamp(object: &Value) -> Option<Timestamp> {
    time::parse_time(meta_str(object, "deletionTimestamp"))
}

pub fn is_deleting(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
}

/// `metadata.ownerReferences`, as written.
pub fn owner_references(object: &Value) -> &[Value] {
    array_at(object, &["metadata", "ownerReferences"])
}

/// The one owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object)
        .iter()
        .find(|r| bool_at(r, &["controller"]) == Some(true))
}

/// Whether the object with this uid is the controller of `object`.
pub fn is_controlled_by(object: &Value, owner_uid: &str) -> bool {
    controller_of(object).is_some_and(|r| str_at(r, &["uid"]) == owner_uid)
}

/// An owner reference to `owner` as its controller that blocks foreground deletion, as controllers write it.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": str_at(owner, &["apiVersion"]),
        "kind": str_at(owner, &["kind"]),
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The object at a field of `parent`, made if it is not there (or is no object).
pub fn child<'a>(parent: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !parent.is_object() {
        *parent = Value::Object(Map::new());
    }
    let Value::Object(map) = parent else {
        unreachable!("made an object above")
    };
    let value = map.entry(field).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(map) = value else {
        unreachable!("made an object above")
    };
    map
}

/// `metadata`, made if it is not there.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_in(object, "labels", key, value);
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_in(object, "annotations", key, value);
}

fn set_in(object: &mut Value, field: &str, key: &str, value: &str) {
    let map = metadata_mut(object).entry(field).or_insert(Value::Null);
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    if let Value::Object(map) = map {
        map.insert(key.into(), Value::from(value));
    }
}

/// The condition of a type in `status.conditions`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    array_at(object, &["status", "conditions"])
        .iter()
        .find(|c| str_at(c, &["type"]) == kind)
}

/// Whether the condition of a type has status `True`.
pub fn condition_is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| str_at(c, &["status"]) == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_take_anything() {
        for strange in [
            json!(null),
            json!([]),
            json!({"metadata": 3}),
            json!({"metadata": {"labels": []}}),
        ] {
            assert_eq!(name(&strange), "");
            assert!(labels(&strange).is_empty());
            assert!(controller_of(&strange).is_none());
            assert!(!is_deleting(&strange));
        }
    }

    #[test]
    fn controllers_are_found() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "uid": "u"}});
        let pod =
            json!({"metadata": {"ownerReferences": [{"uid": "x"}, controller_reference(&owner)]}});
        assert!(is_controlled_by(&pod, "u"));
        assert!(!is_controlled_by(&pod, "x"));
    }

    #[test]
    fn labels_are_set_where_there_were_none() {
        let mut object = json!({"metadata": null});
        set_label(&mut object, "a", "b");
        assert_eq!(object, json!({"metadata": {"labels": {"a": "b"}}}));
    }

    #[test]
    fn keys_join_and_split() {
        assert_eq!(split_key("a/b"), ("a", "b"));
        assert_eq!(split_key("b"), ("", "b"));
        assert_eq!(join_key("", "b"), "b");
    }
}
