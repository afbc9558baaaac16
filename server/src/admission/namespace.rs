//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going, and some never go.

use amphipod_api::Status;
use amphipod_api::gvk::GroupResource;
use amphipod_api::meta::{is_deleting, str_at};
use amphipod_api::status::StatusCause;
use serde_json::Value;

use super::{forbidden, is_about};
use crate::registry::{Admission, Operation, Request};

/// Namespaces that are never deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl Admission for NamespaceLifecycle {
    fn admit(&self, request: &Request<'_>, _: &mut Value) -> Result<(), Status> {
        let context = request.context;
        if context.namespace.is_empty()
            || matches!(request.operation, Operation::Delete | Operation::Connect)
            || context.descriptor.group == "authorization.k8s.io"
        {
            return Ok(());
        }
        let Some(namespace) = request.lookup.get("namespaces", "", &context.namespace) else {
            return Err(Status::not_found(
                &GroupResource::new("", "namespaces"),
                &context.namespace,
            ));
        };
        let going =
            is_deleting(&namespace) || str_at(&namespace, &["status", "phase"]) == "Terminating";
        if request.operation != Operation::Create || !going {
            return Ok(());
        }
        let name = &context.namespace;
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        let mut status = forbidden(request, why);
        status
            .details
            .get_or_insert_default()
            .causes
            .push(StatusCause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {name} is being terminated"),
                field: "metadata.namespace".into(),
            });
        Err(status)
    }

    fn validate(&self, request: &Request<'_>, _: Option<&Value>) -> Result<(), Status> {
        if request.operation == Operation::Delete
            && is_about(request, "namespaces", None)
            && IMMORTAL.contains(&request.name)
        {
            return Err(forbidden(request, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
