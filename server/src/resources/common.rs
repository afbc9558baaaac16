//! Steps that the strategies of several kinds share.

use amphipod_api::meta::{child, generation, metadata_mut};
use serde_json::{Map, Value};

/// Sets a field unless it is there.
pub fn fill(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), value.into());
    }
}

/// As [`fill`], and an empty string counts as absent.
pub fn fill_text(map: &mut Map<String, Value>, field: &str, value: &str) {
    if map
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .is_empty()
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// The object at a field, if it is there.
pub fn object_mut<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field)?.as_object_mut()
}

/// The objects in the list at a field.
pub fn items_mut<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

/// `spec`, made if it is not there.
pub fn spec_mut(obj: &mut Value) -> &mut Map<String, Value> {
    child(obj, "spec")
}

/// Takes a top-level field of `old` over into `new`.
pub fn keep(new: &mut Value, old: &Value, field: &str) {
    let Some(map) = new.as_object_mut() else {
        return;
    };
    match old.get(field) {
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

/// Takes a field of `metadata` over.
pub fn keep_meta(new: &mut Value, old: &Value, field: &str) {
    let value = old.get("metadata").and_then(|m| m.get(field)).cloned();
    let meta = metadata_mut(new);
    match value {
        Some(value) => {
            meta.insert(field.to_owned(), value);
        }
        None => {
            meta.remove(field);
        }
    }
}

/// Sets `metadata.generation`.
pub fn set_generation(obj: &mut Value, generation: i64) {
    metadata_mut(obj).insert("generation".into(), generation.into());
}

/// A create of a kind whose spec is the user's and whose status is the controllers': an empty status, generation 1.
pub fn create_with_status(obj: &mut Value, status: Value) {
    set_generation(obj, 1);
    if let Some(map) = obj.as_object_mut() {
        map.insert("status".into(), status);
    }
}

/// An update of such a kind: through `status` only the status changes, otherwise everything else; the generation grows
/// when a field of `watched` changed.
pub fn update_with_status(new: &mut Value, old: &Value, sub: Option<&str>, watched: &[&str]) {
    if sub == Some("status") {
        keep(new, old, "spec");
        set_generation_like(new, old, 0);
        return;
    }
    keep(new, old, "status");
    raise_generation(new, old, watched);
}

/// The generation of `old`, one more when a field of `watched` changed.
pub fn raise_generation(new: &mut Value, old: &Value, watched: &[&str]) {
    let changed = watched
        .iter()
        .any(|field| new.get(*field) != old.get(*field));
    set_generation_like(new, old, i64::from(changed));
}

/// The generation of `old`, raised by `by`.
pub fn set_generation_like(new: &mut Value, old: &Value, by: i64) {
    match generation(old) + by {
        0 => {
            metadata_mut(new).remove("generation");
        }
        generation => set_generation(new, generation),
    }
}
