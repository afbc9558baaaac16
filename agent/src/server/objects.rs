//! The ConfigMaps and Secrets that pods on this node use, their claims and volumes: watched by name, kept on disk, read from memory.
//!
//! An object is followed from the first pod that refers to it until the last one is gone. A copy from disk is good enough to
//! start a pod: its volumes follow when the server tells of a newer one. A claim's volume is followed with the claim.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use amphipod_api::reflector::{Event, Reflector, ReflectorConfig};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::link::Link;
use crate::env::{Objects, Storage};
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
    Claim,
    Volume,
}

impl Kind {
    fn stored(self) -> &'static str {
        match self {
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Claim => "PersistentVolumeClaim",
            Kind::Volume => "PersistentVolume",
        }
    }
    fn plural(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
            Kind::Claim => "persistentvolumeclaims",
            Kind::Volume => "persistentvolumes",
        }
    }
}

/// Kind, namespace (empty for volumes), name.
pub type Key = (Kind, String, String);

#[derive(Clone)]
enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Claim(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
}

impl Object {
    /// The volume that a bound claim has.
    fn volume(&self) -> Option<Key> {
        let Object::Claim(claim) = self else {
            return None;
        };
        let name = claim.spec.as_ref()?.volume_name.clone()?;
        (!name.is_empty()).then(|| (Kind::Volume, String::new(), name))
    }
}

struct Entry {
    /// `Some(None)`: known not to exist. `None`: nothing is known yet.
    known: Option<Option<Object>>,
    revision: String,
    /// UIDs of pods.
    users: HashSet<String>,
    /// Set once something is known.
    ready: watch::Sender<bool>,
    task: tokio::task::AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ObjectCache {
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    client: Client,
    store: Store,
    link: Link,
    /// UIDs of pods whose objects changed.
    changed: mpsc::UnboundedSender<String>,
}

/// What a pod refers to.
pub fn references(pod: &Pod) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            keys.insert((kind, namespace.clone(), name.to_string()));
        }
    };
    let Some(spec) = &pod.spec else { return keys };
    for c in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        env_references(c.env.as_ref(), c.env_from.as_ref(), &mut add);
    }
    for c in spec.ephemeral_containers.iter().flatten() {
        env_references(c.env.as_ref(), c.env_from.as_ref(), &mut add);
    }
    for v in spec.volumes.iter().flatten() {
        if let Some(claim) = claim_name(pod, v) {
            add(Kind::Claim, &claim);
        }
        if let Some(s) = &v.config_map {
            add(Kind::ConfigMap, &s.name);
        }
        if let Some(s) = &v.secret {
            add(Kind::Secret, s.secret_name.as_deref().unwrap_or_default());
        }
        for s in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(p) = &s.config_map {
                add(Kind::ConfigMap, &p.name);
            }
            if let Some(p) = &s.secret {
                add(Kind::Secret, &p.name);
            }
        }
    }
    for s in spec.image_pull_secrets.iter().flatten() {
        add(Kind::Secret, &s.name);
    }
    keys
}

/// The claim that a volume of a pod is.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref()?, volume.name))
}

fn env_references(
    env: Option<&Vec<k8s_openapi::api::core::v1::EnvVar>>,
    from: Option<&Vec<k8s_openapi::api::core::v1::EnvFromSource>>,
    add: &mut impl FnMut(Kind, &str),
) {
    for source in env
        .into_iter()
        .flatten()
        .filter_map(|e| e.value_from.as_ref())
    {
        if let Some(r) = &source.config_map_key_ref {
            add(Kind::ConfigMap, &r.name);
        }
        if let Some(r) = &source.secret_key_ref {
            add(Kind::Secret, &r.name);
        }
    }
    for source in from.into_iter().flatten() {
        if let Some(r) = &source.config_map_ref {
            add(Kind::ConfigMap, &r.name);
        }
        if let Some(r) = &source.secret_ref {
            add(Kind::Secret, &r.name);
        }
    }
}

