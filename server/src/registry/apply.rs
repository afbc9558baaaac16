//! Server-side apply as a verb, and the owners of what other verbs write. What an apply means is [`crate::fields`]'.

use std::sync::Arc;

use amphipod_api::patch::PatchType;
use amphipod_api::status::StatusCause;
use amphipod_api::{Status, meta};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::metadata::{set_managed, take_managed};
use super::write::{Owners, check_name};
use super::{Context, Input, Registry};
use crate::cache::Object;
use crate::fields::{
    Applied, Applying, Conflict, FieldSet, LAST_APPLIED, Managed, Manager, Operation,
    conflict_message, note_update,
};
use crate::resources::SubresourceKind;
use crate::{fields, resources::Descriptor};

impl Registry {
    /// Applies a configuration. True: the object was created.
    ///
    /// # Errors
    /// 400 for a body that cannot be read or is of another object, 409 with the fields that others own, 415 for subresources that are no part
    /// of the object, 422 for an invalid object or without a field manager.
    pub(super) async fn apply(
        &self,
        cx: &Context,
        name: &str,
        body: &[u8],
    ) -> Result<(Arc<Object>, bool), Status> {
        let part = cx.subresource.as_deref();
        let what = part.map(|name| cx.descriptor.subresource(name).map(|sub| &sub.what));
        if !matches!(what, None | Some(Some(SubresourceKind::Part))) {
            return Err(Status::unsupported_media_type(&[
                PatchType::Json.content_type(),
                PatchType::Merge.content_type(),
                PatchType::StrategicMerge.content_type(),
            ]));
        }
        let mut config = self.decode(cx, Input::Yaml(Bytes::copy_from_slice(body)))?;
        check_name(cx, name, &config)?;
        if !take_managed(&mut config).is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        loop {
            let table = self.table(&cx.descriptor);
            if table.get(&cx.namespace, name).is_some() || part.is_some() {
                let change = |old: &Value| {
                    let (object, managed) = self.applied(cx, old, &config)?;
                    Ok((object, Owners::Are(managed)))
                };
                match self.modify_as(cx, name, change).await {
                    Err(gone) if gone.is_not_found() && part.is_none() => {}
                    done => return Ok((done?, false)),
                }
            }
            match self.create_applied(cx, name, &config).await {
                Err(there) if there.is_already_exists() => {}
                done => return Ok((done?, true)),
            }
        }
    }

    async fn create_applied(
        &self,
        cx: &Context,
        name: &str,
        config: &Value,
    ) -> Result<Arc<Object>, Status> {
        let (group, plural) = (&cx.descriptor.group, &cx.descriptor.plural);
        if !self
            .privileges
            .may(&cx.user, "create", group, plural, &cx.namespace, name)
        {
            let why = format!(
                "User {:?} cannot create resource {plural:?} in API group {group:?}, and there is none to patch",
                cx.user.name
            );
            return Err(Status::forbidden(&cx.group_resource(), name, why));
        }
        let uid = meta::uid(config);
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Status::conflict(&cx.group_resource(), name, why));
        }
        let nothing = json!({"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {"name": name}});
        let (object, managed) = self.applied(cx, &nothing, config)?;
        self.create_value(cx, object, &managed).await
    }

    /// The stored object with the configuration applied, and who owns its fields then.
    fn applied(
        &self,
        cx: &Context,
        old: &Value,
        config: &Value,
    ) -> Result<(Value, Managed), Status> {
        let root = &cx.descriptor.schema().root;
        let mut live = old.clone();
        let mut before = Managed::read(&take_managed(&mut live)).unwrap_or_default();
        if before.is_empty() && !meta::uid(old).is_empty() {
            before = Managed::before_first_apply(&live, root, &cx.descriptor.api_version());
        }
        let how = Applying {
            manager: &manager(cx, Operation::Apply),
            force: cx.force,
            now: Timestamp::now(),
        };
        let applied = fields::apply(&live, config, root, &before, &how, counted(cx))
            .map_err(|problem| unusable(cx, meta::name(config), &problem))?;
        match applied {
            Applied::Conflicts(conflicts) => Err(conflict_status(&conflicts)),
            Applied::Done {
                mut object,
                managed,
            } => {
                if how.manager.name == "kubectl"
                    && meta::annotations(&live).contains_key(LAST_APPLIED)
                {
                    write_last_applied(&mut object, config);
                }
                Ok((object, managed))
            }
        }
    }
}

/// Writes down who owns what another write than an apply changed; `claimed` is what its author says of that. Objects that nobody ever
/// applied have no owners.
pub(super) fn note_owners(cx: &Context, new: &mut Value, old: &Value, claimed: &Value) {
    let stored = &old["metadata"]["managedFields"];
    let before = match claimed.as_array().map(Vec::as_slice) {
        // One empty entry: forget them all.
        Some([entry]) if entry.as_object().is_some_and(|entry| entry.is_empty()) => {
            return set_managed(new, &Managed::default());
        }
        Some([_, ..]) if claimed != stored => {
            Managed::read(claimed).unwrap_or_else(|_| Managed::of(old))
        }
        _ if stored.is_null() => return,
        _ => Managed::of(old),
    };
    let (mut without, mut old) = (new.clone(), old.clone());
    take_managed(&mut without);
    take_managed(&mut old);
    let managed = note_update(
        &old,
        &without,
        &cx.descriptor.schema().root,
        &before,
        &manager(cx, Operation::Update),
        Timestamp::now(),
    );
    set_managed(new, &managed);
}

fn manager(cx: &Context, operation: Operation) -> Manager {
    let name = match &*cx.field_manager {
        "" => "amphipod",
        name => name,
    };
    Manager {
        operation,
        name: name.to_owned(),
        api_version: cx.descriptor.api_version(),
        subresource: cx.subresource.clone().unwrap_or_default(),
    }
}

/// Which fields of a configuration count: the object's, or those of its subresource.
fn counted(cx: &Context) -> fn(FieldSet) -> FieldSet {
    fn has_status(descriptor: &Descriptor) -> bool {
        descriptor.subresource("status").is_some()
    }
    match cx.subresource.as_deref() {
        Some("status") => |set| set.only("status"),
        None if has_status(&cx.descriptor) => |set| set.without("status"),
        _ => |set| set,
    }
}

/// Client-side apply goes on from what was applied last, by whichever way.
fn write_last_applied(object: &mut Value, config: &Value) {
    let mut applied = config.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        annotations.insert(LAST_APPLIED.into(), format!("{applied}\n").into());
    }
}

fn unusable(cx: &Context, name: &str, problem: &fields::Duplicate) -> Status {
    Status::bad_request(format!(
        "failed to create typed patch object ({}/{name}; {}, Kind={}): {problem}",
        cx.namespace,
        cx.descriptor.api_version(),
        cx.descriptor.kind
    ))
}

fn conflict_status(conflicts: &[Conflict]) -> Status {
    let causes = conflicts.iter().flat_map(|conflict| {
        conflict.fields.iter().map(|field| StatusCause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", conflict.manager),
            field: field.clone(),
        })
    });
    Status::apply_conflict(causes.collect(), conflict_message(conflicts))
}
