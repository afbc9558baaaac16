//! Takes pods from nodes with a NoExecute taint that they do not tolerate, or no longer.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_api::{meta, time};
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::lock;
use crate::cache::{Event, EventType, Object};
use crate::controllers::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, typed};
use crate::events::{Kind, Reference};
use crate::registry::DeleteOptions;
use crate::scheduler::pod::tolerates;

#[derive(Default)]
pub struct TaintEviction {
    /// Since when this process knows, by UID, that a pod's node has a taint that it tolerates for a time only. Not the time that
    /// is written on the taint: a server that was away must not take all pods at once.
    since: Arc<Mutex<HashMap<String, Instant>>>,
}

#[derive(Deserialize)]
struct WireNode {
    spec: Option<WireNodeSpec>,
}

#[derive(Deserialize)]
struct WireNodeSpec {
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize)]
struct WirePod {
    spec: WirePodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePodSpec {
    node_name: Option<String>,
    tolerations: Option<Vec<Toleration>>,
}

/// The taints of a node that make pods go.
fn harmful(node: &Object) -> Vec<Taint> {
    let taints = typed::<WireNode>(node)
        .ok()
        .and_then(|node| node.spec?.taints);
    taints
        .into_iter()
        .flatten()
        .filter(|taint| taint.effect == "NoExecute")
        .collect()
}

/// How long a pod may stay; `None`: for ever.
fn tolerated_for(taints: &[Taint], tolerations: &[Toleration]) -> Option<Duration> {
    let mut least: Option<Duration> = None;
    for taint in taints {
        let mut matching = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .peekable();
        if matching.peek().is_none() {
            return Some(Duration::ZERO);
        }
        for seconds in matching.filter_map(|toleration| toleration.toleration_seconds) {
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            least = Some(least.map_or(time, |least| least.min(time)));
        }
    }
    least
}

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let since = self.since.clone();
        let pod = move |tools: &Tools, event: &Event| {
            let meta = &event.object.meta;
            if event.kind == EventType::Deleted {
                lock(&since).remove(&*meta.uid);
                return Vec::new();
            }
            let node = |object: &Object| {
                let pods = tools.table("pods");
                object
                    .field(pods.fields(), "spec.nodeName")
                    .unwrap_or_default()
                    .to_owned()
            };
            let now = node(&event.object);
            let was_there = event.prev.as_ref().is_some_and(|prev| node(prev) == now);
            // Tolerations can be added later; that is a new generation.
            let same = event
                .prev
                .as_ref()
                .is_some_and(|prev| prev.meta.generation == meta.generation);
            let known = was_there && same;
            let concerned = !now.is_empty() && !known && !meta.is_deleting();
            concerned
                .then(|| Key::new(&meta.namespace, &meta.name))
                .into_iter()
                .collect()
        };
        let node = |tools: &Tools, event: &Event| {
            let before = event
                .prev
                .as_ref()
                .map(|prev| harmful(prev))
                .unwrap_or_default();
            if event.kind == EventType::Deleted || harmful(&event.object) == before {
                return Vec::new();
            }
            let pods = tools
                .table("pods")
                .by_field("spec.nodeName", &event.object.meta.name);
            pods.iter()
                .map(|pod| Key::new(&pod.meta.namespace, &pod.meta.name))
                .collect()
        };
        vec![Source::new("pods", pod), Source::new("nodes", node)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(self.look_at(tools, key))
    }
}

