//! The scheduler: gives each waiting pod a node.
//!
//! Its core is pure: [`snapshot`] (the nodes), [`queue`] (the pods that wait), [`framework`] and `plugins` (the rules). This file is the
//! rim: it feeds both from the cache's events, and writes bindings, events and conditions through the registry. A chosen pod stands on
//! its node in the snapshot at once, before the binding is stored, so that the next pod is not promised the same room; if the binding
//! fails, it is taken away again.

mod claims;
pub mod framework;
mod plugins;
pub mod pod;
mod preemption;
mod queue;
pub mod resources;
pub mod snapshot;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use amphipod_api::{Status, meta, time};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use crate::auth::UserInfo;
use crate::cache::{Event, EventType, Gone, Object, Table, Watch};
use crate::events::{Kind, Recorder, Reference};
use crate::registry::{DeleteOptions, Registry};
use framework::{Diagnosis, Hopes};
use plugins::volumes::decisions;
use pod::{DEFAULT_SCHEDULER, PodInfo};
use preemption::Victims;
use queue::Queue;
use snapshot::{NodeChange, Snapshot};

/// Bindings that may be under way at once; the store commits those that come together as one.
const BINDINGS: usize = 64;

/// A running scheduler; dropping it stops it.
pub struct Scheduler {
    _task: AbortOnDropHandle<()>,
}

/// Starts scheduling.
pub fn start(registry: Arc<Registry>) -> Scheduler {
    let task = tokio::spawn(async move {
        loop {
            // Gone: this was too slow for a burst of changes. What is lost is read anew.
            let Err(gone) = State::new(registry.clone()).run().await;
            warn!(%gone, "the scheduler fell behind and reads all nodes and pods again");
        }
    });
    Scheduler {
        _task: AbortOnDropHandle::new(task),
    }
}

struct State {
    registry: Arc<Registry>,
    user: Arc<UserInfo>,
    recorder: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    /// Pods promised to a node whose binding is not in the cache yet, by UID.
    assumed: HashSet<String>,
    /// Pods for which others were taken away, by UID, on the node where that makes room: it is not for pods of lower priority.
    nominated: HashMap<String, Arc<PodInfo>>,
    /// Where to begin looking among many nodes.
    turn: usize,
    bound: mpsc::Sender<(Arc<PodInfo>, Result<(), Status>)>,
    outcomes: mpsc::Receiver<(Arc<PodInfo>, Result<(), Status>)>,
}

impl State {
    fn new(registry: Arc<Registry>) -> State {
        let user = Arc::new(UserInfo::new(
            "system:kube-scheduler",
            &["system:authenticated"],
        ));
        let (bound, outcomes) = mpsc::channel(BINDINGS);
        State {
            recorder: Recorder::start(registry.clone(), user.clone(), DEFAULT_SCHEDULER),
            user,
            registry,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            assumed: HashSet::new(),
            nominated: HashMap::new(),
            turn: 0,
            bound,
            outcomes,
        }
    }

    /// A table with all its objects told as added.
    fn follow(&mut self, resource: &str, mut each: impl FnMut(&mut State, &Arc<Object>)) -> Watch {
        let table: Arc<Table> = match self.registry.catalog().by_resource(resource) {
            Some(descriptor) => self.registry.table(&descriptor),
            None => unreachable!("{resource} is a built-in resource"),
        };
        let (list, watch) = table.list_and_watch(None);
        for object in &list.items {
            each(self, object);
        }
        watch
    }

