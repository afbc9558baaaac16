//! The status of a job: counts that count each pod once, and conditions. Pure.
//!
//! A pod that is over is named in `uncountedTerminatedPods` first, then it loses its finalizer, then it is added up and named no more
//! (KEP-2307). Wherever this is interrupted, the status and the finalizer tell how far it came.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ending::{COMPLETE, Ending, FAILED, FAILURE, SUCCESS, ending, holds};
use super::failure::Judgement;
use super::member::Member;
use super::view::{View, count};
use crate::controllers::pod_control::BURST;
use crate::controllers::some;
use crate::events::Kind;

const SUSPENDED: &str = "Suspended";

/// An event to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub kind: Kind,
    pub reason: &'static str,
    pub message: String,
}

/// What to tell of the job.
#[derive(Debug)]
pub struct Told<'a> {
    pub status: JobStatus,
    /// Pods that may lose their finalizer as soon as the status is written.
    pub release: Vec<&'a Member>,
    pub news: Vec<News>,
}

/// The status of the job as it is now.
pub fn told<'a>(view: &View<'a>) -> Told<'a> {
    let ending = ending(view);
    let mut status = view.status.clone();
    let mut news = Vec::new();
    if status.start_time.is_none() && !view.is_suspended() {
        status.start_time = Some(Time(view.now));
    }
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    add_up(view, &mut status, &mut uncounted);
    let release = finish(view, ending.as_ref(), &mut uncounted);
    let active: Vec<&Member> = view.active().collect();
    let terminating = view.terminating_count();
    status.active = some(count(active.iter()));
    status.ready = Some(count(active.iter().filter(|pod| pod.pod.ready)));
    status.terminating = Some(terminating);
    if view.is_indexed() {
        status.succeeded = some(view.completed.len());
        let completed = view.completed.to_string();
        status.completed_indexes = Some(completed).filter(|list| !list.is_empty());
    }
    if view.per_index() {
        status.failed_indexes = Some(view.failed_indexes.to_string());
    }
    let left = [&uncounted.succeeded, &uncounted.failed];
    let counted = release.is_empty() && left.into_iter().flatten().all(Vec::is_empty);
    status.uncounted_terminated_pods = Some(uncounted);
    match ending {
        Some(ending) => {
            let (kind, last) = match ending.succeeds {
                true => (SUCCESS, COMPLETE),
                false => (FAILURE, FAILED),
            };
            set(
                &mut status,
                view.now,
                kind,
                true,
                &ending.reason,
                &ending.message,
            );
            if counted && active.is_empty() && terminating == 0 {
                set(
                    &mut status,
                    view.now,
                    last,
                    true,
                    &ending.reason,
                    &ending.message,
                );
                end(view, &ending, &mut status, &mut news);
            }
        }
        None if !view.deleting => suspension(view, &mut status, &mut news),
        None => {}
    }
    Told {
        status,
        release,
        news,
    }
}

/// Adds up the pods that were named and have lost their finalizer since.
fn add_up(view: &View, status: &mut JobStatus, uncounted: &mut UncountedTerminatedPods) {
    let tracked: HashSet<&str> = view
        .pods
        .iter()
        .filter(|pod| pod.tracked)
        .map(Member::uid)
        .collect();
    for (list, total) in [
        (&mut uncounted.succeeded, &mut status.succeeded),
        (&mut uncounted.failed, &mut status.failed),
    ] {
        let named = list.take().unwrap_or_default();
        let (keep, gone): (Vec<String>, Vec<String>) = named
            .into_iter()
            .partition(|uid| tracked.contains(uid.as_str()));
        *total = some(total.unwrap_or(0).saturating_add(count(gone.iter())));
        *list = Some(keep).filter(|keep| !keep.is_empty());
    }
}

/// Names the pods that are over. Answers with those that are named now, or need not be.
fn finish<'a>(
    view: &View<'a>,
    ending: Option<&Ending>,
    uncounted: &mut UncountedTerminatedPods,
) -> Vec<&'a Member> {
    let fails = ending.is_some_and(|ending| !ending.succeeds);
    let predecessors = view.predecessors();
    let mut release = Vec::new();
    for pod in view.pods.iter().filter(|pod| pod.tracked) {
        let failed = view.has_failed(pod);
        let waits = || {
            let index = pod.index.and_then(|index| predecessors.get(&index));
            index.is_some_and(|last| last.uid() == pod.uid())
        };
        let whole = view.deleting || ending.is_some();
        if !(whole || pod.has_succeeded() || (failed && !waits())) {
            continue;
        }
        // The rest comes in the next round: a status has bounds, and other jobs wait, too.
        if release.len() == BURST {
            break;
        }
        release.push(pod);
        if view.is_uncounted(pod) {
            continue;
        }
        let list = if pod.has_succeeded() {
            // Indexes are counted by themselves.
            (!view.is_indexed()).then_some(&mut uncounted.succeeded)
        } else {
            // What still runs when the job fails has failed.
            let counts = pod.judgement != Judgement::Ignored && view.is_countable(pod);
            ((failed || fails) && counts).then_some(&mut uncounted.failed)
        };
        if let Some(list) = list {
            list.get_or_insert_default().push(pod.uid().to_owned());
        }
    }
    release
}

/// The job has ended.
fn end(view: &View, ending: &Ending, status: &mut JobStatus, news: &mut Vec<News>) {
    // One with nothing to do may end before it begins, and the clock may have been set back.
    let start = status.start_time.get_or_insert(Time(view.now)).0;
    if !ending.succeeds {
        news.push(News {
            kind: Kind::Warning,
            reason: reason(&ending.reason),
            message: ending.message.clone(),
        });
        return;
    }
    status.completion_time = Some(Time(view.now.max(start)));
    let completions = view.spec.completions;
    if completions.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
        news.push(News {
            kind: Kind::Warning,
            reason: "TooManySucceededPods",
            message: "Too many succeeded pods running after completion count reached".into(),
        });
    }
    news.push(News {
        kind: Kind::Normal,
        reason: "Completed",
        message: "Job completed".into(),
    });
}

/// The reason as events have it. It may come from a status that somebody else wrote.
fn reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 5] = [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "MaxFailedIndexesExceeded",
        "FailedIndexes",
        "PodFailurePolicy",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("Failed")
}

fn suspension(view: &View, status: &mut JobStatus, news: &mut Vec<News>) {
    let (is, reason, what, message) = match view.is_suspended() {
        true => (true, "JobSuspended", "Suspended", "Job suspended"),
        false => (false, "JobResumed", "Resumed", "Job resumed"),
    };
    if !set(status, view.now, SUSPENDED, is, reason, message) {
        return;
    }
    if !is {
        // The time it was suspended for is no part of the time that it may take.
        status.start_time = Some(Time(view.now));
    }
    news.push(News {
        kind: Kind::Normal,
        reason: what,
        message: message.into(),
    });
}

/// Sets a condition; true if it changed. One that was never True is not made False.
fn set(
    status: &mut JobStatus,
    now: Timestamp,
    kind: &str,
    is: bool,
    reason: &str,
    message: &str,
) -> bool {
    let was = holds(status, kind).is_some();
    if was == is {
        return false;
    }
    let conditions = status.conditions.get_or_insert_default();
    let condition = JobCondition {
        type_: kind.to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match conditions.iter_mut().find(|had| had.type_ == kind) {
        Some(had) => *had = condition,
        None => conditions.push(condition),
    }
    true
}
