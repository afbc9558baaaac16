//! Keeps as many pods of a template as a ReplicaSet asks for, or its elder sister, a ReplicationController.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller/>
//!
//! No expectations, as upstream's controllers need them: what this controller writes is in the cache when the write returns, and one
//! worker at a time has a set.

pub mod rank;
mod status;

use std::collections::HashSet;
use std::sync::Arc;

use amphipod_api::meta::map_at;
use amphipod_api::{LabelSelector, Status};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::claims::Owner;
use super::memo::Memo;
use super::pod_control::{PodControl, generate_name, is_namespace_going, pod_from, slow_start};
use super::pods::{self, Pod};
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, selector_of,
    typed,
};
use crate::cache::{Event, EventType, Object};
use crate::events::Reference;
use status::Failure;

/// What the two kinds do not have in common.
struct Sort {
    /// The controller's name.
    name: &'static str,
    resource: &'static str,
    group: &'static str,
    api_version: &'static str,
    kind: &'static str,
    selector: fn(&Object) -> Option<LabelSelector>,
    read: fn(&Object) -> Result<ReplicaSet>,
}

static REPLICA_SET: Sort = Sort {
    name: "replicaset-controller",
    resource: "replicasets.apps",
    group: "apps",
    api_version: "apps/v1",
    kind: "ReplicaSet",
    selector: selector_of,
    read: typed,
};

static REPLICATION_CONTROLLER: Sort = Sort {
    name: "replication-controller",
    resource: "replicationcontrollers",
    group: "",
    api_version: "v1",
    kind: "ReplicationController",
    selector: |object| {
        Some(LabelSelector::from_set(map_at(
            &object.value(),
            &["spec", "selector"],
        )))
    },
    read: as_replica_set,
};

/// A ReplicationController in the shape of a ReplicaSet, which has all its fields. Only the selector is of another type; nobody
/// reads it from here.
fn as_replica_set(object: &Object) -> Result<ReplicaSet> {
    let value = object.value();
    let spec = &value["spec"];
    let set = json!({
        "apiVersion": REPLICA_SET.api_version,
        "kind": REPLICA_SET.kind,
        "metadata": value["metadata"],
        "spec": {
            "replicas": spec["replicas"], "minReadySeconds": spec["minReadySeconds"],
            "selector": {}, "template": spec["template"],
        },
        "status": value["status"],
    });
    serde_json::from_value(set).map_err(|error| {
        Status::internal_error(format!(
            "the stored object {object:?} does not decode: {error}"
        ))
    })
}

pub struct ReplicaSets {
    sort: &'static Sort,
    selectors: Arc<Memo<Option<LabelSelector>>>,
}

impl ReplicaSets {
    /// The controller of ReplicaSets.
    pub fn of_replica_sets() -> ReplicaSets {
        ReplicaSets::of(&REPLICA_SET)
    }

    /// The controller of ReplicationControllers.
    pub fn of_replication_controllers() -> ReplicaSets {
        ReplicaSets::of(&REPLICATION_CONTROLLER)
    }

    fn of(sort: &'static Sort) -> ReplicaSets {
        ReplicaSets {
            sort,
            selectors: Arc::new(Memo::new(sort.selector)),
        }
    }
}

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        self.sort.name
    }

    fn sources(&self) -> Vec<Source> {
        let (sort, selectors) = (self.sort, self.selectors.clone());
        vec![
            self.selectors.clone().own(sort.resource),
            Source::new("pods", move |tools, event| {
                owners_of_pod(sort, tools, event, &selectors)
            }),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(self.sort, tools, key))
    }
}

/// The set that has a pod, or had it before; for a pod that nobody has, the sets that may adopt it.
fn owners_of_pod(
    sort: &Sort,
    tools: &Tools,
    event: &Event,
    selectors: &Memo<Option<LabelSelector>>,
) -> Vec<Key> {
    let mut keys: HashSet<Key> = HashSet::new();
    let orphan = event.object.meta.controller().is_none();
    let prev = event.prev.as_ref().map(|prev| &prev.meta);
    keys.extend(controller_key(&event.object.meta, sort.group, sort.kind));
    keys.extend(prev.and_then(|prev| controller_key(prev, sort.group, sort.kind)));
    if orphan && event.kind != EventType::Deleted {
        let (meta, news) = (&event.object.meta, |prev: &crate::cache::Meta| {
            prev.labels != event.object.meta.labels || prev.controller().is_some()
        });
        if prev.is_none_or(news) {
            keys.extend(selectors.selecting(&tools.table(sort.resource), meta));
        }
    }
    if keys.is_empty() || !pods::counts(event) {
        return Vec::new();
    }
    keys.into_iter().collect()
}

