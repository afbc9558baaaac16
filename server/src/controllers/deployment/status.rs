//! The status of a deployment: counts, and the conditions Available, Progressing and ReplicaFailure. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#deployment-status>

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::numbers::{max_unavailable, replicas};
use super::sets::Set;
use crate::controllers::some;

const PROGRESSING: &str = "Progressing";
/// The rollout is over.
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

pub fn progressing(status: &DeploymentStatus) -> Option<&DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == PROGRESSING)
}

/// Sets a condition. If its status and reason are what they were, it stays; if its status is, since when it is so stays.
pub fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    is: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let had = conditions.iter().find(|condition| condition.type_ == kind);
    if had.is_some_and(|had| had.status == is && had.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = had
        .filter(|had| had.status == is)
        .and_then(|had| had.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: is.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        last_update_time: Some(Time(now)),
    });
}

pub fn set_progressing(
    status: &mut DeploymentStatus,
    is: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    set(status, PROGRESSING, is, reason, message, now);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
    }
}

/// Seconds without progress after which a rollout counts as failed.
pub fn deadline(d: &Deployment) -> Option<i32> {
    d.spec
        .as_ref()?
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
}

/// Notes in `status` that the deployment is paused, or goes on.
pub fn note_pause(d: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(d).is_none() {
        return;
    }
    let reason = progressing(status)
        .and_then(|condition| condition.reason.clone())
        .unwrap_or_default();
    let paused = d.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    // That there was no progress is the more important news.
    if reason == TIMED_OUT {
    } else if paused && reason != PAUSED {
        set_progressing(
            status,
            "Unknown",
            PAUSED,
            "Deployment is paused".to_owned(),
            now,
        );
    } else if !paused && reason == PAUSED {
        set_progressing(
            status,
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed".to_owned(),
            now,
        );
    }
}

/// The counts, and the condition Available. `before` carries the other conditions.
pub fn counted(
    d: &Deployment,
    before: &DeploymentStatus,
    sets: &[Set],
    new: Option<&Set>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: &dyn Fn(&ReplicaSetStatus) -> i32| -> i32 {
        sets.iter()
            .filter_map(|set| set.rs.status.as_ref())
            .map(count)
            .sum()
    };
    let available = sum(&|status| status.available_replicas.unwrap_or(0));
    let asked: i32 = sets.iter().map(Set::size).sum();
    let updated = new
        .and_then(|set| set.rs.status.as_ref())
        .map_or(0, |status| status.replicas);
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: some(sum(&|status| status.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(&|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((asked - available).max(0)),
        terminating_replicas: Some(sum(&|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let (is, reason, message) = if available >= replicas(d) - max_unavailable(d) {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(
        &mut status,
        "Available",
        is,
        reason,
        message.to_owned(),
        now,
    );
    status
}

/// All pods are of the present template and available, and no others are there.
pub fn is_complete(d: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(d);
    let is_all = |count: Option<i32>| count.unwrap_or(0) == wanted;
    is_all(status.updated_replicas)
        && is_all(status.replicas)
        && is_all(status.available_replicas)
        && status.observed_generation >= d.metadata.generation
}

/// Something got better since `before`.
fn is_moving(before: &DeploymentStatus, status: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(status.updated_replicas) > n(before.updated_replicas)
        || old(status) < old(before)
        || n(status.ready_replicas) > n(before.ready_replicas)
        || n(status.available_replicas) > n(before.available_replicas)
}

/// Judges the progress of a rollout. `before`: the status as it was, with the conditions that this sync set already.
pub fn judge(
    d: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    sets: &[Set],
    new: Option<&Set>,
    now: Timestamp,
) {
    let had = progressing(before);
    match deadline(d) {
        None => remove(status, PROGRESSING),
        Some(seconds) => {
            let was_over = status.replicas == status.updated_replicas
                && had.is_some_and(|had| had.reason.as_deref() == Some(NEW_SET_AVAILABLE));
            let subject = match new {
                Some(set) => format!("ReplicaSet {:?}", set.name()),
                None => format!(
                    "Deployment {:?}",
                    d.metadata.name.as_deref().unwrap_or_default()
                ),
            };
            if was_over {
            } else if is_complete(d, status) {
                let message = format!("{subject} has successfully progressed.");
                set_progressing(status, "True", NEW_SET_AVAILABLE, message, now);
            } else if is_moving(before, status) {
                let since = had
                    .filter(|had| had.status == "True")
                    .and_then(|had| had.last_transition_time.clone());
                remove(status, PROGRESSING);
                set_progressing(
                    status,
                    "True",
                    "ReplicaSetUpdated",
                    format!("{subject} is progressing."),
                    now,
                );
                // The time of the latest progress is told, since when it goes well stays.
                let written = status
                    .conditions
                    .iter_mut()
                    .flatten()
                    .find(|condition| condition.type_ == PROGRESSING);
                if let (Some(condition), Some(since)) = (written, since) {
                    condition.last_transition_time = Some(since);
                }
            } else if deadline_passed(status, seconds, now) {
                let message = format!("{subject} has timed out progressing.");
                set_progressing(status, "False", TIMED_OUT, message, now);
            }
        }
    }
    let failures = new
        .into_iter()
        .chain(sets)
        .filter_map(|set| set.rs.status.as_ref()?.conditions.as_ref());
    let failure = failures
        .flatten()
        .find(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(failure) => {
            let (reason, message) = (
                failure.reason.clone().unwrap_or_default(),
                failure.message.clone().unwrap_or_default(),
            );
            set(
                status,
                "ReplicaFailure",
                &failure.status,
                &reason,
                message,
                now,
            );
        }
        None => remove(status, "ReplicaFailure"),
    }
}

fn deadline_passed(status: &DeploymentStatus, seconds: i32, now: Timestamp) -> bool {
    let Some(condition) = progressing(status) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => due(condition, seconds).is_some_and(|due| due < now),
    }
}

fn due(condition: &DeploymentCondition, seconds: i32) -> Option<Timestamp> {
    condition
        .last_update_time
        .as_ref()?
        .0
        .checked_add(SignedDuration::from_secs(i64::from(seconds)))
        .ok()
}

/// When to look whether the deadline has passed.
pub fn look_again(d: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let (seconds, condition) = (deadline(d)?, progressing(status)?);
    if is_complete(d, status)
        || matches!(
            condition.reason.as_deref(),
            Some(TIMED_OUT | NEW_SET_AVAILABLE)
        )
    {
        return None;
    }
    let left = due(condition, seconds)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

/// Statuses say the same; the order of conditions says nothing.
pub fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let sorted = |status: &DeploymentStatus| {
        let mut status = status.clone();
        let conditions = status.conditions.get_or_insert_default();
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        status
    };
    sorted(a) == sorted(b)
}
