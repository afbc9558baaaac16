//! Each node's range of pod addresses: `spec.podCIDRs`, one of each of the cluster's ranges.
//!
//! The Node object is the only record. Ranges are given one after the other, under a lock, from what the cache says is taken.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use amphipod_api::Status;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::events::{Kind, Reference};

/// Each node gets 256 addresses.
const NODE_PREFIX: u8 = 24;

#[derive(Default)]
pub struct NodeIpam {
    /// Held from reading what is taken until the node is written.
    giving: Mutex<()>,
}

impl Controller for NodeIpam {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("nodes", itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.give(tools, &key.name))
    }
}

impl NodeIpam {
    async fn give(&self, tools: &Tools, name: &str) -> Result<Outcome> {
        let nodes = tools.table("nodes");
        let needs = |node: &Value| node["spec"]["podCIDR"].as_str().is_none_or(str::is_empty);
        let _giving = self.giving.lock().await;
        let Some(node) = nodes.get("", name).filter(|node| !node.meta.is_deleting()) else {
            return Ok(Outcome::Done);
        };
        if !needs(&node.value()) {
            return Ok(Outcome::Done);
        }
        let mut taken = HashSet::new();
        nodes.for_each(None, |node| {
            let ranges = node.value()["spec"]["podCIDRs"].take();
            taken.extend(
                ranges
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|range| range.as_str().map(str::to_owned)),
            );
        });
        let mut ranges = Vec::new();
        for cluster in &tools.config.cluster_cidrs {
            match first_free(cluster, &taken) {
                Some(range) => ranges.push(range),
                None => {
                    let message = format!(
                        "no free pod range is left in {cluster}; start the server with a larger --cluster-cidr"
                    );
                    tools.recorder.tell(
                        Reference::to("v1", "Node", &node),
                        Kind::Warning,
                        "CIDRNotAvailable",
                        &message,
                    );
                    return Err(Status::internal_error(message));
                }
            }
        }
        let set = |node: &mut Value| {
            if needs(node) {
                node["spec"]["podCIDR"] = json!(ranges.first());
                node["spec"]["podCIDRs"] = json!(ranges);
            }
            Ok(())
        };
        tools
            .registry
            .update_with(&tools.context("nodes", "")?, name, set)
            .await?;
        Ok(Outcome::Done)
    }
}

/// The first range of 256 addresses in `cluster` (`A.B.C.D/N`) that is not taken.
fn first_free(cluster: &str, taken: &HashSet<String>) -> Option<String> {
    let (address, prefix) = cluster.split_once('/')?;
    let (address, prefix) = (
        address.parse::<Ipv4Addr>().ok()?,
        prefix.parse::<u8>().ok()?,
    );
    let ranges = 1u32.checked_shl(u32::from(NODE_PREFIX.checked_sub(prefix)?))?;
    let base = u32::from(address) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (0..ranges)
        .map(|index| {
            format!(
                "{}/{NODE_PREFIX}",
                Ipv4Addr::from(base + (index << (32 - NODE_PREFIX)))
            )
        })
        .find(|range| !taken.contains(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_range_is_given() {
        let taken = |ranges: &[&str]| ranges.iter().map(|range| (*range).to_owned()).collect();
        assert_eq!(
            first_free("10.42.0.0/16", &taken(&[])).as_deref(),
            Some("10.42.0.0/24")
        );
        assert_eq!(
            first_free("10.42.0.0/16", &taken(&["10.42.0.0/24", "10.42.2.0/24"])).as_deref(),
            Some("10.42.1.0/24")
        );
        assert_eq!(first_free("10.42.7.0/24", &taken(&["10.42.7.0/24"])), None);
        assert_eq!(first_free("nonsense", &taken(&[])), None);
    }
}
