//! The controllers: loops that bring what is closer to what was asked for.
//!
//! Each is one file: which changes concern it ([`Controller::sources`]), and what it does about an object
//! ([`Controller::reconcile`]), decided anew each time from what the cache holds. A controller remembers nothing that a restart would
//! lose, and calls no other; they meet in the objects.
//!
//! Reading is from the in-process cache. A write through the registry is in the cache when it returns, so that a controller sees its
//! own writes the next time it looks.

mod certificates;
mod claims;
mod cluster_dns;
mod cron_job;
mod daemon_set;
mod deployment;
mod endpoints;
mod garbage;
mod job;
mod memo;
mod namespace_defaults;
mod namespace_deletion;
mod node_ipam;
mod node_lifecycle;
mod own_node;
mod pod_control;
mod pods;
mod queue;
mod quota;
mod replica_set;
mod revisions;
mod stateful_set;
mod token_cleaner;
mod volumes;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amphipod_api::{LabelSelector, Status};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use crate::auth::UserInfo;
use crate::cache::{Event, EventType, Meta, Object, Table};
use crate::events::Recorder;
use crate::registry::{Context, Registry};
use crate::resources::Descriptor;

use queue::WorkQueue;
pub use queue::{Key, Outcome};

/// What the controllers are told about the cluster.
#[derive(Clone)]
pub struct Config {
    /// The cluster's CA: for `kube-root-ca.crt`, and to sign with.
    pub pki: Arc<crate::bootstrap::pki::Pki>,
    /// Nodes that were removed.
    pub removed: Arc<crate::auth::removed::RemovedNodes>,
    pub authorizer: Arc<crate::auth::Authorizer>,
    /// The ranges that nodes get their pod ranges from.
    pub cluster_cidrs: Vec<String>,
    /// The node of the box that the server runs on.
    pub own_node: Option<String>,
    /// How long a node may be silent before it is taken for lost.
    pub node_monitor_grace: Duration,
    /// Where the API is reached: the endpoint of the service `kubernetes`.
    pub advertise: std::net::SocketAddr,
}

type Keys = Arc<dyn Fn(&Tools, &Descriptor, &Event) -> Vec<Key> + Send + Sync>;

/// Which changes concern a controller.
pub struct Source {
    /// `None`: all that are stored.
    resource: Option<&'static str>,
    keys: Keys,
}

impl Source {
    /// Changes of one resource: `pods`, `deployments.apps`. `keys`: what a change asks to look at; for an update, the object
    /// before it is in [`Event::prev`].
    pub fn new(
        resource: &'static str,
        keys: impl Fn(&Tools, &Event) -> Vec<Key> + Send + Sync + 'static,
    ) -> Source {
        Source {
            resource: Some(resource),
            keys: Arc::new(move |tools, _, event| keys(tools, event)),
        }
    }

    /// Changes of all resources but Events, also of those that are defined later.
    pub fn all(
        keys: impl Fn(&Tools, &Descriptor, &Event) -> Vec<Key> + Send + Sync + 'static,
    ) -> Source {
        Source {
            resource: None,
            keys: Arc::new(keys),
        }
    }
}

/// The object itself.
pub fn itself(_: &Tools, event: &Event) -> Vec<Key> {
    vec![Key::new(
        &event.object.meta.namespace,
        &event.object.meta.name,
    )]
}

/// The object that manages one, if it is of this group and kind; in any version.
pub fn controller_key(meta: &Meta, group: &str, kind: &str) -> Option<Key> {
    let controller = meta.controller()?;
    let have = controller
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    (controller.kind == kind && have == group).then(|| Key::new(&meta.namespace, &controller.name))
}

/// `spec.selector` of an object; `None` if there is none that can be read.
pub fn selector_of(object: &Object) -> Option<LabelSelector> {
    #[derive(serde::Deserialize)]
    struct Selecting {
        spec: Spec,
    }
    #[derive(serde::Deserialize)]
    struct Spec {
        selector: serde_json::Value,
    }
    let selecting: Selecting = object.typed().ok()?;
    LabelSelector::from_object(&selecting.spec.selector).ok()
}

/// Counts of a status are left out when they are zero.
pub fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// What went wrong: a refusal by the API, or an object that does not decode.
pub type Result<T, E = Status> = std::result::Result<T, E>;

pub type Reconciling<'a> = Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>>;

/// One controller.
pub trait Controller: Send + Sync + 'static {
    /// As in upstream's service accounts: `replicaset-controller`.
    fn name(&self) -> &'static str;

    fn sources(&self) -> Vec<Source>;

    /// Looks at one object, which may be gone, and does what is needed. Must be safe to repeat at any time.
    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a>;
}

