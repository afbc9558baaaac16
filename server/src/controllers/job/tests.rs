//! What is done about a job, and told of it.

#![allow(clippy::unwrap_used)]

use amphipod_api::patch::apply_merge_patch;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use serde_json::{Value, json};

use super::ending::{Ending, ending, time_left};
use super::member::{INDEX, INDEX_FAILURES, Member, TRACKING};
use super::plan::{New, Plan, plan};
use super::status::told;
use super::view::View;
use crate::cache::{FieldSet, detached};

const NOW: &str = "2026-01-01T01:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut all = json!({"parallelism": 1, "backoffLimit": 6, "template": {"spec": {"restartPolicy": "Never", "containers": []}}});
    apply_merge_patch(&mut all, &spec);
    serde_json::from_value(json!({"metadata": {"name": "work"}, "spec": all, "status": status}))
        .unwrap()
}

/// A tracked pod on a node; `more` is merged in.
fn pod_of(job: &Job, name: &str, phase: &str, more: Value) -> Member {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "finalizers": [TRACKING], "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "box", "containers": []}, "status": {"phase": phase},
    });
    apply_merge_patch(&mut pod, &more);
    let policy = job.spec.as_ref().unwrap().pod_failure_policy.as_ref();
    Member::read(
        &detached(&mut pod, 1, &FieldSet::default()).unwrap(),
        policy,
    )
    .unwrap()
}

fn pod(name: &str, phase: &str) -> Member {
    pod_of(&job(json!({}), json!({})), name, phase, json!({}))
}

fn going() -> Value {
    json!({"metadata": {"deletionTimestamp": NOW}})
}

fn at_index(index: i32, failures: i32) -> Value {
    json!({"metadata": {"annotations": {INDEX: index.to_string(), INDEX_FAILURES: failures.to_string()}}})
}

/// What the plan is, in a word and names.
fn planned(job: &Job, pods: &[Member]) -> String {
    let names = |pods: Vec<&Member>| {
        let names = pods.iter().map(|pod| &*pod.pod.object.meta.name);
        names.collect::<Vec<&str>>().join(" ")
    };
    match plan(&View::of(job, pods, now())) {
        Plan::Wait(None) => "wait".into(),
        Plan::Wait(Some(pause)) => format!("wait {}", pause.as_secs()),
        Plan::Create(new) => {
            let one = |new: &New| match (new.index, new.failures) {
                (None, _) => "*".to_owned(),
                (Some(index), None) => index.to_string(),
                (Some(index), Some((counted, _))) => format!("{index}:{counted}"),
            };
            format!(
                "create {}",
                new.iter().map(one).collect::<Vec<_>>().join(" ")
            )
        }
        Plan::End(pods) => format!("end {}", names(pods)),
        Plan::Dismiss(pods) => format!("dismiss {}", names(pods)),
    }
}

fn ends(job: &Job, pods: &[Member]) -> Option<(bool, String)> {
    let ending = ending(&View::of(job, pods, now()));
    ending.map(
        |Ending {
             succeeds, reason, ..
         }| (succeeds, reason),
    )
}

#[test]
fn there_are_as_many_pods_as_may_be_and_are_needed() {
    let three = job(json!({"completions": 3, "parallelism": 2}), json!({}));
    let run = |name| pod(name, "Running");
    assert_eq!(planned(&three, &[]), "create * *");
    assert_eq!(planned(&three, &[run("a")]), "create *");
    assert_eq!(planned(&three, &[run("a"), run("b")]), "wait");
    assert_eq!(
        planned(&three, &[pod("a", "Succeeded"), pod("b", "Succeeded")]),
        "create *"
    );
    assert_eq!(
        planned(&three, &[run("a"), run("b"), pod("c", "Pending")]),
        "dismiss c"
    );
    // Of a work queue the first success stops the making, and the others come to their ends.
    let queue = job(json!({"parallelism": 2}), json!({}));
    assert_eq!(planned(&queue, &[]), "create * *");
    assert_eq!(planned(&queue, &[run("a"), pod("b", "Succeeded")]), "wait");
    assert_eq!(ends(&queue, &[run("a"), pod("b", "Succeeded")]), None);
    let (succeeds, reason) = ends(&queue, &[pod("b", "Succeeded")]).unwrap();
    assert_eq!((succeeds, reason.as_str()), (true, "CompletionsReached"));
}

