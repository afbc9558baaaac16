//! Jobs: pods that run until they have done what they are for, each counted once; and CronJobs, which make them when it is time.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amphipod_tests::{BUSYBOX, EdgeBox, Kubectl, Lan, Registry, eventually, namespace};
use serde_json::Value;

/// A job `work` whose pods run `script`. `spec` and `pod` are lines of YAML for the job and its pods.
fn job(script: &str, spec: &[&str], pod: &[&str]) -> String {
    let lines = |indent: &str, lines: &[&str]| -> String {
        lines
            .iter()
            .map(|line| format!("{indent}{line}\n"))
            .collect()
    };
    let container = serde_json::json!({
        "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "flags", "mountPath": "/flags"}],
    });
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: work}}
spec:
{}  template:
    spec:
      terminationGracePeriodSeconds: 0
      restartPolicy: Never
      volumes: [{{name: flags, hostPath: {{path: /var/lib/amphipod/flags, type: DirectoryOrCreate}}}}]
      containers: [{container}]
{}",
        lines("  ", spec),
        lines("      ", pod),
    )
}

fn status(kubectl: &Kubectl) -> Value {
    kubectl.get(&["job", "work"])["status"].clone()
}

fn pods(kubectl: &Kubectl) -> Vec<Value> {
    kubectl.get(&["pods"])["items"].as_array().unwrap().clone()
}

#[track_caller]
fn no_pods(kubectl: &Kubectl) {
    eventually("the pods to go", Duration::from_secs(30), || {
        match pods(kubectl) {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?}")),
        }
    });
}

#[track_caller]
fn active(kubectl: &Kubectl, wanted: u64) {
    let status = format!("jsonpath={{.status.ready}}={wanted}");
    kubectl.wait_for("job/work", &status, 30);
}

/// Reasons and messages of the events about an object of this name.
fn events(kubectl: &Kubectl, name: &str) -> Vec<String> {
    let about = format!("--field-selector=involvedObject.name={name}");
    let list = kubectl.get(&["events", &about]);
    let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| format!("{} {}", text(event, "reason"), text(event, "message")))
        .collect()
}

#[track_caller]
fn was_told(kubectl: &Kubectl, name: &str, wanted: &str) {
    eventually("an event", Duration::from_secs(10), || {
        let events = events(kubectl, name);
        match events.iter().any(|event| event == wanted) {
            true => Ok(()),
            false => Err(format!("{events:?}")),
        }
    });
}

/// Why the job failed.
fn failure(kubectl: &Kubectl) -> String {
    kubectl.wait_for("job/work", "condition=Failed", 60);
    let job = kubectl.get(&["job", "work"]);
    let conditions = job["status"]["conditions"].as_array().unwrap().clone();
    let failed = conditions.iter().find(|c| c["type"] == "Failed").unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "FailureTarget"));
    failed["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_job_runs_to_completion() {
    let kubectl = namespace("completion");
    let image = format!("--image={BUSYBOX}");
    let create = ["create", "job", "hello", &image, "--", "echo", "hello"];
    kubectl.run(&create).ok();
    kubectl.wait_for("job/hello", "condition=complete", 60);
    assert_eq!(kubectl.run(&["logs", "job/hello"]).ok(), "hello\n");
    let job = kubectl.get(&["job", "hello"]);
    let status = &job["status"];
    assert_eq!(
        (&status["succeeded"], &status["failed"]),
        (&1.into(), &Value::Null),
        "{job}"
    );
    assert_eq!(status["uncountedTerminatedPods"], serde_json::json!({}));
    assert!(status["startTime"].is_string() && status["completionTime"].is_string());
    let pods = pods(&kubectl);
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["metadata"]["finalizers"], Value::Null);
    let labels = &pods[0]["metadata"]["labels"];
    assert_eq!(labels["batch.kubernetes.io/job-name"], "hello");
    assert_eq!(labels["controller-uid"], job["metadata"]["uid"]);
    was_told(&kubectl, "hello", "Completed Job completed");
    let line = kubectl.run(&["get", "job", "hello", "--no-headers"]).ok();
    let cells: Vec<&str> = line.split_whitespace().take(3).collect();
    assert_eq!(cells, ["hello", "Complete", "1/1"]);
    assert!(
        kubectl
            .run(&["get", "all"])
            .ok()
            .contains("job.batch/hello")
    );
}

