//! What becomes of a node whose conditions change: its taints.

mod taints;

use jiff::Timestamp;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};

#[derive(Default)]
pub struct NodeLifecycle;

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.look_at(tools, &key.name))
    }
}

impl NodeLifecycle {
    async fn look_at(&self, tools: &Tools, name: &str) -> Result<Outcome> {
        let Some(object) = tools
            .table("nodes")
            .get("", name)
            .filter(|node| !node.meta.is_deleting())
        else {
            return Ok(Outcome::Done);
        };
        let mut node = object.value();
        if taints::set(&mut node, true, Timestamp::now()) {
            let context = tools.context("nodes", "")?;
            tools
                .registry
                .update_with(&context, name, |node| {
                    taints::set(node, true, Timestamp::now());
                    Ok(())
                })
                .await?;
        }
        Ok(Outcome::Done)
    }
}
