//! All pods of this node: brings them back from disk, follows the API, and hands each what concerns it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use amphipod_api::meta;
use amphipod_api::reflector::{Event, Reflector};
use amphipod_runtime::{ContainerState, ContainerStatus, EventKind, Exit as RuntimeExit};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::{Notify, broadcast, mpsc};

use crate::container::spec::label;
use crate::container::termination;
use crate::deps::Deps;
use crate::events::Severity;
use crate::pod::actor::{self, ActorHandle, Begin, Msg};
use crate::pod::admission;
use crate::pod::observed::{Observed, Sandbox, Stop};
use crate::pod::plan::PodPlan;
use crate::pod::record::{Found, FoundState, Record};
use crate::resources::cgroup;
use crate::store::StoredPod;

/// The pods by UID, shared with whoever wants to look.
#[derive(Clone, Default)]
pub struct Pods {
    actors: Arc<Mutex<HashMap<String, ActorHandle>>>,
    begun: Arc<Notify>,
}

impl Pods {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, ActorHandle>> {
        self.actors.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn all(&self) -> Vec<ActorHandle> {
        self.lock().values().cloned().collect()
    }

    pub fn get(&self, uid: &str) -> Option<ActorHandle> {
        self.lock().get(uid).cloned()
    }

    /// Returns when another pod has begun since the last call. For one task only.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }
}

/// The one task that starts and feeds the actors.
pub struct Supervisor {
    pub deps: Arc<Deps>,
    pub pods: Pods,
    /// Labels of our node, as the API has them: for admission.
    pub node_labels: Arc<std::sync::RwLock<BTreeMap<String, String>>>,
    burstable_shares: Option<u64>,
}

impl Supervisor {
    pub fn new(
        deps: Arc<Deps>,
        pods: Pods,
        node_labels: Arc<std::sync::RwLock<BTreeMap<String, String>>>,
    ) -> Self {
        Self {
            deps,
            pods,
            node_labels,
            burstable_shares: None,
        }
    }

    /// Brings back every stored pod, and removes what belongs to none. Needs no server.
    pub async fn restore(&mut self) -> anyhow::Result<()> {
        let mut stored = self.deps.store.pods().await?;
        let containers = self.deps.runtime.list_containers().await?;
        let sandboxes = self.deps.runtime.list_sandboxes().await?;
        for s in &sandboxes {
            let lost = !stored.iter().any(|p| p.uid == s.id);
            if let (true, Some(pod)) = (lost, s.labels.get(label::POD)) {
                tracing::warn!(
                    uid = s.id,
                    "a pod runs that the database does not know; taking it up again from its sandbox"
                );
                self.deps.store.put_pod(s.id.clone(), pod.clone()).await?;
                stored.push(StoredPod {
                    uid: s.id.clone(),
                    pod: pod.clone(),
                    record: None,
                });
            }
        }
        let mut begins = Vec::with_capacity(stored.len());
        for pod in &stored {
            let Ok(parsed) = serde_json::from_str::<Pod>(&pod.pod) else {
                tracing::error!(
                    uid = pod.uid,
                    "a stored pod cannot be read; it comes again from the server"
                );
                continue;
            };
            let record: Record = pod
                .record
                .as_deref()
                .and_then(|r| serde_json::from_str(r).ok())
                .unwrap_or_default();
            let found: Vec<Found> = containers
                .iter()
                .filter(|c| c.sandbox == pod.uid)
                .filter_map(found)
                .collect();
            for f in found.iter().filter(|f| f.state == FoundState::Created) {
                let _ = self.deps.runtime.remove_container(&f.id).await;
            }
            let running = found
                .iter()
                .filter(|f| matches!(f.state, FoundState::Running { .. }));
            self.deps
                .owners
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .extend(running.map(|f| (f.id.clone(), pod.uid.clone())));
            let sandbox = sandboxes.iter().any(|s| s.id == pod.uid);
            let seen = record.restore(
                &PodPlan::of(&parsed),
                &found,
                sandbox,
                self.deps.now(),
                Timestamp::now(),
            );
            let status = if record.status.phase.is_some() {
                record.status
            } else {
                parsed.status.clone().unwrap_or_default()
            };
            begins.push(Begin {
                pod: Arc::new(parsed),
                seen,
                status,
                gone: false,
            });
        }
        // Before any pod begins: what those make is not in our lists, and would be taken for left behind.
        let known = |uid: &str| stored.iter().any(|p| p.uid == uid);
        for s in sandboxes.iter().filter(|s| !known(&s.id)) {
            tracing::info!(sandbox = s.id, "removing a sandbox that belongs to no pod");
            if let Err(error) = self.deps.runtime.remove_sandbox(&s.id).await {
                tracing::warn!(sandbox = s.id, %error, "could not remove a sandbox that belongs to no pod");
            }
        }
        self.remove_half_removed(&containers).await;
        let deps = self.deps.clone();
        let uids: HashSet<String> = stored.into_iter().map(|p| p.uid).collect();
        let _ = tokio::task::spawn_blocking(move || remove_strays(&deps, &uids)).await;
        for begin in begins {
            self.begin(begin);
        }
        self.share_cpu().await;
        Ok(())
    }