async fn reconcile(sort: &Sort, tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(sort.resource).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let set = (sort.read)(&object)?;
    let Some(selector) = (sort.selector)(&object) else {
        return Ok(Outcome::Done);
    };
    let owner = Owner {
        api_version: sort.api_version,
        kind: sort.kind,
        object: &object,
        selector: &selector,
    };
    let read =
        |objects: Vec<Arc<Object>>| objects.iter().map(Pod::read).collect::<Result<Vec<Pod>>>();
    let mut pods = read(owner.claim(tools, "pods").await?)?;
    let mut failed: Option<(&'static str, Status)> = None;
    if !object.meta.is_deleting() {
        let before = pods.len();
        if let Err(failure) = manage(sort, tools, &owner, &set, &pods).await {
            failed = Some(failure);
        }
        // The status tells of what was just done.
        let own = tools.table("pods").by_owner(&object.meta.uid);
        if own.len() != before
            || own
                .iter()
                .zip(&pods)
                .any(|(new, old)| new.meta.revision != old.object.meta.revision)
        {
            let selected = own
                .into_iter()
                .filter(|pod| selector.matches(&pod.meta.labels));
            pods = read(selected.collect())?;
        }
    }
    let failure = failed.as_ref().map(|(reason, status)| Failure {
        reason,
        message: status.message.clone(),
    });
    let (mut status, next) = status::of(&set, &pods, failure, Timestamp::now());
    if sort.kind == REPLICATION_CONTROLLER.kind {
        // The one field that it does not have.
        status.terminating_replicas = None;
    }
    if set.status.as_ref() != Some(&status) {
        let context = tools.sub_context(sort.resource, &key.namespace, "status")?;
        let write = |value: &mut Value| {
            value["status"] = json!(status);
            Ok(())
        };
        match tools.registry.update_with(&context, &key.name, write).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    match failed {
        Some((_, status)) if !is_namespace_going(&status) => Ok(Outcome::Failed),
        _ => Ok(next.map_or(Outcome::Done, Outcome::After)),
    }
}

/// Makes the pods that are missing, or deletes those that are too many.
async fn manage(
    sort: &Sort,
    tools: &Tools,
    owner: &Owner<'_>,
    set: &ReplicaSet,
    pods: &[Pod],
) -> Result<(), (&'static str, Status)> {
    let meta = &owner.object.meta;
    let control = PodControl {
        tools,
        namespace: &meta.namespace,
        about: Reference::to(owner.api_version, owner.kind, owner.object),
    };
    let wanted = set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let mut active: Vec<Pod> = pods.iter().filter(|pod| pod.is_active()).cloned().collect();
    if active.len() < wanted {
        let mut pod = pod_from(
            &owner.object.value()["spec"]["template"],
            &owner.reference(),
        );
        generate_name(&mut pod, &meta.name);
        let (_, outcome) = slow_start(wanted - active.len(), |_| control.create(pod.clone())).await;
        outcome.map_err(|status| ("FailedCreate", status))
    } else if active.len() > wanted {
        let surplus = active.len() - wanted;
        if wanted > 0 {
            rank::sort(
                &mut active,
                &related(sort, tools, owner.object, pods),
                Timestamp::now(),
            );
        }
        let deleted = control
            .delete_all(active.iter().take(surplus).map(|pod| &pod.object))
            .await;
        deleted.map_err(|status| ("FailedDelete", status))
    } else {
        Ok(())
    }
}

/// The pods of all sets with the same owner: how full nodes are with pods of the same deployment.
fn related(sort: &Sort, tools: &Tools, set: &Object, own: &[Pod]) -> Vec<Pod> {
    let Some(controller) = set.meta.controller() else {
        return own.to_vec();
    };
    let table = tools.table("pods");
    let sets = tools.table(sort.resource).by_owner(&controller.uid);
    let pods = sets.iter().flat_map(|set| table.by_owner(&set.meta.uid));
    pods.filter_map(|pod| Pod::read(&pod).ok()).collect()
}
