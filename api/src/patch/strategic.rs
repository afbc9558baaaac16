//! Strategic merge patch: a merge patch that knows which lists are sets of keyed elements.
//!
//! Format: <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>.
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::text::go_value;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// What strategic merge must know about one field of an object type. The default: objects merge, lists are replaced,
/// nothing is known below.
#[derive(Clone, Debug)]
pub struct Field<S> {
    /// Patch strategy `merge`: a list merges, element by element.
    pub merge: bool,
    /// Patch strategy `replace`: an object is replaced as a whole.
    pub replace: bool,
    /// The field by which elements of a merged list of objects are the same (`x-kubernetes-patch-merge-key`).
    pub merge_key: Option<Cow<'static, str>>,
    /// The type of the field's object, or of its list's elements, or of its map's values' container, if known.
    pub schema: Option<S>,
}

impl<S> Default for Field<S> {
    fn default() -> Self {
        Field {
            merge: false,
            replace: false,
            merge_key: None,
            schema: None,
        }
    }
}

/// The type of an object, as far as patches go: answers for each field. A handle that is cheap to clone (a reference or
/// an index into a table). Map types (labels, limits) answer the same for every key.
pub trait PatchSchema: Clone {
    fn field(&self, name: &str) -> Field<Self>;
}

/// Knows nothing: every object merges, every list is replaced.
#[derive(Clone, Copy, Debug)]
pub struct NoSchema;

impl PatchSchema for NoSchema {
    fn field(&self, _name: &str) -> Field<NoSchema> {
        Field::default()
    }
}

/// Merges `patch` into `document`, an object of type `schema`. On an error the document is half-patched: patch a copy.
pub fn apply_strategic_merge_patch<S: PatchSchema>(
    document: &mut Value,
    patch: &Value,
    schema: &S,
) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(malformed(
            "error decoding patch: a strategic merge patch must be an object",
        ));
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(document) = document else {
        return Ok(());
    };
    merge_object(document, patch.clone(), Some(schema))
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

fn field_of<S: PatchSchema>(schema: Option<&S>, name: &str) -> Field<S> {
    schema.map_or_else(Field::default, |s| s.field(name))
}

fn merge_object<S: PatchSchema>(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<&S>,
) -> Result<(), PatchError> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("replace") => {
                // The rest is taken as it is, nulls and all.
                *original = patch;
                return Ok(());
            }
            Some("delete") => {
                original.clear();
                return Ok(());
            }
            Some("merge") => {}
            _ => return Err(malformed(format!("unknown patch type found: {directive}"))),
        },
    }
    retain_keys(original, &mut patch)?;
    merge_ordered_lists(original, &mut patch, schema)?;
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_FROM_LIST) {
            if let Some(Value::Array(list)) = original.get_mut(name) {
                let Value::Array(gone) = value else {
                    return Err(malformed(format!("{key} must be a list")));
                };
                let gone = Places::of(&gone, None);
                list.retain(|item| gone.find(item, None).is_none());
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.get_mut(&key) else {
            if let Some(value) = without_directives(value) {
                original.insert(key, value);
            }
            continue;
        };
        let field = field_of(schema, &key);
        match (old, value) {
            (Value::Object(old), Value::Object(mut value)) => {
                if field.replace {
                    value.remove(DIRECTIVE);
                    *old = clean_object(value);
                } else {
                    merge_object(old, value, field.schema.as_ref())?;
                }
            }
            (Value::Array(old), Value::Array(value)) => {
                merge_list(old, value, &field, &key)?;
            }
            (old, value) => match without_directives(value) {
                Some(value) => *old = value,
                None => {
                    original.remove(&key);
                }
            },
        }
    }
    Ok(())
}

/// `$retainKeys` names all fields that may stay; the patch may set no others.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(kept) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let kept: HashSet<&str> = kept
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for (key, value) in &*patch {
        let directive = key.starts_with(DELETE_FROM_LIST) || key.starts_with(ELEMENT_ORDER);
        if !value.is_null() && !directive && !kept.contains(key.as_str()) {
            return Err(bad());
        }
    }
    original.retain(|key, _| kept.contains(key.as_str()));
    Ok(())
}

