//! DefaultTolerationSeconds: pods stay on a node that is not ready or unreachable for a while, five minutes if not told otherwise.

use amphipod_api::Status;
use amphipod_api::meta::{array_at, child, str_at};
use serde_json::{Value, json};

use super::is_about;
use crate::registry::{Admission, Operation, Request};

/// Seconds (kube-apiserver's `--default-not-ready-toleration-seconds` and `--default-unreachable-toleration-seconds`).
#[derive(Clone, Copy, Debug)]
pub struct DefaultTolerations {
    pub not_ready: i64,
    pub unreachable: i64,
}

impl Default for DefaultTolerations {
    fn default() -> Self {
        DefaultTolerations {
            not_ready: 300,
            unreachable: 300,
        }
    }
}

pub struct DefaultTolerationSeconds(pub DefaultTolerations);

impl Admission for DefaultTolerationSeconds {
    fn admit(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !matches!(request.operation, Operation::Create | Operation::Update)
            || !is_about(request, "pods", None)
        {
            return Ok(());
        }
        for (key, seconds) in [
            ("node.kubernetes.io/not-ready", self.0.not_ready),
            ("node.kubernetes.io/unreachable", self.0.unreachable),
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
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        Ok(())
    }
}