fn parse(kind: Kind, body: &Value) -> Option<Object> {
    Some(match kind {
        Kind::ConfigMap => Object::ConfigMap(Arc::new(serde_json::from_value(body.clone()).ok()?)),
        Kind::Secret => Object::Secret(Arc::new(serde_json::from_value(body.clone()).ok()?)),
        Kind::Claim => Object::Claim(Arc::new(serde_json::from_value(body.clone()).ok()?)),
        Kind::Volume => Object::Volume(Arc::new(serde_json::from_value(body.clone()).ok()?)),
    })
}

impl ObjectCache {
    /// `changed` hears the UIDs of pods whose objects are new.
    pub fn new(
        client: Client,
        store: Store,
        link: Link,
        changed: mpsc::UnboundedSender<String>,
    ) -> Self {
        Self {
            entries: Arc::default(),
            client,
            store,
            link,
            changed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From now on the pod `uid` uses exactly `keys`.
    pub fn uses(&self, uid: &str, keys: &BTreeSet<Key>) {
        let mut gone = Vec::new();
        {
            let mut entries = self.lock();
            let keys = &with_volumes(&entries, keys);
            for (key, entry) in entries.iter_mut() {
                if !keys.contains(key) && entry.users.remove(uid) && entry.users.is_empty() {
                    gone.push(key.clone());
                }
            }
            for key in &gone {
                entries.remove(key);
            }
            for key in keys {
                self.entry(&mut entries, key).users.insert(uid.to_string());
            }
        }
        for (kind, namespace, name) in gone {
            let store = self.store.clone();
            tokio::spawn(async move { store.remove_object(kind.stored(), namespace, name).await });
        }
    }

    fn entry<'a>(&self, entries: &'a mut HashMap<Key, Entry>, key: &Key) -> &'a mut Entry {
        entries.entry(key.clone()).or_insert_with(|| Entry {
            known: None,
            revision: String::new(),
            users: HashSet::new(),
            ready: watch::channel(false).0,
            task: tokio::spawn(self.clone().follow(key.clone())).abort_handle(),
        })
    }