/// Merges the lists that have a `$setElementOrder` directive, and takes both out of the patch.
fn merge_ordered_lists<S: PatchSchema>(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: Option<&S>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let name = &directive[ELEMENT_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed(format!("{directive} must be a list")));
        };
        let field = field_of(schema, name);
        let key = field.merge_key.as_deref();
        let changes = match patch.get(name) {
            None => None,
            Some(Value::Array(_)) => patch.remove(name),
            // Not a list (null deletes): the ordinary way deals with it.
            Some(_) => continue,
        };
        let changes = match changes {
            Some(Value::Array(changes)) => Some(changes),
            _ => None,
        };
        if let Some(changes) = &changes {
            check_order(changes, &order, key)?;
        }
        let server = match original.get(name) {
            None => None,
            Some(Value::Array(list)) => Some(list.clone()),
            Some(_) => {
                return Err(malformed(format!(
                    "{name} is not a list, but {directive} is given"
                )));
            }
        };
        let mut order_left = server.clone().unwrap_or_default();
        let mut merged = match (&server, changes) {
            (None, None) => continue,
            (Some(list), None) => list.clone(),
            (None, Some(changes)) => clean_list(changes),
            (Some(list), Some(changes)) => {
                let mut list = list.clone();
                if let Some(left) = merge_list(&mut list, changes, &field, name)? {
                    order_left = left;
                }
                list
            }
        };
        sort_like(&mut merged, &order, &order_left, key);
        original.insert(name.into(), Value::Array(merged));
    }
    Ok(())
}

/// What makes list elements the same: their merge key's value, or for scalars themselves.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match (item, key) {
        (Value::Object(map), Some(key)) => map.get(key),
        (Value::Object(_), None) => None,
        (scalar, _) => Some(scalar),
    }
}

/// Where the elements of a list are, by identity (as JSON text): lists may be long, and looking each up in turn slow.
struct Places(HashMap<String, usize>);

impl Places {
    fn of(list: &[Value], key: Option<&str>) -> Places {
        let mut places = HashMap::with_capacity(list.len());
        for (at, item) in list.iter().enumerate() {
            if let Some(id) = identity(item, key) {
                places.entry(id.to_string()).or_insert(at);
            }
        }
        Places(places)
    }

    fn find(&self, item: &Value, key: Option<&str>) -> Option<usize> {
        self.0.get(&identity(item, key)?.to_string()).copied()
    }
}

/// The changed elements must stand in the order that the directive gives.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if changes.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut changed = changes
        .iter()
        .filter(|c| c.get(DIRECTIVE) != Some(&"delete".into()))
        .peekable();
    let mut order_left = order.iter();
    // As upstream does it: a directive is passed over only while there is order left to compare with.
    while let (Some(item), Some(wanted)) = (changed.peek(), order_left.as_slice().first()) {
        if item.get(DIRECTIVE).is_none() {
            order_left.next();
            if identity(item, key).is_none() || identity(item, key) != identity(wanted, key) {
                continue;
            }
        }
        changed.next();
    }
    if changed.peek().is_some() {
        let (changes, order) = (changes.to_vec().into(), order.to_vec().into());
        return Err(malformed(format!(
            "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
            go_value(&changes),
            go_value(&order)
        )));
    }
    Ok(())
}

/// Merges a list. If elements were deleted, tells the order of the server's list that this leaves: what stayed, and then
/// as many new elements as were deleted. (Upstream merges in place, so new elements get into the places that deleted
/// ones left, and a later `$setElementOrder` takes them for the server's own. What users see depends on it.)
fn merge_list<S: PatchSchema>(
    original: &mut Vec<Value>,
    patch: Vec<Value>,
    field: &Field<S>,
    name: &str,
) -> Result<Option<Vec<Value>>, PatchError> {
    if !field.merge {
        *original = clean_list(patch);
        return Ok(None);
    }
    if original.is_empty() && patch.is_empty() {
        return Ok(None);
    }
    let objects = original
        .iter()
        .chain(&patch)
        .filter(|v| v.is_object())
        .count();
    if objects == 0 {
        merge_scalars(original, patch);
        return Ok(None);
    }
    if objects != original.len() + patch.len() {
        return Err(malformed(format!(
            "list element types are not identical in {name}"
        )));
    }
    let Some(key) = field.merge_key.as_deref() else {
        return Err(malformed(format!(
            "cannot merge lists without merge key for {name}"
        )));
    };
    merge_keyed(original, patch, key, field.schema.as_ref())
}

/// A list of scalars with strategy `merge` is a set.
fn merge_scalars(original: &mut Vec<Value>, patch: Vec<Value>) {
    let server = original.clone();
    let mut seen = HashSet::new();
    original.extend(patch.iter().cloned());
    original.retain(|value| seen.insert(value.to_string()));
    sort_like(original, &patch, &server, None);
}

