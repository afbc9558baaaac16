//! Says yes to requests of nodes for their own client certificate (the first, by a join token, and every later one, by the node itself), and
//! for their own serving certificate.
//!
//! A serving certificate may name the node, and the addresses that its Node tells. A node tells its addresses itself, and the same CA
//! signs for the API server: so what belongs to the server or to another node is left to an administrator.
//!
//! A token lets any box in, but takes no living node's name: such a request waits until that node's Lease is over, or until an
//! administrator approves it.

use std::time::Duration;

use amphipod_api::join::{NODE_SIGNER, SERVING_SIGNER};
use amphipod_api::meta::{self, array_at, str_at};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use super::signer::check;
use super::{NAME, RESOURCE, condition, node_of, request, usages};
use crate::auth::{Attributes, NODES, UserInfo};
use crate::cache::Event;

pub struct Approver;

/// How soon a request that waits for an old node's end is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

impl Controller for Approver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        // Requests that came before the node told its addresses.
        let node = |tools: &Tools, event: &Event| {
            let now = event.object.value();
            let same = |prev: &Value| addresses(prev).eq(addresses(&now));
            if event.prev.as_ref().is_some_and(|prev| same(&prev.value())) {
                return Vec::new();
            }
            let user = format!("system:node:{}", event.object.meta.name);
            let requests = tools.table(RESOURCE).list(None).items;
            let theirs = requests
                .iter()
                .filter(|csr| str_at(&csr.value(), &["spec", "username"]) == user);
            theirs.map(|csr| Key::new("", &csr.meta.name)).collect()
        };
        vec![Source::new(RESOURCE, itself), Source::new("nodes", node)]
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
    if !open {
        return Ok(Outcome::Done);
    }
    match str_at(&csr, &["spec", "signerName"]) {
        NODE_SIGNER => client(tools, name, &csr).await,
        SERVING_SIGNER => serving(tools, name, &csr).await,
        _ => Ok(Outcome::Done),
    }
}

/// A request for a serving certificate.
async fn serving(tools: &Tools, name: &str, csr: &Value) -> Result<Outcome> {
    let Ok((_, info)) = request(csr) else {
        return Ok(Outcome::Done);
    };
    let user = requester(csr);
    let own = user.name == info.common_name && user.groups.iter().any(|group| group == NODES);
    if !own || check(SERVING_SIGNER, &info, &usages(csr)).is_err() {
        return Ok(Outcome::Done);
    }
    let nodes = tools.table("nodes").list(None).items;
    let nodes: Vec<Value> = nodes.iter().map(|node| node.value()).collect();
    let node = info.common_name.strip_prefix("system:node:");
    let node = node.unwrap_or_default();
    let told = |known: &Value| meta::name(known) == node && addresses(known).next().is_some();
    if !nodes.iter().any(told) {
        // It registers just now; looked at again when it has told its addresses.
        return Ok(Outcome::Done);
    }
    if let Some(refused) = not_of(node, &info.sans, &nodes, &tools.config.pki.names()) {
        tracing::warn!(
            request = name,
            user = user.name,
            "a node asks for a serving certificate for {refused}, which its Node does not tell or which is not its alone; `kubectl certificate approve` lets it have that"
        );
        return Ok(Outcome::Done);
    }
    let message = "Auto approving kubelet serving certificate: it names only the node itself.";
    approve(tools, name, &user, message).await
}

/// What of a node's wishes is not its own: a name that is not the node's, an address that the node does not have, or that the server or
/// another node has too.
fn not_of<'a>(
    name: &str,
    wanted: &'a [String],
    nodes: &[Value],
    server: &[String],
) -> Option<&'a String> {
    let (own, others): (Vec<&Value>, Vec<&Value>) =
        nodes.iter().partition(|node| meta::name(node) == name);
    let has = |node: &&Value, want: &str| addresses(node).any(|address| address == want);
    wanted.iter().find(|want| {
        let is_address = want.parse::<std::net::IpAddr>().is_ok();
        let own = match is_address {
            true => own.iter().any(|node| has(node, want)),
            false => *want == name,
        };
        let foreign = others
            .iter()
            .any(|node| meta::name(node) == *want || has(node, want));
        !own || foreign || server.contains(want)
    })
}

/// The addresses that a Node tells.
fn addresses(node: &Value) -> impl Iterator<Item = &str> {
    array_at(node, &["status", "addresses"])
        .iter()
        .map(|address| str_at(address, &["address"]))
}

/// A request for a client certificate.
async fn client(tools: &Tools, name: &str, csr: &Value) -> Result<Outcome> {
    // What is not a request of a node is left to administrators.
    let Ok((_, info)) = request(csr) else {
        return Ok(Outcome::Done);
    };
    let Ok(node) = node_of(&info, &usages(csr)) else {
        return Ok(Outcome::Done);
    };
    let user = requester(csr);
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
    approve(tools, name, &user, message).await
}

async fn approve(tools: &Tools, name: &str, user: &UserInfo, message: &str) -> Result<Outcome> {
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
        request = name,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_serves_in_its_own_name_and_nobody_elses() {
        let node = |name: &str, addresses: &[&str]| {
            let addresses: Vec<Value> = addresses.iter().map(|a| json!({"address": a})).collect();
            json!({"metadata": {"name": name}, "status": {"addresses": addresses}})
        };
        let nodes = [
            node(
                "a",
                &["10.0.0.1", "a", "10.0.0.9", "kubernetes", "10.43.0.1"],
            ),
            node("b", &["10.0.0.2", "b", "10.0.0.9"]),
        ];
        let server = ["kubernetes", "10.43.0.1", "localhost"].map(str::to_owned);
        let refused = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            not_of("a", &wanted, &nodes, &server).cloned()
        };
        assert_eq!(refused(&["a", "10.0.0.1"]), None);
        for foreign in [
            "b",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.9",
            "kubernetes",
            "10.43.0.1",
            "localhost",
            "web",
        ] {
            assert_eq!(refused(&["a", foreign]).as_deref(), Some(foreign));
        }
        let kubernetes = ["kubernetes".to_owned()];
        assert!(
            not_of(
                "kubernetes",
                &kubernetes,
                &[node("kubernetes", &[])],
                &server
            )
            .is_some()
        );
    }
}
