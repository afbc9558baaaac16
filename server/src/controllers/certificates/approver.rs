//! Says yes to requests of nodes for their own client certificate: the first, by a join token, and every later one, by the node itself.
//!
//! A token lets any box in, but takes no living node's name: such a request waits until that node's Lease is over, or until an
//! administrator approves it.

use std::time::Duration;

use amphipod_api::join::NODE_SIGNER;
use amphipod_api::meta::{array_at, str_at};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use super::{NAME, RESOURCE, condition, node_of, request, usages};
use crate::auth::{Attributes, UserInfo};

pub struct Approver;

/// How soon a request that waits for an old node's end is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

impl Controller for Approver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(RESOURCE, itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, &key.name))
    }
}

async fn reconcile(tools: &Tools, name: &str) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get("", name) else {
        return Ok(Outcome::Done);
    };
    let csr = object.value();
    let open = condition(&csr, "Approved").is_none() && condition(&csr, "Denied").is_none();
    if !open || str_at(&csr, &["spec", "signerName"]) != NODE_SIGNER {
        return Ok(Outcome::Done);
    }
    // What is not a request of a node is left to administrators.
    let Ok((_, info)) = request(&csr) else {
        return Ok(Outcome::Done);
    };
    let Ok(node) = node_of(&info, &usages(&csr)) else {
        return Ok(Outcome::Done);
    };
    let user = requester(&csr);
    let may = |subresource| {
        let ask = Attributes {
            subresource,
            ..Attributes::resource(
                &user,
                "create",
                "certificates.k8s.io",
                "certificatesigningrequests",
            )
        };
        tools.config.authorizer.authorize(&ask).is_ok()
    };
    let message = if user.name == info.common_name && may("selfnodeclient") {
        "Auto approving self kubelet client certificate after SubjectAccessReview."
    } else if may("nodeclient") {
        if alive(tools, node) {
            return Ok(Outcome::After(AGAIN));
        }
        "Auto approving kubelet client certificate after SubjectAccessReview."
    } else {
        return Ok(Outcome::Done);
    };
    let condition =
        json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message});
    let approve = |csr: &mut Value| {
        match csr["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(condition.clone()),
            None => csr["status"]["conditions"] = json!([condition]),
        }
        Ok(())
    };
    let cx = tools.sub_context(RESOURCE, "", "approval")?;
    tools.registry.update_with(&cx, name, approve).await?;
    tracing::info!(
        node,
        by = user.name,
        "a node's certificate request was approved"
    );
    Ok(Outcome::Done)
}

/// Who made the request; the API server wrote it there.
fn requester(csr: &Value) -> UserInfo {
    let groups: Vec<&str> = array_at(csr, &["spec", "groups"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    UserInfo {
        name: str_at(csr, &["spec", "username"]).to_owned(),
        groups: groups.into_iter().map(str::to_owned).collect(),
        ..UserInfo::default()
    }
}

/// Whether a node of that name was heard of within its Lease.
fn alive(tools: &Tools, node: &str) -> bool {
    let exists = tools.table("nodes").get("", node).is_some();
    let lease = tools
        .table("leases.coordination.k8s.io")
        .get("kube-node-lease", node);
    let Some(lease) = lease.filter(|_| exists) else {
        return false;
    };
    let lease = lease.value();
    let seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or(40);
    let renewed = amphipod_api::time::parse_time(str_at(&lease, &["spec", "renewTime"]));
    renewed
        .is_some_and(|at| Timestamp::now().duration_since(at) < SignedDuration::from_secs(seconds))
}