    /// Waits until something is known of each of `keys`; while the server is away, no longer than for the copy on disk.
    pub async fn wait(&self, keys: &BTreeSet<Key>) {
        let limit = Duration::from_secs(if self.link.connected() { 10 } else { 1 });
        let wait = async {
            self.wait_for(keys).await;
            let volumes = with_volumes(&self.lock(), keys);
            self.wait_for(&volumes).await;
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    async fn wait_for(&self, keys: &BTreeSet<Key>) {
        let pending: Vec<_> = {
            let entries = self.lock();
            keys.iter()
                .filter_map(|k| entries.get(k))
                .filter(|e| e.known.is_none())
                .map(|e| e.ready.subscribe())
                .collect()
        };
        for mut ready in pending {
            let _ = ready.wait_for(|r| *r).await;
        }
    }

    async fn follow(self, key: Key) {
        let (kind, namespace, name) = key.clone();
        if let Ok(Some(body)) = self
            .store
            .object(kind.stored(), namespace.clone(), name.clone())
            .await
            && let Ok(body) = serde_json::from_str::<Value>(&body)
        {
            self.learn(&key, (!body.is_null()).then_some(&body));
        }
        let target = Target::core(kind.plural()).name(&name);
        let target = match kind {
            Kind::Volume => target,
            _ => target.namespace(&namespace),
        };
        let mut reflector =
            Reflector::spawn(self.client.clone(), target, ReflectorConfig::default());
        while let Some(event) = reflector.next().await {
            let object = match event {
                Event::Applied(o) => Some(o),
                Event::Restarted(all) => all.into_iter().next(),
                Event::Deleted(_) => None,
            };
            if !self.learn(&key, object.as_deref()) {
                continue;
            }
            let body = object
                .as_deref()
                .map_or("null".to_string(), Value::to_string);
            if let Err(error) = self
                .store
                .put_object(kind.stored(), namespace.clone(), name.clone(), body)
                .await
            {
                tracing::warn!(
                    ?kind,
                    namespace,
                    name,
                    error = format!("{error:#}"),
                    "an object is kept in memory only; free or repair the disk"
                );
            }
        }
    }

    /// Takes in what an object is now; false if that was known already.
    fn learn(&self, key: &Key, body: Option<&Value>) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else {
            return false;
        };
        let revision = body.map(meta::resource_version).unwrap_or("absent");
        if entry.known.is_some() && entry.revision == revision {
            return false;
        }
        entry.revision = revision.to_string();
        entry.known = Some(body.and_then(|b| parse(key.0, b)));
        entry.ready.send_replace(true);
        for uid in &entry.users {
            let _ = self.changed.send(uid.clone());
        }
        let volume = entry.known.as_ref().and_then(|o| o.as_ref()?.volume());
        if let Some(volume) = volume {
            let users = entry.users.clone();
            self.entry(&mut entries, &volume).users.extend(users);
        }
        true
    }

    fn look(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Object>, String> {
        let entries = self.lock();
        match entries
            .get(&(kind, namespace.to_string(), name.to_string()))
            .and_then(|e| e.known.as_ref())
        {
            Some(known) => Ok(known.clone()),
            None => Err(format!(
                "failed to sync {} cache: timed out waiting for the condition",
                kind.stored().to_lowercase()
            )),
        }
    }
}

impl Objects for ObjectCache {
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        Ok(self
            .look(Kind::ConfigMap, namespace, name)?
            .and_then(|o| match o {
                Object::ConfigMap(c) => Some(c),
                _ => None,
            }))
    }
    fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, String> {
        Ok(self
            .look(Kind::Secret, namespace, name)?
            .and_then(|o| match o {
                Object::Secret(s) => Some(s),
                _ => None,
            }))
    }
}

impl Storage for ObjectCache {
    fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, String> {
        Ok(self
            .look(Kind::Claim, namespace, name)?
            .and_then(|o| match o {
                Object::Claim(c) => Some(c),
                _ => None,
            }))
    }
    fn volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, String> {
        Ok(self.look(Kind::Volume, "", name)?.and_then(|o| match o {
            Object::Volume(v) => Some(v),
            _ => None,
        }))
    }
}

/// `keys`, and the volumes of claims among them, as far as they are known.
fn with_volumes(entries: &HashMap<Key, Entry>, keys: &BTreeSet<Key>) -> BTreeSet<Key> {
    let known = keys
        .iter()
        .filter_map(|key| entries.get(key)?.known.as_ref()?.as_ref());
    let volumes = known.filter_map(Object::volume);
    keys.iter().cloned().chain(volumes).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_that_names_an_object_counts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "containers": [{"name": "a", "env": [{"name": "x", "valueFrom": {"configMapKeyRef": {"name": "c1", "key": "k"}}}],
                            "envFrom": [{"secretRef": {"name": "s1"}}]}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "c2"}}]}],
            "imagePullSecrets": [{"name": "s2"}],
            "volumes": [{"name": "v", "configMap": {"name": "c3"}}, {"name": "w", "secret": {"secretName": "s3"}},
                        {"name": "p", "projected": {"sources": [{"configMap": {"name": "c4"}}, {"secret": {"name": "s4"}}]}},
                        {"name": "d", "persistentVolumeClaim": {"claimName": "v1"}}, {"name": "v2", "ephemeral": {}}],
        }}))
        .unwrap();
        let names: Vec<String> = references(&pod).into_iter().map(|(_, _, n)| n).collect();
        assert_eq!(
            names,
            ["c1", "c2", "c3", "c4", "s1", "s2", "s3", "s4", "p-v2", "v1"]
        );
    }
}
