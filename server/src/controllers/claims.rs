//! Which objects a controller's object manages: those that it owns and selects. Those that it selects and nobody manages are adopted,
//! those that it owns and no longer selects are released.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#non-template-pod-acquisitions>

use std::sync::Arc;

use amphipod_api::{LabelSelector, Status, meta};
use serde_json::{Value, json};

use super::{Result, Tools};
use crate::cache::{Meta, Object};

/// The one that manages.
pub struct Owner<'a> {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub object: &'a Object,
    pub selector: &'a LabelSelector,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Mine,
    Adopt,
    Release,
    Other,
}

impl Owner<'_> {
    /// The reference by which others name it as their controller.
    pub fn reference(&self) -> Value {
        json!({
            "apiVersion": self.api_version, "kind": self.kind, "name": self.object.meta.name, "uid": self.object.meta.uid,
            "controller": true, "blockOwnerDeletion": true,
        })
    }

    fn judge(&self, other: &Meta) -> Verdict {
        let selected = self.selector.matches(&other.labels);
        match other.controller() {
            Some(controller) if *controller.uid != *self.object.meta.uid => Verdict::Other,
            Some(_) if selected => Verdict::Mine,
            Some(_) if self.object.meta.is_deleting() => Verdict::Other,
            Some(_) => Verdict::Release,
            None if selected && !self.object.meta.is_deleting() && !other.is_deleting() => {
                Verdict::Adopt
            }
            None => Verdict::Other,
        }
    }

    /// The objects of a resource that it manages, after adopting and releasing.
    ///
    /// # Errors
    /// The first adoption or release that was refused, except for objects that went meanwhile.
    pub async fn claim(&self, tools: &Tools, resource: &str) -> Result<Vec<Arc<Object>>> {
        self.claim_those(tools, resource, |_| true).await
    }

    /// As [`Owner::claim`], of those that are `fit` only: others are left alone.
    ///
    /// # Errors
    /// As [`Owner::claim`].
    pub async fn claim_those(
        &self,
        tools: &Tools,
        resource: &str,
        fit: impl Fn(&Meta) -> bool,
    ) -> Result<Vec<Arc<Object>>> {
        self.claim_all(tools, resource, fit, None).await
    }

    /// As [`Owner::claim`]; what is adopted gets a finalizer with its owner, what is released loses both.
    ///
    /// # Errors
    /// As [`Owner::claim`].
    pub async fn claim_marked(
        &self,
        tools: &Tools,
        resource: &str,
        finalizer: &str,
    ) -> Result<Vec<Arc<Object>>> {
        self.claim_all(tools, resource, |_| true, Some(finalizer))
            .await
    }

    async fn claim_all(
        &self,
        tools: &Tools,
        resource: &str,
        fit: impl Fn(&Meta) -> bool,
        finalizer: Option<&str>,
    ) -> Result<Vec<Arc<Object>>> {
        let table = tools.table(resource);
        let owner = &self.object.meta;
        let mut candidates = table.by_owner(&owner.uid);
        table.for_each(Some(&owner.namespace), |object| {
            if object.meta.controller().is_none() && self.judge(&object.meta) == Verdict::Adopt {
                candidates.push(object.clone());
            }
        });
        let mut mine = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            if candidate.meta.namespace != owner.namespace || !fit(&candidate.meta) {
                continue;
            }
            let own = match self.judge(&candidate.meta) {
                Verdict::Mine => {
                    mine.push(candidate);
                    continue;
                }
                Verdict::Other => continue,
                Verdict::Adopt => true,
                Verdict::Release => false,
            };
            let changed = self.set_owner(tools, resource, &candidate, own, finalizer);
            match changed.await {
                Ok(object) if self.judge(&object.meta) == Verdict::Mine => mine.push(object),
                Ok(_) => {}
                Err(status) if status.is_not_found() || status.is_conflict() => {}
                Err(status) => return Err(status),
            }
        }
        Ok(mine)
    }

    async fn set_owner(
        &self,
        tools: &Tools,
        resource: &str,
        object: &Object,
        own: bool,
        finalizer: Option<&str>,
    ) -> Result<Arc<Object>> {
        let context = tools.context(resource, &object.meta.namespace)?;
        let change = |value: &mut Value| {
            if meta::uid(value) != &*object.meta.uid {
                return Err(Status::not_found(
                    &context.group_resource(),
                    &object.meta.name,
                ));
            }
            let owners = meta::metadata_mut(value)
                .entry("ownerReferences")
                .or_insert_with(|| json!([]));
            let Some(owners) = owners.as_array_mut() else {
                return Ok(());
            };
            owners.retain(|owner| owner["uid"] != *self.object.meta.uid);
            // Somebody else was faster.
            if own && owners.iter().any(|owner| owner["controller"] == true) {
                return Ok(());
            }
            if own {
                owners.push(self.reference());
            }
            match finalizer {
                Some(finalizer) if own => meta::add_finalizer(value, finalizer),
                Some(finalizer) => meta::remove_finalizer(value, finalizer),
                None => {}
            }
            Ok(())
        };
        tools
            .registry
            .update_with(&context, &object.meta.name, change)
            .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cache::{FieldSet, detached};

    fn object(labels: Value, owner: Option<&str>, deleting: bool) -> Arc<Object> {
        let mut value =
            json!({"metadata": {"name": "a", "namespace": "n", "uid": "mine", "labels": labels}});
        if let Some(uid) = owner {
            let owner = json!({"apiVersion": "v1", "kind": "K", "name": "o", "uid": uid, "controller": true});
            value["metadata"]["ownerReferences"] = json!([owner]);
        }
        if deleting {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        detached(&mut value, 1, &FieldSet::default()).unwrap()
    }

    #[test]
    fn the_selected_are_adopted_the_others_released_and_nobody_is_robbed() {
        let selector = LabelSelector::parse("app=a").unwrap();
        let (alive, going) = (
            object(json!({}), None, false),
            object(json!({}), None, true),
        );
        let judge = |owner: &Object, other: Arc<Object>| {
            let owner = Owner {
                api_version: "apps/v1",
                kind: "ReplicaSet",
                object: owner,
                selector: &selector,
            };
            owner.judge(&other.meta)
        };
        let (fits, not) = (json!({"app": "a"}), json!({"app": "b"}));
        for (object, alive_says, going_says) in [
            (
                object(fits.clone(), Some("mine"), false),
                Verdict::Mine,
                Verdict::Mine,
            ),
            (
                object(not.clone(), Some("mine"), false),
                Verdict::Release,
                Verdict::Other,
            ),
            (
                object(fits.clone(), None, false),
                Verdict::Adopt,
                Verdict::Other,
            ),
            (
                object(fits.clone(), None, true),
                Verdict::Other,
                Verdict::Other,
            ),
            (object(not, None, false), Verdict::Other, Verdict::Other),
            (
                object(fits, Some("other"), false),
                Verdict::Other,
                Verdict::Other,
            ),
        ] {
            assert_eq!(
                judge(&alive, object.clone()),
                alive_says,
                "{}",
                object.value()
            );
            assert_eq!(
                judge(&going, object.clone()),
                going_says,
                "{}",
                object.value()
            );
        }
    }
}
