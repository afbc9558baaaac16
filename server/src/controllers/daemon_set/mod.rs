//! Keeps a pod of a DaemonSet on each node that is to have one. Which node a pod is for says its node affinity; the scheduler binds it.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use amphipod_api::meta::{self, array_at, bool_at, i64_at, str_at};
use amphipod_api::{LabelSelector, Status};
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::claims::Owner;
use super::deployment::resolve;
use super::memo::Memo;
use super::pod_control::{PodControl, generate_name, is_namespace_going, pod_from};
use super::pods::{self, Pod};
use super::revisions::{HASH, History, Revision};
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, selector_of,
    typed,
};
use crate::cache::{Event, EventType, Meta, Object};
use crate::events::Reference;
use crate::scheduler::pod::PodInfo;
use plan::{Daemon, Node, Step, Update, steps};

const RESOURCE: &str = "daemonsets.apps";

pub struct DaemonSets {
    selectors: Arc<Memo<Option<LabelSelector>>>,
}

impl Default for DaemonSets {
    fn default() -> DaemonSets {
        DaemonSets {
            selectors: Arc::new(Memo::new(selector_of)),
        }
    }
}

impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        "daemon-set-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let selectors = self.selectors.clone();
        vec![
            self.selectors.clone().own(RESOURCE),
            Source::new("pods", move |tools, event| {
                sets_of_pod(tools, event, &selectors)
            }),
            Source::new("nodes", all_sets),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The set that has a pod or had it before; for a pod that nobody has, those that may adopt it.
fn sets_of_pod(tools: &Tools, event: &Event, selectors: &Memo<Option<LabelSelector>>) -> Vec<Key> {
    let owner = |meta: &Meta| controller_key(meta, "apps", "DaemonSet");
    let meta = &event.object.meta;
    let before = event.prev.as_ref().and_then(|prev| owner(&prev.meta));
    let mut keys: Vec<Key> = before.into_iter().chain(owner(meta)).collect();
    if meta.controller().is_none() && event.kind != EventType::Deleted {
        keys.extend(selectors.selecting(&tools.table(RESOURCE), meta));
    }
    if keys.is_empty() || !pods::counts(event) {
        return Vec::new();
    }
    keys.dedup();
    keys
}

/// All sets, when a node came, went, or is another place than before.
fn all_sets(tools: &Tools, event: &Event) -> Vec<Key> {
    let mut keys = Vec::new();
    tools.table(RESOURCE).for_each(None, |set| {
        keys.push(Key::new(&set.meta.namespace, &set.meta.name));
    });
    if keys.is_empty() {
        return keys;
    }
    if let Some(prev) = event
        .prev
        .as_ref()
        .filter(|_| event.kind == EventType::Modified)
    {
        let taints = |node: &Object| node.value()["spec"]["taints"].clone();
        if prev.meta.labels == event.object.meta.labels && taints(prev) == taints(&event.object) {
            return Vec::new();
        }
    }
    keys
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let Some(selector) = selector_of(&object) else {
        return Ok(Outcome::Done);
    };
    let set = object.value();
    let owner = Owner {
        api_version: "apps/v1",
        kind: "DaemonSet",
        object: &object,
        selector: &selector,
    };
    let pods = owner.claim(tools, "pods").await?;
    if object.meta.is_deleting() {
        return Ok(Outcome::Done);
    }
    let (history, present) = History::with_present(tools, &owner).await?;
    let view = look(tools, &set, &pods, &present)?;
    let failed = act(tools, &owner, &set, &present, &view, &pods).await.err();
    // The status tells of what was just done.
    let own = tools.table("pods").by_owner(&object.meta.uid);
    let view = look(tools, &set, &own, &present)?;
    let mut status = view.status.clone();
    status["observedGeneration"] = set["metadata"]["generation"].clone();
    if set["status"] != status {
        let context = tools.sub_context(RESOURCE, &key.namespace, "status")?;
        let write = |value: &mut Value| {
            value["status"] = status.clone();
            Ok(())
        };
        match tools.registry.update_with(&context, &key.name, write).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    let hashes: Vec<&str> = own
        .iter()
        .filter_map(|pod| pod.meta.labels.get(HASH).map(|hash| &**hash))
        .collect();
    let mut live = history.named_by_hash(&hashes);
    live.push(present.name);
    let limit = i64_at(&set, &["spec", "revisionHistoryLimit"]).unwrap_or(10);
    history.prune(tools, limit, &live).await?;
    match failed {
        Some(status) if !is_namespace_going(&status) => Ok(Outcome::Failed),
        _ => Ok(view.next.map_or(Outcome::Done, Outcome::After)),
    }
}

async fn act(
    tools: &Tools,
    owner: &Owner<'_>,
    set: &Value,
    present: &Revision,
    view: &View,
    pods: &[Arc<Object>],
) -> Result<(), Status> {
    let meta = &owner.object.meta;
    let control = PodControl {
        tools,
        namespace: &meta.namespace,
        about: Reference::to(owner.api_version, owner.kind, owner.object),
    };
    let steps = steps(&view.nodes, view.update);
    let doing = steps.iter().map(|step| async {
        match step {
            Step::Create(node) => {
                let mut pod = pod_for(set, node);
                pod["metadata"]["ownerReferences"] = json!([owner.reference()]);
                pod["metadata"]["labels"][HASH] = present.hash.as_str().into();
                generate_name(&mut pod, &meta.name);
                control.create(pod).await.map(drop)
            }
            Step::Delete(name) => match pods.iter().find(|pod| *pod.meta.name == **name) {
                Some(pod) => control.delete(pod).await,
                None => Ok(()),
            },
        }
    });
    join_all(doing).await.into_iter().collect()
}

/// The set's pod for a node, without name and owner.
fn pod_for(set: &Value, node: &str) -> Value {
    let mut pod = pod_from(&set["spec"]["template"], &Value::Null);
    let here =
        json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
    // What the template asks of nodes was looked at before.
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({"nodeSelectorTerms": here});
    let mut tolerations = array_at(&pod, &["spec", "tolerations"]).to_vec();
    let mut tolerate = |what: &str, effect: &str| {
        let key = format!("node.kubernetes.io/{what}");
        tolerations.push(json!({"key": key, "operator": "Exists", "effect": effect}));
    };
    for what in ["not-ready", "unreachable"] {
        tolerate(what, "NoExecute");
    }
    for what in [
        "disk-pressure",
        "memory-pressure",
        "pid-pressure",
        "unschedulable",
    ] {
        tolerate(what, "NoSchedule");
    }
    if bool_at(&pod, &["spec", "hostNetwork"]) == Some(true) {
        tolerate("network-unavailable", "NoSchedule");
    }
    pod["spec"]["tolerations"] = tolerations.into();
    pod
}

/// The node that a pod is on, or meant for.
fn node_of(pod: &Value) -> &str {
    match str_at(pod, &["spec", "nodeName"]) {
        "" => pod
            .pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        node => node,
    }
}

struct View {
    nodes: Vec<Node>,
    update: Update,
    /// The counts.
    status: Value,
    /// When it will look different if nothing happens.
    next: Option<std::time::Duration>,
}

fn look(tools: &Tools, set: &Value, pods: &[Arc<Object>], present: &Revision) -> Result<View> {
    let now = Timestamp::now();
    let min_ready = i64_at(set, &["spec", "minReadySeconds"]).unwrap_or(0);
    let min_ready = i32::try_from(min_ready).unwrap_or(i32::MAX);
    let mut next = None;
    let mut on_nodes: BTreeMap<String, Vec<(Daemon, bool, Option<Timestamp>)>> = BTreeMap::new();
    for object in pods {
        let pod = Pod::read(object)?;
        let wait = pod.available_in(min_ready, now);
        next = next.into_iter().chain(wait.filter(|w| !w.is_zero())).min();
        let daemon = Daemon {
            name: object.meta.name.to_string(),
            over: pod.is_over(),
            terminating: pod.is_deleting(),
            available: pod.is_available(min_ready, now),
            updated: object
                .meta
                .labels
                .get(HASH)
                .is_some_and(|hash| **hash == *present.hash),
        };
        let node = node_of(&object.value()).to_owned();
        let known = on_nodes.entry(node).or_default();
        known.push((daemon, pod.ready, pod.created()));
    }
    for pods in on_nodes.values_mut() {
        pods.sort_by_key(|(_, _, created)| *created);
    }
    let mut nodes = Vec::new();
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let mut objects = Vec::new();
    tools
        .table("nodes")
        .for_each(None, |node| objects.push(node.clone()));
    for object in objects {
        let node: core::Node = typed(&object)?;
        let (should_run, may_stay) = fits(set, &node)?;
        let pods = on_nodes.remove(&*object.meta.name).unwrap_or_default();
        let mut add =
            |what: &'static str, yes: bool| *count.entry(what).or_default() += usize::from(yes);
        // The newest of the template counts, else the oldest.
        let shown = pods.iter().find(|(pod, ..)| pod.updated).or(pods.first());
        add("desiredNumberScheduled", should_run);
        add("currentNumberScheduled", should_run && shown.is_some());
        add("numberMisscheduled", !should_run && shown.is_some());
        if let Some((pod, ready, _)) = shown.filter(|_| should_run) {
            add("numberReady", *ready);
            add("numberAvailable", pod.available);
            add("updatedNumberScheduled", pod.updated);
        }
        nodes.push(Node {
            name: object.meta.name.to_string(),
            should_run,
            may_stay,
            pods: pods.into_iter().map(|(pod, ..)| pod).collect(),
        });
    }
    let get = |what: &str| count.get(what).copied().unwrap_or(0);
    let desired = get("desiredNumberScheduled");
    let mut status = json!({});
    for what in [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
    ] {
        status[what] = get(what).into();
    }
    for (what, number) in [
        ("numberAvailable", get("numberAvailable")),
        ("numberUnavailable", desired - get("numberAvailable")),
        ("updatedNumberScheduled", get("updatedNumberScheduled")),
    ] {
        if number > 0 {
            status[what] = number.into();
        }
    }
    Ok(View {
        nodes,
        update: update(set, desired),
        status,
        next,
    })
}

/// How an update goes about, among so many nodes.
fn update(set: &Value, desired: usize) -> Update {
    let strategy = &set["spec"]["updateStrategy"];
    if str_at(strategy, &["type"]) == "OnDelete" {
        return Update::OnDelete;
    }
    let number = |field: &str| {
        let value = serde_json::from_value(strategy["rollingUpdate"][field].clone()).ok();
        let of = i32::try_from(desired).unwrap_or(i32::MAX);
        usize::try_from(resolve(value.as_ref(), of, true)).unwrap_or(0)
    };
    match number("maxSurge") {
        0 => Update::Unavailable(number("maxUnavailable").max(1)),
        surge => Update::Surge(surge),
    }
}

/// Whether a node is to have a pod, and whether one that is there may stay.
fn fits(set: &Value, node: &core::Node) -> Result<(bool, bool)> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut value = pod_for(set, &name);
    meta::metadata_mut(&mut value).remove("ownerReferences");
    // What the template itself asks of the node.
    value["spec"]["affinity"] = set["spec"]["template"]["spec"]["affinity"].clone();
    let pod: core::Pod = serde_json::from_value(value)
        .map_err(|error| Status::internal_error(format!("a daemon's template: {error}")))?;
    let pod = PodInfo::of(pod);
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if !(pod.node.is_empty() || pod.node == name) || !pod.selects_node(&name, &labels) {
        return Ok((false, false));
    }
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let may_stay = pod.untolerated(&taints, &["NoExecute"]).is_none();
    let should_run = may_stay && pod.untolerated(&taints, &["NoSchedule"]).is_none();
    Ok((should_run, may_stay))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(labels: Value, taints: Value) -> core::Node {
        serde_json::from_value(
            json!({"metadata": {"name": "box", "labels": labels}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    #[test]
    fn nodes_are_chosen_by_labels_and_taints() {
        let set = json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"nodeSelector": {"color": "blue"}, "containers": []}}}});
        let blue = json!({"color": "blue"});
        assert_eq!(
            fits(&set, &node(blue.clone(), json!([]))).unwrap(),
            (true, true)
        );
        assert_eq!(
            fits(&set, &node(json!({}), json!([]))).unwrap(),
            (false, false)
        );
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        for (taints, fit) in [
            (
                taint("node.kubernetes.io/unschedulable", "NoSchedule"),
                (true, true),
            ),
            (
                taint("node.kubernetes.io/not-ready", "NoExecute"),
                (true, true),
            ),
            (taint("mine", "NoSchedule"), (false, true)),
            (taint("mine", "NoExecute"), (false, false)),
        ] {
            assert_eq!(fits(&set, &node(blue.clone(), taints)).unwrap(), fit);
        }
    }

    #[test]
    fn a_pod_is_meant_for_its_node() {
        let set = json!({"spec": {"template": {"spec": {"containers": []}}}});
        assert_eq!(node_of(&pod_for(&set, "box-1")), "box-1");
        assert_eq!(node_of(&json!({"spec": {"nodeName": "box-2"}})), "box-2");
    }
}
