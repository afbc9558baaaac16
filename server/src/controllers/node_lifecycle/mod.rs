//! What becomes of a node that is not well: its conditions when nothing is heard from it, its taints, and its pods.
//! <https://kubernetes.io/docs/concepts/architecture/nodes/#node-controller>

mod disruption;
pub mod eviction;
mod health;
pub mod pod_gc;
mod taints;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amphipod_api::{meta, time};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use self::disruption::Zone;
use self::health::{STARTUP_GRACE, Verdict};
use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use crate::cache::{Event, EventType, Object};
use crate::events::{Kind, Reference};

const LEASES: &str = "leases.coordination.k8s.io";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Conditions that nobody vouches for any more when a node is silent.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

#[derive(Default)]
pub struct NodeLifecycle {
    health: Arc<Mutex<health::Health>>,
    /// Nodes that are not well and still have their pods. Whether they may keep them depends on all nodes.
    waiting: Arc<Mutex<BTreeSet<String>>>,
    /// When the next node of each zone may lose its pods. Held until the taint is stored: a turn that came to nothing is not used up.
    paces: tokio::sync::Mutex<HashMap<String, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let (health, waiting) = (self.health.clone(), self.waiting.clone());
        let node = move |tools: &Tools, event: &Event| {
            let name = &event.object.meta.name;
            let mut concerned = itself(tools, event);
            let mut all_look = || {
                let waiting = lock(&waiting);
                concerned.extend(waiting.iter().map(|name| Key::new("", name)));
                std::mem::take(&mut concerned)
            };
            if event.kind == EventType::Deleted {
                lock(&health).forget(name);
                return all_look();
            }
            let (now, before) = (
                event.object.value(),
                event.prev.as_ref().map(|prev| prev.value()),
            );
            let heartbeat = |node: &Value| {
                meta::condition(node, "Ready").map(|ready| ready["lastHeartbeatTime"].clone())
            };
            if before
                .as_ref()
                .is_some_and(|before| heartbeat(before) != heartbeat(&now))
            {
                lock(&health).heard(name, Instant::now());
            }
            // How many nodes of a zone are well decides over the others too.
            let counts_as = |node: &Value| (taints::health(node), zone(node).to_owned());
            match before {
                Some(before) if counts_as(&before) == counts_as(&now) => concerned,
                _ => all_look(),
            }
        };
        let health = self.health.clone();
        let lease = move |_: &Tools, event: &Event| {
            // Only noted: who is heard needs nothing done.
            if *event.object.meta.namespace == *LEASE_NAMESPACE && event.kind == EventType::Modified
            {
                lock(&health).heard(&event.object.meta.name, Instant::now());
            }
            Vec::new()
        };
        vec![Source::new("nodes", node), Source::new(LEASES, lease)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.look_at(tools, &key.name))
    }
}

impl NodeLifecycle {
    async fn look_at(&self, tools: &Tools, name: &str) -> Result<Outcome> {
        let node = || {
            tools
                .table("nodes")
                .get("", name)
                .filter(|node| !node.meta.is_deleting())
        };
        let Some(mut object) = node() else {
            lock(&self.waiting).remove(name);
            return Ok(Outcome::Done);
        };
        let mut value = object.value();
        let grace = if meta::condition(&value, "Ready").is_some() {
            tools.config.node_monitor_grace
        } else {
            STARTUP_GRACE
        };
        let verdict = lock(&self.health).check(name, grace, Instant::now());
        if verdict == Verdict::Silent {
            self.declare_silent(tools, &object, &value).await?;
            let Some(now) = node() else {
                return Ok(Outcome::Done);
            };
            object = now;
            value = object.value();
        }
        let mut wait = match verdict {
            Verdict::Fresh(left) => Some(left),
            Verdict::Silent => None,
        };
        if taints::health(&value) == taints::Health::Ready || taints::is_evicting(&value) {
            lock(&self.waiting).remove(name);
            Self::set_taints(tools, name, &value, false).await?;
        } else {
            // Before the others are looked at: a change after that finds it here.
            lock(&self.waiting).insert(name.to_owned());
            if let Some(pause) = self.take_turn(tools, name, &value).await? {
                wait = Some(wait.map_or(pause, |wait| wait.min(pause)));
            }
        }
        Ok(wait.map_or(Outcome::Done, Outcome::After))
    }

    /// Sets a node's taints to what its conditions ask for. True: its pods are to go.
    async fn set_taints(tools: &Tools, name: &str, value: &Value, evict: bool) -> Result<bool> {
        if !taints::set(&mut value.clone(), evict, Timestamp::now()) {
            return Ok(taints::is_evicting(value));
        }
        let set = |node: &mut Value| {
            taints::set(node, evict, Timestamp::now());
            Ok(())
        };
        let context = tools.context("nodes", "")?;
        let stored = tools.registry.update_with(&context, name, set).await?;
        Ok(taints::is_evicting(&stored.value()))
    }