fn merge_keyed<S: PatchSchema>(
    original: &mut Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    schema: Option<&S>,
) -> Result<Option<Vec<Value>>, PatchError> {
    let no_key = |item: &Value| {
        malformed(format!(
            "map: {} does not contain declared merge key: {key}",
            go_value(item)
        ))
    };
    let (mut changes, mut gone, mut replace) = (Vec::with_capacity(patch.len()), Vec::new(), false);
    for mut item in patch {
        let directive = item.as_object_mut().and_then(|map| map.remove(DIRECTIVE));
        match directive.as_ref().map(|d| d.as_str()) {
            None => changes.push(item),
            Some(Some("delete")) => {
                if item.get(key).is_none() {
                    return Err(malformed("delete patch type with no merge key defined"));
                }
                gone.push(item);
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => {
                return Err(malformed(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            Some(_) => return Err(malformed(format!("unknown patch type found in {item}"))),
        }
    }
    let before = original.len();
    if !gone.is_empty() {
        let gone = Places::of(&gone, Some(key));
        original.retain(|old| gone.find(old, Some(key)).is_none());
    }
    let server = original.clone();
    let deleted = before - server.len();
    if replace {
        *original = clean_list(changes);
        return Ok((deleted > 0).then_some(server));
    }
    let mut places = Places::of(original, Some(key));
    for item in &changes {
        let id = item.get(key).ok_or_else(|| no_key(item))?;
        match places.find(item, Some(key)) {
            Some(at) => {
                if let (Value::Object(old), Value::Object(new)) = (&mut original[at], item) {
                    merge_object(old, new.clone(), schema)?;
                }
            }
            None => {
                places.0.insert(id.to_string(), original.len());
                original.extend(without_directives(item.clone()));
            }
        }
    }
    let left = (deleted > 0).then(|| original[..original.len().min(before)].to_vec());
    sort_like(original, &changes, &server, Some(key));
    Ok(left)
}

/// Orders a merged list: elements named in `order` in its order, others in the server's, interleaved so that others keep
/// their places relative to their old neighbours where that is possible.
fn sort_like(list: &mut Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) {
    let (in_order, on_server) = (Places::of(order, key), Places::of(server, key));
    let mut ordered: Vec<(usize, Option<usize>, Value)> = Vec::new();
    let mut others: Vec<(Option<usize>, Value)> = Vec::new();
    for item in list.drain(..) {
        let server_place = on_server.find(&item, key);
        match in_order.find(&item, key) {
            Some(at) => ordered.push((at, server_place, item)),
            None => others.push((server_place, item)),
        }
    }
    ordered.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));
    let (mut ordered, mut others) = (
        ordered.into_iter().peekable(),
        others.into_iter().peekable(),
    );
    loop {
        let other_first = match (others.peek(), ordered.peek()) {
            (None, None) => return,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((Some(a), _)), Some((_, Some(b), _))) => a < b,
            _ => false,
        };
        if other_first {
            list.extend(others.next().map(|(_, item)| item));
        } else {
            list.extend(ordered.next().map(|(.., item)| item));
        }
    }
}

/// A value of the patch that meets nothing in the document: without nulls and directives. `None` for what says `$patch: delete`.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut map) => match map.remove(DIRECTIVE) {
            Some(Value::String(d)) if d == "delete" => None,
            _ => Some(Value::Object(clean_object(map))),
        },
        Value::Array(items) => Some(Value::Array(clean_list(items))),
        scalar => Some(scalar),
    }
}

fn clean_object(map: Map<String, Value>) -> Map<String, Value> {
    let is_directive = |key: &str| {
        key == DIRECTIVE
            || key == RETAIN_KEYS
            || key.starts_with(ELEMENT_ORDER)
            || key.starts_with(DELETE_FROM_LIST)
    };
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .filter_map(|(key, value)| Some((key, without_directives(value)?)))
        .collect()
}

fn clean_list(items: Vec<Value>) -> Vec<Value> {
    // An element that holds nothing but `$patch: replace` is a note, not an element.
    let is_note = |item: &Value| {
        item.as_object()
            .is_some_and(|map| map.len() == 1 && map.contains_key(DIRECTIVE))
    };
    items
        .into_iter()
        .filter(|item| !is_note(item))
        .filter_map(without_directives)
        .collect()
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