#[test]
fn a_job_that_fails_too_often_has_failed() {
    let kubectl = namespace("backoff");
    kubectl.apply(&job("exit 3", &["backoffLimit: 1"], &[]));
    assert_eq!(failure(&kubectl), "BackoffLimitExceeded");
    assert_eq!(status(&kubectl)["failed"], 2);
    let pods = pods(&kubectl);
    assert_eq!(pods.len(), 2);
    // The second waited for the pause after the first.
    let time = |value: &Value| -> i64 {
        let text = value.as_str().unwrap();
        let clock: Vec<i64> = text[11..19]
            .split(':')
            .map(|n| n.parse().unwrap())
            .collect();
        (clock[0] * 60 + clock[1]) * 60 + clock[2]
    };
    let mut created: Vec<i64> = pods
        .iter()
        .map(|pod| time(&pod["metadata"]["creationTimestamp"]))
        .collect();
    created.sort_unstable();
    let between = (created[1] - created[0]).rem_euclid(24 * 3600);
    assert!(between >= 10, "{between} s");
    let told = "BackoffLimitExceeded Job has reached the specified backoff limit";
    was_told(&kubectl, "work", told);
}

#[test]
fn an_exit_code_can_end_a_job_at_once() {
    let kubectl = namespace("policy");
    kubectl.apply(&job(
        "exit 42",
        &["podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}"],
        &[],
    ));
    assert_eq!(failure(&kubectl), "PodFailurePolicy");
    assert_eq!(pods(&kubectl).len(), 1);
}

#[test]
fn a_job_that_takes_too_long_has_failed_and_its_pods_go() {
    let kubectl = namespace("deadline");
    kubectl.apply(&job("sleep 3600", &["activeDeadlineSeconds: 3"], &[]));
    assert_eq!(failure(&kubectl), "DeadlineExceeded");
    let status = status(&kubectl);
    assert_eq!(
        (&status["active"], &status["failed"]),
        (&Value::Null, &1.into())
    );
    no_pods(&kubectl);
}

#[test]
fn each_index_of_an_indexed_job_succeeds_once() {
    let kubectl = namespace("indexed");
    let spec = [
        "completionMode: Indexed",
        "completions: 5",
        "parallelism: 3",
    ];
    kubectl.apply(&job("echo $JOB_COMPLETION_INDEX $(hostname)", &spec, &[]));
    kubectl.wait_for("job/work", "condition=complete", 60);
    let status = status(&kubectl);
    assert_eq!(
        (&status["succeeded"], &status["completedIndexes"]),
        (&5.into(), &"0-4".into())
    );
    let mut said: Vec<String> = pods(&kubectl)
        .iter()
        .map(|pod| {
            let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
            let name = pod["metadata"]["name"].as_str().unwrap();
            assert!(
                name.starts_with(&format!("work-{}-", index.as_str().unwrap())),
                "{name}"
            );
            kubectl.run(&["logs", name]).ok()
        })
        .collect();
    said.sort();
    let wanted: Vec<String> = (0..5).map(|n| format!("{n} work-{n}\n")).collect();
    assert_eq!(said, wanted);
}

#[test]
fn an_index_that_fails_does_not_keep_the_others_from_succeeding() {
    let kubectl = namespace("perindex");
    let spec = [
        "completionMode: Indexed",
        "completions: 3",
        "parallelism: 1",
        "backoffLimitPerIndex: 0",
    ];
    kubectl.apply(&job("[ $JOB_COMPLETION_INDEX != 1 ]", &spec, &[]));
    assert_eq!(failure(&kubectl), "FailedIndexes");
    let status = status(&kubectl);
    assert_eq!(status["completedIndexes"], "0,2");
    assert_eq!(
        (&status["failedIndexes"], &status["failed"]),
        (&"1".into(), &1.into())
    );
}