    /// Removes what is left of containers whose removal was cut short.
    async fn remove_half_removed(&self, known: &[ContainerStatus]) {
        let runtime = &self.deps.runtime;
        for id in runtime.half_removed(known).await.unwrap_or_default() {
            if let Err(error) = runtime.remove_container(&id).await {
                tracing::warn!(id, %error, "could not remove what is left of a container");
            }
        }
    }

    /// Follows the API and the runtime. Never ends.
    pub async fn run(
        mut self,
        mut reflector: Reflector,
        mut changed: mpsc::UnboundedReceiver<String>,
    ) {
        let mut happenings = self.deps.runtime.events();
        self.look_again().await;
        loop {
            tokio::select! {
                Some(event) = reflector.next() => self.take(event).await,
                Some(uid) = changed.recv() => {
                    if let Some(actor) = self.pods.get(&uid) {
                        actor.tell(Msg::ObjectsChanged);
                    }
                }
                happening = happenings.recv() => match happening {
                    Ok(e) => match e.kind {
                        EventKind::Exited(exit) => self.exited(&e.id, exit, None),
                        EventKind::Resync => self.look_again().await,
                        _ => {}
                    },
                    Err(broadcast::error::RecvError::Lagged(_)) => self.look_again().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }

    /// Events may have been missed: tells every exit that is there to see.
    async fn look_again(&self) {
        let Ok(all) = self.deps.runtime.list_containers().await else {
            return;
        };
        for c in all {
            if let ContainerState::Exited { started_at, exit } = c.state {
                self.exited(&c.id, exit, started_at);
            }
        }
    }

    fn exited(&self, id: &str, exit: RuntimeExit, started_at: Option<Timestamp>) {
        let owner = self
            .deps
            .owners
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get(id)
            .cloned();
        if let Some(actor) = owner.and_then(|uid| self.pods.get(&uid)) {
            actor.tell(Msg::Exited {
                id: id.to_string(),
                exit,
                started_at,
            });
        }
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Applied(pod) => self.apply(&pod).await,
            Event::Deleted(pod) => {
                if let Some(actor) = self.pods.get(meta::uid(&pod)) {
                    let grace = meta::i64_at(&pod, &["metadata", "deletionGracePeriodSeconds"]);
                    actor.tell(Msg::Gone {
                        grace: grace.map(|s| Duration::from_secs(s.max(0) as u64)),
                    });
                }
            }
            Event::Restarted(all) => {
                for pod in &all {
                    self.apply(pod).await;
                }
                for actor in self.pods.all() {
                    let view = actor.view();
                    if all.iter().any(|p| meta::uid(p) == view.uid) {
                        continue;
                    }
                    let about = &view.pod.metadata;
                    if about.deletion_timestamp.is_none() {
                        let (namespace, name) = (about.namespace.as_deref(), about.name.as_deref());
                        tracing::warn!(
                            namespace,
                            name,
                            "the server has this pod no more, so it ends here; if nobody has deleted it, the server lost it: see the server's log"
                        );
                    }
                    actor.tell(Msg::Gone { grace: None });
                }
            }
        }
        self.share_cpu().await;
    }

    async fn apply(&mut self, object: &Value) {
        let uid = meta::uid(object);
        let pod: Arc<Pod> = match serde_json::from_value(object.clone()) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                tracing::error!(pod = meta::key(object), %error, "a pod cannot be read");
                return;
            }
        };
        let known = self.pods.get(uid);
        if let Some(actor) = &known {
            actor.tell(Msg::ServerHas(pod.clone()));
        }
        let unchanged = known
            .as_ref()
            .is_some_and(|a| same_intent(&a.view().pod, &pod));
        if unchanged {
            return;
        }
        if let Err(error) = self
            .deps
            .store
            .put_pod(uid.to_string(), stripped(object))
            .await
        {
            tracing::warn!(
                pod = meta::key(object),
                error = format!("{error:#}"),
                "a pod is kept in memory only; free or repair the disk"
            );
        }
        if let Some(actor) = known {
            actor.tell(Msg::Desired(pod));
            return;
        }
        let status = pod.status.clone().unwrap_or_default();
        let plan = PodPlan::of(&pod);
        let mut seen = Observed::new(&plan);
        if let Some(phase @ ("Succeeded" | "Failed")) = status.phase.as_deref() {
            // Over before we knew of it (our database was lost): nothing is to be run again.
            tracing::info!(pod = meta::key(object), phase, "a pod that is over already");
            let record = Record {
                status: status.clone(),
                cleaned: true,
                ..Default::default()
            };
            seen = record.restore(&plan, &[], false, self.deps.now(), Timestamp::now());
            seen.stop = Some(Stop::Failed {
                reason: status.reason.clone().unwrap_or_default(),
                message: status.message.clone().unwrap_or_default(),
            });
            if phase == "Succeeded" {
                adopt_exits(&plan, &mut seen, self.deps.now());
            }
        } else if pod.metadata.deletion_timestamp.is_none()
            && let Err((reason, message)) = self.admit(&pod)
        {
            self.deps
                .events
                .pod(&pod)
                .tell(Severity::Warning, &reason, None, message.clone());
            seen.stop = Some(Stop::Failed { reason, message });
            seen.sandbox = Sandbox::Removed;
            seen.cleaned = true;
        }
        self.begin(Begin {
            pod,
            seen,
            status,
            gone: false,
        });
    }

