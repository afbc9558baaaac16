//! `metadata.managedFields`: who owns what, and since when.

use std::collections::BTreeMap;

use amphipod_api::{meta, time};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::FieldSet;
use super::typed::{At, set_of};
use crate::resources::schema::Ty;

/// Where client-side apply keeps what it applied.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// So many entries of updates are kept apart; older ones become one, as upstream.
const MAX_UPDATERS: usize = 10;

/// How a manager came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// It applied them, and what it leaves out of the next apply goes.
    Apply,
    Update,
}

/// Who owns fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub operation: Operation,
    pub name: String,
    pub api_version: String,
    /// Empty for the object itself.
    pub subresource: String,
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    fields: FieldSet,
    /// RFC 3339; when the fields changed last.
    time: Option<String>,
}

/// All managers of an object and their fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed(BTreeMap<Manager, Owned>);

impl Managed {
    /// Reads `managedFields`. Entries of other field types than `FieldsV1` are none.
    ///
    /// # Errors
    /// Says what cannot be read.
    pub fn read(entries: &Value) -> Result<Managed, String> {
        let mut managed = Managed::default();
        for entry in entries.as_array().map(Vec::as_slice).unwrap_or_default() {
            let text = |field: &str| meta::str_at(entry, &[field]).to_owned();
            let operation = match &*text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                // One empty entry is how a client has everything forgotten.
                "" if entry.as_object().is_some_and(Map::is_empty) => continue,
                other => return Err(format!("{other:?} is no operation")),
            };
            let manager = Manager {
                operation,
                name: text("manager"),
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            };
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::default(),
                fields => FieldSet::from_v1(fields)?,
            };
            let time = Some(text("time")).filter(|time| !time.is_empty());
            managed.0.insert(manager, Owned { fields, time });
        }
        Ok(managed)
    }

    /// The managers of an object, none if they cannot be read.
    pub fn of(object: &Value) -> Managed {
        Managed::read(&object["metadata"]["managedFields"]).unwrap_or_default()
    }

    /// Writes `managedFields`: what was applied first, then by time.
    pub fn write(&self) -> Value {
        let mut entries: Vec<(&Manager, &Owned)> = self.0.iter().collect();
        entries
            .sort_by(|(a, x), (b, y)| (a.operation, &x.time, *a).cmp(&(b.operation, &y.time, *b)));
        let entries = entries.into_iter().map(|(manager, owned)| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": match manager.operation { Operation::Apply => "Apply", Operation::Update => "Update" },
                "apiVersion": manager.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": owned.fields.to_v1(),
            });
            if let Some(time) = &owned.time {
                entry["time"] = time.as_str().into();
            }
            if !manager.subresource.is_empty() {
                entry["subresource"] = manager.subresource.as_str().into();
            }
            entry
        });
        Value::Array(entries.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, manager: &Manager) -> Option<&FieldSet> {
        self.0.get(manager).map(|owned| &owned.fields)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Manager, &FieldSet)> {
        self.0
            .iter()
            .map(|(manager, owned)| (manager, &owned.fields))
    }

    /// All others than `manager`.
    pub fn others(&self, manager: &Manager) -> impl Iterator<Item = (&Manager, &FieldSet)> {
        self.iter().filter(move |(other, _)| *other != manager)
    }

    /// Since when a manager has what it has.
    pub fn time(&self, manager: &Manager) -> Option<&str> {
        self.0.get(manager)?.time.as_deref()
    }

    /// Gives a manager these fields, and no others. Its time stays.
    pub fn set(&mut self, manager: &Manager, fields: FieldSet) {
        if fields.is_empty() {
            self.0.remove(manager);
            return;
        }
        match self.0.get_mut(manager) {
            Some(owned) => owned.fields = fields,
            None => drop(self.0.insert(manager.clone(), Owned { fields, time: None })),
        }
    }

    /// Takes fields from all others than `manager`.
    pub fn take_from_others(&mut self, manager: &Manager, taken: &FieldSet) {
        if taken.is_empty() {
            return;
        }
        for (other, owned) in &mut self.0 {
            if other != manager {
                owned.fields = owned.fields.difference(taken);
            }
        }
        self.0.retain(|_, owned| !owned.fields.is_empty());
    }

    /// Notes the time at which a manager's fields changed.
    pub fn stamp(&mut self, manager: &Manager, now: Timestamp) {
        if let Some(owned) = self.0.get_mut(manager) {
            owned.time = Some(time::format_time(now));
        }
    }

    /// Keeps the number of entries bounded: the oldest updates become one entry, `ancient-changes`.
    pub fn bound(&mut self) {
        let mut updates: Vec<(Option<String>, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        if updates.len() <= MAX_UPDATERS {
            return;
        }
        updates.sort();
        for (_, manager) in &updates[..=updates.len() - MAX_UPDATERS] {
            let ancient = Manager {
                name: "ancient-changes".to_owned(),
                ..manager.clone()
            };
            if let Some(owned) = self.0.remove(manager) {
                match self.0.get_mut(&ancient) {
                    Some(there) => there.fields.unite(&owned.fields),
                    None => drop(self.0.insert(ancient, owned)),
                }
            }
        }
    }

    /// Entries for what an object had before anybody applied it: what `kubectl apply` on the client's side wrote down is its own, all
    /// else nobody's in particular.
    pub fn before_first_apply(object: &Value, root: &Ty, api_version: &str) -> Managed {
        let mut managed = Managed::default();
        // What is stored already may be odd: then it has no owner.
        let Ok(all) = set_of(object, At::root(root)) else {
            return managed;
        };
        let all = all.difference(&not_owned()).without("status");
        let mut by_kubectl = last_applied(object, root).unwrap_or_default();
        by_kubectl.unite(&note_of_kubectl());
        let by_kubectl = by_kubectl.intersection(&all);
        let manager = |name: &str| Manager {
            operation: Operation::Update,
            name: name.to_owned(),
            api_version: api_version.to_owned(),
            subresource: String::new(),
        };
        managed.set(&manager("before-first-apply"), all.difference(&by_kubectl));
        managed.set(&manager("kubectl-client-side-apply"), by_kubectl);
        let created = meta::str_at(object, &["metadata", "creationTimestamp"]);
        for owned in managed.0.values_mut() {
            owned.time = Some(created.to_owned()).filter(|time| !time.is_empty());
        }
        managed
    }
}

/// The fields that client-side apply set last.
pub fn last_applied(object: &Value, root: &Ty) -> Option<FieldSet> {
    let text = meta::annotations(object).get(LAST_APPLIED)?.as_str()?;
    let value: Value = serde_json::from_str(text).ok()?;
    Some(
        set_of(&value, At::root(root))
            .ok()?
            .difference(&not_owned()),
    )
}

/// The annotation that client-side apply writes.
fn note_of_kubectl() -> FieldSet {
    let path = ["metadata", "annotations", LAST_APPLIED];
    path.iter().rfold(FieldSet::leaf(), |below, field| {
        let mut set = FieldSet::default();
        set.insert(format!("f:{field}"), below);
        set
    })
}

/// Fields that say which object it is, and what the server alone writes.
pub fn not_owned() -> FieldSet {
    let mut set = FieldSet::default();
    for field in ["apiVersion", "kind", "metadata"] {
        set.insert(format!("f:{field}"), FieldSet::leaf());
    }
    for field in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        if let Some(metadata) = set.children.get_mut("f:metadata") {
            metadata.insert(format!("f:{field}"), FieldSet::leaf());
        }
    }
    set
}
