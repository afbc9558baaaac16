//! Values seen through their schemas: which fields are set, what merging makes, what differs, and values without some fields.
//! The rules are those of `sigs.k8s.io/structured-merge-diff`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::FieldSet;
use super::set::spoken;
use crate::resources::schema::{Merge, Struct, Ty, is_atomic};

/// A place in a schema.
#[derive(Clone, Copy)]
pub struct At<'s> {
    ty: &'s Ty,
    /// What the field that leads here says about merging.
    merge: Option<&'static Merge>,
}

/// How values of a place are taken apart.
enum Shape<'s> {
    /// As a whole: scalars, and what the API says is one.
    Leaf,
    /// Fields by name; without a struct, keys of a map.
    Fields(Option<&'s Struct>),
    /// Items by the fields that make their key.
    Keyed(&'static [&'static str]),
    /// Items by their value.
    Values,
}

/// A list that holds two items with one key, or one without: it cannot be applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Duplicate {
    pub path: String,
    pub problem: String,
}

/// What differs between two values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

const ANY: Ty = Ty::Any;

impl<'s> At<'s> {
    pub fn root(ty: &'s Ty) -> At<'s> {
        At { ty, merge: None }
    }

    fn whole(&self) -> bool {
        self.merge.is_some_and(|merge| merge.list_type == "atomic")
    }

    fn shape(&self, value: &Value) -> Shape<'s> {
        match (self.ty, value) {
            (Ty::Struct(fields), Value::Object(_)) if !self.whole() && !is_atomic(&fields.name) => {
                Shape::Fields(Some(fields))
            }
            (Ty::Map(_) | Ty::Any, Value::Object(_)) if !self.whole() => Shape::Fields(None),
            (Ty::List(_), Value::Array(_)) => match self.merge.map(|m| (m.list_type, m.map_keys)) {
                Some(("map", keys)) => Shape::Keyed(keys),
                Some(("set", _)) => Shape::Values,
                _ => Shape::Leaf,
            },
            _ => Shape::Leaf,
        }
    }

    fn field(&self, name: &str) -> At<'s> {
        match self.ty {
            Ty::Struct(fields) => match fields.field(name) {
                Some(field) => At {
                    ty: &field.ty,
                    merge: field.merge,
                },
                None => At::root(&ANY),
            },
            Ty::Map(value) => At::root(value),
            _ => At::root(&ANY),
        }
    }

    fn item(&self) -> At<'s> {
        At::root(self.ty.item().unwrap_or(&ANY))
    }

    /// The place behind a step of a path.
    fn step(&self, step: &str) -> At<'s> {
        match step.strip_prefix("f:") {
            Some(name) => self.field(name),
            None => self.item(),
        }
    }
}

/// The step to an item. `None` for items without their key.
fn step_of(item: &Value, shape: &Shape<'_>) -> Option<String> {
    match shape {
        Shape::Values => Some(format!("v:{item}")),
        Shape::Keyed(keys) => {
            let mut key = BTreeMap::new();
            for name in *keys {
                let value = match item.get(*name) {
                    Some(value) if !value.is_null() => value.clone(),
                    // The one key field with a default: of ports.
                    _ if *name == "protocol" => "TCP".into(),
                    _ => return None,
                };
                key.insert(*name, value);
            }
            serde_json::to_string(&key)
                .ok()
                .map(|key| format!("k:{key}"))
        }
        Shape::Leaf | Shape::Fields(_) => None,
    }
}

/// Items by their steps; of several with one step, the first.
fn by_step<'v>(items: &'v [Value], shape: &Shape<'_>) -> BTreeMap<String, &'v Value> {
    let mut found = BTreeMap::new();
    for item in items {
        if let Some(step) = step_of(item, shape) {
            found.entry(step).or_insert(item);
        }
    }
    found
}

/// The fields that a value sets.
///
/// # Errors
/// [`Duplicate`]
pub fn set_of(value: &Value, at: At<'_>) -> Result<FieldSet, Duplicate> {
    let mut set = FieldSet::default();
    let shape = at.shape(value);
    match (&shape, value) {
        (Shape::Fields(fields), Value::Object(map)) if !map.is_empty() => {
            for (name, value) in map {
                let step = format!("f:{name}");
                let mut below = below(set_of(value, at.field(name)), &step)?;
                // A key of a map is there or not, whatever it leads to.
                below.member |= fields.is_none_or(|fields| fields.field(name).is_none());
                set.insert(step, below);
            }
        }
        (Shape::Keyed(_) | Shape::Values, Value::Array(items)) if !items.is_empty() => {
            for item in items {
                let Some(step) = step_of(item, &shape) else {
                    return Err(problem(format!("an item lacks a field of its key: {item}")));
                };
                if set.children.contains_key(&step) {
                    return Err(problem(format!("two items have the key {}", &step[2..])));
                }
                let mut below = match shape {
                    Shape::Keyed(_) => below(set_of(item, at.item()), &step)?,
                    _ => FieldSet::default(),
                };
                below.member = true;
                set.insert(step, below);
            }
        }
        _ => set.member = true,
    }
    Ok(set)
}

fn problem(problem: String) -> Duplicate {
    Duplicate {
        path: String::new(),
        problem,
    }
}

/// A problem further down, with the path so far.
fn below(found: Result<FieldSet, Duplicate>, step: &str) -> Result<FieldSet, Duplicate> {
    found.map_err(|found| Duplicate {
        path: format!("{}{}", spoken(step), found.path),
        problem: found.problem,
    })
}

