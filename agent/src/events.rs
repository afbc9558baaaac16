//! Events on pods and the node: the kubelet's reasons and words, repeated ones counted, spooled on disk while the server is away.

mod spool;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use amphipod_api::client::{Client, Target};
use amphipod_api::patch::PatchType;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::spool::{Raw, Spool};
use crate::server::link::Link;
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// Per object: so many at once, then one every five minutes, as client-go's spam filter has it.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Where events go. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Raw>,
    node: String,
}

/// Events about one pod.
#[derive(Clone)]
pub struct PodEvents {
    events: Events,
    object: Value,
    /// `spec.containers{NAME}` and the like, by container name.
    fields: BTreeMap<String, String>,
}

impl Events {
    /// Starts the task that tells events.
    pub fn start(node: String, client: Client, store: Store, link: Link) -> Events {
        let (queue, incoming) = mpsc::channel(1024);
        let teller = Teller {
            node: node.clone(),
            client,
            store,
            link,
            seen: HashMap::new(),
            budget: HashMap::new(),
        };
        tokio::spawn(teller.run(incoming));
        Events { queue, node }
    }

    pub fn pod(&self, pod: &Pod) -> PodEvents {
        let m = &pod.metadata;
        let mut fields = BTreeMap::new();
        if let Some(spec) = &pod.spec {
            fields.extend(
                spec.containers
                    .iter()
                    .map(|c| (c.name.clone(), format!("spec.containers{{{}}}", c.name))),
            );
            fields.extend(
                spec.init_containers
                    .iter()
                    .flatten()
                    .map(|c| (c.name.clone(), format!("spec.initContainers{{{}}}", c.name))),
            );
            fields.extend(spec.ephemeral_containers.iter().flatten().map(|c| {
                (
                    c.name.clone(),
                    format!("spec.ephemeralContainers{{{}}}", c.name),
                )
            }));
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "name": m.name, "namespace": m.namespace, "uid": m.uid, "resourceVersion": m.resource_version,
        });
        PodEvents {
            events: self.clone(),
            object,
            fields,
        }
    }

    /// An event about our node.
    pub fn node(&self, severity: Severity, reason: &str, message: String) {
        let object =
            json!({"kind": "Node", "apiVersion": "v1", "name": self.node, "uid": self.node});
        self.tell(object, severity, reason, message);
    }

    fn tell(&self, object: Value, severity: Severity, reason: &str, message: String) {
        let severity = format!("{severity:?}");
        let time = amphipod_api::time::now();
        let mut message = message;
        if message.len() > 1024 {
            let mut cut = 1021;
            while !message.is_char_boundary(cut) {
                cut -= 1;
            }
            message.truncate(cut);
            message.push_str("...");
        }
        // A full queue means that thousands wait already; one more would tell nobody anything.
        let raw = Raw::new(object, severity, reason.into(), message, time);
        let _ = self.queue.try_send(raw);
    }
}

impl PodEvents {
    /// Tells an event about the pod, or about one of its containers.
    pub fn tell(&self, severity: Severity, reason: &str, container: Option<&str>, message: String) {
        let mut object = self.object.clone();
        if let Some(field) = container.and_then(|c| self.fields.get(c)) {
            object["fieldPath"] = Value::from(field.as_str());
        }
        self.events.tell(object, severity, reason, message);
    }
}

/// What is known of an event that the server has.
struct Seen {
    name: String,
    count: i64,
    at: Instant,
}

struct Teller {
    node: String,
    client: Client,
    store: Store,
    link: Link,
    seen: HashMap<String, Seen>,
    /// Tokens left and when they were counted, by object.
    budget: HashMap<String, (f64, Instant)>,
}