    async fn run(mut self) -> Result<std::convert::Infallible, Gone> {
        let mut namespaces = self.follow("namespaces", State::namespace_set);
        let mut volumes = self.follow_volumes();
        let mut nodes = self.follow("nodes", |state, object| {
            state.node_set(object);
        });
        let mut pods = self.follow("pods", State::pod_set);
        loop {
            self.schedule_all().await;
            let pause_ends = self.queue.next_pause_ends();
            let pause = async {
                match pause_ends {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Nodes before pods: a pod must not be refused for a node that is known already.
                biased;
                events = namespaces.next() => events?.iter().for_each(|event| self.namespace_event(event)),
                events = volumes.claims.next() => events?.iter().for_each(|event| self.claim_event(event)),
                events = volumes.volumes.next() => events?.iter().for_each(|event| self.volume_event(event)),
                events = volumes.classes.next() => events?.iter().for_each(|event| self.class_event(event)),
                events = nodes.next() => events?.iter().for_each(|event| self.node_event(event)),
                Some((pod, outcome)) = self.outcomes.recv() => self.binding_done(&pod, outcome),
                events = pods.next() => events?.iter().for_each(|event| self.pod_event(event)),
                () = pause => {}
            }
        }
    }

    fn namespace_event(&mut self, event: &Event) {
        match event.kind {
            EventType::Deleted => drop(self.snapshot.namespaces.remove(&*event.object.meta.name)),
            _ => self.namespace_set(&event.object),
        }
    }

    fn namespace_set(&mut self, object: &Arc<Object>) {
        self.snapshot
            .namespaces
            .insert(object.meta.name.to_string(), object.meta.labels.clone());
    }

    fn node_event(&mut self, event: &Event) {
        let change = match event.kind {
            EventType::Deleted => {
                self.snapshot.remove_node(&event.object.meta.name);
                // Fewer domains may satisfy a spread constraint.
                NodeChange::Useful
            }
            _ => self.node_set(&event.object),
        };
        if change == NodeChange::Useful {
            self.queue.happened(
                Hopes {
                    node: true,
                    ..Default::default()
                },
                Instant::now(),
            );
        }
    }

    fn node_set(&mut self, object: &Arc<Object>) -> NodeChange {
        self.snapshot.set_node(object).unwrap_or_else(|problem| {
            error!(node = %object.meta.name, %problem, "a stored node does not decode; it gets no pods");
            NodeChange::Nothing
        })
    }

    fn pod_event(&mut self, event: &Event) {
        match event.kind {
            EventType::Deleted => self.pod_gone(&event.object.meta.uid),
            _ => self.pod_set(&event.object),
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.nominated.remove(uid);
        if self.snapshot.take(uid) {
            self.queue.happened(
                Hopes {
                    pod_gone: true,
                    ..Default::default()
                },
                Instant::now(),
            );
        }
    }

    fn pod_set(&mut self, object: &Arc<Object>) {
        let pod = match PodInfo::read(object) {
            Ok(pod) => Arc::new(pod),
            Err(problem) => {
                error!(pod = ?object, %problem, "a stored pod does not decode; it is not scheduled");
                return;
            }
        };
        if pod.occupies() {
            self.queue.remove(&pod.uid);
            self.assumed.remove(&pod.uid);
            self.nominated.remove(&pod.uid);
            let before = self.snapshot.find(&pod.uid);
            let news = before.is_none_or(|before| before.labels != pod.labels);
            self.snapshot.put(pod);
            if news {
                self.queue.happened(
                    Hopes {
                        pod_came: true,
                        ..Default::default()
                    },
                    Instant::now(),
                );
            }
        } else if !pod.node.is_empty() {
            self.pod_gone(&pod.uid);
        } else if pod.is_waiting() {
            if self.assumed.contains(&pod.uid) {
                return;
            }
            let own_write = self
                .queue
                .get(&pod.uid)
                .is_some_and(|known| is_same_but_for_status(known, &pod));
            if own_write {
                self.queue.refresh(pod, Instant::now());
            } else {
                self.queue.add(pod, Instant::now());
            }
        } else {
            self.queue.remove(&pod.uid);
        }
    }

    async fn schedule_all(&mut self) {
        while let Some(pod) = self.queue.pop(Instant::now()) {
            if !pod.gates.is_empty() {
                self.queue
                    .refused(&pod.uid, Hopes::default(), Instant::now());
                self.tell_condition(
                    &pod,
                    "SchedulingGated",
                    "Scheduling is blocked due to non-empty scheduling gates",
                    None,
                )
                .await;
                continue;
            }
            let promised: Vec<Arc<PodInfo>> = self
                .nominated
                .values()
                .filter(|other| other.uid != pod.uid && other.priority >= pod.priority)
                .cloned()
                .collect();
            for other in &promised {
                self.snapshot.put(other.clone());
            }
            let chosen = framework::schedule(&self.snapshot, &pod, &mut self.turn);
            let victims = match &chosen {
                Err(diagnosis) if diagnosis.hopeless < diagnosis.nodes => {
                    preemption::find(&mut self.snapshot, &pod)
                }
                _ => None,
            };
            for other in &promised {
                self.snapshot.take(&other.uid);
            }
            match (chosen, victims) {
                (Ok(node), _) => {
                    let open = decisions(&self.snapshot, &pod, &node);
                    if open.is_empty() {
                        self.bind(pod, node).await;
                    } else {
                        self.bind_claims(&pod, node, open).await;
                    }
                }
                (Err(diagnosis), None) => {
                    self.refuse(&pod, &diagnosis, &diagnosis.message(), None)
                        .await;
                }
                (Err(diagnosis), Some(victims)) => {
                    let message = diagnosis.refusals();
                    self.refuse(&pod, &diagnosis, &message, Some(&victims.node))
                        .await;
                    self.preempt(&pod, victims).await;
                }
            }
        }
    }

    /// `nominated`: the node where others make room.
    async fn refuse(
        &mut self,
        pod: &Arc<PodInfo>,
        diagnosis: &Diagnosis,
        message: &str,
        nominated: Option<&str>,
    ) {
        self.queue
            .refused(&pod.uid, diagnosis.hopes, Instant::now());
        self.recorder
            .tell(reference(pod), Kind::Warning, "FailedScheduling", message);
        self.tell_condition(pod, "Unschedulable", message, nominated)
            .await;
    }

    /// Takes pods away for another, whose room that is from now on.
    async fn preempt(&mut self, pod: &Arc<PodInfo>, victims: Victims) {
        let mut nominated = PodInfo::clone(pod);
        nominated.node.clone_from(&victims.node);
        self.nominated.insert(pod.uid.clone(), Arc::new(nominated));
        for victim in victims.pods.iter().filter(|victim| !victim.deleting) {
            let gone = async {
                let context = self
                    .registry
                    .context(&self.user, "pods", &victim.namespace)?;
                let options = DeleteOptions {
                    uid: Some(victim.uid.clone()),
                    ..DeleteOptions::default()
                };
                self.registry.delete(&context, &victim.name, &options).await
            };
            match gone.await {
                Ok(_) => {
                    let message = format!("Preempted by pod {} on node {}", pod.uid, victims.node);
                    self.recorder
                        .tell(reference(victim), Kind::Normal, "Preempted", message);
                }
                Err(status) if status.is_not_found() || status.is_conflict() => {}
                Err(status) => {
                    warn!(pod = %victim.name, namespace = %victim.namespace, %status, "a pod could not be taken away for one of higher priority");
                }
            }
        }
    }

    /// Writes the condition `PodScheduled=False`, unless it stands there already.
    async fn tell_condition(
        &self,
        pod: &PodInfo,
        reason: &str,
        message: &str,
        nominated: Option<&str>,
    ) {
        if pod.told.as_deref() == Some(message) && nominated.is_none() {
            return;
        }
        let told = async {
            let context = self
                .registry
                .context(&self.user, "pods", &pod.namespace)?
                .with_subresource("status");
            let change = |object: &mut serde_json::Value| {
                if meta::uid(object) != pod.uid
                    || !meta::str_at(object, &["spec", "nodeName"]).is_empty()
                {
                    return Ok(());
                }
                let generation = object["metadata"]["generation"].clone();
                let status = &mut object["status"];
                if let Some(node) = nominated {
                    status["nominatedNodeName"] = node.into();
                }
                if status["conditions"].is_null() {
                    status["conditions"] = json!([]);
                }
                let Some(conditions) = status["conditions"].as_array_mut() else {
                    return Ok(());
                };
                let since = conditions
                    .iter()
                    .find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
                let since = since.map(|condition| condition["lastTransitionTime"].clone());
                conditions.retain(|condition| condition["type"] != "PodScheduled");
                conditions.push(json!({
                    "type": "PodScheduled", "status": "False", "reason": reason, "message": message, "lastProbeTime": null,
                    "lastTransitionTime": since.unwrap_or_else(|| json!(time::format_time(Timestamp::now()))),
                    "observedGeneration": generation,
                }));
                Ok(())
            };
            self.registry.update_with(&context, &pod.name, change).await
        };
        match told.await {
            Ok(_) => {}
            Err(status) if status.is_not_found() => {}
            Err(status) => {
                warn!(pod = %pod.name, namespace = %pod.namespace, %status, "a pod's condition was not written")
            }
        }
    }

    async fn bind(&mut self, pod: Arc<PodInfo>, node: String) {
        let mut placed = PodInfo::clone(&pod);
        placed.node = node;
        let placed = Arc::new(placed);
        self.snapshot.put(placed.clone());
        self.assumed.insert(pod.uid.clone());
        // No more bindings under way than the channel can tell of.
        while self.bound.capacity() == 0 {
            let Some((pod, outcome)) = self.outcomes.recv().await else {
                return;
            };
            self.binding_done(&pod, outcome);
        }
        let Ok(permit) = self.bound.clone().reserve_owned().await else {
            return;
        };
        let (registry, user) = (self.registry.clone(), self.user.clone());
        tokio::spawn(async move {
            let outcome = async {
                let context = registry
                    .context(&user, "pods", &placed.namespace)?
                    .with_subresource("binding");
                let binding = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": {"name": placed.name, "namespace": placed.namespace, "uid": placed.uid},
                    "target": {"kind": "Node", "name": placed.node},
                });
                registry
                    .bind(&context, &placed.name, &binding)
                    .await
                    .map(drop)
            };
            let outcome = outcome.await;
            permit.send((placed, outcome));
        });
    }