    /// Taints a node that is not well, and so that its pods go if it is its turn; else, the time until it may be.
    async fn take_turn(
        &self,
        tools: &Tools,
        name: &str,
        value: &Value,
    ) -> Result<Option<Duration>> {
        let mut paces = self.paces.lock().await;
        let (zone, now) = (zone(value).to_owned(), Instant::now());
        let pace = pace(tools, &zone);
        let next = paces.get(&zone).copied().filter(|next| *next > now);
        let evict = pace.is_some() && next.is_none();
        let went = Self::set_taints(tools, name, value, evict).await?;
        match pace {
            Some(pace) if went => drop(paces.insert(zone, now + pace)),
            _ => {}
        }
        Ok(next.filter(|_| pace.is_some()).map(|next| next - now))
    }

    /// Tells that a node is silent: its conditions are unknown, and its pods not ready.
    async fn declare_silent(&self, tools: &Tools, node: &Object, value: &Value) -> Result<()> {
        if taints::health(value) != taints::Health::Unknown {
            let name = &node.meta.name;
            warn!(node = %name, "nothing was heard from the node for too long; look whether it runs and reaches this server");
            let was_ready = taints::health(value) == taints::Health::Ready;
            let unknown = |node: &mut Value| {
                conditions_unknown(node, Timestamp::now());
                Ok(())
            };
            tools
                .registry
                .update_with(&tools.sub_context("nodes", "", "status")?, name, unknown)
                .await?;
            if was_ready {
                let message = format!("Node {name} status is now: NodeNotReady");
                tools.recorder.tell(
                    Reference::to("v1", "Node", node),
                    Kind::Normal,
                    "NodeNotReady",
                    message,
                );
            }
        }
        for pod in tools
            .table("pods")
            .by_field("spec.nodeName", &node.meta.name)
        {
            if !meta::condition_is_true(&pod.value(), "Ready") {
                continue;
            }
            let not_ready = |pod: &mut Value| {
                let conditions = pod
                    .pointer_mut("/status/conditions")
                    .and_then(Value::as_array_mut);
                for ready in conditions
                    .into_iter()
                    .flatten()
                    .filter(|c| c["type"] == "Ready" && c["status"] == "True")
                {
                    ready["status"] = "False".into();
                    ready["lastTransitionTime"] = time::now().into();
                }
                Ok(())
            };
            let context = tools.sub_context("pods", &pod.meta.namespace, "status")?;
            match tools
                .registry
                .update_with(&context, &pod.meta.name, not_ready)
                .await
            {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
            tools.recorder.tell(
                Reference::to("v1", "Pod", &pod),
                Kind::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }
}

/// The zone that a node says it is in.
fn zone(node: &Value) -> &str {
    meta::label(node, ZONE).unwrap_or_default()
}

/// The time between two nodes of a zone that may lose their pods; `None`: none may until the health of some node changes.
fn pace(tools: &Tools, of: &str) -> Option<Duration> {
    let mut zones: HashMap<String, Zone> = HashMap::new();
    for node in tools.table("nodes").list(None).items {
        let node = node.value();
        let zone = zones.entry(zone(&node).to_owned()).or_default();
        match taints::health(&node) {
            taints::Health::Ready => zone.ready += 1,
            _ => zone.unwell += 1,
        }
    }
    let all: Vec<Zone> = zones.values().copied().collect();
    disruption::pace(zones.get(of).copied().unwrap_or_default(), &all)
}

/// Sets the conditions that only the node itself can vouch for to Unknown.
fn conditions_unknown(node: &mut Value, now: Timestamp) {
    let now = time::format_time(now);
    let created = node["metadata"]["creationTimestamp"].clone();
    let Some(conditions) = meta::child(node, "status")
        .entry("conditions")
        .or_insert_with(|| json!([]))
        .as_array_mut()
    else {
        return;
    };
    for kind in CONDITIONS {
        match conditions
            .iter_mut()
            .find(|condition| condition["type"] == kind)
        {
            Some(condition) if condition["status"] == "Unknown" => {}
            Some(condition) => {
                condition["status"] = "Unknown".into();
                condition["reason"] = "NodeStatusUnknown".into();
                condition["message"] = "Kubelet stopped posting node status.".into();
                condition["lastTransitionTime"] = now.clone().into();
            }
            None => conditions.push(json!({
                "type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.",
                "lastHeartbeatTime": created, "lastTransitionTime": now,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nobody_vouches_for_a_silent_node() {
        let mut node = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T01:00:00Z"},
            {"type": "NetworkUnavailable", "status": "False"}]}});
        conditions_unknown(&mut node, Timestamp::UNIX_EPOCH);
        let ready = meta::condition(&node, "Ready").unwrap();
        assert_eq!(
            *ready,
            json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastHeartbeatTime": "2026-01-01T01:00:00Z", "lastTransitionTime": "1970-01-01T00:00:00Z"})
        );
        assert_eq!(
            meta::condition(&node, "NetworkUnavailable").unwrap()["status"],
            "False"
        );
        assert_eq!(
            meta::condition(&node, "DiskPressure").unwrap()["reason"],
            "NodeStatusNeverUpdated"
        );
        assert_eq!(taints::health(&node), taints::Health::Unknown);
    }
}
