//! A server in this process with its scheduler and controllers, one node, and something that plays its agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amphipod_api::{Status, meta};
use amphipod_server::auth::UserInfo;
use amphipod_server::cache::{EventType, Object};
use amphipod_server::registry::{Context, DeleteOptions, Propagation, Registry};
use amphipod_server::{Server, ServerConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bench {
    pub server: Server,
    user: Arc<UserInfo>,
    agents: JoinSet<()>,
    dir: TempDir,
}

impl Bench {
    /// A server without nodes.
    pub async fn bare() -> Bench {
        Bench::on(TempDir::new().unwrap()).await
    }

    /// The same server once more, on the same data.
    pub async fn restarted(mut self) -> Bench {
        self.agents.shutdown().await;
        self.server.shutdown().await;
        let mut bench = Bench::on(self.dir).await;
        bench.play_agent();
        bench
    }

    async fn on(dir: TempDir) -> Bench {
        let config = ServerConfig {
            data_dir: dir.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            ..ServerConfig::default()
        };
        let server = Server::start(config).await.unwrap();
        let user = Arc::new(UserInfo::new("admin", &["system:masters"]));
        let bench = Bench {
            server,
            user,
            agents: JoinSet::new(),
            dir,
        };
        bench
            .until("the default service account", || {
                bench.get("serviceaccounts", "default", "default")
            })
            .await;
        bench
    }

    /// A server with the node `box`, whose pods run.
    pub async fn new() -> Bench {
        let mut bench = Bench::bare().await;
        bench.add_node("box").await;
        bench.play_agent();
        bench
    }

    /// A node that is ready.
    pub async fn add_node(&self, name: &str) {
        let resources = json!({"cpu": "64", "memory": "64Gi", "pods": "1000"});
        self.create(
            "nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"capacity": resources, "allocatable": resources,
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        )
        .await;
    }

    /// Lets pods run as soon as they have a node, and end when they are deleted. Pods with an annotation `hold` stay not ready.
    pub fn play_agent(&mut self) {
        let (registry, user) = (self.server.registry().clone(), self.user.clone());
        self.agents.spawn(async move {
            let next_ip = AtomicU32::new(2);
            let descriptor = registry.catalog().by_resource("pods").unwrap();
            let (list, mut watch) = registry.table(&descriptor).list_and_watch(None);
            for pod in &list.items {
                play(&registry, &user, pod, &next_ip).await;
            }
            loop {
                for event in watch.next().await.unwrap() {
                    if event.kind != EventType::Deleted {
                        play(&registry, &user, &event.object, &next_ip).await;
                    }
                }
            }
        });
    }

    pub fn stop_agent(&mut self) {
        self.agents.abort_all();
    }

    pub fn cx(&self, resource: &str, namespace: &str) -> Context {
        self.server
            .registry()
            .context(&self.user, resource, namespace)
            .unwrap()
    }

    fn namespace<'a>(&self, resource: &str, object: &'a Value) -> &'a str {
        let cluster = !self
            .server
            .registry()
            .catalog()
            .by_resource(resource)
            .unwrap()
            .namespaced();
        match meta::namespace(object) {
            _ if cluster => "",
            "" => "default",
            namespace => namespace,
        }
    }

    pub async fn try_create(&self, resource: &str, object: Value) -> Result<Arc<Object>, Status> {
        let cx = self.cx(resource, self.namespace(resource, &object));
        self.server.registry().create(&cx, object.into()).await
    }

    pub async fn create(&self, resource: &str, object: Value) -> Value {
        self.try_create(resource, object).await.unwrap().value()
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let registry = self.server.registry();
        let descriptor = registry.catalog().by_resource(resource).unwrap();
        registry
            .table(&descriptor)
            .get(namespace, name)
            .map(|object| object.value())
    }

    /// All objects of a namespace (empty: of a cluster-scoped resource).
    pub fn list(&self, resource: &str, namespace: &str) -> Vec<Value> {
        let registry = self.server.registry();
        let descriptor = registry.catalog().by_resource(resource).unwrap();
        registry
            .table(&descriptor)
            .list(Some(namespace))
            .items
            .iter()
            .map(|object| object.value())
            .collect()
    }

    /// Objects of the namespace `default` with this label.
    pub fn labeled(&self, resource: &str, key: &str, value: &str) -> Vec<Value> {
        let registry = self.server.registry();
        let descriptor = registry.catalog().by_resource(resource).unwrap();
        let mut found = Vec::new();
        registry
            .table(&descriptor)
            .for_each(Some("default"), |object| {
                if object
                    .meta
                    .labels
                    .get(key)
                    .is_some_and(|have| have == value)
                {
                    found.push(object.clone());
                }
            });
        found.iter().map(|object| object.value()).collect()
    }

    /// Objects of the namespace `default` that name this uid as an owner.
    pub fn owned(&self, resource: &str, owner: &Value) -> Vec<Value> {
        let mut all = self.list(resource, "default");
        all.retain(|object| {
            meta::owner_references(object)
                .iter()
                .any(|o| o["uid"] == meta::uid(owner))
        });
        all
    }

    pub async fn change(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut Value) + Send + Sync,
    ) -> Value {
        self.change_at(&self.cx(resource, namespace), name, change)
            .await
    }

    pub async fn change_status(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut Value) + Send + Sync,
    ) -> Value {
        self.change_at(
            &self.cx(resource, namespace).with_subresource("status"),
            name,
            change,
        )
        .await
    }

    async fn change_at(
        &self,
        cx: &Context,
        name: &str,
        change: impl Fn(&mut Value) + Send + Sync,
    ) -> Value {
        let change = |object: &mut Value| {
            change(object);
            Ok(())
        };
        self.server
            .registry()
            .update_with(cx, name, change)
            .await
            .unwrap()
            .value()
    }

    pub async fn delete(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        propagation: Propagation,
    ) {
        let options = DeleteOptions {
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        self.server
            .registry()
            .delete(&self.cx(resource, namespace), name, &options)
            .await
            .unwrap();
    }

    /// Waits until something is there; looks again after each change of any object.
    pub async fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        self.waiting(PATIENCE, what, look).await
    }

    /// Waits until a condition holds, at most so many seconds.
    pub async fn until_within(&self, seconds: u64, what: &str, mut so: impl FnMut() -> bool) {
        self.waiting(Duration::from_secs(seconds), what, || so().then_some(()))
            .await;
    }

    async fn waiting<T>(
        &self,
        patience: Duration,
        what: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> T {
        let cache = self.server.registry().cache();
        let waiting = async {
            loop {
                let revision = cache.revision();
                if let Some(found) = look() {
                    return found;
                }
                cache.reach(revision + 1, Duration::from_secs(1)).await;
            }
        };
        match timeout(patience, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}"),
        }
    }

    /// Waits until a condition holds.
    pub async fn until_so(&self, what: &str, mut so: impl FnMut() -> bool) {
        self.until(what, || so().then_some(())).await;
    }

    /// What kubectl prints.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        let config = self.dir.path().join("admin.kubeconfig");
        let output = tokio::process::Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(config)
            .args(args)
            .output()
            .await
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {args:?}: {err}");
        out.into_owned()
    }

    /// Reasons and messages of the events about an object.
    pub fn events(&self, name: &str) -> Vec<String> {
        let mut events = self.list("events", "default");
        events.retain(|event| event["involvedObject"]["name"] == name);
        events
            .iter()
            .map(|event| {
                format!(
                    "{} {}",
                    meta::str_at(event, &["reason"]),
                    meta::str_at(event, &["message"])
                )
            })
            .collect()
    }
}