    fn admit(&self, pod: &Pod) -> Result<(), admission::Refusal> {
        let others: Vec<Arc<Pod>> = self
            .pods
            .all()
            .iter()
            .map(|a| a.view().pod.clone())
            .filter(|p| {
                !matches!(
                    p.status.as_ref().and_then(|s| s.phase.as_deref()),
                    Some("Succeeded" | "Failed")
                )
            })
            .collect();
        let node = self.deps.node();
        let labels = self.node_labels.read().unwrap_or_else(|e| e.into_inner());
        let node = admission::Node {
            allocatable: &node.allocatable,
            max_pods: self.deps.config.max_pods,
            labels: &labels,
            allowed_sysctls: &self.deps.config.allowed_unsafe_sysctls,
        };
        admission::admit(pod, others.iter().map(|p| &**p), &node)
    }

    fn begin(&self, begin: Begin) {
        let uid = begin.pod.metadata.uid.clone().unwrap_or_default();
        let (pods, key) = (self.pods.clone(), uid.clone());
        let handle = actor::spawn(self.deps.clone(), begin, move || {
            pods.lock().remove(&key);
        });
        self.pods.lock().insert(uid, handle);
        self.pods.begun.notify_one();
    }

    /// The Burstable group's weight follows the requests of its pods.
    async fn share_cpu(&mut self) {
        let pods: Vec<Arc<Pod>> = self
            .pods
            .all()
            .iter()
            .map(|a| a.view().pod.clone())
            .collect();
        let resources = cgroup::burstable_group(pods.iter().filter_map(|p| p.spec.as_ref()));
        if self.burstable_shares == resources.cpu_shares {
            return;
        }
        match self
            .deps
            .runtime
            .ensure_cgroup("burstable", &resources)
            .await
        {
            Ok(()) => self.burstable_shares = resources.cpu_shares,
            Err(error) => tracing::warn!(%error, "could not set the CPU weight of burstable pods"),
        }
    }
}

/// Removes directories and logs of pods that are not in `known`.
fn remove_strays(deps: &Deps, known: &HashSet<String>) {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let config = &deps.config;
    for dir in [config.data_dir.join("pods"), config.run_dir.join("pods")] {
        for uid in names(&dir).iter().filter(|uid| !known.contains(*uid)) {
            if let Err(error) = crate::volumes::remove_pod(&deps.pod_dirs(uid)) {
                tracing::warn!(uid, %error, "could not remove the directory of a pod that is gone");
            }
        }
    }
    let logs = config.log_dir.join("pods");
    for name in names(&logs) {
        // NAMESPACE_NAME_UID; anything else is not ours.
        let parts: Vec<&str> = name.split('_').collect();
        if parts.len() == 3 && !known.contains(parts[2]) {
            let _ = std::fs::remove_dir_all(logs.join(&name));
        }
    }
    let links = config.log_dir.join("containers");
    for name in names(&links) {
        let link = links.join(&name);
        if std::fs::read_link(&link).is_ok_and(|to| to.starts_with(&logs)) && !link.exists() {
            let _ = std::fs::remove_file(link);
        }
    }
}

/// Whether two versions of a pod ask for the same; our own status updates come back as events too.
fn same_intent(a: &Pod, b: &Pod) -> bool {
    let gates = |p: &Pod| {
        let conditions = p
            .status
            .as_ref()
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default();
        let named: Vec<String> = p
            .spec
            .iter()
            .flat_map(|s| s.readiness_gates.iter().flatten())
            .map(|g| g.condition_type.clone())
            .collect();
        conditions
            .into_iter()
            .filter(|c| named.contains(&c.type_))
            .map(|c| (c.type_, c.status))
            .collect::<Vec<_>>()
    };
    a.spec == b.spec
        && a.metadata.labels == b.metadata.labels
        && a.metadata.annotations == b.metadata.annotations
        && a.metadata.generation == b.metadata.generation
        && a.metadata.deletion_timestamp == b.metadata.deletion_timestamp
        && a.metadata.deletion_grace_period_seconds == b.metadata.deletion_grace_period_seconds
        && gates(a) == gates(b)
}

/// The pod as it is stored: without managedFields, which nobody here reads.
fn stripped(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(m) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        m.remove("managedFields");
    }
    object.to_string()
}

