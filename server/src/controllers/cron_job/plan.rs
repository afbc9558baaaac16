//! When a CronJob makes its next job, and what its status says of those that it has. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>

use amphipod_api::text::quote;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJobSpec, CronJobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::events::Kind;
use crate::resources::schedule::{Schedule, time_zone};

/// A last run that is further ahead than this was by a clock that has been set back since.
const AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// Then as much of the past is looked at as a look may come late.
const LATE: SignedDuration = SignedDuration::from_mins(1);
/// As many missed times are worth a warning.
const MANY: usize = 100;

/// A job of the CronJob.
#[derive(Clone, Debug, Default)]
pub struct Child {
    pub name: String,
    pub uid: String,
    pub end: Option<End>,
    pub started: Option<Timestamp>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// And when.
    Complete(Option<Timestamp>),
    Failed,
}

/// An event to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub kind: Kind,
    pub reason: &'static str,
    pub message: String,
}

pub fn normal(reason: &'static str, message: impl Into<String>) -> News {
    News {
        kind: Kind::Normal,
        reason,
        message: message.into(),
    }
}

pub fn warning(reason: &'static str, message: impl Into<String>) -> News {
    News {
        kind: Kind::Warning,
        ..normal(reason, message)
    }
}

/// Finished jobs above the limits, the oldest first.
pub fn surplus<'a>(spec: &CronJobSpec, children: &'a [Child]) -> Vec<&'a Child> {
    let of = |complete: bool, limit: Option<i32>| {
        let mut ended: Vec<&Child> = children
            .iter()
            .filter(|child| {
                child
                    .end
                    .is_some_and(|end| matches!(end, End::Complete(_)) == complete)
            })
            .collect();
        // One that never started is younger than all that did.
        ended.sort_by_key(|child| (child.started.is_none(), child.started, &child.name));
        let keep = limit.and_then(|limit| usize::try_from(limit).ok());
        let surplus = keep.map_or(0, |keep| ended.len().saturating_sub(keep));
        ended.truncate(surplus);
        ended
    };
    let mut all = of(true, spec.successful_jobs_history_limit);
    all.extend(of(false, spec.failed_jobs_history_limit));
    all
}

/// The status after a look at the jobs that there are.
pub fn look(status: &CronJobStatus, children: &[Child]) -> (CronJobStatus, Vec<News>) {
    let (mut status, mut news) = (status.clone(), Vec::new());
    let mut active = status.active.take().unwrap_or_default();
    for child in children {
        let listed = active
            .iter()
            .position(|entry| entry.uid.as_deref() == Some(&child.uid));
        match (child.end, listed) {
            (None, None) => news.push(warning(
                "UnexpectedJob",
                format!(
                    "Saw a job that the controller did not create or forgot: {}",
                    child.name
                ),
            )),
            (Some(end), Some(place)) => {
                active.remove(place);
                let how = match end {
                    End::Complete(_) => "Complete",
                    End::Failed => "Failed",
                };
                news.push(normal(
                    "SawCompletedJob",
                    format!("Saw completed job: {}, status: {how}", child.name),
                ));
            }
            _ => {}
        }
        if let Some(End::Complete(Some(when))) = child.end {
            let last = status.last_successful_time.as_ref().map(|last| last.0);
            status.last_successful_time = Some(Time(last.map_or(when, |last| last.max(when))));
        }
    }
    active.retain(|entry| {
        let there = children
            .iter()
            .any(|child| entry.uid.as_deref() == Some(&child.uid));
        if !there {
            let name = entry.name.as_deref().unwrap_or_default();
            news.push(normal(
                "MissingJob",
                format!("Active job went missing: {name}"),
            ));
        }
        there
    });
    status.active = Some(active).filter(|active| !active.is_empty());
    (status, news)
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until this time if there is one.
    Wait(Option<Timestamp>),
    /// Make the job that was due then, and look again at the time after it.
    Run(Timestamp, Option<Timestamp>),
}

