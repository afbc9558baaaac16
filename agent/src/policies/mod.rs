//! NetworkPolicies of this node's pods. Policies are always followed; pods and namespaces of the cluster only while there is a policy.
//!
//! A pod is isolated before its containers start ([`Policies::admit`]): its node knows its labels and its address before anybody else does.

mod compile;
mod model;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use amphipod_api::reflector::{Connection, Event, Reflector, ReflectorConfig};
use amphipod_netplug::{Network, PolicyGroup};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use tokio::sync::watch;

use crate::deps::Deps;
use compile::{World, compile, share};
use model::{Labels, PodView, Policy};

/// Where the copy is, for starts without the server.
const FACT: &str = "policies";
/// Changes that come together are taken together.
const TOGETHER: Duration = Duration::from_millis(20);
/// Pods come and go all the time; the copy of them need not be so fresh that it wears out the disk.
const COPY_EVERY: Duration = Duration::from_secs(300);

/// Everything that is known, by `namespace/name`.
#[derive(Default)]
struct Picture {
    policies: BTreeMap<String, (Value, Policy)>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<String, PodView>,
    /// Pods of this node by their own word: sooner than the server's.
    admitted: BTreeMap<String, PodView>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Policies(Arc<Mutex<Picture>>);

impl Policies {
    fn picture(&self) -> MutexGuard<'_, Picture> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Isolates a pod of this node that just got its addresses, as far as policies are known. Blocks for some netlink calls.
    pub fn admit(&self, network: &Network, node: &str, pod: &Pod, ips: &[IpAddr]) {
        let Ok(object) = serde_json::to_value(pod) else {
            return;
        };
        let mut picture = self.picture();
        // Addresses are used again; whoever had them before has them no more.
        picture.admitted.retain(|_, p| !share(&p.ips, ips));
        let view = PodView::with(&object, ips.to_vec());
        picture
            .admitted
            .insert(meta::join_key(&view.namespace, &view.name), view);
        if !picture.policies.is_empty() {
            enforce(network, picture.compile(node));
        }
    }

    /// Compiles and enforces, in one: no older picture can come later.
    fn enforce(&self, network: &Network, node: &str) {
        let picture = self.picture();
        enforce(network, picture.compile(node));
    }
}

fn enforce(network: &Network, groups: Vec<PolicyGroup>) {
    if let Err(error) = network.set_policies(groups) {
        tracing::error!(
            error = crate::pod::ops::describe(&error),
            "network policies are not enforced as they should be"
        );
    }
}

impl Picture {
    fn compile(&self, node: &str) -> Vec<PolicyGroup> {
        let admitted: Vec<&PodView> = self.admitted.values().collect();
        let told = self.pods.values().filter(|p| {
            let newer = |a: &&&PodView| share(&a.ips, &p.ips);
            p.node == node && !admitted.iter().any(|a| newer(&a))
        });
        let local: Vec<&PodView> = told.chain(admitted.iter().copied()).collect();
        let remote = self.pods.values().filter(|p| p.node != node);
        compile(&World {
            policies: self.policies.values().map(|(_, p)| p).collect(),
            namespaces: self
                .namespaces
                .iter()
                .map(|(n, l)| (n.as_str(), l))
                .collect(),
            pods: remote.chain(local.iter().copied()).collect(),
            local,
        })
    }

    /// Takes in a change of policies; whether there was one.
    fn take_policies(&mut self, event: Event) -> bool {
        let read = |object: &Value| match Policy::read(object) {
            Ok(policy) => Some((
                policy.key(),
                (
                    json!({"metadata": {"namespace": policy.namespace, "name": policy.name}, "spec": object["spec"]}),
                    policy,
                ),
            )),
            Err(error) => {
                let (namespace, name) = (meta::namespace(object), meta::name(object));
                tracing::error!("NetworkPolicy {namespace}/{name} is not enforced: {error}");
                None
            }
        };
        change(&mut self.policies, event, read, |a, b| a.0 == b.0)
    }

    fn take_namespaces(&mut self, event: Event) -> bool {
        let read = |object: &Value| Some((meta::name(object).to_owned(), model::labels(object)));
        change(&mut self.namespaces, event, read, |a, b| a == b)
    }