/// What a controller works with.
#[derive(Clone)]
pub struct Tools {
    pub registry: Arc<Registry>,
    pub config: Arc<Config>,
    pub recorder: Recorder,
    user: Arc<UserInfo>,
}

impl Tools {
    /// The objects of a built-in resource.
    pub fn table(&self, resource: &str) -> Arc<Table> {
        match self.registry.catalog().by_resource(resource) {
            Some(descriptor) => self.registry.table(&descriptor),
            None => unreachable!("{resource} is a built-in resource"),
        }
    }

    /// As [`stored`].
    pub fn stored(&self) -> Vec<Arc<Descriptor>> {
        stored(&self.registry)
    }

    /// A request in this controller's name.
    pub fn context(&self, resource: &str, namespace: &str) -> Result<Context> {
        self.registry.context(&self.user, resource, namespace)
    }

    /// A request for a subresource.
    pub fn sub_context(
        &self,
        resource: &str,
        namespace: &str,
        subresource: &str,
    ) -> Result<Context> {
        Ok(self
            .context(resource, namespace)?
            .with_subresource(subresource))
    }
}

/// All resources that have a table of their own, but Events, which nobody owns.
fn stored(registry: &Registry) -> Vec<Arc<Descriptor>> {
    let all = registry.catalog().snapshot();
    let own = all
        .iter()
        .filter(|d| d.stored && d.storage_as.is_none() && d.kind != "Event");
    let mut stored: Vec<Arc<Descriptor>> = Vec::new();
    for descriptor in own {
        // One for each resource, whatever versions it has.
        if !stored
            .iter()
            .any(|have| have.plural == descriptor.plural && have.group == descriptor.group)
        {
            stored.push(descriptor.clone());
        }
    }
    stored
}

/// Reads a typed object.
pub fn typed<T: serde::de::DeserializeOwned>(object: &Object) -> Result<T> {
    object.typed().map_err(|error| {
        Status::internal_error(format!(
            "the stored object {object:?} does not decode: {error}"
        ))
    })
}

/// Running controllers; dropping it stops them.
pub struct Controllers {
    _tasks: JoinSet<()>,
}

/// All controllers. Adding one is adding its file and a line here.
fn all() -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(namespace_defaults::NamespaceDefaults),
        Arc::new(own_node::OwnNode),
        Arc::new(node_ipam::NodeIpam::default()),
        Arc::new(node_lifecycle::NodeLifecycle::default()),
        Arc::new(node_lifecycle::eviction::TaintEviction::default()),
        Arc::new(node_lifecycle::pod_gc::PodCollector::default()),
        Arc::new(replica_set::ReplicaSets::of_replica_sets()),
        Arc::new(replica_set::ReplicaSets::of_replication_controllers()),
        Arc::new(deployment::Deployments::default()),
        Arc::new(stateful_set::StatefulSets),
        Arc::new(daemon_set::DaemonSets::default()),
        Arc::new(job::Jobs::default()),
        Arc::new(job::Orphans::default()),
        Arc::new(job::TtlAfterFinished),
        Arc::new(cron_job::CronJobs::default()),
        Arc::new(certificates::Approver),
        Arc::new(certificates::Signer),
        Arc::new(certificates::Cleaner),
        Arc::new(token_cleaner::TokenCleaner),
        Arc::new(endpoints::ServiceEndpoints::default()),
        Arc::new(cluster_dns::ClusterDns),
        Arc::new(volumes::VolumeBinder),
        Arc::new(volumes::EphemeralVolumes),
        Arc::new(volumes::ClaimProtection),
        Arc::new(volumes::VolumeProtection),
        Arc::new(quota::ResourceQuotas),
        Arc::new(garbage::GarbageCollector),
        Arc::new(namespace_deletion::NamespaceDeletion),
    ]
}

/// Starts all controllers.
pub fn start(registry: Arc<Registry>, config: Config) -> Controllers {
    let mut tasks = JoinSet::new();
    let config = Arc::new(config);
    let mut listeners = Listeners::new();
    for controller in all() {
        let user = Arc::new(UserInfo::service_account("kube-system", controller.name()));
        let tools = Tools {
            recorder: Recorder::start(registry.clone(), user.clone(), controller.name()),
            registry: registry.clone(),
            config: config.clone(),
            user,
        };
        let queue = Arc::new(Queue::default());
        for source in controller.sources() {
            let listener = Listener {
                keys: source.keys,
                tools: tools.clone(),
                queue: queue.clone(),
            };
            let listeners = listeners.entry(source.resource).or_default();
            listeners.push(Arc::new(listener));
        }
        tasks.spawn(run(controller, tools, queue));
    }
    tasks.spawn(follow(registry, listeners));
    Controllers { _tasks: tasks }
}

