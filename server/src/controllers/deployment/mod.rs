//! Rolls out pods of a template by way of replica sets, one for each template that there was.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>

mod numbers;
mod plan;
mod sets;
mod status;

use std::collections::HashSet;
use std::sync::Arc;

use amphipod_api::{LabelSelector, meta};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};
use tracing::info;

use super::claims::Owner;
use super::memo::Memo;
use super::pod_control::is_namespace_going;
use super::pods::Pod;
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, selector_of,
    typed,
};
use crate::cache::{Event, EventType, Object};
use crate::events::{Kind, Reference};
use crate::registry::{DeleteOptions, Propagation};
pub use numbers::resolve;
use plan::{Plan, View};

const RESOURCE: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";

pub struct Deployments {
    selectors: Arc<Memo<Option<LabelSelector>>>,
}

impl Default for Deployments {
    fn default() -> Deployments {
        Deployments {
            selectors: Arc::new(Memo::new(selector_of)),
        }
    }
}

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let selectors = self.selectors.clone();
        vec![
            self.selectors.clone().own(RESOURCE),
            Source::new(SETS, move |tools, event| {
                owners_of_set(tools, event, &selectors)
            }),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The deployment that has a set, or had it before; for a set that nobody has, the deployments that may adopt it.
fn owners_of_set(
    tools: &Tools,
    event: &Event,
    selectors: &Memo<Option<LabelSelector>>,
) -> Vec<Key> {
    let meta = &event.object.meta;
    let mut keys: HashSet<Key> = controller_key(meta, "apps", "Deployment")
        .into_iter()
        .collect();
    keys.extend(
        event
            .prev
            .as_ref()
            .and_then(|prev| controller_key(&prev.meta, "apps", "Deployment")),
    );
    if meta.controller().is_none() && event.kind != EventType::Deleted {
        keys.extend(selectors.selecting(&tools.table(RESOURCE), meta));
    }
    keys.into_iter().collect()
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let Some(selector) = selector_of(&object).filter(|selector| !selector.is_everything()) else {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        tools.recorder.tell(
            Reference::to("apps/v1", "Deployment", &object),
            Kind::Warning,
            "SelectingAll",
            message,
        );
        return Ok(Outcome::Done);
    };
    let owner = Owner {
        api_version: "apps/v1",
        kind: "Deployment",
        object: &object,
        selector: &selector,
    };
    let sets = owner.claim(tools, SETS).await?;
    let deployment: Deployment = typed(&object)?;
    // Only who recreates pods waits for the last old one.
    let waits = !numbers::is_rolling(&deployment);
    let with_pods = sets
        .iter()
        .filter(|set| waits && has_pods(tools, set))
        .map(|set| set.meta.uid.to_string())
        .collect();
    let view = View {
        deployment,
        sets: sets
            .iter()
            .map(|set| typed(set))
            .collect::<Result<Vec<ReplicaSet>>>()?,
        with_pods,
        now: Timestamp::now(),
    };
    carry_out(tools, key, &object, &view, plan::plan(&view)).await
}

/// Whether a set has pods that are not over; one that is terminating counts.
fn has_pods(tools: &Tools, set: &Object) -> bool {
    let pods = tools.table("pods").by_owner(&set.meta.uid);
    pods.iter()
        .any(|pod| Pod::read(pod).is_ok_and(|pod| !pod.is_over()))
}

async fn carry_out(
    tools: &Tools,
    key: &Key,
    object: &Object,
    view: &View,
    plan: Plan,
) -> Result<Outcome> {
    let tell = |kind, reason, message: String| {
        tools.recorder.tell(
            Reference::to("apps/v1", "Deployment", object),
            kind,
            reason,
            message,
        );
    };
    let d = &view.deployment;
    let context = tools.context(SETS, &key.namespace)?;
    if let Some(set) = &plan.create {
        let name = set.metadata.name.clone().unwrap_or_default();
        match tools.registry.create(&context, json!(set).into()).await {
            Ok(_) => {}
            Err(status) if status.is_already_exists() => {
                info!(
                    set = name,
                    "a replica set of this name is there for another template; the next name is tried"
                );
                note(tools, key, d, |status| {
                    status["collisionCount"] =
                        json!(meta::i64_at(status, &["collisionCount"]).unwrap_or(0) + 1);
                })
                .await?;
                return Ok(Outcome::Failed);
            }
            Err(refusal) if is_namespace_going(&refusal) => return Ok(Outcome::Done),
            Err(refusal) => {
                let message = format!(
                    "Failed to create new replica set {name:?}: {}",
                    refusal.message
                );
                tell(Kind::Warning, "ReplicaSetCreateError", message.clone());
                if status::deadline(d).is_some() {
                    let mut failed = d.status.clone().unwrap_or_default();
                    status::set_progressing(
                        &mut failed,
                        "False",
                        "ReplicaSetCreateError",
                        message,
                        view.now,
                    );
                    note(tools, key, d, |status| *status = json!(failed)).await?;
                }
                return Err(refusal);
            }
        }
    }
    for set in &plan.update {
        update(tools, &context, set).await?;
    }
    for message in plan.scalings {
        tell(Kind::Normal, "ScalingReplicaSet", message);
    }
    for set in &plan.delete {
        let options = DeleteOptions {
            uid: set.metadata.uid.clone(),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match tools
            .registry
            .delete(
                &context,
                set.metadata.name.as_deref().unwrap_or_default(),
                &options,
            )
            .await
        {
            Err(refusal) if !refusal.is_not_found() && !refusal.is_conflict() => {
                return Err(refusal);
            }
            _ => {}
        }
    }
    let had = d
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(sets::REVISION));
    let same_revision = plan.revision.is_none() || plan.revision.as_ref() == had;
    if !same_revision || !status::same(&d.status.clone().unwrap_or_default(), &plan.status) {
        let context = tools.sub_context(RESOURCE, &key.namespace, "status")?;
        let write = |value: &mut Value| {
            if meta::uid(value) == &*object.meta.uid {
                value["status"] = json!(plan.status);
                if let Some(revision) = &plan.revision {
                    meta::set_annotation(value, sets::REVISION, revision);
                }
            }
            Ok(())
        };
        match tools.registry.update_with(&context, &key.name, write).await {
            Err(refusal) if !refusal.is_not_found() => return Err(refusal),
            _ => {}
        }
    }
    Ok(plan.again.map_or(Outcome::Done, Outcome::After))
}

/// Writes what the plan changed on a set.
async fn update(tools: &Tools, context: &crate::registry::Context, set: &ReplicaSet) -> Result<()> {
    let spec = set.spec.clone().unwrap_or_default();
    let write = |value: &mut Value| {
        if meta::uid(value) != set.metadata.uid.as_deref().unwrap_or_default() {
            return Ok(());
        }
        for (key, text) in set.metadata.annotations.iter().flatten() {
            meta::set_annotation(value, key, text);
        }
        value["spec"]["replicas"] = json!(spec.replicas);
        match spec.min_ready_seconds {
            Some(seconds) => value["spec"]["minReadySeconds"] = json!(seconds),
            None => drop(
                value["spec"]
                    .as_object_mut()
                    .and_then(|spec| spec.remove("minReadySeconds")),
            ),
        }
        Ok(())
    };
    tools
        .registry
        .update_with(
            context,
            set.metadata.name.as_deref().unwrap_or_default(),
            write,
        )
        .await
        .map(drop)
}

/// Changes the stored status.
async fn note(
    tools: &Tools,
    key: &Key,
    d: &Deployment,
    change: impl Fn(&mut Value) + Send + Sync,
) -> Result<()> {
    let context = tools.sub_context(RESOURCE, &key.namespace, "status")?;
    let write = |value: &mut Value| {
        if meta::uid(value) == d.metadata.uid.as_deref().unwrap_or_default() {
            change(&mut value["status"]);
        }
        Ok(())
    };
    tools
        .registry
        .update_with(&context, &key.name, write)
        .await
        .map(drop)
}