    fn take_pods(&mut self, event: Event) -> bool {
        let forget = |admitted: &mut BTreeMap<String, PodView>, key: &str, uid: &str| {
            if admitted.get(key).is_some_and(|p| p.uid == uid) {
                admitted.remove(key);
            }
        };
        let key = |object: &Value| meta::join_key(meta::namespace(object), meta::name(object));
        match &event {
            Event::Deleted(object) => forget(&mut self.admitted, &key(object), meta::uid(object)),
            Event::Applied(object) => {
                // Labels of a running pod may change.
                if let Some(pod) = self
                    .admitted
                    .get_mut(&key(object))
                    .filter(|p| p.uid == meta::uid(object))
                {
                    pod.labels = model::labels(object);
                }
            }
            Event::Restarted(_) => {}
        }
        let read = |object: &Value| Some((key(object), PodView::read(object)?));
        let gone = match &event {
            // A pod that ended has no address any more.
            Event::Applied(object) if PodView::read(object).is_none() => {
                self.pods.remove(&key(object)).is_some()
            }
            _ => false,
        };
        change(&mut self.pods, event, read, |a, b| a == b) || gone
    }

    fn written(&self) -> String {
        json!({
            "policies": self.policies.values().map(|(object, _)| object).collect::<Vec<_>>(),
            "namespaces": self.namespaces,
            "pods": self.pods,
        })
        .to_string()
    }

