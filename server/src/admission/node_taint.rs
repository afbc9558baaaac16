//! TaintNodesByCondition: a new node takes no pods before it is ready.

use amphipod_api::Status;
use amphipod_api::meta::{array_at, child, str_at};
use serde_json::{Value, json};

use super::is_about;
use crate::registry::{Admission, Operation, Request};

const KEY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

impl Admission for TaintNodesByCondition {
    fn admit(&self, request: &Request<'_>, node: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Create || !is_about(request, "nodes", None) {
            return Ok(());
        }
        let there = array_at(node, &["spec", "taints"])
            .iter()
            .any(|t| str_at(t, &["key"]) == KEY && str_at(t, &["effect"]) == "NoSchedule");
        if there {
            return Ok(());
        }
        let taints = child(node, "spec")
            .entry("taints")
            .or_insert_with(|| json!([]));
        if let Some(taints) = taints.as_array_mut() {
            taints.push(json!({"key": KEY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
