use amphipod_api::meta::{array_at, str_at};
use serde_json::{Value, json};

use crate::bench::Bench;

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
    tell("False").await;
    let wanted = [
        "node.kubernetes.io/not-ready:NoSchedule",
        "node.kubernetes.io/not-ready:NoExecute",
    ];
    bench.until_so("taints", || now() == wanted).await;
}