    fn remembered(text: &str) -> Option<Picture> {
        let mut copy: Value = serde_json::from_str(text).ok()?;
        let policies = copy["policies"].as_array()?.iter();
        let mut picture = Picture {
            policies: policies
                .filter_map(|o| Some((o.clone(), Policy::read(o).ok()?)))
                .map(|(o, p)| (p.key(), (o, p)))
                .collect(),
            ..Picture::default()
        };
        picture.namespaces = serde_json::from_value(copy["namespaces"].take()).ok()?;
        picture.pods = serde_json::from_value(copy["pods"].take()).ok()?;
        Some(picture)
    }
}

/// Takes an event into a map; whether anything differs.
fn change<T>(
    map: &mut BTreeMap<String, T>,
    event: Event,
    read: impl Fn(&Value) -> Option<(String, T)>,
    same: impl Fn(&T, &T) -> bool,
) -> bool {
    match event {
        Event::Applied(object) => match read(&object) {
            Some((key, new)) => {
                let differs = map.get(&key).is_none_or(|old| !same(old, &new));
                map.insert(key, new);
                differs
            }
            None => false,
        },
        Event::Deleted(object) => {
            let key = meta::join_key(meta::namespace(&object), meta::name(&object));
            map.remove(&key).is_some()
        }
        Event::Restarted(objects) => {
            let new: BTreeMap<String, T> = objects.iter().filter_map(|o| read(o)).collect();
            let equal = new.len() == map.len()
                && new
                    .iter()
                    .all(|(k, v)| map.get(k).is_some_and(|old| same(old, v)));
            *map = new;
            !equal
        }
    }
}

/// What of the cluster is followed while there are policies.
struct Cluster {
    pods: Reflector,
    namespaces: Reflector,
    /// Both were heard of.
    heard: (bool, bool),
}

impl Cluster {
    fn follow(client: &Client) -> Cluster {
        let spawn = |what| {
            Reflector::spawn(
                client.clone(),
                Target::core(what),
                ReflectorConfig::default(),
            )
        };
        Cluster {
            pods: spawn("pods"),
            namespaces: spawn("namespaces"),
            heard: (false, false),
        }
    }
}

enum Heard {
    Policies(Event),
    Pods(Event),
    Namespaces(Event),
    Trouble(String),
}

/// The next thing that a cluster tells.
async fn hear(cluster: &mut Option<Cluster>) -> Heard {
    let Some(cluster) = cluster else {
        return std::future::pending().await;
    };
    let unheard = cluster.heard != (true, true);
    let failure = |mut connection: watch::Receiver<Connection>| async move {
        let bad = |c: &Connection| matches!(c, Connection::Disconnected(_));
        match connection.wait_for(bad).await.map(|c| c.clone()) {
            Ok(Connection::Disconnected(why)) if unheard => why,
            _ => std::future::pending().await,
        }
    };
    let (pods, namespaces) = (
        failure(cluster.pods.connection()),
        failure(cluster.namespaces.connection()),
    );
    tokio::select! {
        Some(event) = cluster.pods.next() => {
            cluster.heard.0 = true;
            Heard::Pods(event)
        }
        Some(event) = cluster.namespaces.next() => {
            cluster.heard.1 = true;
            Heard::Namespaces(event)
        }
        why = pods => Heard::Trouble(why),
        why = namespaces => Heard::Trouble(why),
        else => std::future::pending().await,
    }
}

/// Keeps the rules equal to the policies. Never ends.
pub async fn run(deps: Arc<Deps>, client: Client) {
    let node = deps.config.node_name.clone();
    let policies = deps.policies.clone();
    let mut slot = deps.network.clone();
    let network = match slot.wait_for(Option::is_some).await.map(|n| n.clone()) {
        Ok(Some(network)) => network,
        _ => return,
    };
    let apply = || {
        let (policies, network, node) = (policies.clone(), network.clone(), node.clone());
        tokio::task::spawn_blocking(move || policies.enforce(&network, &node))
    };
    // A copy of the cluster, however old, is better than none.
    let mut complete = !policies.picture().policies.is_empty();
    if complete {
        let _ = apply().await;
    }
    let mut source = Reflector::spawn(
        client.clone(),
        Target::new("networking.k8s.io", "v1", "networkpolicies"),
        ReflectorConfig::default(),
    );
    let mut cluster: Option<Cluster> = None;
    let mut copied: Option<tokio::time::Instant> = None;
    let mut first = true;
    let mut complained = false;
    loop {
        let mut changed = false;
        let mut edited = false;
        let mut others = false;
        let mut wait: Option<tokio::time::Instant> = None;
        loop {
            let until = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                Some(event) = source.next() => Heard::Policies(event),
                heard = hear(&mut cluster) => heard,
                () = until => break,
            };
            let mut picture = policies.picture();
            match heard {
                Heard::Policies(event) => {
                    let differs = picture.take_policies(event);
                    edited |= differs;
                    changed |= differs || first;
                    first = false;
                }
                Heard::Pods(event) => others |= picture.take_pods(event),
                Heard::Namespaces(event) => others |= picture.take_namespaces(event),
                Heard::Trouble(why) => {
                    if !complained {
                        tracing::error!(
                            "network policies know no pods of other nodes yet, and let none of them in: {why}"
                        );
                        complained = true;
                    }
                    // Too strict is better than not at all. The reflectors try again by themselves.
                    if let Some(c) = &mut cluster {
                        c.heard = (true, true);
                    }
                }
            }
            wait = wait.or_else(|| Some(tokio::time::Instant::now() + TOGETHER));
        }
        let wanted = !policies.picture().policies.is_empty();
        match (&cluster, wanted) {
            (None, true) => cluster = Some(Cluster::follow(&client)),
            (Some(_), false) => {
                cluster = None;
                complete = false;
                let mut picture = policies.picture();
                picture.pods.clear();
                picture.namespaces.clear();
            }
            _ => {}
        }
        let whole = cluster.as_ref().is_some_and(|c| c.heard.0 && c.heard.1);
        let just_now = whole && !complete;
        complete |= whole;
        if (changed || others || just_now) && (complete || !wanted) {
            let _ = apply().await;
        }
        let stale = copied.is_none_or(|at| at.elapsed() > COPY_EVERY);
        if edited || (just_now || others && stale) && wanted {
            copied = Some(tokio::time::Instant::now());
            let text = policies.picture().written();
            if let Err(error) = deps.store.put_fact(FACT, text).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "network policies are not remembered"
                );
            }
        }
    }
}

/// The policies as they were known when the agent ran last.
pub async fn load(store: &crate::store::Store) -> anyhow::Result<Policies> {
    let text = store.fact(FACT).await?;
    let picture = text.as_deref().and_then(Picture::remembered);
    Ok(Policies(Arc::new(Mutex::new(picture.unwrap_or_default()))))
}