/// A pod that succeeded long ago: all its containers are known to have ended well.
fn adopt_exits(plan: &PodPlan, seen: &mut Observed, now: crate::pod::backoff::Mono) {
    seen.stop = None;
    seen.initialized = true;
    for (_, s) in plan.containers.iter().zip(&mut seen.containers) {
        let exit = crate::pod::observed::Exit {
            id: String::new(),
            code: 0,
            signal: None,
            reason: "Completed".into(),
            message: String::new(),
            started_at: None,
            finished_at: None,
        };
        s.exited(exit, now);
    }
}

fn found(c: &ContainerStatus) -> Option<Found> {
    let get = |k: &str| c.labels.get(k).cloned().unwrap_or_default();
    let state = match &c.state {
        ContainerState::Created => FoundState::Created,
        ContainerState::Running { started_at, .. } => FoundState::Running {
            started_at: *started_at,
        },
        ContainerState::Exited { started_at, exit } => {
            let text = termination::message(
                get(label::TERMINATION_LOG).as_ref(),
                get(label::LOG).as_ref(),
                false,
                exit.code != 0,
            );
            FoundState::Exited(termination::describe(&c.id, exit, *started_at, text))
        }
    };
    Some(Found {
        container: c.labels.get(label::CONTAINER)?.clone(),
        attempt: get(label::ATTEMPT).parse().ok()?,
        id: c.id.clone(),
        state,
        image: get(label::IMAGE),
        image_id: get(label::IMAGE_ID),
    })
}