/// How many objects one controller works on at once.
const WORKERS: usize = 8;

#[derive(Default)]
struct Queue {
    work: Mutex<WorkQueue>,
    changed: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, WorkQueue> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(controller: Arc<dyn Controller>, tools: Tools, queue: Arc<Queue>) {
    let mut working = JoinSet::new();
    let free = Arc::new(Semaphore::new(WORKERS));
    loop {
        while working.try_join_next().is_some() {}
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let (key, due) = {
            let mut work = queue.lock();
            (work.take(Instant::now()), work.next_due())
        };
        let Some(key) = key else {
            drop(permit);
            let pause = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = queue.changed.notified() => {}
                () = pause => {}
            }
            continue;
        };
        let (controller, tools) = (controller.clone(), tools.clone());
        let at_work = AtWork {
            queue: queue.clone(),
            key: key.clone(),
            outcome: Outcome::Failed,
        };
        working.spawn(async move {
            let outcome = match controller.reconcile(&tools, &key).await {
                Ok(outcome) => outcome,
                Err(status) => {
                    // Somebody else was faster: looking again is all there is to it.
                    if !status.is_conflict() && !status.is_not_found() {
                        warn!(controller = controller.name(), namespace = key.namespace, name = key.name, %status, "tried again later");
                    }
                    Outcome::Failed
                }
            };
            at_work.end(outcome);
            drop(permit);
        });
    }
}

/// A key that a worker has; given back also if the worker panics.
struct AtWork {
    queue: Arc<Queue>,
    key: Key,
    outcome: Outcome,
}

impl AtWork {
    fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.queue
            .lock()
            .done(&self.key, self.outcome, Instant::now());
        self.queue.changed.notify_one();
    }
}

/// The resource whose objects define resources.
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// A controller that wants to hear of the changes of a resource.
struct Listener {
    keys: Keys,
    tools: Tools,
    queue: Arc<Queue>,
}

impl Listener {
    fn hear(&self, descriptor: &Descriptor, event: &Event) {
        let keys = (self.keys)(&self.tools, descriptor, event);
        if keys.is_empty() {
            return;
        }
        let mut work = self.queue.lock();
        keys.into_iter().for_each(|key| work.add(key));
        drop(work);
        self.queue.changed.notify_one();
    }
}

/// By resource, as [`Source::resource`].
type Listeners = HashMap<Option<&'static str>, Vec<Arc<Listener>>>;

/// Turns changes into keys, in one task for each resource: most changes concern no controller, and are to wake as little as can be.
async fn follow(registry: Arc<Registry>, listeners: Listeners) {
    let catalog = registry.catalog();
    let of = |resource: &str| -> Vec<Arc<Listener>> {
        let named = listeners.get(&Some(resource));
        let all = listeners.get(&None);
        named.into_iter().chain(all).flatten().cloned().collect()
    };
    let mut followed: HashMap<String, tokio::task::AbortHandle> = HashMap::new();
    // Ends, and all in it, when this task does.
    let mut following = JoinSet::new();
    let mut definitions = catalog
        .by_resource(DEFINITIONS)
        .map(|d| registry.table(&d).list_and_watch(None).1);
    loop {
        let stored = stored(&registry);
        followed.retain(|resource, task| {
            let there = stored
                .iter()
                .any(|descriptor| descriptor.resource() == *resource);
            if !there {
                task.abort();
            }
            there
        });
        for descriptor in stored {
            let entry = followed.entry(descriptor.resource());
            entry.or_insert_with_key(|resource| {
                let listeners = of(resource);
                following.spawn(follow_one(descriptor, registry.clone(), listeners))
            });
        }
        while following.try_join_next().is_some() {}
        match &mut definitions {
            // Too slow or not: what there is now is looked at.
            Some(definitions) => drop(definitions.next().await),
            None => std::future::pending().await,
        }
    }
}

/// Tells the changes of one resource.
async fn follow_one(
    descriptor: Arc<Descriptor>,
    registry: Arc<Registry>,
    listeners: Vec<Arc<Listener>>,
) {
    let tell = |event: &Event| {
        for listener in &listeners {
            listener.hear(&descriptor, event);
        }
    };
    loop {
        let table = registry.table(&descriptor);
        let (list, mut watch) = table.list_and_watch(None);
        for object in list.items {
            // What is there at the start is told as if it came now.
            tell(&Event {
                kind: EventType::Added,
                revision: object.meta.revision,
                object,
                prev: None,
            });
        }
        // Falling behind the ring of changes: everything is looked at again.
        while let Ok(events) = watch.next().await {
            events.iter().for_each(|event| tell(event));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