#[test]
fn a_pod_that_goes_is_replaced_at_once_or_when_it_has_failed() {
    let ended = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let one = job(json!({"completions": 1}), json!({}));
    assert_eq!(
        planned(&one, &[pod_of(&one, "a", "Running", ended.clone())]),
        "create *"
    );
    let patient = job(
        json!({"completions": 1, "podReplacementPolicy": "Failed"}),
        json!({}),
    );
    assert_eq!(
        planned(&patient, &[pod_of(&patient, "a", "Running", ended.clone())]),
        "wait"
    );
    // Nobody ends one that never had a node: it has failed, and may go.
    let mut nowhere = ended;
    nowhere["spec"] = json!({"nodeName": null});
    let pods = [pod_of(&patient, "a", "Pending", nowhere)];
    let view = View::of(&patient, &pods, now());
    assert_eq!(told(&view).release.len(), 1);
}

#[test]
fn failures_ask_for_pauses_until_one_succeeds() {
    let many = job(json!({"completions": 5}), json!({}));
    let ended = |name: &str, phase: &str, second: &str| {
        let at = format!("2026-01-01T00:59:{second}Z");
        let state = json!({"terminated": {"exitCode": 1, "finishedAt": at}});
        let container = json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        pod_of(
            &many,
            name,
            phase,
            json!({"status": {"containerStatuses": [container]}}),
        )
    };
    let (a, b) = (ended("a", "Failed", "52"), ended("b", "Failed", "55"));
    assert_eq!(planned(&many, std::slice::from_ref(&a)), "wait 2");
    assert_eq!(planned(&many, &[a.clone(), b.clone()]), "wait 15");
    assert_eq!(
        planned(
            &many,
            &[a.clone(), b.clone(), ended("c", "Succeeded", "55")]
        ),
        "create *"
    );
    assert_eq!(
        planned(&many, &[a, ended("c", "Succeeded", "53"), b]),
        "wait 5"
    );
}

#[test]
fn a_job_fails_by_its_limits() {
    let failed =
        |n: usize| -> Vec<Member> { (0..n).map(|i| pod(&format!("f{i}"), "Failed")).collect() };
    let two = job(json!({"completions": 9, "backoffLimit": 2}), json!({}));
    assert_eq!(ends(&two, &failed(2)), None);
    let why = |job: &Job, pods: &[Member]| ends(job, pods).map(|(_, reason)| reason);
    assert_eq!(
        why(&two, &failed(3)).as_deref(),
        Some("BackoffLimitExceeded")
    );
    // Those that the status has counted, and those that it names.
    let told = json!({"failed": 1, "uncountedTerminatedPods": {"failed": ["f0"]}});
    let one_more = job(json!({"completions": 9, "backoffLimit": 2}), told);
    assert_eq!(ends(&one_more, &failed(1)), None);
    assert_eq!(
        why(&one_more, &failed(2)).as_deref(),
        Some("BackoffLimitExceeded")
    );
    // Restarts of containers count where they are restarted.
    let restarted = json!({"status": {"containerStatuses": [{"name": "m", "image": "", "imageID": "", "ready": false, "restartCount": 2}]}});
    let spec = |policy: &str| json!({"completions": 1, "backoffLimit": 2, "template": {"spec": {"restartPolicy": policy}}});
    for (policy, over) in [("OnFailure", true), ("Never", false)] {
        let job = job(spec(policy), json!({}));
        let pods = [pod_of(&job, "a", "Running", restarted.clone())];
        assert_eq!(ends(&job, &pods).is_some(), over, "{policy}");
    }
    let late = |seconds: i64, suspend: bool| {
        job(
            json!({"completions": 1, "activeDeadlineSeconds": seconds, "suspend": suspend}),
            json!({"startTime": "2026-01-01T00:59:00Z"}),
        )
    };
    assert_eq!(
        why(&late(60, false), &[]).as_deref(),
        Some("DeadlineExceeded")
    );
    assert_eq!(why(&late(60, true), &[]), None);
    let left = |job: &Job| time_left(&View::of(job, &[], now()));
    assert_eq!(left(&late(61, false)).unwrap().as_secs(), 1);
    assert!(left(&late(i64::MAX, false)).unwrap().as_secs() > 1 << 40);
}

