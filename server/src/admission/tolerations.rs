//! DefaultTolerationSeconds: pods stay on a node that is not ready or unreachable for five minutes.

use amphipod_api::Status;
use amphipod_api::meta::{array_at, child, str_at};
use serde_json::{Value, json};

use super::is_about;
use crate::registry::{Admission, Operation, Request};

const SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

impl Admission for DefaultTolerationSeconds {
    fn admit(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !matches!(request.operation, Operation::Create | Operation::Update)
            || !is_about(request, "pods", None)
        {
            return Ok(());
        }
        for key in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ] {
            let tolerated = array_at(pod, &["spec", "tolerations"]).iter().any(|t| {
                matches!(str_at(t, &["key"]), k if k.is_empty() || k == key)
                    && matches!(str_at(t, &["effect"]), "" | "NoExecute")
            });
            if tolerated {
                continue;
            }
            let tolerations = child(pod, "spec")
                .entry("tolerations")
                .or_insert_with(|| json!([]));
            if let Some(tolerations) = tolerations.as_array_mut() {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        Ok(())
    }
}