    fn binding_done(&mut self, placed: &Arc<PodInfo>, outcome: Result<(), Status>) {
        match outcome {
            Ok(()) => {
                let message = format!(
                    "Successfully assigned {}/{} to {}",
                    placed.namespace, placed.name, placed.node
                );
                self.recorder
                    .tell(reference(placed), Kind::Normal, "Scheduled", message);
                self.queue.remove(&placed.uid);
            }
            Err(status) => {
                if self.assumed.remove(&placed.uid) {
                    self.snapshot.take(&placed.uid);
                }
                // A pod that is gone leaves the queue by its own event.
                self.queue.failed(&placed.uid, Instant::now());
                if !status.is_not_found() && !status.is_conflict() {
                    warn!(pod = %placed.name, namespace = %placed.namespace, node = %placed.node, %status, "binding failed; it is tried again");
                }
            }
        }
    }
}

fn reference(pod: &PodInfo) -> Reference {
    Reference::new("v1", "Pod", &pod.namespace, &pod.name, &pod.uid)
}

/// Nothing has changed that scheduling depends on.
fn is_same_but_for_status(known: &PodInfo, new: &PodInfo) -> bool {
    known.labels == new.labels
        && known.gates == new.gates
        && known.requests == new.requests
        && known.tolerations == new.tolerations
}
