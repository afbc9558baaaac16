//! What an apply and any other write do to an object and to its fields' owners: the updater of structured-merge-diff.

use jiff::Timestamp;
use serde_json::Value;

use super::managed::{last_applied, not_owned};
use super::typed::{At, compare, merge, remove, set_of, with_named_fields};
use super::{Duplicate, FieldSet, Managed, Manager, Operation};
use crate::resources::schema::Ty;

/// Fields of somebody else that an apply would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As messages name it: `"kubectl" using apps/v1 at 2026-01-01T00:00:00Z`.
    pub manager: String,
    /// As messages name them: `.spec.replicas`.
    pub fields: Vec<String>,
}

/// What an apply made.
#[derive(Debug)]
pub enum Applied {
    Done { object: Value, managed: Managed },
    Conflicts(Vec<Conflict>),
}

/// Who applies, and how.
pub struct Applying<'a> {
    pub manager: &'a Manager,
    /// Take over what others own.
    pub force: bool,
    pub now: Timestamp,
}

/// Applies `config` to `live` (neither with `managedFields`): what it sets is set and becomes the manager's; what the manager set by
/// its last apply and now leaves out goes, if nobody else owns it.
///
/// `owned` says which of the configuration's fields count: those of the object, or of its subresource.
///
/// # Errors
/// [`Duplicate`] for a configuration that is ambiguous.
pub fn apply(
    live: &Value,
    config: &Value,
    root: &Ty,
    before: &Managed,
    how: &Applying<'_>,
    owned: fn(FieldSet) -> FieldSet,
) -> Result<Applied, Duplicate> {
    let (at, manager) = (At::root(root), how.manager);
    let mut set = owned(set_of(config, at)?.difference(&not_owned()));
    // The object itself is nobody's, also where nothing is said of it.
    set.member = false;
    let mut managed = before.clone();
    let last = before.get(manager).cloned();
    managed.set(manager, set.clone());
    let mut object = merge(live, config, at);
    if let Some(last) = last {
        object = prune(object, &last, &managed, at);
    }

    let changes = compare(live, &object, at);
    let touched = changes.modified.union(&changes.added);
    let conflicts: Vec<(&Manager, FieldSet)> = managed
        .others(manager)
        .map(|(other, theirs)| (other, theirs.intersection(&touched)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !how.force && !conflicts.is_empty() && !excused(&conflicts, live, root, manager) {
        let told = conflicts.iter().map(|(other, fields)| Conflict {
            manager: spoken(other, managed.time(other)),
            fields: fields.paths(),
        });
        return Ok(Applied::Conflicts(told.collect()));
    }
    managed.take_from_others(manager, &touched);
    managed.take_from_others(manager, &changes.removed);
    let same = touched.is_empty() && changes.removed.is_empty();
    if !same || managed.time(manager).is_none() {
        managed.stamp(manager, how.now);
    }
    Ok(Applied::Done { object, managed })
}

/// Whether the conflicts are all about what `kubectl apply` on the client's side wrote down: kubectl may take that over.
fn excused(conflicts: &[(&Manager, FieldSet)], live: &Value, root: &Ty, manager: &Manager) -> bool {
    let allowed = last_applied(live, root).filter(|_| manager.name == "kubectl");
    allowed.is_some_and(|allowed| {
        conflicts
            .iter()
            .all(|(_, fields)| fields.difference(&allowed).is_empty())
    })
}

/// `merged` without what the manager's last apply set and nobody owns now.
fn prune(merged: Value, last: &FieldSet, managed: &Managed, at: At<'_>) -> Value {
    let fields = |value: &Value| {
        let set = set_of(value, at).unwrap_or_default();
        with_named_fields(&set, at)
    };
    let without = |set: &FieldSet| remove(merged.clone(), set, at).unwrap_or_default();
    let last = with_named_fields(last, at);
    let all = fields(&merged);
    // All that the last apply was about ...
    let left = fields(&without(&last));
    // ... but for what somebody owns, this manager by its new configuration included, and for what is nobody's to give ...
    let mut owned = not_owned();
    for (_, theirs) in managed.iter() {
        owned.unite(&with_named_fields(theirs, at));
    }
    let left = fields(&without(&all.difference(&left.union(&owned))));
    // ... and for what the last apply did not name and has lost only its surroundings.
    without(&all.difference(&left).intersection(&last))
}

/// The owners after another write than an apply: what it changed is the manager's.
pub fn note_update(
    old: &Value,
    new: &Value,
    root: &Ty,
    before: &Managed,
    manager: &Manager,
    now: Timestamp,
) -> Managed {
    let changes = compare(old, new, At::root(root));
    let touched = changes
        .modified
        .union(&changes.added)
        .difference(&not_owned());
    let removed = changes.removed;
    let mut managed = before.clone();
    if touched.is_empty() && removed.is_empty() {
        return managed;
    }
    managed.take_from_others(manager, &touched);
    managed.take_from_others(manager, &removed);
    let mine = managed.get(manager).cloned().unwrap_or_default();
    managed.set(manager, mine.difference(&removed).union(&touched));
    managed.stamp(manager, now);
    managed.bound();
    managed
}

/// A manager as messages have it.
fn spoken(manager: &Manager, time: Option<&str>) -> String {
    let mut text = format!("{:?}", manager.name);
    if !manager.subresource.is_empty() {
        text += &format!(" with subresource {:?}", manager.subresource);
    }
    if manager.operation == Operation::Update {
        text += &format!(" using {}", manager.api_version);
        if let Some(time) = time {
            text += &format!(" at {time}");
        }
    }
    text
}

/// What a user is told of conflicts, in upstream's words.
pub fn conflict_message(conflicts: &[Conflict]) -> String {
    let count: usize = conflicts.iter().map(|conflict| conflict.fields.len()).sum();
    if let ([conflict], 1) = (conflicts, count) {
        let field = conflict.fields.concat();
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {field}",
            conflict.manager
        );
    }
    let each: Vec<String> = conflicts
        .iter()
        .map(|conflict| {
            let fields: String = conflict.fields.iter().map(|f| format!("\n- {f}")).collect();
            format!("conflicts with {}:{fields}", conflict.manager)
        })
        .collect();
    format!("Apply failed with {count} conflicts: {}", each.join("\n"))
}