impl TaintEviction {
    async fn look_at(&self, tools: &Tools, key: &Key) -> Result<Outcome> {
        let Some(pod) = tools
            .table("pods")
            .get(&key.namespace, &key.name)
            .filter(|pod| !pod.meta.is_deleting())
        else {
            return Ok(Outcome::Done);
        };
        let spec = typed::<WirePod>(&pod)?.spec;
        let node = spec
            .node_name
            .and_then(|name| tools.table("nodes").get("", &name));
        let taints = node.map(|node| harmful(&node)).unwrap_or_default();
        let reference = || Reference::to("v1", "Pod", &pod);
        let name = meta::join_key(&key.namespace, &key.name);
        let Some(time) = tolerated_for(&taints, &spec.tolerations.unwrap_or_default()) else {
            if lock(&self.since).remove(&*pod.meta.uid).is_some() {
                let message = format!("Cancelling deletion of Pod {name}");
                tools
                    .recorder
                    .tell(reference(), Kind::Normal, "TaintManagerEviction", message);
            }
            return Ok(Outcome::Done);
        };
        let now = Instant::now();
        let since = *lock(&self.since)
            .entry(pod.meta.uid.to_string())
            .or_insert(now);
        let left = (since + time).saturating_duration_since(now);
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        tools.recorder.tell(
            reference(),
            Kind::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {name}"),
        );
        disrupt(
            tools,
            &pod,
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
            false,
        )
        .await?;
        lock(&self.since).remove(&*pod.meta.uid);
        Ok(Outcome::Done)
    }
}

/// Deletes a pod, and tells in its conditions why; `at_once`: there is no agent to end it.
pub(super) async fn disrupt(
    tools: &Tools,
    pod: &Object,
    reason: &str,
    message: &str,
    at_once: bool,
) -> Result<()> {
    let context = tools.context("pods", &pod.meta.namespace)?;
    let tell = |value: &mut Value| {
        if meta::uid(value) != &*pod.meta.uid {
            return Ok(());
        }
        let generation = value["metadata"]["generation"].clone();
        let status = meta::child(value, "status");
        let over = matches!(
            status.get("phase").and_then(Value::as_str),
            Some("Succeeded" | "Failed")
        );
        if at_once && !over {
            status.insert("phase".into(), "Failed".into());
        }
        if let Some(conditions) = status
            .entry("conditions")
            .or_insert_with(|| json!([]))
            .as_array_mut()
        {
            conditions.retain(|condition| condition["type"] != "DisruptionTarget");
            conditions.push(json!({
                "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
                "lastProbeTime": null, "lastTransitionTime": time::now(), "observedGeneration": generation,
            }));
        }
        Ok(())
    };
    let status = tools.sub_context("pods", &pod.meta.namespace, "status")?;
    match tools
        .registry
        .update_with(&status, &pod.meta.name, tell)
        .await
    {
        Err(refusal) if refusal.is_not_found() => return Ok(()),
        Err(refusal) => return Err(refusal),
        Ok(_) => {}
    }
    let options = DeleteOptions {
        uid: Some(pod.meta.uid.to_string()),
        grace_period_seconds: at_once.then_some(0),
        ..DeleteOptions::default()
    };
    match tools
        .registry
        .delete(&context, &pod.meta.name, &options)
        .await
    {
        Err(refusal) if !refusal.is_not_found() && !refusal.is_conflict() => Err(refusal),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pod_stays_as_long_as_its_least_patient_toleration() {
        let taint = |key: &str| -> Taint {
            serde_json::from_value(json!({"key": key, "effect": "NoExecute"})).unwrap()
        };
        let tolerations =
            |list: Value| -> Vec<Toleration> { serde_json::from_value(list).unwrap() };
        let patient = tolerations(json!([{"key": "a", "operator": "Exists"}]));
        let hasty = tolerations(json!([
            {"key": "a", "operator": "Exists", "tolerationSeconds": 300},
            {"key": "b", "operator": "Exists", "tolerationSeconds": 20}]));
        let time = |taints: &[Taint], tolerations: &[Toleration]| {
            tolerated_for(taints, tolerations).map(|time| time.as_secs())
        };
        assert_eq!(time(&[], &[]), None);
        assert_eq!(time(&[taint("a")], &patient), None);
        assert_eq!(time(&[taint("b")], &patient), Some(0));
        assert_eq!(time(&[taint("a")], &hasty), Some(300));
        assert_eq!(time(&[taint("a"), taint("b")], &hasty), Some(20));
    }
}
