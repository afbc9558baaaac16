//! The server's own box is the control plane: `kubectl get nodes` says so, and charts select it by the usual label.
//! A node may not give itself this label (admission/node_restriction.rs).

use serde_json::{Value, json};

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use amphipod_api::meta::{labels, metadata_mut};

/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#node-role-kubernetes-io-control-plane>
const ROLE: &str = "node-role.kubernetes.io/control-plane";

pub struct OwnNode;

impl Controller for OwnNode {
    fn name(&self) -> &'static str {
        "own-node-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(tell(tools, &key.name))
    }
}

async fn tell(tools: &Tools, name: &str) -> Result<Outcome> {
    let node = tools.table("nodes").get("", name);
    let node = node.filter(|node| {
        tools.config.own_node.as_deref() == Some(name)
            && !node.meta.is_deleting()
            && !node.meta.labels.contains_key(ROLE)
    });
    if node.is_none() {
        return Ok(Outcome::Done);
    }
    let set = |node: &mut Value| {
        let mut labelled = labels(node).clone();
        labelled.insert(ROLE.to_owned(), json!("true"));
        metadata_mut(node).insert("labels".to_owned(), json!(labelled));
        Ok(())
    };
    let context = tools.context("nodes", "")?;
    tools.registry.update_with(&context, name, set).await?;
    Ok(Outcome::Done)
}
