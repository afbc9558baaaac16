use amphipod_api::meta;
use amphipod_server::registry::Propagation;
use serde_json::json;

use crate::bench::{Bench, workload};

const DEPLOYMENTS: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";

fn condition(bench: &Bench, name: &str, kind: &str) -> String {
    let deployment = bench.get(DEPLOYMENTS, "default", name).unwrap();
    let condition = meta::condition(&deployment, kind)
        .cloned()
        .unwrap_or_default();
    format!(
        "{} {}",
        meta::str_at(&condition, &["status"]),
        meta::str_at(&condition, &["reason"])
    )
}

async fn done(bench: &Bench, name: &str, replicas: i64) {
    bench
        .until_so("the rollout to be done", || {
            let d = bench.get(DEPLOYMENTS, "default", name).unwrap();
            let n = |field: &str| meta::i64_at(&d, &["status", field]).unwrap_or(0);
            n("observedGeneration") == meta::generation(&d)
                && [n("replicas"), n("updatedReplicas"), n("availableReplicas")] == [replicas; 3]
                && condition(bench, name, "Progressing") == "True NewReplicaSetAvailable"
        })
        .await;
}

#[tokio::test]
async fn a_deployment_rolls_out_and_back_as_kubectl_has_it() {
    let bench = Bench::new().await;
    bench
        .create(DEPLOYMENTS, workload("Deployment", "web", 3))
        .await;
    done(&bench, "web", 3).await;
    bench
        .kubectl(&["set", "image", "deployment/web", "c=i:2"])
        .await;
    bench
        .kubectl(&[
            "annotate",
            "deployment/web",
            "kubernetes.io/change-cause=the second",
        ])
        .await;
    let told = bench
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"])
        .await;
    assert!(
        told.ends_with("deployment \"web\" successfully rolled out\n"),
        "{told}"
    );
    let history = bench
        .kubectl(&["rollout", "history", "deployment/web"])
        .await;
    assert!(
        history.contains("1         <none>\n2         the second\n"),
        "{history}"
    );

    bench.kubectl(&["rollout", "undo", "deployment/web"]).await;
    bench
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"])
        .await;
    let d = bench.get(DEPLOYMENTS, "default", "web").unwrap();
    assert_eq!(
        d.pointer("/spec/template/spec/containers/0/image").unwrap(),
        "i:1"
    );
    assert_eq!(
        meta::annotation(&d, "deployment.kubernetes.io/revision"),
        Some("3")
    );
    let sets = bench.owned(SETS, &d);
    assert_eq!(sets.len(), 2);

    bench
        .kubectl(&["rollout", "restart", "deployment/web"])
        .await;
    bench
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"])
        .await;
    bench.kubectl(&["rollout", "pause", "deployment/web"]).await;
    bench
        .until_so("paused", || {
            condition(&bench, "web", "Progressing") == "Unknown DeploymentPaused"
        })
        .await;
    bench
        .kubectl(&["rollout", "resume", "deployment/web"])
        .await;
    bench
        .kubectl(&["scale", "deployment/web", "--replicas=1"])
        .await;
    done(&bench, "web", 1).await;
    bench
        .until_so("events", || {
            bench
                .events("web")
                .iter()
                .any(|e| e.starts_with("ScalingReplicaSet Scaled down replica set web-"))
        })
        .await;
}

#[tokio::test]
async fn recreate_never_runs_old_and_new_pods_at_once() {
    let bench = Bench::new().await;
    let mut d = workload("Deployment", "web", 2);
    d["spec"]["strategy"] = json!({"type": "Recreate"});
    let d = bench.create(DEPLOYMENTS, d).await;
    done(&bench, "web", 2).await;
    let first = bench.owned(SETS, &d).remove(0);
    let new_image = |d: &mut serde_json::Value| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2".into()
    };
    bench.change(DEPLOYMENTS, "default", "web", new_image).await;
    bench
        .until_so("new pods", || {
            let pods = bench.list("pods", "default");
            let is_old = |pod: &&serde_json::Value| meta::is_controlled_by(pod, meta::uid(&first));
            let (old, all) = (pods.iter().filter(is_old).count(), pods.len());
            assert!(old == 0 || old == all, "old and new pods at once");
            old == 0 && all == 2
        })
        .await;
    done(&bench, "web", 2).await;
}

#[tokio::test]
async fn a_set_without_owner_is_adopted() {
    let bench = Bench::new().await;
    bench
        .create(DEPLOYMENTS, workload("Deployment", "web", 1))
        .await;
    done(&bench, "web", 1).await;
    let before = bench.list(SETS, "default");
    bench
        .delete(DEPLOYMENTS, "default", "web", Propagation::Orphan)
        .await;
    bench
        .until_so("gone", || {
            bench.get(DEPLOYMENTS, "default", "web").is_none()
        })
        .await;
    let d = bench
        .create(DEPLOYMENTS, workload("Deployment", "web", 1))
        .await;
    bench
        .until_so("adopted", || bench.owned(SETS, &d).len() == 1)
        .await;
    done(&bench, "web", 1).await;
    assert_eq!(
        meta::uid(&bench.list(SETS, "default")[0]),
        meta::uid(&before[0])
    );
}