/// `live` with what `config` sets: structs and maps field by field, keyed lists and sets item by item, all else as a whole. Items keep
/// their order, and new ones stand where `config` has them.
pub fn merge(live: &Value, config: &Value, at: At<'_>) -> Value {
    let shape = at.shape(config);
    match (&shape, live, config) {
        (Shape::Fields(_), Value::Object(live), Value::Object(config)) => {
            let mut made = live.clone();
            for (name, value) in config {
                let merged = match live.get(name) {
                    Some(live) => merge(live, value, at.field(name)),
                    None => value.clone(),
                };
                made.insert(name.clone(), merged);
            }
            Value::Object(made)
        }
        (Shape::Keyed(_) | Shape::Values, Value::Array(live), Value::Array(config)) => {
            Value::Array(merge_items(live, config, &shape, at))
        }
        _ => config.clone(),
    }
}

fn merge_items(live: &[Value], config: &[Value], shape: &Shape<'_>, at: At<'_>) -> Vec<Value> {
    let (old, new) = (by_step(live, shape), by_step(config, shape));
    let mut made = Vec::with_capacity(live.len().max(config.len()));
    let mut done = BTreeSet::new();
    let mut put = |item: &Value, made: &mut Vec<Value>| {
        let step = step_of(item, shape).unwrap_or_default();
        if done.insert(step.clone()) {
            made.push(match old.get(&step) {
                Some(old) if matches!(shape, Shape::Keyed(_)) => merge(old, item, at.item()),
                _ => item.clone(),
            });
        }
    };
    let mut coming = config.iter();
    for item in live {
        match step_of(item, shape).and_then(|step| new.get_key_value(&step)) {
            // Not spoken of: it stays, also when it has no key.
            None => made.push(item.clone()),
            // What the configuration has before it comes first.
            Some((step, _)) => {
                for next in coming.by_ref() {
                    put(next, &mut made);
                    if step_of(next, shape).as_ref() == Some(step) {
                        break;
                    }
                }
            }
        }
    }
    coming.for_each(|item| put(item, &mut made));
    made
}

/// What differs. The order of a keyed list is no difference.
pub fn compare(old: &Value, new: &Value, at: At<'_>) -> Changes {
    changes(Some(old), Some(new), at)
}

fn changes<'v>(old: Option<&'v Value>, new: Option<&'v Value>, at: At<'_>) -> Changes {
    let mut found = Changes::default();
    let Some(value) = new.or(old).filter(|_| old != new) else {
        return found;
    };
    let shape = at.shape(value);
    let steps: Vec<(String, Option<&'v Value>, Option<&'v Value>, At<'_>)> = match shape {
        Shape::Fields(_) if fits(old, Value::is_object) && fits(new, Value::is_object) => {
            let [old, new] = [old, new].map(|v| v.and_then(Value::as_object));
            let names: BTreeSet<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
            let of = |map: Option<&'v Map<String, Value>>, name| map.and_then(|map| map.get(name));
            names
                .into_iter()
                .map(|n| (format!("f:{n}"), of(old, n), of(new, n), at.field(n)))
                .collect()
        }
        Shape::Keyed(_) | Shape::Values
            if fits(old, Value::is_array) && fits(new, Value::is_array) =>
        {
            let [old, new] = [old, new].map(|v| {
                let items = v.and_then(Value::as_array).map(Vec::as_slice);
                by_step(items.unwrap_or_default(), &shape)
            });
            let steps: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
            steps
                .into_iter()
                .map(|step| {
                    let (old, new) = (old.get(&step).copied(), new.get(&step).copied());
                    (step, old, new, at.item())
                })
                .collect()
        }
        _ => Vec::new(),
    };
    if steps.is_empty() || old.is_none() || new.is_none() {
        let place = match (old, new) {
            (None, _) => &mut found.added,
            (_, None) => &mut found.removed,
            _ => &mut found.modified,
        };
        place.member = true;
    }
    for (step, old, new, at) in steps {
        let below = changes(old, new, at);
        found.added.insert(step.clone(), below.added);
        found.modified.insert(step.clone(), below.modified);
        found.removed.insert(step, below.removed);
    }
    found
}

fn fits(value: Option<&Value>, is: fn(&Value) -> bool) -> bool {
    value.is_none_or(is)
}

/// The value without the fields and items of `set`; `None` if nothing is left of what was something.
pub fn remove(value: Value, set: &FieldSet, at: At<'_>) -> Option<Value> {
    let shape = at.shape(&value);
    match (&shape, value) {
        (Shape::Fields(_), Value::Object(map)) if !map.is_empty() => {
            let kept: Map<String, Value> = map
                .into_iter()
                .filter_map(|(name, value)| {
                    let kept = match set.children.get(&format!("f:{name}")) {
                        None => value,
                        Some(below) if below.member => return None,
                        Some(below) => remove(value, below, at.field(&name))?,
                    };
                    Some((name, kept))
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        (Shape::Keyed(_) | Shape::Values, Value::Array(items)) if !items.is_empty() => {
            let kept: Vec<Value> = items
                .into_iter()
                .filter_map(|item| {
                    let below = step_of(&item, &shape).and_then(|step| set.children.get(&step));
                    match below {
                        None => Some(item),
                        Some(below) if below.member => None,
                        Some(below) => remove(item, below, at.item()),
                    }
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        (_, value) => Some(value),
    }
}

/// The set with every field of a struct that it goes through.
pub fn with_named_fields(set: &FieldSet, at: At<'_>) -> FieldSet {
    let mut made = FieldSet {
        member: set.member,
        children: BTreeMap::new(),
    };
    for (step, below) in &set.children {
        let mut below = with_named_fields(below, at.step(step));
        if let (Ty::Struct(fields), Some(name)) = (at.ty, step.strip_prefix("f:")) {
            below.member |= fields.field(name).is_some();
        }
        made.children.insert(step.clone(), below);
    }
    made
}
