//! Takes away pods whose node is gone, or has been declared out of service.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection>

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_api::meta::{array_at, str_at};
use tokio::time::Instant;

use super::eviction::disrupt;
use super::{lock, taints};
use crate::cache::{Event, EventType, Object};
use crate::controllers::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};

/// How long a node may be missing: it may just be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Looks at nodes, those that pods name and that may be missing.
#[derive(Default)]
pub struct PodCollector {
    missing: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Controller for PodCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn sources(&self) -> Vec<Source> {
        let pod = |tools: &Tools, event: &Event| {
            let pods = tools.table("pods");
            let node = event
                .object
                .field(pods.fields(), "spec.nodeName")
                .unwrap_or_default();
            let begins = event.prev.as_ref().is_none_or(|prev| {
                prev.field(pods.fields(), "spec.nodeName") != Some(node)
                    || (event.object.meta.is_deleting() && !prev.meta.is_deleting())
            });
            if node.is_empty() || event.kind == EventType::Deleted || !begins {
                return Vec::new();
            }
            let suspect = tools
                .table("nodes")
                .get("", node)
                .is_none_or(|node| is_out_of_service(&node));
            suspect.then(|| Key::new("", node)).into_iter().collect()
        };
        vec![Source::new("pods", pod), Source::new("nodes", itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.look_at(tools, &key.name))
    }
}

/// An administrator vouches that nothing runs there any more.
fn is_out_of_service(node: &Object) -> bool {
    let node = node.value();
    let tainted = array_at(&node, &["spec", "taints"])
        .iter()
        .any(|taint| str_at(taint, &["key"]) == OUT_OF_SERVICE);
    tainted && taints::health(&node) != taints::Health::Ready
}

impl PodCollector {
    async fn look_at(&self, tools: &Tools, name: &str) -> Result<Outcome> {
        let pods = tools.table("pods").by_field("spec.nodeName", name);
        if let Some(node) = tools.table("nodes").get("", name) {
            lock(&self.missing).remove(name);
            if is_out_of_service(&node) {
                for pod in pods.iter().filter(|pod| pod.meta.is_deleting()) {
                    disrupt(
                        tools,
                        pod,
                        "DeletionByPodGC",
                        "PodGC: node is out of service",
                        true,
                    )
                    .await?;
                }
            }
            return Ok(Outcome::Done);
        }
        if pods.is_empty() {
            lock(&self.missing).remove(name);
            return Ok(Outcome::Done);
        }
        let now = Instant::now();
        let since = *lock(&self.missing).entry(name.to_owned()).or_insert(now);
        let left = (since + QUARANTINE).saturating_duration_since(now);
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        for pod in &pods {
            disrupt(
                tools,
                pod,
                "DeletionByPodGC",
                "PodGC: node no longer exists",
                true,
            )
            .await?;
        }
        lock(&self.missing).remove(name);
        Ok(Outcome::Done)
    }
}
