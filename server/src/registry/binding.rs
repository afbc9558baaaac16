//! `pods/binding`: the scheduler's word on where a pod runs; and `pods/eviction`.
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/binding-v1/>

use amphipod_api::{FieldError, GroupKind, GroupResource, Status, meta, time};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::write::Committed;
use super::{Context, DeleteOptions, Operation, Registry, Request};
use crate::store::Expect;

const ATTEMPTS: usize = 8;

impl Registry {
    /// Binds a pod to the node that a Binding names.
    ///
    /// # Errors
    /// 404; 409 if the pod is bound or being deleted; 422 for a Binding without a node.
    pub async fn bind(&self, cx: &Context, name: &str, binding: &Value) -> Result<Status, Status> {
        let node = meta::str_at(binding, &["target", "name"]);
        let kind = meta::str_at(binding, &["target", "kind"]);
        let mut errors = Vec::new();
        if !kind.is_empty() && kind != "Node" {
            errors.push(FieldError::not_supported(
                "target.kind",
                kind,
                &["Node", "<empty>"],
            ));
        }
        if node.is_empty() {
            errors.push(FieldError::required("target.name", ""));
        }
        if !errors.is_empty() {
            return Err(Status::invalid(
                &GroupKind {
                    group: String::new(),
                    kind: "Binding".into(),
                },
                name,
                &errors,
            ));
        }
        let conflict = |why: String| {
            let resource = GroupResource {
                group: String::new(),
                resource: "pods/binding".into(),
            };
            Err(Status::conflict(&resource, name, why))
        };
        for _ in 0..ATTEMPTS {
            let stored = self
                .table(&cx.descriptor)
                .get(&cx.namespace, name)
                .ok_or_else(|| Status::not_found(&cx.group_resource(), name))?;
            let old = stored.value();
            let (uid, version) = (meta::uid(binding), meta::resource_version(binding));
            if !uid.is_empty() && uid != &*stored.meta.uid {
                return conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    stored.meta.uid
                ));
            }
            if !version.is_empty() && version != stored.meta.revision.to_string() {
                return Err(Status::modified(&cx.group_resource(), name));
            }
            if stored.meta.is_deleting() {
                return conflict(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                ));
            }
            let assigned = meta::str_at(&old, &["spec", "nodeName"]);
            if !assigned.is_empty() {
                return conflict(format!(
                    "pod {name} is already assigned to node {assigned:?}"
                ));
            }
            if !meta::array_at(&old, &["spec", "schedulingGates"]).is_empty() {
                return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = node.into();
            for (key, value) in meta::annotations(binding) {
                meta::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
            }
            set_scheduled(&mut new, &time::format_time(Timestamp::now()));
            let request = Request {
                context: cx,
                operation: Operation::Update,
                name,
                old: Some(&old),
                lookup: &*self.cache,
            };
            self.admission.validate(&request, Some(&new))?;
            if cx.dry_run {
                return Ok(created());
            }
            let expect = Expect::Revision(stored.meta.revision);
            if let Committed::Done(_) = self.commit_put(cx, name, expect, &mut new).await? {
                return Ok(created());
            }
        }
        Err(Status::modified(&cx.group_resource(), name))
    }

    /// Evicts a pod: deletes it with the options that the Eviction carries.
    ///
    /// # Errors
    /// As [`Registry::delete`].
    pub async fn evict(
        &self,
        cx: &Context,
        name: &str,
        eviction: &Value,
    ) -> Result<Status, Status> {
        let have = meta::name(eviction);
        if !have.is_empty() && have != name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let options = DeleteOptions::from_value(&eviction["deleteOptions"])?;
        self.delete(cx, name, &options).await?;
        Ok(created())
    }
}

/// `Success`, as a POST answers it.
fn created() -> Status {
    let mut status = Status::success();
    status.code = 201;
    status
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = meta::child(pod, "status")
        .entry("conditions")
        .or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|have| have["type"] == "PodScheduled")
    {
        Some(have) => *have = condition,
        None => conditions.push(condition),
    }
}