#[test]
fn a_suspended_job_has_no_pods_until_it_is_resumed() {
    let kubectl = namespace("suspend");
    kubectl.apply(&job("sleep 3600", &["suspend: true"], &[]));
    kubectl.wait_for("job/work", "condition=Suspended", 30);
    assert_eq!(status(&kubectl)["startTime"], Value::Null);
    assert_eq!(pods(&kubectl).len(), 0);
    let suspend = |yes: bool| {
        let patch = format!(r#"{{"spec": {{"suspend": {yes}}}}}"#);
        kubectl.run(&["patch", "job", "work", "-p", &patch]).ok();
    };
    suspend(false);
    active(&kubectl, 1);
    kubectl.wait_for("job/work", "condition=Suspended=False", 30);
    was_told(&kubectl, "work", "Resumed Job resumed");
    suspend(true);
    no_pods(&kubectl);
    kubectl.wait_for("job/work", "condition=Suspended", 30);
    // Those that it lost by that are no failures.
    let after = status(&kubectl);
    assert_eq!(
        (&after["active"], &after["failed"]),
        (&Value::Null, &Value::Null),
        "{after}"
    );
}

#[test]
fn a_job_goes_with_its_pods_when_its_time_after_the_end_is_over() {
    let kubectl = namespace("ttl");
    kubectl.apply(&job("true", &["ttlSecondsAfterFinished: 2"], &[]));
    kubectl.wait_for("job/work", "delete", 60);
    no_pods(&kubectl);
}

#[test]
fn deleting_a_job_deletes_its_pods_unless_they_are_to_stay() {
    let kubectl = namespace("deletion");
    let running = job("sleep 3600", &["parallelism: 2", "completions: 2"], &[]);
    for how in ["background", "foreground"] {
        kubectl.apply(&running);
        active(&kubectl, 2);
        let cascade = format!("--cascade={how}");
        kubectl.run(&["delete", "job", "work", &cascade]).ok();
        no_pods(&kubectl);
    }
    kubectl.apply(&running);
    active(&kubectl, 2);
    kubectl
        .run(&["delete", "job", "work", "--cascade=orphan"])
        .ok();
    eventually("the pods to be free", Duration::from_secs(30), || {
        let pods = pods(&kubectl);
        let free = |pod: &Value| {
            let meta = &pod["metadata"];
            meta["finalizers"].is_null() && meta["ownerReferences"].is_null()
        };
        match pods.len() == 2 && pods.iter().all(free) {
            true => Ok(()),
            false => Err(format!("{pods:?}")),
        }
    });
    kubectl.run(&["delete", "pods", "--all"]).ok();
    // A namespace takes all of it along.
    kubectl.apply(&running);
    active(&kubectl, 2);
    let delete = ["delete", "namespace", "deletion", "--timeout=60s"];
    kubectl.run(&delete).ok();
}

#[test]
fn a_pod_that_is_deleted_has_failed_and_is_replaced() {
    let kubectl = namespace("deleted-pod");
    kubectl.apply(&job("sleep 3600", &[], &[]));
    active(&kubectl, 1);
    let first = pods(&kubectl)[0]["metadata"]["name"].clone();
    kubectl
        .run(&["delete", "pod", first.as_str().unwrap()])
        .ok();
    kubectl.wait_for("job/work", "jsonpath={.status.failed}=1", 30);
    active(&kubectl, 1);
    assert_ne!(pods(&kubectl)[0]["metadata"]["name"], first);
}

#[test]
fn kubectl_is_told_what_is_wrong_with_a_job() {
    let kubectl = namespace("invalid");
    let wrong = job("true", &["completionMode: Indexed"], &[]).replace("Never", "Always");
    let refused = kubectl.run_with(&["apply", "-f", "-"], &wrong).refused();
    let rule =
        "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"";
    assert!(refused.contains(rule), "{refused}");
    kubectl.apply(&job("true", &["suspend: true"], &[]));
    let patch = r#"{"spec": {"completions": 7}}"#;
    let refused = kubectl
        .run(&["patch", "job", "work", "-p", patch])
        .refused();
    assert!(
        refused.contains("spec.completions: Invalid value: 7: field is immutable"),
        "{refused}"
    );
}

#[test]
fn a_job_that_is_deleted_without_a_word_of_its_pods_leaves_them_and_warns() {
    let kubectl = namespace("orphans");
    kubectl.apply(&job("sleep 3600", &[], &[]));
    active(&kubectl, 1);
    let path = "/apis/batch/v1/namespaces/orphans/jobs/work";
    let ran = kubectl.run(&["delete", "--raw", path]);
    assert!(
        ran.stderr.contains("child pods are preserved by default"),
        "{}",
        ran.stderr
    );
    kubectl.wait_for("job/work", "delete", 30);
    assert_eq!(pods(&kubectl).len(), 1);
    kubectl.run(&["delete", "pods", "--all"]).ok();
}

#[test]
fn killing_the_server_in_the_middle_of_a_job_loses_no_pod_and_counts_none_twice() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    kubectl.apply(&job(
        "sleep 0.5; hostname >>/flags/ran",
        &["completions: 24", "parallelism: 4"],
        &[],
    ));
    for wanted in [2, 8, 14, 20] {
        eventually("some to succeed", Duration::from_secs(60), || {
            match status(&kubectl)["succeeded"].as_u64() {
                Some(succeeded) if succeeded >= wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        edge_box.kill_program();
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        // What is counted may go.
        let succeeded = "--field-selector=status.phase=Succeeded";
        kubectl
            .run(&["delete", "pods", succeeded, "--wait=false"])
            .ok();
    }
    kubectl.wait_for("job/work", "condition=complete", 60);
    let status = status(&kubectl);
    assert_eq!(
        (&status["succeeded"], &status["failed"]),
        (&24.into(), &Value::Null),
        "{status}"
    );
    let ran = std::fs::read_to_string(edge_box.disk().join("lib/flags/ran")).unwrap();
    assert_eq!(ran.lines().count(), 24, "each pod ran once");
}

/// A CronJob that is due at each full hour; its pods run `script`.
fn hourly(name: &str, script: &str, spec: &str) -> String {
    format!(
        "apiVersion: batch/v1
kind: CronJob
metadata: {{name: {name}}}
spec:
  schedule: '0 * * * *'
  successfulJobsHistoryLimit: 10
  {spec}
  jobTemplate:
    metadata: {{labels: {{cron: {name}}}}}
    spec:
      template:
        spec:
          terminationGracePeriodSeconds: 0
          restartPolicy: Never
          containers: [{{name: main, image: {BUSYBOX}, command: [sh, -c, '{script}']}}]
---
"
    )
}

/// Names of the jobs of a CronJob that are not going.
fn jobs_of(kubectl: &Kubectl, name: &str) -> Vec<String> {
    let selector = format!("--selector=cron={name}");
    let list = kubectl.get(&["jobs", &selector]);
    let there = list["items"].as_array().unwrap().iter();
    there
        .filter(|job| job["metadata"]["deletionTimestamp"].is_null())
        .map(|job| job["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn become_jobs(kubectl: &Kubectl, name: &str, wanted: usize) -> Vec<String> {
    eventually("the jobs", Duration::from_secs(120), || {
        let jobs = jobs_of(kubectl, name);
        match jobs.len() == wanted {
            true => Ok(jobs),
            false => Err(format!("{jobs:?}")),
        }
    })
}

/// A box whose wall clock the test sets.
fn box_with_a_clock(lan: &Lan) -> (EdgeBox, Registry) {
    let mut edge_box = EdgeBox::new(lan);
    let registry = Registry::start(&edge_box);
    edge_box.give_clock();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    (edge_box, registry)
}

const HOUR: i64 = 3600;
const YEAR: i64 = 400 * 24 * HOUR;

#[test]
fn a_cron_job_makes_a_job_when_it_is_time_and_one_after_a_year_that_was_missed() {
    let lan = Lan::new();
    let (edge_box, _registry) = box_with_a_clock(&lan);
    let kubectl = edge_box.kubectl();
    kubectl.apply(&hourly("tidy", "true", ""));
    kubectl.wait_for(
        "cronjob/tidy",
        "jsonpath={.spec.concurrencyPolicy}=Allow",
        10,
    );
    assert_eq!(jobs_of(&kubectl, "tidy").len(), 0);
    let mut made: Vec<String> = Vec::new();
    let mut base = 0;
    for step in ["an hour", "a year", "back, before a full hour", "an hour"] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let into_the_hour = i64::try_from(now.as_secs()).unwrap() % HOUR;
        let offset = match step {
            "a year" => YEAR,
            "an hour" => base + HOUR,
            // Enough for the box to notice before the hour is full.
            _ => {
                base = 2 * HOUR - into_the_hour - 45;
                base
            }
        };
        println!("{step}: {offset} s");
        edge_box.set_clock(offset);
        let jobs = become_jobs(&kubectl, "tidy", made.len() + 1);
        for job in jobs.iter().filter(|job| !made.contains(job)) {
            let job = format!("job/{job}");
            kubectl.wait_for(&job, "condition=complete", 60);
        }
        made = jobs;
        eventually("the status", Duration::from_secs(30), || {
            let status = kubectl.get(&["cronjob", "tidy"])["status"].clone();
            let done = status["active"].is_null() && status["lastSuccessfulTime"].is_string();
            match done && status["lastScheduleTime"].is_string() {
                true => Ok(()),
                false => Err(status.to_string()),
            }
        });
    }
    let many = "TooManyMissedTimes too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
    was_told(&kubectl, "tidy", many);
    let job = kubectl.get(&["job", &made[0]]);
    let annotations = &job["metadata"]["annotations"];
    let due = annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str();
    assert!(due.unwrap().ends_with(":00:00Z"), "{due:?}");
    was_told(
        &kubectl,
        "tidy",
        &format!("SuccessfulCreate Created job {}", made[0]),
    );
}

#[test]
fn a_job_that_still_runs_when_the_next_is_due_is_kept_alone_or_replaced() {
    let lan = Lan::new();
    let (edge_box, _registry) = box_with_a_clock(&lan);
    let kubectl = edge_box.kubectl();
    let cron = |name: &str, spec: &str| hourly(name, "sleep 3600", spec);
    let all = [
        cron("allow", "concurrencyPolicy: Allow"),
        cron("forbid", "concurrencyPolicy: Forbid"),
        cron("replace", "concurrencyPolicy: Replace"),
        cron("suspended", "suspend: true"),
    ];
    kubectl.apply(&all.concat());
    edge_box.set_clock(HOUR);
    become_jobs(&kubectl, "allow", 1);
    let forbidden = become_jobs(&kubectl, "forbid", 1);
    let replaced = become_jobs(&kubectl, "replace", 1);
    edge_box.set_clock(2 * HOUR);
    become_jobs(&kubectl, "allow", 2);
    kubectl.wait_for(&format!("job/{}", replaced[0]), "delete", 60);
    assert_ne!(become_jobs(&kubectl, "replace", 1), replaced);
    let why = "JobAlreadyActive Not starting job because prior execution is running and concurrency policy is Forbid";
    was_told(&kubectl, "forbid", why);
    assert_eq!(jobs_of(&kubectl, "forbid"), forbidden);
    assert_eq!(jobs_of(&kubectl, "suspended").len(), 0);
    // The next follows when the one before it is gone.
    kubectl.run(&["delete", "job", &forbidden[0]]).ok();
    assert_ne!(become_jobs(&kubectl, "forbid", 1), forbidden);
}

#[test]
fn a_job_is_made_of_a_cron_job_by_hand_and_goes_with_it() {
    let kubectl = namespace("by-hand");
    let image = format!("--image={BUSYBOX}");
    let schedule = "--schedule=0 3 1 1 *";
    let create = [
        "create", "cronjob", "tidy", &image, schedule, "--", "echo", "tidied",
    ];
    kubectl.run(&create).ok();
    let by_hand = ["create", "job", "now", "--from=cronjob/tidy"];
    kubectl.run(&by_hand).ok();
    kubectl.wait_for("job/now", "condition=complete", 60);
    assert_eq!(kubectl.run(&["logs", "job/now"]).ok(), "tidied\n");
    let annotations = kubectl.get(&["job", "now"])["metadata"]["annotations"].clone();
    assert_eq!(annotations["cronjob.kubernetes.io/instantiate"], "manual");
    let line = kubectl
        .run(&["get", "cronjob", "tidy", "--no-headers"])
        .ok();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        cells[..9],
        ["tidy", "0", "3", "1", "1", "*", "<none>", "False", "0"]
    );
    kubectl.wait_for("cronjob/tidy", "jsonpath={.status.lastSuccessfulTime}", 30);
    kubectl.run(&["delete", "cronjob", "tidy"]).ok();
    kubectl.wait_for("job/now", "delete", 30);
    no_pods(&kubectl);
}

#[test]
fn kubectl_is_told_what_is_wrong_with_a_cron_job() {
    let kubectl = namespace("invalid-cron");
    for (from, to, why) in [
        (
            "0 * * * *",
            "60 * * * *",
            "end of range (60) above maximum (59): 60",
        ),
        (
            "0 * * * *",
            "TZ=UTC 0 * * * *",
            "cannot use TZ or CRON_TZ in schedule",
        ),
        (
            "'0 * * * *'",
            "'0 * * * *'\n  timeZone: Mars/Olympus",
            "unknown time zone Mars/Olympus",
        ),
    ] {
        let wrong = hourly("tidy", "true", "").replace(from, to);
        let refused = kubectl.run_with(&["apply", "-f", "-"], &wrong).refused();
        assert!(refused.contains(why), "{refused}");
    }
    let known = hourly("tidy", "true", "timeZone: Europe/Berlin");
    kubectl.apply(&known);
}
