//! What a job's controller asks of a pod, read from it. Pure.

use std::sync::Arc;

use amphipod_api::time;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::PodFailurePolicy;
use k8s_openapi::api::core::v1 as core;

use super::failure::{self, Judgement};
use crate::cache::{Event, Object};
use crate::controllers::pods::{self, Phase, Pod};
use crate::controllers::{Result, typed};

/// On pods that are not counted yet: they cannot go before they are.
/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-tracking-with-finalizers>
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Which index a pod is for: an annotation, and a label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How many pods of an index failed before this one, with `backoffLimitPerIndex`: annotations.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// A pod of a job.
#[derive(Clone, Debug)]
pub struct Member {
    pub pod: Pod,
    /// It is not counted yet.
    pub tracked: bool,
    pub index: Option<i32>,
    /// Failures of its index before it that count, and that do not.
    pub failures: (i32, i32),
    /// Restarts of all its containers.
    pub restarts: i32,
    /// When it was over, if it is.
    pub finished: Timestamp,
    /// What its failure comes to, if it has failed.
    pub judgement: Judgement,
}

impl Member {
    /// Reads a pod.
    ///
    /// # Errors
    /// The stored object is not a pod.
    pub fn read(object: &Arc<Object>, policy: Option<&PodFailurePolicy>) -> Result<Member> {
        let pod: core::Pod = typed(object)?;
        let annotation = |key: &str| -> Option<i32> {
            let text = pod.metadata.annotations.as_ref()?.get(key)?;
            text.parse().ok().filter(|number| *number >= 0)
        };
        let status = pod.status.clone().unwrap_or_default();
        let restarts = containers(&status).map(|container| container.restart_count);
        Ok(Member {
            tracked: is_tracked(object),
            index: annotation(INDEX),
            failures: (
                annotation(INDEX_FAILURES).unwrap_or(0),
                annotation(INDEX_IGNORED).unwrap_or(0),
            ),
            restarts: restarts.fold(0, i32::saturating_add),
            finished: finished(&pod, &status, object),
            judgement: policy
                .map(|policy| failure::judge(policy, object, &status))
                .unwrap_or_default(),
            pod: Pod::read(object)?,
        })
    }

    pub fn uid(&self) -> &str {
        &self.pod.object.meta.uid
    }

    /// Failed, or it never will be anything else: nobody runs a pod that goes before it has a node.
    pub fn has_failed(&self) -> bool {
        self.pod.phase == Phase::Failed || (self.pod.is_terminating() && self.pod.node.is_empty())
    }

    pub fn has_succeeded(&self) -> bool {
        self.pod.phase == Phase::Succeeded
    }
}

pub fn is_tracked(object: &Object) -> bool {
    object.meta.finalizers.iter().any(|have| have == TRACKING)
}

/// Whether a change of a pod is one that its job needs to know of.
pub fn counts(event: &Event) -> bool {
    let Some(prev) = &event.prev else {
        return true;
    };
    let restarts = |object: &Arc<Object>| Member::read(object, None).map(|member| member.restarts);
    pods::counts(event)
        || prev.meta.finalizers != event.object.meta.finalizers
        || restarts(prev).ok() != restarts(&event.object).ok()
}

fn containers(status: &core::PodStatus) -> impl Iterator<Item = &core::ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten()
}

/// When a pod was over: its last container, else when it ceased to be ready, else when somebody deleted it.
fn finished(pod: &core::Pod, status: &core::PodStatus, object: &Object) -> Timestamp {
    let ends: Option<Vec<Timestamp>> = status
        .container_statuses
        .iter()
        .flatten()
        .map(|container| {
            Some(
                container
                    .state
                    .as_ref()?
                    .terminated
                    .as_ref()?
                    .finished_at
                    .as_ref()?
                    .0,
            )
        })
        .collect();
    let unready = || {
        let conditions = status.conditions.as_ref()?;
        let ready = conditions
            .iter()
            .find(|c| c.type_ == "Ready" && c.status == "False")?;
        Some(ready.last_transition_time.as_ref()?.0)
    };
    let deleted = || {
        let when = time::parse_time(object.meta.deletion_timestamp.as_deref()?)?;
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        when.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    let created = || time::parse_time(object.meta.creation_timestamp.as_deref()?);
    ends.and_then(|ends| ends.into_iter().max())
        .or_else(unready)
        .or_else(deleted)
        .or_else(created)
        .unwrap_or_default()
}