impl Teller {
    async fn run(mut self, mut incoming: mpsc::Receiver<Raw>) {
        let mut spool = match self.store.events().await {
            Ok(stored) => Spool::restore(stored),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "events of before this start cannot be read");
                Spool::default()
            }
        };
        let mut failures = 0;
        loop {
            if spool.is_empty() {
                match incoming.recv().await {
                    Some(raw) => self.take(&mut spool, raw),
                    None => return,
                }
            }
            while let Ok(raw) = incoming.try_recv() {
                self.take(&mut spool, raw);
            }
            while let Some(raw) = spool.first() {
                if self.send(raw).await.is_err() {
                    break;
                }
                failures = 0;
                if let Some(stored) = spool.told()
                    && let Err(error) = self.store.put_events(vec![], vec![stored]).await
                {
                    let error = format!("{error:#}");
                    tracing::debug!(error, "an event that was told is still on disk");
                }
            }
            if spool.is_empty() {
                self.save(&mut spool).await;
                let dropped = spool.take_dropped();
                if dropped > 0 {
                    tracing::warn!(
                        dropped,
                        "there were more events than are kept for a server that is away; the oldest were never told"
                    );
                }
                continue;
            }
            // The server is away: keep what there is on disk, and take in more until it is back.
            failures += 1;
            let link = self.link.clone();
            let retry = link.wait_retry(failures);
            tokio::pin!(retry);
            loop {
                self.save(&mut spool).await;
                tokio::select! {
                    () = &mut retry => break,
                    raw = incoming.recv() => match raw {
                        Some(raw) => self.take(&mut spool, raw),
                        None => return,
                    },
                }
                while let Ok(raw) = incoming.try_recv() {
                    self.take(&mut spool, raw);
                }
            }
        }
    }

    /// Takes in an event. Of one object only so many are told, repeated ones too, as client-go's spam filter has it: what is too much
    /// is counted and told with the next.
    fn take(&mut self, spool: &mut Spool, raw: Raw) {
        if spool.has(&raw) || self.allowed(&raw.object) {
            spool.add(raw);
        } else if let Some(seen) = self.seen.get_mut(&raw.key()) {
            seen.count += raw.count;
            seen.at = Instant::now();
        }
    }

    /// Writes what is not on disk yet.
    async fn save(&self, spool: &mut Spool) {
        let (new, gone) = spool.unsaved();
        if new.is_empty() && gone.is_empty() {
            return;
        }
        if let Err(error) = self.store.put_events(new, gone).await {
            let error = format!("{error:#}");
            tracing::debug!(error, "events are kept in memory only");
        }
    }

    fn allowed(&mut self, object: &Value) -> bool {
        let key = object["uid"].as_str().unwrap_or_default().to_string();
        let now = Instant::now();
        if self.budget.len() > 512 {
            self.budget
                .retain(|_, (_, at)| now.duration_since(*at) < REFILL * 12);
        }
        let (tokens, at) = self.budget.entry(key).or_insert((BURST, now));
        *tokens =
            (*tokens + now.duration_since(*at).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    /// Tells one event; `Err` means: the server is away, keep it.
    async fn send(&mut self, raw: &Raw) -> Result<(), ()> {
        let namespace = raw.object["namespace"].as_str().unwrap_or("default");
        let key = raw.key();
        let target = Target::core("events").namespace(namespace);
        if let Some(seen) = self.seen.get_mut(&key) {
            let patch = json!({"count": seen.count + raw.count, "lastTimestamp": raw.last});
            let one = target.clone().name(&seen.name);
            match self.client.patch(&one, PatchType::Merge, &patch).await {
                Ok(_) => {
                    seen.count += raw.count;
                    seen.at = Instant::now();
                    return Ok(());
                }
                Err(e) if e.is_not_found() => {
                    self.seen.remove(&key);
                }
                Err(e) if e.is_retryable() => return Err(()),
                Err(_) => return Ok(()),
            }
        }
        let object = raw.object["name"].as_str().unwrap_or_default();
        let name = format!("{object}.{}", raw.stamp);
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": raw.object,
            "reason": raw.reason, "message": raw.message, "type": raw.severity,
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet", "reportingInstance": self.node,
            "firstTimestamp": raw.time, "lastTimestamp": raw.last, "count": raw.count,
        });
        match self.client.create(&target, &body).await {
            Ok(_) => self.told(key, name, raw.count),
            // Told before, but the answer was lost, or this process ended before it noted that.
            Err(e) if e.is_already_exists() => self.told(key, name, raw.count),
            Err(e) if e.is_retryable() => return Err(()),
            Err(e) => {
                // The namespace is being deleted, or we may not: nobody is waiting for this event.
                tracing::debug!(error = %e, reason = raw.reason, "the server refused an event");
            }
        }
        Ok(())
    }

    /// The server has the event; more of its kind are counted there.
    fn told(&mut self, key: String, name: String, count: i64) {
        if self.seen.len() > 512 {
            let cut = Instant::now().checked_sub(Duration::from_secs(600));
            self.seen.retain(|_, s| cut.is_some_and(|cut| s.at > cut));
        }
        let at = Instant::now();
        self.seen.insert(key, Seen { name, count, at });
    }
}
