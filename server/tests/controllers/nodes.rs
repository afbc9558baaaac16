use amphipod_api::meta::{self, array_at, str_at};
use amphipod_server::registry::Propagation;
use serde_json::{Value, json};

use crate::bench::{Bench, template};

fn taints(node: &Value) -> Vec<String> {
    array_at(node, &["spec", "taints"])
        .iter()
        .map(|t| format!("{}:{}", str_at(t, &["key"]), str_at(t, &["effect"])))
        .collect()
}

#[tokio::test]
async fn a_node_is_tainted_while_it_is_not_ready() {
    let bench = Bench::bare().await;
    bench
        .create(
            "nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "box"}}),
        )
        .await;
    let now = || taints(&bench.get("nodes", "", "box").unwrap());
    assert_eq!(now()[0], "node.kubernetes.io/not-ready:NoSchedule");
    let tell = async |status: &str| {
        let set = |node: &mut Value| {
            node["status"]["conditions"] = json!([{"type": "Ready", "status": status}])
        };
        bench.change_status("nodes", "", "box", set).await;
    };
    tell("True").await;
    bench.until_so("no taints", || now().is_empty()).await;
    // Pods of the only node have nowhere to go.
    tell("False").await;
    let wanted = [
        "node.kubernetes.io/not-ready:NoSchedule",
        "node.kubernetes.io/not-ready:NoExecute",
    ];
    bench.until_so("a taint", || now() == wanted[..1]).await;
    bench.add_node("other").await;
    bench.until_so("both taints", || now() == wanted).await;
    tell("True").await;
    bench.until_so("no taints", || now().is_empty()).await;
}

fn pod(name: &str, node: &str, tolerations: Value) -> Value {
    let mut pod = template("web", "i");
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod["spec"]["nodeName"] = node.into();
    pod["spec"]["tolerations"] = tolerations;
    pod
}

#[tokio::test]
async fn a_taint_that_evicts_takes_pods_when_their_patience_ends() {
    let bench = Bench::new().await;
    let tolerate = |seconds: Value| json!([{"key": "mine", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    for (name, tolerations) in [
        ("none", json!([])),
        ("some", tolerate(json!(1))),
        ("long", tolerate(json!(3600))),
        ("all", tolerate(Value::Null)),
    ] {
        bench.create("pods", pod(name, "box", tolerations)).await;
    }
    let there =
        || ["none", "some", "long", "all"].map(|name| bench.get("pods", "default", name).is_some());
    let taint =
        |node: &mut Value| node["spec"]["taints"] = json!([{"key": "mine", "effect": "NoExecute"}]);
    bench.change("nodes", "", "box", taint).await;
    bench.until_so("the first to go", || !there()[0]).await;
    bench
        .until_so("the second to go", || there() == [false, false, true, true])
        .await;
    bench
        .until_so("events", || {
            bench.events("some") == ["TaintManagerEviction Marking for deletion Pod default/some"]
        })
        .await;
    bench
        .change("nodes", "", "box", |node| {
            drop(node["spec"].as_object_mut().unwrap().remove("taints"))
        })
        .await;
    bench
        .until_so("a cancelled eviction", || {
            bench.events("long") == ["TaintManagerEviction Cancelling deletion of Pod default/long"]
        })
        .await;
    assert_eq!(there(), [false, false, true, true]);
}

#[tokio::test]
async fn a_node_out_of_service_keeps_no_pod_terminating() {
    let mut bench = Bench::new().await;
    bench
        .create("pods", pod("web", "box", json!([{"operator": "Exists"}])))
        .await;
    bench
        .until_so("it to run", || {
            bench.get("pods", "default", "web").unwrap()["status"]["phase"] == "Running"
        })
        .await;
    bench.stop_agent();
    bench
        .delete("pods", "default", "web", Propagation::Background)
        .await;
    let down = |node: &mut Value| {
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}])
    };
    bench.change_status("nodes", "", "box", down).await;
    assert!(bench.get("pods", "default", "web").is_some());
    let taint = |node: &mut Value| {
        let taints = node
            .pointer_mut("/spec/taints")
            .and_then(Value::as_array_mut);
        let out = json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
        match taints {
            Some(taints) => taints.push(out),
            None => node["spec"]["taints"] = json!([out]),
        }
    };
    bench.change("nodes", "", "box", taint).await;
    bench
        .until_so("it to go", || bench.get("pods", "default", "web").is_none())
        .await;
}

/// Takes the whole grace period of 40 seconds.
#[tokio::test]
async fn a_silent_node_is_unknown_its_pods_not_ready_and_those_of_a_removed_node_go() {
    let bench = Bench::new().await;
    for node in ["lost", "gone"] {
        bench.add_node(node).await;
        bench.create("pods", pod(node, node, json!([]))).await;
        bench
            .until_so("it to run", || {
                bench.get("pods", "default", node).unwrap()["status"]["phase"] == "Running"
            })
            .await;
    }
    bench
        .delete("nodes", "", "gone", Propagation::Background)
        .await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "box", "namespace": "kube-node-lease"}, "spec": {"holderIdentity": "box", "leaseDurationSeconds": 40}});
    bench.create("leases.coordination.k8s.io", lease).await;
    let ready = |node: &str| {
        let node = bench.get("nodes", "", node).unwrap();
        meta::condition(&node, "Ready").unwrap().clone()
    };
    let renewing = async {
        loop {
            let renew = |lease: &mut Value| {
                lease["spec"]["renewTime"] =
                    amphipod_api::time::format_micro_time(jiff::Timestamp::now()).into()
            };
            bench
                .change(
                    "leases.coordination.k8s.io",
                    "kube-node-lease",
                    "box",
                    renew,
                )
                .await;
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
    };
    let checking = async {
        bench
            .until_within(60, "the node to be unknown", || {
                ready("lost")["status"] == "Unknown"
            })
            .await;
        assert_eq!(
            ready("lost")["message"],
            "Kubelet stopped posting node status."
        );
        assert_eq!(ready("box")["status"], "True", "its lease is renewed");
        let pod_ready =
            || meta::condition_is_true(&bench.get("pods", "default", "lost").unwrap(), "Ready");
        bench
            .until_so("its pod not to be ready", || !pod_ready())
            .await;
        let wanted = [
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute",
        ];
        bench
            .until_so("taints", || {
                taints(&bench.get("nodes", "", "lost").unwrap()) == wanted
            })
            .await;
        assert!(
            bench.get("pods", "default", "lost").is_some(),
            "it is tolerated for five minutes"
        );
        bench
            .until_so("the pod of the removed node to go", || {
                bench.get("pods", "default", "gone").is_none()
            })
            .await;
    };
    tokio::select! {
        () = renewing => {}
        () = checking => {}
    }
}