#[test]
fn a_failed_job_ends_what_still_runs_and_counts_it_as_failed() {
    let none = job(
        json!({"completions": 3, "parallelism": 2, "backoffLimit": 0}),
        json!({"startTime": NOW}),
    );
    let pods = [pod("a", "Failed"), pod("b", "Running")];
    assert_eq!(planned(&none, &pods), "end b");
    let pods = [pods[0].clone(), pod_of(&none, "b", "Running", going())];
    let view = View::of(&none, &pods, now());
    let first = told(&view);
    let named = first.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!(named.failed.unwrap(), ["a", "b"]);
    assert_eq!(first.release.len(), 2);
    let types = |status: &JobStatus| -> Vec<String> {
        let conditions = status.conditions.iter().flatten();
        conditions
            .map(|condition| condition.type_.clone())
            .collect()
    };
    assert_eq!(types(&first.status), ["FailureTarget"]);
    assert!(first.news.is_empty());
    // It has failed when nothing of it is left.
    let mut after = none.clone();
    after.status = Some(first.status);
    let untracked = json!({"metadata": {"finalizers": null}});
    let pods = [pod_of(&none, "a", "Failed", untracked)];
    let view = View::of(&after, &pods, now());
    let last = told(&view);
    assert_eq!(types(&last.status), ["FailureTarget", "Failed"]);
    assert_eq!(last.status.failed, Some(2));
    assert_eq!(last.news[0].reason, "BackoffLimitExceeded");
}

#[test]
fn indexes_are_filled_from_the_lowest_and_those_taken_twice_are_freed() {
    let spec = json!({"completionMode": "Indexed", "completions": 6, "parallelism": 3});
    let job = job(spec, json!({"completedIndexes": "0,2"}));
    let run = |name: &str, index: i32| pod_of(&job, name, "Running", at_index(index, 0));
    assert_eq!(planned(&job, &[]), "create 1 3 4");
    assert_eq!(planned(&job, &[run("a", 3)]), "create 1 4");
    let done = pod_of(&job, "d", "Succeeded", at_index(1, 0));
    assert_eq!(planned(&job, &[run("a", 3), done]), "create 4 5");
    assert_eq!(
        planned(&job, &[run("a", 3), run("b", 9), pod("c", "Running")]),
        "dismiss b c"
    );
    let pending = pod_of(&job, "p", "Pending", at_index(3, 0));
    assert_eq!(planned(&job, &[run("a", 3), pending]), "dismiss p");
}

#[test]
fn an_index_that_failed_hands_on_its_failures_and_waits_alone() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 2, "backoffLimit": 99});
    let job = job(spec, json!({}));
    let failed =
        |name: &str, index: i32, before: i32| pod_of(&job, name, "Failed", at_index(index, before));
    let pods = [failed("a", 0, 0), failed("b", 1, 1)];
    assert_eq!(planned(&job, &pods), "create 0:1 1:2 2:0");
    // They keep their finalizers until the successors have taken over.
    assert!(told(&View::of(&job, &pods, now())).release.is_empty());
    let mut with = pods.to_vec();
    with.push(pod_of(&job, "c", "Running", at_index(0, 1)));
    let view = View::of(&job, &with, now());
    let released = told(&view);
    let names: Vec<&str> = released.release.iter().map(|pod| pod.uid()).collect();
    assert_eq!(names, ["a"]);
    // The third failure of an index is its end; the others go on.
    let pods = [failed("a", 0, 2)];
    let view = View::of(&job, &pods, now());
    assert_eq!(told(&view).status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(planned(&job, &pods), "create 1:0 2:0");
    let done = |name: &str, index| pod_of(&job, name, "Succeeded", at_index(index, 0));
    let all = [failed("a", 0, 2), done("b", 1), done("c", 2)];
    assert_eq!(ends(&job, &all), Some((false, "FailedIndexes".into())));
    let mut strict = job.clone();
    strict.spec.as_mut().unwrap().max_failed_indexes = Some(0);
    assert_eq!(
        ends(&strict, &all[..1]),
        Some((false, "MaxFailedIndexesExceeded".into()))
    );
}

#[test]
fn what_the_failure_policy_ignores_counts_nowhere() {
    let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    let job = job(
        json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": policy}),
        json!({}),
    );
    let disrupted =
        json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}});
    let pods = [pod_of(&job, "a", "Failed", disrupted)];
    assert_eq!(ends(&job, &pods), None);
    let view = View::of(&job, &pods, now());
    let told = told(&view);
    assert_eq!(told.release.len(), 1);
    assert_eq!(
        told.status.uncounted_terminated_pods,
        Some(Default::default())
    );
}

