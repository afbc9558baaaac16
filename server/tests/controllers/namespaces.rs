use amphipod_api::meta;
use amphipod_server::registry::Propagation;
use serde_json::{Value, json};

use crate::bench::{Bench, template, workload};

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let bench = Bench::new().await;
    bench.create("namespaces", namespace("shop")).await;
    bench
        .until_so("its account", || {
            bench.get("serviceaccounts", "shop", "default").is_some()
        })
        .await;
    let mut d = workload("Deployment", "web", 2);
    d["metadata"]["namespace"] = "shop".into();
    bench.create("deployments.apps", d).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    bench.create("services", service).await;
    bench
        .until_so("two pods", || {
            bench
                .list("pods", "shop")
                .iter()
                .filter(|p| meta::condition_is_true(p, "Ready"))
                .count()
                == 2
        })
        .await;
    bench
        .delete("namespaces", "", "shop", Propagation::Background)
        .await;
    bench
        .until_so("the namespace to go", || {
            bench.get("namespaces", "", "shop").is_none()
        })
        .await;
    for resource in [
        "pods",
        "replicasets.apps",
        "deployments.apps",
        "services",
        "endpoints",
        "configmaps",
        "serviceaccounts",
        "events",
    ] {
        assert!(
            bench.list(resource, "shop").is_empty(),
            "{resource} are left"
        );
    }
    // It can be made anew.
    bench.create("namespaces", namespace("shop")).await;
    bench
        .until_so("its account", || {
            bench.get("serviceaccounts", "shop", "default").is_some()
        })
        .await;
}

#[tokio::test]
async fn a_namespace_tells_what_it_waits_for_and_pods_go_first() {
    let bench = Bench::new().await;
    bench.create("namespaces", namespace("held")).await;
    bench
        .until_so("its account and the CA", || {
            bench.get("serviceaccounts", "held", "default").is_some()
                && bench
                    .get("configmaps", "held", "kube-root-ca.crt")
                    .is_some()
        })
        .await;
    let mut pod = template("web", "i");
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "web".into();
    pod["metadata"]["namespace"] = "held".into();
    pod["metadata"]["finalizers"] = json!(["example.com/hold"]);
    bench.create("pods", pod).await;
    bench
        .delete("namespaces", "", "held", Propagation::Background)
        .await;
    let message = |kind: &str| {
        let namespace = bench.get("namespaces", "", "held").unwrap();
        meta::condition(&namespace, kind)
            .map(|c| meta::str_at(c, &["message"]).to_owned())
            .unwrap_or_default()
    };
    bench
        .until_so("the reason", || {
            message("NamespaceFinalizersRemaining")
                == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        })
        .await;
    assert_eq!(
        message("NamespaceContentRemaining"),
        "Some resources are remaining: pods. has 1 resource instances"
    );
    assert!(
        bench
            .get("configmaps", "held", "kube-root-ca.crt")
            .is_some(),
        "what pods may need stays"
    );
    bench
        .change("pods", "held", "web", |pod| {
            drop(meta::metadata_mut(pod).remove("finalizers"))
        })
        .await;
    bench
        .until_so("the namespace to go", || {
            bench.get("namespaces", "", "held").is_none()
        })
        .await;
}
