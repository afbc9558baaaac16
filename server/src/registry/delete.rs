//! delete: at once, with grace, or when the finalizers are gone.
//!
//! Behaviour of apiserver's `registry/rest/delete.go` and `generic/registry/store.go` (v1.36): an object with grace or with
//! finalizers is first marked (`deletionTimestamp`); it goes when a delete without grace comes (the node's agent sends it),
//! or when an update takes the last finalizer away.

use std::borrow::Cow;
use std::sync::Arc;

use amphipod_api::{Status, meta};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::write::Committed;
use super::{
    Context, DeleteOptions, ListOptions, Listed, Operation, Propagation, Registry, Request,
    metadata, shown,
};
use crate::cache::Object;
use crate::resources::SubresourceKind;
use crate::store::{Change, Expect};

/// What a delete came to.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object: its last state, or its state with a deletionTimestamp.
    pub object: Arc<Object>,
    /// It is gone. Else it waits for grace or finalizers.
    pub gone: bool,
    /// Answer with the object, also if it is gone. Else, if it is gone, answer with [`Deleted::status`].
    pub answer_object: bool,
    /// `Success` with the name and uid of the object.
    pub status: Status,
}

/// Kinds whose delete answers with the object itself.
const ANSWER_OBJECT: [&str; 8] = [
    "pods",
    "services",
    "serviceaccounts",
    "podtemplates",
    "resourcequotas",
    "persistentvolumes",
    "persistentvolumeclaims",
    "replicationcontrollers",
];

const ATTEMPTS: usize = 32;

/// What is to be done with an object that shall go.
enum Plan {
    Remove,
    /// It is being deleted already, and this request changes nothing.
    Wait,
    /// Write it with a deletionTimestamp.
    Mark(Value),
}

impl Registry {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// 404; 409 if a precondition does not hold; 403 from admission.
    pub async fn delete(
        &self,
        cx: &Context,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        options.check()?;
        let dry_run = cx.dry_run || options.dry_run;
        let (options, warning) = with_default(cx, options);
        warning.into_iter().for_each(|warning| cx.warn(warning));
        let options = &*options;
        let table = self.table(&cx.descriptor);
        for _ in 0..ATTEMPTS {
            let stored = table
                .get(&cx.namespace, name)
                .ok_or_else(|| Status::not_found(&cx.group_resource(), name))?;
            let old = shown(&cx.descriptor, stored.clone()).value();
            self.check_preconditions(cx, &stored, options)?;
            let request = Request {
                context: cx,
                operation: Operation::Delete,
                name,
                old: Some(&old),
                lookup: &*self.cache,
            };
            self.admission.validate(&request, None)?;
            match self.plan_delete(cx, &old, options) {
                Plan::Wait => return Ok(self.deleted(cx, shown(&cx.descriptor, stored), false)),
                Plan::Remove if dry_run => {
                    return Ok(self.deleted(cx, shown(&cx.descriptor, stored), true));
                }
                Plan::Remove => {
                    if let Committed::Done(object) = self.finish_delete(cx, &stored).await? {
                        return Ok(self.deleted(cx, shown(&cx.descriptor, object), true));
                    }
                }
                Plan::Mark(mut new) if dry_run => {
                    let object = self.detached(cx, &mut new, stored.meta.revision)?;
                    return Ok(self.deleted(cx, object, false));
                }
                Plan::Mark(mut new) => {
                    let expect = Expect::Revision(stored.meta.revision);
                    if let Committed::Done(object) =
                        self.commit_put(cx, name, expect, &mut new).await?
                    {
                        return Ok(self.deleted(cx, object, false));
                    }
                }
            }
        }
        Err(Status::modified(&cx.group_resource(), name))
    }

