//! Whether a job comes to its end, and how. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-termination-and-cleanup>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, SuccessPolicyRule};

use super::failure::Judgement;
use super::indexes::Indexes;
use super::view::View;
use crate::controllers::pods::Phase;

/// Conditions that say how a job will end, while its pods are still there.
pub const SUCCESS: &str = "SuccessCriteriaMet";
pub const FAILURE: &str = "FailureTarget";
/// Conditions that say that it has ended.
pub const COMPLETE: &str = "Complete";
pub const FAILED: &str = "Failed";

/// How a job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub succeeds: bool,
    pub reason: String,
    pub message: String,
}

impl Ending {
    fn failure(reason: &str, message: impl Into<String>) -> Ending {
        Ending {
            succeeds: false,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    fn success(reason: &str, message: impl Into<String>) -> Ending {
        Ending {
            succeeds: true,
            ..Ending::failure(reason, message)
        }
    }
}

/// The condition of this type, if it is True.
pub fn holds<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

/// When the job ended, if it has.
pub fn ended(status: &JobStatus) -> Option<Timestamp> {
    let condition = holds(status, COMPLETE).or_else(|| holds(status, FAILED))?;
    Some(condition.last_transition_time.as_ref()?.0)
}

/// How the job ends, if it does. What was decided before stays decided.
pub fn ending(view: &View) -> Option<Ending> {
    for (kind, succeeds) in [(SUCCESS, true), (FAILURE, false)] {
        if let Some(told) = holds(&view.status, kind) {
            return Some(Ending {
                succeeds,
                reason: told.reason.clone().unwrap_or_default(),
                message: told.message.clone().unwrap_or_default(),
            });
        }
    }
    by_policy(view)
        .or_else(|| by_limits(view))
        .or_else(|| by_indexes(view))
        .or_else(|| completed(view))
}

/// A pod failed in a way that fails the whole job.
fn by_policy(view: &View) -> Option<Ending> {
    let mut failed = view.pods.iter().filter(|pod| view.has_failed(pod));
    failed.find_map(|pod| match &pod.judgement {
        Judgement::FailsJob(why) => Some(Ending::failure("PodFailurePolicy", why)),
        _ => None,
    })
}

fn by_limits(view: &View) -> Option<Ending> {
    let limit = view.spec.backoff_limit.unwrap_or(6);
    if view.failed_count() > limit || restarted_too_often(view, limit) {
        return Some(Ending::failure(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ));
    }
    (time_left(view) == Some(Duration::ZERO)).then(|| {
        Ending::failure(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        )
    })
}

/// Containers that are restarted in their pods count, too.
fn restarted_too_often(view: &View, limit: i32) -> bool {
    let template = view.spec.template.spec.as_ref();
    if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let restarts = view
        .pods
        .iter()
        .filter(|pod| matches!(pod.pod.phase, Phase::Running | Phase::Pending))
        .fold(0, |sum: i32, pod| sum.saturating_add(pod.restarts));
    restarts >= limit.max(1)
}

/// How long the job may still be active, if that is limited. A suspended one is not active.
pub fn time_left(view: &View) -> Option<Duration> {
    let allowed = view.spec.active_deadline_seconds?;
    if view.is_suspended() {
        return None;
    }
    let start = view
        .status
        .start_time
        .as_ref()
        .map_or(view.now, |start| start.0);
    let passed = view.now.as_millisecond() - start.as_millisecond();
    let left = allowed.saturating_mul(1000).saturating_sub(passed);
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

fn by_indexes(view: &View) -> Option<Ending> {
    if !view.is_indexed() {
        return None;
    }
    let (completed, failed) = (view.completed.len(), view.failed_indexes.len());
    if view.per_index() {
        if view
            .spec
            .max_failed_indexes
            .is_some_and(|most| failed > most)
        {
            return Some(Ending::failure(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ));
        }
        if failed > 0 && failed.saturating_add(completed) >= view.completions() {
            return Some(Ending::failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    let policy = view.spec.success_policy.as_ref()?;
    let met = policy
        .rules
        .iter()
        .position(|rule| meets(rule, &view.completed, view.completions()))?;
    Some(Ending::success(
        "SuccessPolicy",
        format!("Matched rules at index {met}"),
    ))
}

/// Whether enough has succeeded for a rule of the success policy.
fn meets(rule: &SuccessPolicyRule, completed: &Indexes, completions: i32) -> bool {
    if completed.is_empty() {
        return false;
    }
    let enough = |have: i32| rule.succeeded_count.is_some_and(|count| have >= count);
    match &rule.succeeded_indexes {
        Some(list) => {
            let wanted = Indexes::parse(list, completions);
            let have = wanted.common(completed);
            !wanted.is_empty() && (have == wanted.len() || enough(have))
        }
        None => enough(completed.len()),
    }
}

/// All that was wanted has succeeded; of a work queue, one pod, and then the others have ended.
fn completed(view: &View) -> Option<Ending> {
    let enough = match view.spec.completions {
        Some(wanted) => view.succeeded_count() >= wanted,
        None => view.succeeded_count() > 0,
    };
    (enough && view.active_count() == 0).then(|| {
        Ending::success(
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        )
    })
}
