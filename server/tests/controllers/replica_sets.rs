use amphipod_api::meta;
use amphipod_server::registry::Propagation;
use serde_json::{Value, json};

use crate::bench::{Bench, template, workload};

const SETS: &str = "replicasets.apps";

fn pod(name: &str, app: &str) -> Value {
    let mut pod = template(app, "i:1");
    pod["metadata"]["name"] = name.into();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod
}

fn status(bench: &Bench, name: &str, field: &str) -> i64 {
    let set = bench.get(SETS, "default", name).unwrap();
    meta::i64_at(&set, &["status", field]).unwrap_or(0)
}

#[tokio::test]
async fn a_set_has_as_many_pods_as_it_asks_for() {
    let bench = Bench::new().await;
    let set = bench.create(SETS, workload("ReplicaSet", "web", 5)).await;
    bench
        .until_so("five ready", || status(&bench, "web", "readyReplicas") == 5)
        .await;
    let pods = bench.owned("pods", &set);
    assert_eq!(pods.len(), 5);
    assert!(
        pods.iter().all(|pod| meta::name(pod).starts_with("web-")
            && meta::is_controlled_by(pod, meta::uid(&set)))
    );
    bench
        .until_so("events", || bench.events("web").len() == 5)
        .await;
    assert!(bench.events("web").contains(&format!(
        "SuccessfulCreate Created pod: {}",
        meta::name(&pods[0])
    )));

    // One that is lost is made again.
    bench
        .delete(
            "pods",
            "default",
            meta::name(&pods[0]),
            Propagation::Background,
        )
        .await;
    bench
        .until_so("a new pod", || {
            let now = bench.owned("pods", &set);
            now.len() == 5 && now.iter().all(|pod| meta::uid(pod) != meta::uid(&pods[0]))
        })
        .await;

    bench
        .change(SETS, "default", "web", |set| {
            set["spec"]["replicas"] = json!(1)
        })
        .await;
    bench
        .until_so("one left", || {
            bench.owned("pods", &set).len() == 1 && status(&bench, "web", "replicas") == 1
        })
        .await;
    let set = bench.get(SETS, "default", "web").unwrap();
    assert_eq!(
        set["status"]["observedGeneration"],
        set["metadata"]["generation"]
    );
}

#[tokio::test]
async fn orphans_that_fit_are_adopted_and_relabeled_pods_are_released() {
    let bench = Bench::new().await;
    bench.create("pods", pod("orphan", "web")).await;
    let set = bench.create(SETS, workload("ReplicaSet", "web", 2)).await;
    bench
        .until_so("two ready", || status(&bench, "web", "readyReplicas") == 2)
        .await;
    let adopted = bench.get("pods", "default", "orphan").unwrap();
    assert!(meta::is_controlled_by(&adopted, meta::uid(&set)));

    bench
        .change("pods", "default", "orphan", |pod| {
            meta::set_label(pod, "app", "other")
        })
        .await;
    bench
        .until_so("released and replaced", || {
            let orphan = bench.get("pods", "default", "orphan").unwrap();
            meta::controller_of(&orphan).is_none() && bench.owned("pods", &set).len() == 2
        })
        .await;

    // One that comes later is one too many, and the least useful as it is not ready.
    bench
        .until_so("two ready again", || {
            let pods = bench.owned("pods", &set);
            pods.len() == 2 && pods.iter().all(|pod| meta::condition_is_true(pod, "Ready"))
        })
        .await;
    let mut late = pod("late", "web");
    late["metadata"]["annotations"] = json!({"hold": "true"});
    bench.create("pods", late).await;
    bench
        .until_so("gone", || bench.get("pods", "default", "late").is_none())
        .await;
}

#[tokio::test]
async fn what_keeps_pods_from_being_made_is_told() {
    let bench = Bench::new().await;
    let mut set = workload("ReplicaSet", "web", 3);
    set["spec"]["template"]["spec"]["serviceAccountName"] = "missing".into();
    bench.create(SETS, set).await;
    let condition = bench
        .until("the failure", || {
            let set = bench.get(SETS, "default", "web").unwrap();
            meta::condition(&set, "ReplicaFailure").cloned()
        })
        .await;
    assert_eq!(condition["reason"], "FailedCreate");
    let wanted = "pods \"web-";
    assert!(
        meta::str_at(&condition, &["message"]).starts_with(wanted),
        "{condition}"
    );
    bench
        .until_so("an event", || {
            bench
                .events("web")
                .iter()
                .any(|e| e.starts_with("FailedCreate Error creating: "))
        })
        .await;
    // What was in the way comes, and with it the pods.
    bench
        .create(
            "serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "missing"}}),
        )
        .await;
    bench
        .until_so("three ready", || {
            status(&bench, "web", "readyReplicas") == 3
        })
        .await;
    let set = bench.get(SETS, "default", "web").unwrap();
    assert!(meta::condition(&set, "ReplicaFailure").is_none());
}

#[tokio::test]
async fn a_replication_controller_has_as_many_pods_as_it_asks_for() {
    const RCS: &str = "replicationcontrollers";
    let bench = Bench::new().await;
    bench.create("pods", pod("orphan", "web")).await;
    // Without a selector: it is that of the template's labels.
    let rc = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 3, "template": template("web", "i:1")}});
    let rc = bench.create(RCS, rc).await;
    assert_eq!(rc["spec"]["selector"], json!({"app": "web"}));
    bench
        .until_so("three ready", || {
            let rc = bench.get(RCS, "default", "web").unwrap();
            rc["status"]["readyReplicas"] == 3 && rc["status"]["replicas"] == 3
        })
        .await;
    let pods = bench.owned("pods", &rc);
    assert!(pods.iter().any(|pod| meta::name(pod) == "orphan"));
    assert_eq!(
        pods[0]["metadata"]["ownerReferences"][0]["kind"],
        "ReplicationController"
    );
    bench
        .change(RCS, "default", "web", |rc| {
            rc["spec"]["replicas"] = json!(1)
        })
        .await;
    bench
        .until_so("one left", || bench.owned("pods", &rc).len() == 1)
        .await;
}
