//! Boxes that were removed: their certificates, though signed by our CA and not yet over, are worth nothing any more.
//!
//! The record is the ConfigMap `kube-system/amphipod-removed-nodes`: a node's name and when it was removed. A certificate of
//! that node is refused if it was made before (its serial number tells); a box that joins again gets a newer one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use amphipod_api::pki::LEAF_LIFETIME;
use amphipod_api::{Status, meta};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::UserInfo;
use crate::cache::Cache;
use crate::registry::Registry;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "amphipod-removed-nodes";

/// Who was removed, and what must end when somebody is.
pub struct RemovedNodes {
    cache: Arc<Cache>,
    /// The record as of a revision of it.
    read: RwLock<(u64, HashMap<String, Timestamp>)>,
    /// Ends watches and tunnels of a node; children of `stop`.
    gates: Mutex<HashMap<String, CancellationToken>>,
    stop: CancellationToken,
}

impl RemovedNodes {
    /// `stop` ends everybody's streams.
    pub fn new(cache: Arc<Cache>, stop: CancellationToken) -> RemovedNodes {
        RemovedNodes {
            cache,
            read: RwLock::default(),
            gates: Mutex::default(),
            stop,
        }
    }

    /// When the node was removed.
    pub fn when(&self, node: &str) -> Option<Timestamp> {
        let object = self.cache.table("configmaps")?.get(NAMESPACE, NAME)?;
        let revision = object.meta.revision;
        {
            let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
            if read.0 == revision {
                return read.1.get(node).copied();
            }
        }
        let record = times(&object.value());
        let when = record.get(node).copied();
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = (revision, record);
        when
    }

    /// Whether a certificate of the node, made then, is worth nothing.
    pub fn refuses(&self, node: &str, made: Option<Timestamp>) -> bool {
        self.when(node)
            .is_some_and(|removed| made.is_none_or(|made| made <= removed))
    }

    /// Is cancelled when the server stops or the node is removed.
    pub fn gate(&self, node: &str) -> CancellationToken {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates
            .entry(node.to_owned())
            .or_insert_with(|| self.stop.child_token());
        gate.clone()
    }

    /// Removes a node: records it, deletes the Node in `user`'s name, and ends its streams.
    ///
    /// # Errors
    /// What the registry refuses. A Node that is not there is no error: the box may have been deleted before.
    pub async fn remove(
        &self,
        registry: &Registry,
        user: &Arc<UserInfo>,
        node: &str,
    ) -> Result<(), Status> {
        let ourselves = Arc::new(UserInfo::apiserver());
        let cx = registry.context(&ourselves, "configmaps", NAMESPACE)?;
        let now = Timestamp::now();
        let table = registry.table(&cx.descriptor);
        if table.get(NAMESPACE, NAME).is_none() {
            let record = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
            });
            match registry.create(&cx, record.into()).await {
                Err(status) if !status.is_already_exists() => return Err(status),
                _ => {}
            }
        }
        registry
            .update_with(&cx, NAME, |record| {
                note(record, node, now);
                Ok(())
            })
            .await?;
        let gate = self
            .gates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
        if let Some(gate) = gate {
            gate.cancel();
        }
        let cx = registry.context(user, "nodes", "")?;
        match registry.delete(&cx, node, &Default::default()).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }
}

fn times(record: &Value) -> HashMap<String, Timestamp> {
    let entries = record["data"].as_object().into_iter().flatten();
    entries
        .map(|(node, time)| {
            // Somebody who writes nonsense beside a node's name wants it gone.
            let time = time.as_str().and_then(|t| t.parse().ok());
            (node.clone(), time.unwrap_or(Timestamp::MAX))
        })
        .collect()
}

/// Enters a node, and takes out those whose last certificate is over.
fn note(record: &mut Value, node: &str, now: Timestamp) {
    let mut times = times(record);
    times.retain(|_, removed| {
        now.duration_since(*removed) <= SignedDuration::try_from(LEAF_LIFETIME).unwrap_or_default()
    });
    times.insert(node.to_owned(), now);
    let data = times
        .into_iter()
        .map(|(node, time)| (node, time.to_string().into()));
    record["data"] = Value::Object(data.collect());
    meta::annotation(record, "kubernetes.io/description")
        .is_none()
        .then(|| {
            record["metadata"]["annotations"]["kubernetes.io/description"] =
                "Nodes that were removed for good, and when: certificates from before are refused."
                    .into();
        });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_record_keeps_who_could_still_come_back_and_forgets_the_rest() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let year = LEAF_LIFETIME.as_secs() as i64;
        let mut record = json!({"metadata": {}});
        note(&mut record, "a", at(0));
        note(&mut record, "b", at(10));
        assert_eq!(
            times(&record),
            [("a".to_owned(), at(0)), ("b".to_owned(), at(10))].into()
        );
        note(&mut record, "c", at(year + 5));
        let left = times(&record);
        assert_eq!(
            left,
            [("b".to_owned(), at(10)), ("c".to_owned(), at(year + 5))].into()
        );
    }
}
