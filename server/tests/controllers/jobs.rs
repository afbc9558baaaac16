use amphipod_api::meta;
use serde_json::{Value, json};

use crate::bench::Bench;

const JOBS: &str = "jobs.batch";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

fn spec() -> Value {
    let containers = json!([{"name": "c", "image": "i"}]);
    json!({"metadata": {"labels": {"app": "work"}}, "spec": {"restartPolicy": "Never", "containers": containers}})
}

fn job(more: Value) -> Value {
    let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work", "namespace": "default"},
        "spec": {"template": spec()}});
    amphipod_api::patch::apply_merge_patch(&mut job["spec"], &more);
    job
}

fn is_tracked(pod: &Value) -> bool {
    meta::finalizers(pod).any(|have| have == TRACKING)
}

fn status(bench: &Bench, field: &str) -> i64 {
    let job = bench.get(JOBS, "default", "work").unwrap();
    meta::i64_at(&job, &["status", field]).unwrap_or(0)
}

#[tokio::test]
async fn pods_that_fit_are_adopted_with_a_finalizer_and_released_without_it() {
    let bench = Bench::new().await;
    let mut orphan = spec();
    orphan["metadata"]["name"] = "orphan".into();
    bench.create("pods", orphan).await;
    let made = bench
        .create(
            JOBS,
            job(json!({"manualSelector": true, "selector": {"matchLabels": {"app": "work"}}})),
        )
        .await;
    bench
        .until_so("the pod to be adopted", || status(&bench, "ready") == 1)
        .await;
    let pod = || bench.get("pods", "default", "orphan").unwrap();
    assert!(meta::is_controlled_by(&pod(), meta::uid(&made)));
    assert!(is_tracked(&pod()));
    bench
        .change("pods", "default", "orphan", |pod| {
            meta::set_label(pod, "app", "other");
        })
        .await;
    bench
        .until_so("it to be released", || {
            meta::controller_of(&pod()).is_none()
        })
        .await;
    assert!(!is_tracked(&pod()));
    bench
        .until_so("another pod", || bench.owned("pods", &made).len() == 1)
        .await;
    assert_eq!(status(&bench, "failed"), 0);
}

#[tokio::test]
async fn what_succeeds_is_counted_once_also_across_a_restart() {
    let mut bench = Bench::new().await;
    bench
        .create(JOBS, job(json!({"completions": 2, "parallelism": 1})))
        .await;
    for wanted in [1, 2] {
        bench
            .until_so("a pod to run", || status(&bench, "ready") == 1)
            .await;
        let pods = bench.list("pods", "default");
        let running = pods
            .iter()
            .find(|pod| pod["status"]["phase"] == "Running")
            .unwrap();
        let name = meta::name(running).to_owned();
        bench
            .change_status("pods", "default", &name, |pod| {
                pod["status"]["phase"] = "Succeeded".into();
            })
            .await;
        bench
            .until_so("it to be counted", || status(&bench, "succeeded") == wanted)
            .await;
        bench = bench.restarted().await;
        assert_eq!(status(&bench, "succeeded"), wanted);
    }
    bench
        .until_so("the job to be complete", || {
            let job = bench.get(JOBS, "default", "work").unwrap();
            meta::condition_is_true(&job, "Complete")
        })
        .await;
    assert!(!bench.list("pods", "default").iter().any(is_tracked));
}

#[tokio::test]
async fn a_job_that_somebody_else_manages_is_left_alone() {
    let bench = Bench::new().await;
    bench
        .create(JOBS, job(json!({"managedBy": "example.com/mine"})))
        .await;
    // A job that is ours comes after it, and is worked on after it.
    let mut ours = job(json!({"managedBy": "kubernetes.io/job-controller"}));
    ours["metadata"]["name"] = "ours".into();
    let ours = bench.create(JOBS, ours).await;
    bench
        .until_so("a pod of ours", || bench.owned("pods", &ours).len() == 1)
        .await;
    assert_eq!(bench.list("pods", "default").len(), 1);
    let job = bench.get(JOBS, "default", "work").unwrap();
    assert_eq!(job["status"], json!({}));
}