/// Whether a job is due. Of all times that were missed, only the last has a job.
pub fn next(
    spec: &CronJobSpec,
    status: &CronJobStatus,
    created: Timestamp,
    now: Timestamp,
) -> (Next, Vec<News>) {
    let wait = |news: News| (Next::Wait(None), vec![news]);
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::system(),
        Some(name) => match time_zone(name) {
            Some(zone) => zone,
            None => {
                let quoted = quote(name);
                let why = format!("invalid timeZone: {quoted}: unknown time zone {name}");
                return wait(warning("UnknownTimeZone", why));
            }
        },
    };
    if spec.suspend == Some(true) {
        return (Next::Wait(None), Vec::new());
    }
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(why) => {
            let why = format!("unparseable schedule: {} : {why}", quote(&spec.schedule));
            return wait(warning("UnparseableSchedule", why));
        }
    };
    let before = status.last_schedule_time.as_ref().map_or(created, |t| t.0);
    let begin = match now.checked_sub(LATE) {
        Ok(to) if before.duration_since(now) > AHEAD => schedule.rewind(before, to),
        _ => before,
    };
    let last = schedule.last(begin, now, &zone);
    let Some(coming) = schedule.next(last.unwrap_or(begin), &zone) else {
        let why = format!("invalid schedule: {} : there is no such day", spec.schedule);
        return wait(warning("InvalidSchedule", why));
    };
    let Some(last) = last else {
        return (Next::Wait(Some(coming)), Vec::new());
    };
    let mut news = Vec::new();
    let patience = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    if patience.is_some_and(|patience| now.duration_since(last) > patience) {
        let when = last.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let why = format!("Missed scheduled time to start a job: {when}");
        news.push(warning("MissSchedule", why));
        return (Next::Wait(Some(coming)), news);
    }
    let oldest = patience.and_then(|patience| now.checked_sub(patience).ok());
    let from = oldest.map_or(begin, |oldest| oldest.max(begin));
    let missed = std::iter::successors(Some(from), |at| schedule.next(*at, &zone));
    if missed
        .skip(1)
        .take_while(|at| *at <= now)
        .nth(MANY)
        .is_some()
    {
        let why = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        news.push(warning("TooManyMissedTimes", why));
    }
    let busy = status
        .active
        .as_ref()
        .is_some_and(|active| !active.is_empty());
    if busy && spec.concurrency_policy.as_deref() == Some("Forbid") {
        let why =
            "Not starting job because prior execution is running and concurrency policy is Forbid";
        news.push(normal("JobAlreadyActive", why));
        return (Next::Wait(Some(coming)), news);
    }
    (Next::Run(last, Some(coming)), news)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn spec(more: Value) -> CronJobSpec {
        let mut spec = json!({"schedule": "0 * * * *", "timeZone": "UTC", "jobTemplate": {}});
        amphipod_api::patch::apply_merge_patch(&mut spec, &more);
        serde_json::from_value(spec).unwrap()
    }

    fn status(value: Value) -> CronJobStatus {
        serde_json::from_value(value).unwrap()
    }

    const CREATED: &str = "2026-01-01T00:30:00Z";

    fn decide(more: Value, told: Value, now: &str) -> (Next, Vec<&'static str>) {
        let (next, news) = next(&spec(more), &status(told), at(CREATED), at(now));
        (next, news.iter().map(|news| news.reason).collect())
    }

    fn run(last: &str, coming: &str) -> Next {
        Next::Run(at(last), Some(at(coming)))
    }

    fn wait(coming: &str) -> Next {
        Next::Wait(Some(at(coming)))
    }

    #[test]
    fn a_job_is_made_when_its_time_has_come() {
        assert_eq!(
            decide(json!({}), json!({}), "2026-01-01T00:59:59Z"),
            (wait("2026-01-01T01:00:00Z"), vec![])
        );
        assert_eq!(
            decide(json!({}), json!({}), "2026-01-01T01:00:00Z"),
            (run("2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"), vec![])
        );
        let ran = json!({"lastScheduleTime": "2026-01-01T01:00:00Z"});
        assert_eq!(
            decide(json!({}), ran, "2026-01-01T01:00:01Z"),
            (wait("2026-01-01T02:00:00Z"), vec![])
        );
        let none = (Next::Wait(None), vec![]);
        assert_eq!(
            decide(json!({"suspend": true}), json!({}), "2026-01-01T01:00:00Z"),
            none
        );
        // From its creation on, each time so much has passed.
        assert_eq!(
            decide(
                json!({"schedule": "@every 7m"}),
                json!({}),
                "2026-01-01T00:50:00Z"
            ),
            (run("2026-01-01T00:44:00Z", "2026-01-01T00:51:00Z"), vec![])
        );
    }

    #[test]
    fn of_many_missed_times_the_last_has_a_job() {
        let year = "2027-01-01T00:00:30Z";
        let (next, news) = decide(json!({"schedule": "* * * * *"}), json!({}), year);
        assert_eq!(next, run("2027-01-01T00:00:00Z", "2027-01-01T00:01:00Z"));
        assert_eq!(news, ["TooManyMissedTimes"]);
        let few = decide(json!({}), json!({}), "2026-01-02T00:00:30Z");
        assert_eq!(
            few,
            (run("2026-01-02T00:00:00Z", "2026-01-02T01:00:00Z"), vec![])
        );
        // None, if it is too late.
        let late = decide(json!({"startingDeadlineSeconds": 20}), json!({}), year);
        assert_eq!(late, (wait("2027-01-01T01:00:00Z"), vec!["MissSchedule"]));
        let in_time = decide(json!({"startingDeadlineSeconds": 200}), json!({}), year);
        assert_eq!(
            in_time,
            (run("2027-01-01T00:00:00Z", "2027-01-01T01:00:00Z"), vec![])
        );
    }

    #[test]
    fn a_clock_that_was_set_back_stops_no_schedule() {
        let ran = json!({"lastScheduleTime": "2027-06-01T00:00:00Z"});
        assert_eq!(
            decide(json!({}), ran.clone(), "2026-01-01T05:10:00Z"),
            (wait("2026-01-01T06:00:00Z"), vec![])
        );
        assert_eq!(
            decide(json!({}), ran.clone(), "2026-01-01T06:00:02Z"),
            (run("2026-01-01T06:00:00Z", "2026-01-01T07:00:00Z"), vec![])
        );
        let each = json!({"schedule": "@every 7m"});
        assert_eq!(
            decide(each.clone(), ran.clone(), "2026-01-01T05:10:00Z"),
            (wait("2026-01-01T05:12:00Z"), vec![])
        );
        assert_eq!(
            decide(each, ran, "2026-01-01T05:12:02Z"),
            (run("2026-01-01T05:12:00Z", "2026-01-01T05:19:00Z"), vec![])
        );
        // By a little: what has run does not run again.
        let ran = json!({"lastScheduleTime": "2026-01-01T05:00:00Z"});
        assert_eq!(
            decide(json!({}), ran, "2026-01-01T04:58:00Z"),
            (wait("2026-01-01T06:00:00Z"), vec![])
        );
    }

    #[test]
    fn a_job_that_still_runs_keeps_the_next_from_starting_if_it_is_to() {
        let busy = json!({"active": [{"name": "a", "uid": "a"}]});
        let now = "2026-01-01T01:00:00Z";
        let after = "2026-01-01T02:00:00Z";
        for policy in ["Allow", "Replace"] {
            let decided = decide(json!({"concurrencyPolicy": policy}), busy.clone(), now);
            assert_eq!(decided, (run(now, after), vec![]), "{policy}");
        }
        assert_eq!(
            decide(json!({"concurrencyPolicy": "Forbid"}), busy, now),
            (wait(after), vec!["JobAlreadyActive"])
        );
    }

    #[test]
    fn what_cannot_be_scheduled_is_told() {
        for (more, reason) in [
            (json!({"timeZone": "Mars/Olympus"}), "UnknownTimeZone"),
            (json!({"schedule": "often"}), "UnparseableSchedule"),
            (json!({"schedule": "0 0 31 2 *"}), "InvalidSchedule"),
        ] {
            let decided = decide(more, json!({}), "2026-01-01T01:00:00Z");
            assert_eq!(decided, (Next::Wait(None), vec![reason]));
        }
    }

    #[test]
    fn the_status_follows_the_jobs() {
        let child = |name: &str, end: Option<End>| Child {
            name: name.into(),
            uid: name.into(),
            end,
            started: None,
        };
        let (early, late) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T02:00:00Z"));
        let entry = |name: &str| json!({"name": name, "uid": name});
        let told = status(json!({"active": [entry("done"), entry("gone"), entry("runs")]}));
        let children = [
            child("runs", None),
            child("done", Some(End::Complete(Some(late)))),
            child("old", Some(End::Complete(Some(early)))),
            child("mine", None),
            child("bad", Some(End::Failed)),
        ];
        let (after, news) = look(&told, &children);
        let reasons: Vec<&str> = news.iter().map(|news| news.reason).collect();
        assert_eq!(reasons, ["SawCompletedJob", "UnexpectedJob", "MissingJob"]);
        assert_eq!(after.active.as_ref().unwrap().len(), 1);
        assert_eq!(after.last_successful_time.as_ref().unwrap().0, late);
        let (again, _) = look(&after, &children);
        assert_eq!(again, after);
    }

    #[test]
    fn the_oldest_finished_jobs_are_too_many() {
        let child = |name: &str, end: End, minute: i64| Child {
            name: name.into(),
            uid: name.into(),
            end: Some(end),
            started: Timestamp::from_second(minute * 60).ok(),
        };
        let done = End::Complete(None);
        let children = [
            child("c", done, 3),
            child("a", done, 1),
            child("b", done, 2),
            child("x", End::Failed, 1),
            child("y", End::Failed, 2),
            Child::default(),
        ];
        let names = |more: Value| -> Vec<String> {
            let spec = spec(more);
            let surplus = surplus(&spec, &children);
            surplus.iter().map(|child| child.name.clone()).collect()
        };
        let limits = json!({"successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 0});
        assert_eq!(names(limits), ["a", "x", "y"]);
        assert_eq!(names(json!({})), [""; 0]);
    }
}