#[test]
fn a_success_policy_ends_the_job_before_all_have_succeeded() {
    let spec = |rule: Value| json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5, "successPolicy": {"rules": [rule]}});
    let done = json!({"completedIndexes": "1,3"});
    for (rule, met) in [
        (json!({"succeededIndexes": "1,3"}), true),
        (json!({"succeededIndexes": "1-3"}), false),
        (
            json!({"succeededIndexes": "1-3", "succeededCount": 2}),
            true,
        ),
        (json!({"succeededCount": 2}), true),
        (json!({"succeededCount": 3}), false),
    ] {
        let job = job(spec(rule.clone()), done.clone());
        let running = [pod_of(&job, "a", "Running", at_index(0, 0))];
        assert_eq!(ends(&job, &running).is_some(), met, "{rule}");
        if met {
            assert_eq!(planned(&job, &running), "end a");
            let going = [pod_of(
                &job,
                "a",
                "Running",
                json!({"metadata": {"annotations": {INDEX: "0"}, "deletionTimestamp": NOW}}),
            )];
            let view = View::of(&job, &going, now());
            let told = told(&view);
            // Those that were not needed any more neither succeed nor fail, unless they counted as failed already.
            assert_eq!(told.status.succeeded, Some(2));
            assert_eq!(
                told.status.conditions.unwrap()[0].reason.as_deref(),
                Some("SuccessPolicy")
            );
        }
    }
}

#[test]
fn a_suspended_job_dismisses_its_pods_and_begins_anew() {
    let suspended = job(
        json!({"completions": 1, "suspend": true}),
        json!({"startTime": "2026-01-01T00:00:00Z"}),
    );
    assert_eq!(planned(&suspended, &[pod("a", "Running")]), "dismiss a");
    let view = View::of(&suspended, &[], now());
    let first = told(&view);
    assert_eq!(first.news[0].reason, "Suspended");
    let mut resumed = job(json!({"completions": 1}), json!({}));
    resumed.status = Some(first.status.clone());
    let view = View::of(&resumed, &[], now());
    let second = told(&view);
    assert_eq!(second.news[0].reason, "Resumed");
    assert_eq!(second.status.start_time.unwrap().0, now());
    // Told once.
    let mut again = suspended;
    again.status = Some(first.status);
    assert!(told(&View::of(&again, &[], now())).news.is_empty());
}

#[test]
fn a_clock_that_was_set_back_keeps_no_job_from_completing() {
    let job = job(
        json!({"completions": 1}),
        json!({"succeeded": 1, "startTime": "2027-01-01T00:00:00Z"}),
    );
    let view = View::of(&job, &[], now());
    let told = told(&view);
    assert_eq!(told.status.completion_time, told.status.start_time);
    assert_eq!(told.news[0].reason, "Completed");
}

/// A job in a world that may stop between any two writes.
struct World {
    job: Job,
    /// Name, phase, and whether it has its finalizer.
    pods: Vec<(String, &'static str, bool)>,
    /// Writes until the next crash.
    left: usize,
}

impl World {
    /// One write; `None`: it is lost, and all that was to come after it.
    fn write(&mut self) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        Some(())
    }

    fn look(&mut self) -> Option<()> {
        let members: Vec<Member> = self
            .pods
            .iter()
            .map(|(name, phase, tracked)| {
                let finalizers = if *tracked {
                    json!([TRACKING])
                } else {
                    json!(null)
                };
                let more = json!({"metadata": {"finalizers": finalizers}});
                pod_of(&self.job, name, phase, more)
            })
            .collect();
        let view = View::of(&self.job, &members, now());
        let told = told(&view);
        let (status, release) = (told.status, told.release);
        let names: Vec<String> = release.iter().map(|pod| pod.uid().to_owned()).collect();
        if self.job.status.as_ref() != Some(&status) {
            self.write()?;
            self.job.status = Some(status);
        }
        for name in names {
            self.write()?;
            // Somebody waited for it to go.
            self.pods
                .retain(|(have, ..)| *have != name || name.ends_with('0'));
            let pod = self.pods.iter_mut().find(|(have, ..)| *have == name);
            pod.into_iter().for_each(|(_, _, tracked)| *tracked = false);
        }
        Some(())
    }
}

#[test]
fn each_pod_is_counted_once_wherever_the_counting_is_interrupted() {
    for crash in 0..40 {
        let pods = (0..10).map(|n| (format!("s{n}"), "Succeeded", true));
        let failed = (0..5).map(|n| (format!("f{n}"), "Failed", true));
        let mut world = World {
            job: job(json!({"completions": 99}), json!({})),
            pods: pods.chain(failed).collect(),
            left: crash,
        };
        for _ in 0..8 {
            if world.look().is_none() {
                world.left = 1000;
            }
        }
        let status = world.job.status.unwrap();
        assert_eq!(
            (status.succeeded, status.failed),
            (Some(10), Some(5)),
            "{crash}"
        );
        assert_eq!(status.uncounted_terminated_pods, Some(Default::default()));
    }
}
