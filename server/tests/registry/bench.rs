//! A registry of its own for each test.

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::Status;
use amphipod_server::auth::UserInfo;
use amphipod_server::cache::{Cache, EventType, Object};
use amphipod_server::registry::{
    Context, GetOptions, ListOptions, Open, PatchType, Registry, WatchItem, WatchStream,
};
use amphipod_server::resources::{Catalog, ClusterConfig, Privileges};
use amphipod_server::store::{Options, SqliteStore, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct All;

impl Privileges for All {
    fn may(&self, _: &UserInfo, _: &str, _: &str, _: &str, _: &str, _: &str) -> bool {
        true
    }
    fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
        Ok(())
    }
}

pub struct Bench {
    pub registry: Arc<Registry>,
    pub user: Arc<UserInfo>,
    _dir: TempDir,
}

impl Bench {
    pub async fn new() -> Bench {
        let dir = TempDir::new().unwrap();
        let registry = start(dir.path()).await;
        Bench {
            registry: Arc::new(registry),
            user: Arc::new(UserInfo::apiserver()),
            _dir: dir,
        }
    }

    pub fn cx(&self, resource: &str) -> Context {
        let cluster = matches!(resource, "namespaces" | "nodes");
        self.registry
            .context(&self.user, resource, if cluster { "" } else { "default" })
            .unwrap()
    }

    pub async fn create(&self, resource: &str, object: Value) -> Result<Arc<Object>, Status> {
        self.registry
            .create(&self.cx(resource), object.into())
            .await
    }

    pub async fn get(&self, resource: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.registry
            .get(&self.cx(resource), name, &GetOptions::default())
            .await
    }

    pub async fn watch(&self, resource: &str, options: ListOptions) -> WatchStream {
        self.registry
            .watch(&self.cx(resource), options)
            .await
            .unwrap()
    }

    pub async fn patch(
        &self,
        resource: &str,
        name: &str,
        kind: PatchType,
        patch: Value,
    ) -> Result<Arc<Object>, Status> {
        let body = serde_json::to_vec(&patch).unwrap();
        Ok(self
            .registry
            .patch(&self.cx(resource), name, kind, &body)
            .await?
            .0)
    }
}

pub async fn start(dir: &std::path::Path) -> Registry {
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.join("state.db"), Options::default()).unwrap());
    let catalog = Arc::new(Catalog::builtin());
    let cache = Cache::start(&*store, Registry::tables(&catalog))
        .await
        .unwrap();
    Registry::new(
        store,
        cache,
        catalog,
        Arc::new(Open),
        Arc::new(All),
        ClusterConfig::default(),
    )
}

pub fn config(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

pub fn pod(name: &str, node: &str) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

pub fn from(revision: u64) -> ListOptions {
    ListOptions {
        resource_version: revision.to_string(),
        ..ListOptions::default()
    }
}

pub async fn changes(stream: &mut WatchStream, count: usize) -> Vec<(EventType, String, u64)> {
    let mut found = Vec::new();
    while found.len() < count {
        let items = tokio::time::timeout(Duration::from_secs(10), stream.next())
            .await
            .unwrap()
            .unwrap();
        for item in items {
            if let WatchItem::Change { kind, object } = item {
                found.push((kind, object.meta.name.to_string(), object.meta.revision));
            }
        }
    }
    found
}