async fn play(registry: &Registry, user: &Arc<UserInfo>, pod: &Object, next_ip: &AtomicU32) {
    let value = pod.value();
    if meta::str_at(&value, &["spec", "nodeName"]).is_empty() {
        return;
    }
    let context = registry.context(user, "pods", &pod.meta.namespace).unwrap();
    if pod.meta.is_deleting() {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some(pod.meta.uid.to_string()),
            ..Default::default()
        };
        let _ = registry.delete(&context, &pod.meta.name, &options).await;
        return;
    }
    if !meta::str_at(&value, &["status", "podIP"]).is_empty() {
        return;
    }
    let ip = format!("10.42.0.{}", next_ip.fetch_add(1, Ordering::Relaxed));
    let ready = if meta::annotation(&value, "hold").is_some() {
        "False"
    } else {
        "True"
    };
    let run = |pod: &mut Value| {
        pod["status"]["phase"] = "Running".into();
        pod["status"]["podIP"] = ip.clone().into();
        pod["status"]["podIPs"] = json!([{"ip": ip}]);
        let now = amphipod_api::time::now();
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": ready, "lastTransitionTime": now}]);
        Ok(())
    };
    let _ = registry
        .update_with(&context.with_subresource("status"), &pod.meta.name, run)
        .await;
}

pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A ReplicaSet or Deployment whose pods have the label `app`.
pub fn workload(kind: &str, name: &str, replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, "i:1")}})
}
