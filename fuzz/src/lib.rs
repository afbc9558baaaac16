//! What several targets need: a registry with objects in it.

use std::sync::{Arc, OnceLock};

use amphipod_server::DefaultTolerations;
use amphipod_server::admission::Chain;
use amphipod_server::auth::UserInfo;
use amphipod_server::cache::Cache;
use amphipod_server::registry::{Context, Registry};
use amphipod_server::resources::{Catalog, ClusterConfig, Descriptor, Privileges};
use amphipod_server::store::{Options, SqliteStore, Store};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// May do everything: what is fuzzed lies behind authorisation.
struct All;

impl Privileges for All {
    fn may(&self, _: &UserInfo, _: &str, _: &str, _: &str, _: &str, _: &str) -> bool {
        true
    }
    fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
        Ok(())
    }
}

/// A server's registry as it is in the product, on a database of its own, without HTTP and controllers.
pub struct Server {
    pub registry: Registry,
    user: Arc<UserInfo>,
    runtime: Runtime,
}

/// The server of this process.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::new)
}

/// The namespace that all namespaced objects are in.
pub const NAMESPACE: &str = "default";

impl Server {
    fn new() -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let dir = std::env::temp_dir().join(format!("amphipod-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the database");
        let registry = runtime.block_on(async {
            let opened = SqliteStore::open(&dir.join("state.db"), Options::default());
            let store: Arc<dyn Store> = Arc::new(opened.expect("a database"));
            let catalog = Arc::new(Catalog::builtin());
            let cache = Cache::start(&*store, Registry::tables(&catalog)).await;
            Registry::new(
                store,
                cache.expect("a cache"),
                catalog,
                Arc::new(Chain::standard(DefaultTolerations::default())),
                Arc::new(All),
                ClusterConfig::default(),
            )
        });
        // Nothing is written after the first objects, so the database may go on without its name.
        let server = Server {
            registry,
            user: Arc::new(UserInfo::apiserver()),
            runtime,
        };
        for object in objects() {
            let context = server.context(&server.descriptor_of(&object).expect("a known kind"));
            server
                .block_on(server.registry.create(&context, object.into()))
                .expect("a valid object");
        }
        std::fs::remove_dir_all(&dir).expect("removing the database's directory");
        server
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The resource of a document that says its `apiVersion` and `kind`.
    pub fn descriptor_of(&self, object: &Value) -> Option<Arc<Descriptor>> {
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let (group, version) = text("apiVersion")
            .unwrap_or_default()
            .rsplit_once('/')
            .unwrap_or(("", text("apiVersion")?));
        let catalog = self.registry.catalog();
        catalog.by_kind(group, version, text("kind")?)
    }

    /// A request about this resource.
    pub fn context(&self, descriptor: &Arc<Descriptor>) -> Context {
        let namespace = if descriptor.namespaced() {
            NAMESPACE
        } else {
            ""
        };
        Context::new(self.user.clone(), descriptor.clone(), namespace)
    }

    /// The same, of which nothing is stored.
    pub fn dry_run(&self, descriptor: &Arc<Descriptor>) -> Context {
        let mut context = self.context(descriptor);
        context.dry_run = true;
        context
    }
}

/// What the server holds: one object of each kind that is patched most, all named `a`, and some to page through.
pub fn objects() -> Vec<Value> {
    let template = json!({
        "metadata": {"labels": {"app": "a"}},
        "spec": {
            "containers": [
                {"name": "c", "image": "i:1", "ports": [{"containerPort": 80}, {"containerPort": 443, "name": "tls"}],
                 "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                 "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
                 "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "d", "image": "j:2", "command": ["sleep", "1"]},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "k", "operator": "Exists"}],
        },
    });
    let kind = |api: &str, kind: &str, name: &str, rest: Value| {
        let mut object = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}});
        for (key, value) in rest.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        object
    };
    let selector = json!({"matchLabels": {"app": "a"}});
    let mut all = vec![
        kind("v1", "Namespace", NAMESPACE, json!({})),
        kind("v1", "ServiceAccount", "default", json!({})),
        kind("v1", "Pod", "a", json!({"spec": template["spec"]})),
        kind(
            "apps/v1",
            "Deployment",
            "a",
            json!({"spec": {"replicas": 2, "selector": selector, "template": template}}),
        ),
        kind(
            "v1",
            "Service",
            "a",
            json!({"spec": {"selector": {"app": "a"}, "ports": [
                {"port": 80, "name": "http", "targetPort": "tls"}, {"port": 53, "name": "dns", "protocol": "UDP"}]}}),
        ),
        kind(
            "v1",
            "ConfigMap",
            "a",
            json!({"data": {"x": "1", "y": "2"}, "binaryData": {"z": "AAEC"}}),
        ),
        kind(
            "v1",
            "Node",
            "a",
            json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
        ),
        kind(
            "rbac.authorization.k8s.io/v1",
            "Role",
            "a",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        ),
    ];
    for name in ["b", "c", "d", "e", "f"] {
        all.push(kind(
            "v1",
            "ConfigMap",
            name,
            json!({"data": {"name": name}}),
        ));
    }
    all
}
