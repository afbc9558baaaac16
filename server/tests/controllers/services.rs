use std::time::Instant;

use amphipod_api::meta;
use amphipod_server::registry::Propagation;
use serde_json::{Value, json};

use crate::bench::{Bench, template, workload};

const SLICES: &str = "endpointslices.discovery.k8s.io";

fn service(name: &str, selector: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

fn slices(bench: &Bench, service: &str) -> Vec<Value> {
    bench.labeled(SLICES, "kubernetes.io/service-name", service)
}

/// Addresses that are ready.
fn ready(bench: &Bench, service: &str) -> Vec<String> {
    let mut ready = Vec::new();
    for slice in slices(bench, service) {
        for endpoint in meta::array_at(&slice, &["endpoints"]) {
            if endpoint["conditions"]["ready"] == true {
                ready.push(endpoint["addresses"][0].to_string());
            }
        }
    }
    ready
}

#[tokio::test]
async fn a_service_follows_its_pods() {
    let bench = Bench::new().await;
    bench
        .create("services", service("web", json!({"app": "web"})))
        .await;
    bench
        .until_so("an empty slice", || slices(&bench, "web").len() == 1)
        .await;
    bench
        .create("replicasets.apps", workload("ReplicaSet", "web", 3))
        .await;
    bench
        .until_so("three endpoints", || ready(&bench, "web").len() == 3)
        .await;
    let addresses = || {
        let endpoints = bench.get("endpoints", "default", "web").unwrap_or_default();
        meta::array_at(&endpoints["subsets"][0], &["addresses"]).len()
    };
    bench.until_so("three addresses", || addresses() == 3).await;
    // The empty one goes when the other is there.
    bench
        .until_so("one slice", || slices(&bench, "web").len() == 1)
        .await;
    let slice = slices(&bench, "web").remove(0);
    assert_eq!(
        slice["ports"],
        json!([{"name": "", "port": 8080, "protocol": "TCP"}])
    );
    assert!(meta::name(&slice).starts_with("web-"));

    bench
        .change("replicasets.apps", "default", "web", |set| {
            set["spec"]["replicas"] = json!(1)
        })
        .await;
    bench
        .until_so("one endpoint", || {
            ready(&bench, "web").len() == 1 && addresses() == 1
        })
        .await;
    bench
        .delete("services", "default", "web", Propagation::Background)
        .await;
    bench
        .until_so("nothing left", || {
            slices(&bench, "web").is_empty() && bench.get("endpoints", "default", "web").is_none()
        })
        .await;
}

#[tokio::test]
async fn an_endpoint_is_told_when_its_pod_is_ready_beside_many_services() {
    let bench = Bench::bare().await;
    bench.add_node("box").await;
    // Beside many others, in the same namespace.
    for n in 0..200 {
        bench
            .create(
                "services",
                service(&format!("other-{n}"), json!({"app": format!("other-{n}")})),
            )
            .await;
    }
    bench
        .create("services", service("web", json!({"app": "web"})))
        .await;
    let mut times = Vec::new();
    for n in 0..20 {
        let mut pod = template("web", "i");
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let name = format!("web-{n}");
        pod["metadata"]["name"] = name.clone().into();
        bench.create("pods", pod).await;
        let run = |pod: &mut Value| {
            pod["status"]["phase"] = "Running".into();
            pod["status"]["podIP"] = format!("10.42.0.{}", n + 2).into();
            pod["status"]["podIPs"] = json!([{"ip": format!("10.42.0.{}", n + 2)}]);
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        };
        bench.change_status("pods", "default", &name, run).await;
        let since = Instant::now();
        bench
            .until_so("the endpoint", || ready(&bench, "web").len() == n + 1)
            .await;
        times.push(since.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    eprintln!("pod ready to endpoint, median: {median:?}");
}

#[tokio::test]
async fn endpoints_that_a_user_wrote_are_mirrored_until_the_service_goes() {
    let bench = Bench::bare().await;
    let mut db = service("db", json!({}));
    db["spec"]["selector"] = Value::Null;
    bench.create("services", db).await;
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]});
    bench.create("endpoints", endpoints).await;
    bench
        .until_so("a mirror", || ready(&bench, "db").len() == 1)
        .await;
    assert_eq!(
        meta::label(
            &slices(&bench, "db")[0],
            "endpointslice.kubernetes.io/managed-by"
        ),
        Some("endpointslicemirroring-controller.k8s.io")
    );
    bench
        .delete("services", "default", "db", Propagation::Background)
        .await;
    bench
        .until_so("nothing", || {
            slices(&bench, "db").is_empty() && bench.get("endpoints", "default", "db").is_none()
        })
        .await;
}

#[tokio::test]
async fn the_dns_service_is_there_and_comes_back() {
    let bench = Bench::bare().await;
    let dns = || bench.get("services", "kube-system", "kube-dns");
    bench
        .until_so("the service", || {
            dns().is_some_and(|dns| dns["spec"]["clusterIP"] == "10.43.0.10")
        })
        .await;
    bench
        .delete(
            "services",
            "kube-system",
            "kube-dns",
            Propagation::Background,
        )
        .await;
    bench
        .until_so("the service again", || dns().is_some())
        .await;
}

/// Everything but what is written all the time, by its version.
fn versions(bench: &Bench) -> Vec<String> {
    let resources = [
        "pods",
        "replicasets.apps",
        "deployments.apps",
        "services",
        "endpoints",
        SLICES,
        "configmaps",
    ];
    let all = resources
        .iter()
        .flat_map(|resource| bench.list(resource, "default"));
    // The address of this server is another one each time.
    all.filter(|object| {
        !meta::name(object).starts_with("new") && meta::name(object) != "kubernetes"
    })
    .map(|object| {
        format!(
            "{}/{} {}",
            object["kind"],
            meta::name(&object),
            meta::resource_version(&object)
        )
    })
    .collect()
}

#[tokio::test]
async fn a_restart_writes_nothing_anew() {
    let bench = Bench::new().await;
    let run = async |bench: &Bench, name: &str| {
        bench
            .create("deployments.apps", workload("Deployment", name, 2))
            .await;
        bench
            .create("services", service(name, json!({"app": name})))
            .await;
        bench
            .until_so("endpoints", || ready(bench, name).len() == 2)
            .await;
        let done = |d: Value| {
            meta::condition(&d, "Progressing")
                .is_some_and(|c| c["reason"] == "NewReplicaSetAvailable")
        };
        bench
            .until_so("the rollout to be done", || {
                bench
                    .get("deployments.apps", "default", name)
                    .is_some_and(done)
            })
            .await;
    };
    run(&bench, "web").await;
    // By then whatever followed from the first is written too.
    run(&bench, "new-first").await;
    let before = versions(&bench);
    let bench = bench.restarted().await;
    run(&bench, "new").await;
    assert_eq!(versions(&bench), before);
}
