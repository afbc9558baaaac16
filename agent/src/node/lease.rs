//! This node's Lease in `kube-node-lease`: the sign of life that costs the server least.
//! <https://kubernetes.io/docs/concepts/architecture/leases/#node-heart-beats>

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use amphipod_api::patch::PatchType;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

/// Renews the Lease beside whatever else its owner does: a server that does not answer keeps nobody waiting.
pub struct LeaseKeeper {
    client: Client,
    node: String,
    seconds: u32,
    busy: Arc<AtomicBool>,
    _renewing: Option<AbortOnDropHandle<()>>,
}

impl LeaseKeeper {
    /// `seconds`: how long the Lease lasts.
    pub fn new(client: Client, node: String, seconds: u32) -> Self {
        LeaseKeeper {
            client,
            node,
            seconds,
            busy: Arc::default(),
            _renewing: None,
        }
    }

    /// How often to renew: four times in the time that the Lease lasts, as the kubelet.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds.max(1))) / 4
    }

    /// Begins to renew, unless the last time is still under way.
    pub fn renew(&mut self) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (client, node, seconds) = (self.client.clone(), self.node.clone(), self.seconds);
        let (busy, limit) = (self.busy.clone(), self.interval());
        self._renewing = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = tokio::time::timeout(limit, renew(&client, &node, seconds)).await;
            busy.store(false, Ordering::Release);
        })));
    }
}

async fn renew(client: &Client, node: &str, seconds: u32) {
    let collection =
        Target::new("coordination.k8s.io", "v1", "leases").namespace("kube-node-lease");
    let target = collection.clone().name(node);
    let now = amphipod_api::time::format_micro_time(jiff::Timestamp::now());
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": seconds, "renewTime": now});
    let patch = json!({"spec": spec});
    let renewed = client.patch(&target, PatchType::Merge, &patch).await;
    if !renewed.is_err_and(|e| e.is_not_found()) {
        return;
    }
    let Ok(object) = client.get(&Target::core("nodes").name(node)).await else {
        return;
    };
    let lease = lease(node, meta::uid(&object), &spec);
    if let Err(error) = client.create(&collection, &lease).await {
        tracing::warn!(%error, "cannot make this node's Lease; without it the node is soon taken for dead");
    }
}

fn lease(node: &str, uid: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": "kube-node-lease",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]},
        "spec": spec,
    })
}
