use amphipod_api::meta;
use amphipod_server::registry::Propagation;
use serde_json::{Value, json};

use crate::bench::{Bench, workload};

const DEPLOYMENTS: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";

fn config(name: &str, owners: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}})
}

fn owner(object: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": meta::name(object), "uid": meta::uid(object), "blockOwnerDeletion": true})
}

async fn running(bench: &Bench) -> Value {
    let d = bench
        .create(DEPLOYMENTS, workload("Deployment", "web", 2))
        .await;
    let ready = || {
        bench
            .get(DEPLOYMENTS, "default", "web")
            .is_some_and(|d| d["status"]["availableReplicas"] == 2)
    };
    bench.until_so("two pods", ready).await;
    d
}

#[tokio::test]
async fn what_a_deployment_owns_goes_with_it() {
    let bench = Bench::new().await;
    running(&bench).await;
    bench
        .delete(DEPLOYMENTS, "default", "web", Propagation::Background)
        .await;
    assert!(bench.get(DEPLOYMENTS, "default", "web").is_none());
    bench
        .until_so("nothing left", || {
            bench.list(SETS, "default").is_empty() && bench.list("pods", "default").is_empty()
        })
        .await;
}

#[tokio::test]
async fn in_the_foreground_the_owner_goes_last() {
    let bench = Bench::new().await;
    running(&bench).await;
    bench
        .delete(DEPLOYMENTS, "default", "web", Propagation::Foreground)
        .await;
    bench
        .until_so("the deployment to go", || {
            // Looked at in this order: who goes first is never there when who goes last is not.
            let (d, sets) = (
                bench.get(DEPLOYMENTS, "default", "web").is_some(),
                bench.list(SETS, "default").len(),
            );
            let pods = bench.list("pods", "default").len();
            assert!(d || sets == 0, "a set outlives its deployment");
            assert!(sets > 0 || pods == 0 || d, "pods outlive their set");
            !d
        })
        .await;
    assert!(bench.list("pods", "default").is_empty());
}

#[tokio::test]
async fn orphans_stay() {
    let bench = Bench::new().await;
    let d = running(&bench).await;
    bench
        .delete(DEPLOYMENTS, "default", "web", Propagation::Orphan)
        .await;
    bench
        .until_so("the deployment to go", || {
            bench.get(DEPLOYMENTS, "default", "web").is_none()
        })
        .await;
    let sets = bench.list(SETS, "default");
    assert_eq!(sets.len(), 1);
    assert!(meta::owner_references(&sets[0]).is_empty() && bench.owned(SETS, &d).is_empty());
    assert_eq!(bench.list("pods", "default").len(), 2);
}

#[tokio::test]
async fn an_object_whose_owner_never_was_or_is_another_now_goes() {
    let bench = Bench::bare().await;
    let first = bench.create("configmaps", config("first", json!([]))).await;
    let stranger =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "first", "uid": "another"});
    let unknown = json!({"apiVersion": "example.com/v1", "kind": "Thing", "name": "x", "uid": "y"});
    bench
        .create("configmaps", config("lost", json!([stranger])))
        .await;
    bench
        .create(
            "configmaps",
            config("partly", json!([stranger, owner(&first)])),
        )
        .await;
    bench
        .create("configmaps", config("unknown", json!([unknown])))
        .await;
    bench
        .until_so("the lost one to go", || {
            bench.get("configmaps", "default", "lost").is_none()
        })
        .await;
    bench
        .until_so("the stranger to be forgotten", || {
            meta::owner_references(&bench.get("configmaps", "default", "partly").unwrap()).len()
                == 1
        })
        .await;
    assert!(bench.get("configmaps", "default", "unknown").is_some());
}

#[tokio::test]
async fn a_finalizer_of_a_dependent_holds_the_owner_in_the_foreground() {
    let bench = Bench::bare().await;
    let top = bench.create("configmaps", config("top", json!([]))).await;
    let mut held = config("held", json!([owner(&top)]));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    bench.create("configmaps", held).await;
    bench
        .delete("configmaps", "default", "top", Propagation::Foreground)
        .await;
    bench
        .until_so("the dependent to be going", || {
            meta::is_deleting(&bench.get("configmaps", "default", "held").unwrap())
        })
        .await;
    assert!(bench.get("configmaps", "default", "top").is_some());
    bench
        .change("configmaps", "default", "held", |held| {
            drop(meta::metadata_mut(held).remove("finalizers"))
        })
        .await;
    bench
        .until_so("both to go", || {
            ["top", "held"]
                .iter()
                .all(|name| bench.get("configmaps", "default", name).is_none())
        })
        .await;
}