    /// Deletes all objects that a list would give. Answers with what was listed.
    ///
    /// # Errors
    /// As [`Registry::list`], and the first refusal of a delete; objects before it are deleted.
    pub async fn delete_collection(
        &self,
        cx: &Context,
        options: &DeleteOptions,
        list: &ListOptions,
    ) -> Result<Listed, Status> {
        let (options, warning) = with_default(cx, options);
        warning.into_iter().for_each(|warning| cx.warn(warning));
        let options = &*options;
        let mut listed = self.list(cx, list).await?;
        for item in &mut listed.items {
            let target;
            // A list over all namespaces names objects of each.
            let cx = if cx.namespace == *item.meta.namespace {
                cx
            } else {
                target = Context {
                    dry_run: cx.dry_run,
                    ..Context::new(
                        cx.user.clone(),
                        cx.descriptor.clone(),
                        &*item.meta.namespace,
                    )
                };
                &target
            };
            match self.delete(cx, &item.meta.name, options).await {
                Ok(deleted) => *item = deleted.object,
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Ok(listed)
    }

    fn check_preconditions(
        &self,
        cx: &Context,
        stored: &Object,
        options: &DeleteOptions,
    ) -> Result<(), Status> {
        let name = &stored.meta.name;
        if let Some(uid) = options
            .uid
            .as_deref()
            .filter(|uid| **uid != *stored.meta.uid)
        {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                stored.meta.uid
            );
            return Err(Status::conflict(&cx.group_resource(), name, why));
        }
        let version = stored.meta.revision.to_string();
        if let Some(wanted) = options
            .resource_version
            .as_deref()
            .filter(|wanted| **wanted != *version)
        {
            let why = format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                 ({version}). The object might have been modified"
            );
            return Err(Status::conflict(&cx.group_resource(), name, why));
        }
        Ok(())
    }

    fn plan_delete(&self, cx: &Context, old: &Value, options: &DeleteOptions) -> Plan {
        let now = Timestamp::now();
        let mut new = old.clone();
        let finalizable = cx
            .descriptor
            .subresources
            .iter()
            .any(|sub| sub.what == SubresourceKind::Finalize);
        if finalizable && !meta::array_at(old, &["spec", "finalizers"]).is_empty() {
            // A namespace: it goes when the namespace controller has emptied it and its spec.finalizers.
            if meta::is_deleting(old) {
                return Plan::Wait;
            }
            metadata::set_finalizers(&mut new, &finalizers_after(old, options));
            meta::metadata_mut(&mut new).insert(
                "deletionTimestamp".into(),
                amphipod_api::time::format_time(now).into(),
            );
            meta::child(&mut new, "status").insert("phase".into(), "Terminating".into());
            return Plan::Mark(new);
        }
        let grace = self.grace(cx, old, options, now);
        if let Grace::Pending = grace {
            return Plan::Wait;
        }
        let finalizers = finalizers_after(old, options);
        metadata::set_finalizers(&mut new, &finalizers);
        match grace {
            Grace::Seconds { seconds, until } if seconds > 0 || !finalizers.is_empty() => {
                metadata::mark_deleting(&mut new, until, seconds);
                Plan::Mark(new)
            }
            Grace::None if !finalizers.is_empty() => {
                let marked = meta::deletion_timestamp(old).filter(|when| *when <= now);
                metadata::mark_deleting(&mut new, marked.unwrap_or(now), 0);
                if new == *old {
                    Plan::Wait
                } else {
                    Plan::Mark(new)
                }
            }
            _ => Plan::Remove,
        }
    }

    /// Whether and how the object goes gracefully.
    fn grace(&self, cx: &Context, old: &Value, options: &DeleteOptions, now: Timestamp) -> Grace {
        let requested = options
            .grace_period_seconds
            .map(|seconds| if seconds < 0 { 1 } else { seconds });
        let context = self.strategy_context(cx, now);
        let Some(deleting) = meta::deletion_timestamp(old) else {
            return match cx
                .descriptor
                .strategy
                .delete_grace(&context, old, requested)
            {
                None => Grace::None,
                Some(seconds) => Grace::Seconds {
                    seconds,
                    until: later(now, seconds),
                },
            };
        };
        match meta::i64_at(old, &["metadata", "deletionGracePeriodSeconds"]) {
            None | Some(0) => Grace::None,
            // Grace can only be made shorter.
            Some(had) => match requested {
                Some(seconds) if seconds < had => Grace::Seconds {
                    seconds,
                    until: later(deleting, seconds - had),
                },
                _ => Grace::Pending,
            },
        }
    }

