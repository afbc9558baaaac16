//! Runs the pods of a Job until enough of them have succeeded, or too many have failed.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/>
//!
//! Each look does one step of what [`plan`] and [`status`] say; the changes that it makes bring the next.

mod ending;
mod failure;
mod indexes;
mod member;
mod orphans;
mod plan;
mod pod;
mod status;
#[cfg(test)]
mod tests;
mod ttl;
mod view;

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{LabelSelector, Status, meta};
use futures_util::future::{join_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::claims::Owner;
use super::memo::Memo;
use super::pod_control::{PodControl, is_namespace_going, slow_start};
use super::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, controller_key, selector_of,
    typed,
};
use crate::cache::{Event, EventType, Meta, Object};
use crate::events::Reference;
use member::{Member, TRACKING};
use plan::{Plan, plan};
use view::View;

pub use orphans::Orphans;
pub use ttl::TtlAfterFinished;

const RESOURCE: &str = "jobs.batch";
const GROUP: &str = "batch";
const KIND: &str = "Job";
/// We, in `spec.managedBy`.
const MANAGER: &str = "kubernetes.io/job-controller";
/// No look is put off for longer: deadlines can be given that no clock reaches.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 3600);

pub struct Jobs {
    selectors: Arc<Memo<Option<LabelSelector>>>,
}

impl Default for Jobs {
    fn default() -> Jobs {
        Jobs {
            selectors: Arc::new(Memo::new(selector_of)),
        }
    }
}

impl Controller for Jobs {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let selectors = self.selectors.clone();
        vec![
            self.selectors.clone().own(RESOURCE),
            Source::new("pods", move |tools, event| {
                jobs_of_pod(tools, event, &selectors)
            }),
        ]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The job that has a pod or had it before; for a pod that nobody has, those that may adopt it.
fn jobs_of_pod(tools: &Tools, event: &Event, selectors: &Memo<Option<LabelSelector>>) -> Vec<Key> {
    let owner = |meta: &Meta| controller_key(meta, GROUP, KIND);
    let meta = &event.object.meta;
    let before = event.prev.as_ref().and_then(|prev| owner(&prev.meta));
    let mut keys: Vec<Key> = before.into_iter().chain(owner(meta)).collect();
    if meta.controller().is_none() && event.kind != EventType::Deleted {
        keys.extend(selectors.selecting(&tools.table(RESOURCE), meta));
    }
    if keys.is_empty() || !member::counts(event) {
        return Vec::new();
    }
    keys.dedup();
    keys
}

/// Somebody else cares for the job.
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job
        .spec
        .as_ref()
        .and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

fn is_finished(job: &Job) -> bool {
    job.status.as_ref().and_then(ending::ended).is_some()
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let job: Job = typed(&object)?;
    if is_managed_elsewhere(&job) || is_finished(&job) {
        return Ok(Outcome::Done);
    }
    let Some(selector) = selector_of(&object) else {
        return Ok(Outcome::Done);
    };
    let owner = Owner {
        api_version: "batch/v1",
        kind: KIND,
        object: &object,
        selector: &selector,
    };
    let policy = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref());
    let read = |objects: Vec<Arc<Object>>| -> Result<Vec<Member>> {
        objects
            .iter()
            .map(|pod| Member::read(pod, policy))
            .collect()
    };
    let pods = read(owner.claim_marked(tools, "pods", TRACKING).await?)?;
    let view = View::of(&job, &pods, Timestamp::now());
    let plan = plan(&view);
    let failed = act(tools, &owner, &plan).await.err();
    // The status tells of what was just done.
    let own = read(tools.table("pods").by_owner(&object.meta.uid))?;
    let view = View::of(&job, &own, Timestamp::now());
    let told = status::told(&view);
    if job.status.as_ref() != Some(&told.status) {
        write(tools, &object, &told.status).await?;
        let about = Reference::to(owner.api_version, owner.kind, &object);
        for news in told.news {
            tools
                .recorder
                .tell(about.clone(), news.kind, news.reason, news.message);
        }
    }
    let release = told
        .release
        .iter()
        .map(|pod| release(tools, &pod.pod.object, false));
    try_join_all(release).await?;
    match failed {
        Some(status) if !is_namespace_going(&status) => Ok(Outcome::Failed),
        _ => {
            let pause = match plan {
                Plan::Wait(pause) => pause,
                _ => None,
            };
            let deadline = ending::time_left(&view).filter(|left| !left.is_zero());
            let next = pause.into_iter().chain(deadline).min();
            Ok(next.map_or(Outcome::Done, |next| Outcome::After(next.min(LONGEST_WAIT))))
        }
    }
}

/// Writes the status, if it is still the one that the new one was made from: it holds what was counted already.
async fn write(
    tools: &Tools,
    object: &Object,
    status: &k8s_openapi::api::batch::v1::JobStatus,
) -> Result<()> {
    let meta = &object.meta;
    let context = tools.sub_context(RESOURCE, &meta.namespace, "status")?;
    let before = object.value()["status"].clone();
    let write = |value: &mut Value| {
        if meta::uid(value) != &*meta.uid || value["status"] != before {
            return Err(Status::modified(&context.group_resource(), &meta.name));
        }
        value["status"] = json!(status);
        Ok(())
    };
    tools
        .registry
        .update_with(&context, &meta.name, write)
        .await
        .map(drop)
}

/// Makes or ends pods.
async fn act(tools: &Tools, owner: &Owner<'_>, plan: &Plan<'_>) -> Result<()> {
    let meta = &owner.object.meta;
    let control = PodControl {
        tools,
        namespace: &meta.namespace,
        about: Reference::to(owner.api_version, owner.kind, owner.object),
    };
    match plan {
        Plan::Wait(_) => Ok(()),
        Plan::Create(new) => {
            let template = &owner.object.value()["spec"]["template"];
            let reference = owner.reference();
            let make =
                |at: usize| control.create(pod::pod(&meta.name, template, &reference, new[at]));
            slow_start(new.len(), make).await.1
        }
        Plan::End(pods) => {
            control
                .delete_all(pods.iter().map(|pod| &pod.pod.object))
                .await
        }
        Plan::Dismiss(pods) => {
            let dismiss = pods.iter().map(|pod| async {
                let object = &pod.pod.object;
                if release(tools, object, true).await? {
                    control.delete(object).await?;
                }
                Ok(())
            });
            join_all(dismiss).await.into_iter().collect()
        }
    }
}

/// Takes our finalizer from a pod; false: it is gone, or `active` and it is not active any more.
async fn release(tools: &Tools, pod: &Object, active: bool) -> Result<bool> {
    let context = tools.context("pods", &pod.meta.namespace)?;
    let change = |value: &mut Value| {
        let over = matches!(
            meta::str_at(value, &["status", "phase"]),
            "Succeeded" | "Failed"
        );
        // What has ended meanwhile counts.
        if meta::uid(value) != &*pod.meta.uid || (active && over) {
            return Err(Status::not_found(&context.group_resource(), &pod.meta.name));
        }
        meta::remove_finalizer(value, TRACKING);
        Ok(())
    };
    let released = tools.registry.update_with(&context, &pod.meta.name, change);
    match released.await {
        Err(status) if status.is_not_found() => Ok(false),
        released => released.map(|_| true),
    }
}
