//! Admission: what may change or refuse a write before it is stored. One plugin, one file; each knows only JSON values
//! and what [`Lookup`](crate::resources::Lookup) finds.
//!
//! The plugins are those that upstream turns on by default, as far as the kinds they watch over exist here:
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>.

mod limit_ranger;
mod namespace;
mod node_restriction;
mod node_taint;
mod priority;
mod quota;
mod service_account;
mod storage;
mod tolerations;

use amphipod_api::Status;
use serde_json::Value;

use crate::registry::{Admission, Operation, Request};

pub use limit_ranger::LimitRanger;
pub use namespace::NamespaceLifecycle;
pub use node_restriction::NodeRestriction;
pub use node_taint::TaintNodesByCondition;
pub use priority::Priority;
pub use quota::ResourceQuota;
pub use service_account::ServiceAccount;
pub use storage::Storage;
pub use tolerations::{DefaultTolerationSeconds, DefaultTolerations};

/// Plugins, one after the other; the first refusal counts.
pub struct Chain {
    plugins: Vec<Box<dyn Admission>>,
}

impl Chain {
    /// What every server runs, in upstream's order.
    pub fn standard(tolerations: DefaultTolerations) -> Chain {
        Chain {
            plugins: vec![
                Box::new(NamespaceLifecycle),
                Box::new(LimitRanger),
                Box::new(ServiceAccount),
                Box::new(NodeRestriction),
                Box::new(TaintNodesByCondition),
                Box::new(Priority),
                Box::new(DefaultTolerationSeconds(tolerations)),
                Box::new(Storage),
                Box::new(ResourceQuota),
            ],
        }
    }
}

impl Admission for Chain {
    fn admit(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        self.plugins
            .iter()
            .try_for_each(|plugin| plugin.admit(request, object))
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        self.plugins
            .iter()
            .try_for_each(|plugin| plugin.validate(request, object))
    }
}

/// Whether the request is about this resource (`pods`, `deployments.apps`) and this subresource.
fn is_about(request: &Request<'_>, resource: &str, subresource: Option<&str>) -> bool {
    let context = request.context;
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    context.descriptor.plural == plural
        && context.descriptor.group == group
        && context.subresource.as_deref() == subresource
}

/// Whether a pod is being created.
fn creates_pod(request: &Request<'_>) -> bool {
    request.operation == Operation::Create && is_about(request, "pods", None)
}

/// `pods "x" is forbidden: why`
fn forbidden(request: &Request<'_>, why: impl std::fmt::Display) -> Status {
    Status::forbidden(&request.context.group_resource(), request.name, why)
}

#[cfg(test)]
mod tests;