    /// Takes the object away, if it is still at this version.
    pub(super) async fn finish_delete(
        &self,
        cx: &Context,
        stored: &Object,
    ) -> Result<Committed, Status> {
        let event = crate::cache::EventType::Deleted;
        if cx.dry_run {
            return Ok(Committed::Done(Arc::new(
                stored.restamped(stored.meta.revision, event),
            )));
        }
        let expect = Expect::Revision(stored.meta.revision);
        Ok(
            match self
                .commit(cx, &stored.meta.name, expect, Change::Delete, true)
                .await?
            {
                Some(revision) => Committed::Done(Arc::new(stored.restamped(revision, event))),
                None => Committed::Conflict,
            },
        )
    }

    /// Whether an update took away the last thing that a deletion waited for.
    pub(super) fn goes_with_update(&self, cx: &Context, new: &Value, old: &Value) -> bool {
        if !meta::is_deleting(old) || meta::finalizers(new).next().is_some() {
            return false;
        }
        let finalizable = cx
            .descriptor
            .subresources
            .iter()
            .any(|sub| sub.what == SubresourceKind::Finalize);
        if finalizable {
            return meta::array_at(new, &["spec", "finalizers"]).is_empty();
        }
        meta::i64_at(old, &["metadata", "deletionGracePeriodSeconds"]) == Some(0)
    }

    fn deleted(&self, cx: &Context, object: Arc<Object>, gone: bool) -> Deleted {
        let status = Status::deleted(&cx.group_resource(), &object.meta.name, &object.meta.uid);
        let answer_object = ANSWER_OBJECT.contains(&&*cx.descriptor.resource());
        Deleted {
            object,
            gone,
            answer_object,
            status,
        }
    }
}

enum Grace {
    /// The kind knows no grace, or it is over.
    None,
    Seconds {
        seconds: i64,
        until: Timestamp,
    },
    /// It is under way, and not made shorter.
    Pending,
}

fn later(when: Timestamp, seconds: i64) -> Timestamp {
    when.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(when)
}

/// What the request says, and where it says nothing of the dependents, the kind; with a warning if they stay.
fn with_default<'a>(
    cx: &Context,
    options: &'a DeleteOptions,
) -> (Cow<'a, DeleteOptions>, Option<&'static str>) {
    match cx.descriptor.strategy.orphans_by_default() {
        Some(warning) if options.propagation.is_none() && options.orphan_dependents.is_none() => {
            let mut options = options.clone();
            options.propagation = Some(Propagation::Orphan);
            (Cow::Owned(options), Some(warning))
        }
        _ => (Cow::Borrowed(options), None),
    }
}

/// The finalizers of the object once deletion has begun: the garbage collector's two follow the propagation policy.
fn finalizers_after(old: &Value, options: &DeleteOptions) -> Vec<String> {
    let has = |name: &str| meta::finalizers(old).any(|finalizer| finalizer == name);
    let explicit = options.propagation.or(match options.orphan_dependents {
        Some(true) => Some(Propagation::Orphan),
        Some(false) => Some(Propagation::Background),
        None => None,
    });
    let orphan = explicit.map_or_else(
        || has(metadata::ORPHAN),
        |policy| policy == Propagation::Orphan,
    );
    let foreground = explicit.map_or_else(
        || has(metadata::FOREGROUND),
        |policy| policy == Propagation::Foreground,
    );
    let mut finalizers: Vec<String> = meta::finalizers(old)
        .filter(|finalizer| *finalizer != metadata::ORPHAN && *finalizer != metadata::FOREGROUND)
        .map(str::to_owned)
        .collect();
    if orphan {
        finalizers.push(metadata::ORPHAN.to_owned());
    } else if foreground {
        finalizers.push(metadata::FOREGROUND.to_owned());
    }
    finalizers
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_policy_decides_over_the_collectors_finalizers() {
        let old = json!({"metadata": {"finalizers": ["a/b", "orphan"]}});
        let with = |propagation| {
            finalizers_after(
                &old,
                &DeleteOptions {
                    propagation,
                    ..DeleteOptions::default()
                },
            )
        };
        assert_eq!(with(None), ["a/b", "orphan"]);
        assert_eq!(with(Some(Propagation::Background)), ["a/b"]);
        assert_eq!(
            with(Some(Propagation::Foreground)),
            ["a/b", "foregroundDeletion"]
        );
        let old_style = DeleteOptions {
            orphan_dependents: Some(false),
            ..DeleteOptions::default()
        };
        assert_eq!(finalizers_after(&old, &old_style), ["a/b"]);
    }
}
