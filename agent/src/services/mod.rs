//! Services and EndpointSlices as this box uses them: data plane, DNS and service variables, from the agent's own copy.

mod compile;
mod health;
mod topology;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use amphipod_api::client::{Client, Target};
use amphipod_api::reflector::{Event, Reflector, ReflectorConfig};
use amphipod_netplug as net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use crate::env::service_links::service_vars;
use crate::store::Store;
use compile::{compile, records};
use health::Checks;
use topology::Place;

/// Where the node's zone is remembered, for starts without the server.
const ZONE: &str = "zone";

/// `namespace/name` of a service.
type Key = String;

#[derive(Default)]
struct State {
    services: HashMap<Key, Arc<Service>>,
    /// Slices by service, then by their own name.
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Services {
    state: Arc<RwLock<State>>,
    /// The node's label `topology.kubernetes.io/zone`.
    zone: watch::Sender<Option<String>>,
}

/// What the data plane and DNS are told of.
#[derive(Clone)]
pub struct Planes {
    pub network: Arc<net::Network>,
    pub dns: Option<Arc<net::DnsServer>>,
    /// Service addresses where this box itself answers: DNS. They are never translated, and a service there has a name only.
    pub own: Vec<std::net::IpAddr>,
}

impl Planes {
    fn translates(&self, service: &net::Service) -> bool {
        !service.cluster_ips.iter().any(|ip| self.own.contains(ip))
    }
}

fn key(namespace: Option<&String>, name: Option<&String>) -> Key {
    format!(
        "{}/{}",
        namespace.map_or("", String::as_str),
        name.map_or("", String::as_str)
    )
}

/// The service that a slice belongs to.
fn owner(slice: &EndpointSlice) -> Option<Key> {
    let name = slice
        .metadata
        .labels
        .as_ref()?
        .get("kubernetes.io/service-name")?;
    Some(key(slice.metadata.namespace.as_ref(), Some(name)))
}

impl Services {
    /// Service variables for pods of a namespace.
    pub fn vars(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        let state = self.state.read().unwrap_or_else(|e| e.into_inner());
        service_vars(state.services.values().map(|s| &**s), namespace, links)
    }

    /// Loads the copy on disk.
    pub async fn load(&self, store: &Store) -> anyhow::Result<()> {
        let services = store.objects("Service").await?;
        let slices = store.objects("EndpointSlice").await?;
        let zone = store.fact(ZONE).await?.filter(|zone| !zone.is_empty());
        self.zone.send_replace(zone);
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        for body in services {
            if let Ok(s) = serde_json::from_str::<Service>(&body) {
                state.services.insert(
                    key(s.metadata.namespace.as_ref(), s.metadata.name.as_ref()),
                    Arc::new(s),
                );
            }
        }
        for body in slices {
            if let Ok(s) = serde_json::from_str::<EndpointSlice>(&body)
                && let Some(owner) = owner(&s)
            {
                state
                    .slices
                    .entry(owner)
                    .or_default()
                    .insert(s.metadata.name.clone().unwrap_or_default(), Arc::new(s));
            }
        }
        Ok(())
    }

    /// Takes in the zone of this node; traffic that is to stay in a zone changes its ways.
    pub async fn set_zone(&self, store: &Store, zone: Option<String>) {
        let text = zone.clone().unwrap_or_default();
        let differs = |now: &mut Option<String>| {
            let differs = *now != zone;
            *now = zone;
            differs
        };
        if self.zone.send_if_modified(differs)
            && let Err(error) = store.put_fact(ZONE, text).await
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "the node's zone is not remembered"
            );
        }
    }

    fn place(&self, node: &str) -> Place {
        Place {
            node: node.to_owned(),
            zone: self.zone.borrow().clone(),
        }
    }

    /// Follows the server, and keeps data plane and DNS equal to the copy. Never ends.
    pub async fn run(
        self,
        client: Client,
        store: Store,
        node: String,
        mut planes: watch::Receiver<Option<Planes>>,
    ) {
        let mut services = Reflector::spawn(
            client.clone(),
            Target::core("services"),
            ReflectorConfig::default(),
        );
        let mut slices = Reflector::spawn(
            client,
            Target::new("discovery.k8s.io", "v1", "endpointslices"),
            ReflectorConfig::default(),
        );
        let mut dirty: BTreeSet<Key> = BTreeSet::new();
        let mut checks = Checks::default();
        let mut zone = self.zone.subscribe();
        if planes.borrow_and_update().is_some() {
            self.apply_all(&planes, &node, &mut checks).await;
        }
        loop {
            tokio::select! {
                Some(event) = services.next() => self.take_services(event, &store, &mut dirty).await,
                Some(event) = slices.next() => self.take_slices(event, &store, &mut dirty).await,
                Ok(()) = planes.changed() => {
                    self.apply_all(&planes, &node, &mut checks).await;
                    dirty.clear();
                }
                Ok(()) = zone.changed() => {
                    self.apply_all(&planes, &node, &mut checks).await;
                    dirty.clear();
                }
            }
            if dirty.len() > 32 {
                self.apply_all(&planes, &node, &mut checks).await;
            } else {
                for key in &dirty {
                    self.apply(&planes, &node, key, &mut checks).await;
                }
            }
            dirty.clear();
        }
    }

    async fn take_services(&self, event: Event, store: &Store, dirty: &mut BTreeSet<Key>) {
        let keys = take::<Service>(event, store, "Service", |changes, restarted| {
            let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
            let mut keys = Vec::new();
            if restarted {
                keys.extend(state.services.drain().map(|(k, _)| k));
            }
            for (s, alive) in changes {
                let k = key(s.metadata.namespace.as_ref(), s.metadata.name.as_ref());
                keys.push(k.clone());
                if alive {
                    state.services.insert(k, Arc::new(s));
                } else {
                    state.services.remove(&k);
                }
            }
            keys
        });
        dirty.extend(keys.await);
    }

    async fn take_slices(&self, event: Event, store: &Store, dirty: &mut BTreeSet<Key>) {
        let keys = take::<EndpointSlice>(event, store, "EndpointSlice", |changes, restarted| {
            let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
            let mut keys = Vec::new();
            if restarted {
                keys.extend(state.slices.drain().map(|(k, _)| k));
            }
            for (s, alive) in changes {
                let Some(k) = owner(&s) else { continue };
                keys.push(k.clone());
                let name = s.metadata.name.clone().unwrap_or_default();
                if alive {
                    state.slices.entry(k).or_default().insert(name, Arc::new(s));
                } else if let Some(of) = state.slices.get_mut(&k) {
                    of.remove(&name);
                    if of.is_empty() {
                        state.slices.remove(&k);
                    }
                }
            }
            keys
        });
        dirty.extend(keys.await);
    }

    fn look(&self, key: &str, place: &Place) -> Looked {
        let state = self.state.read().unwrap_or_else(|e| e.into_inner());
        let none = BTreeMap::new();
        let Some(service) = state.services.get(key) else {
            return Looked::default();
        };
        let slices = state.slices.get(key).unwrap_or(&none);
        Looked {
            service: compile(service, slices, place),
            records: records(service, slices),
            health: compile::health(service, slices, &place.node),
        }
    }

    async fn apply(
        &self,
        planes: &watch::Receiver<Option<Planes>>,
        node: &str,
        key: &str,
        checks: &mut Checks,
    ) {
        let Some(planes) = planes.borrow().clone() else {
            return;
        };
        let looked = self.look(key, &self.place(node));
        let service = looked.service.filter(|service| planes.translates(service));
        if let Some(dns) = &planes.dns {
            match looked.records {
                Some(r) => dns.upsert(r),
                None => {
                    let (namespace, name) = amphipod_api::meta::split_key(key);
                    dns.remove(namespace, name);
                }
            }
        }
        let owned = key.to_string();
        let network = planes.network.clone();
        let work = move || match service {
            Some(s) => network.upsert_service(s),
            None => network.remove_service(&owned),
        };
        report(key, tokio::task::spawn_blocking(work).await);
        checks.set(key, looked.health).await;
    }

    async fn apply_all(
        &self,
        planes: &watch::Receiver<Option<Planes>>,
        node: &str,
        checks: &mut Checks,
    ) {
        let Some(planes) = planes.borrow().clone() else {
            return;
        };
        let keys: BTreeSet<Key> = self
            .state
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .services
            .keys()
            .cloned()
            .collect();
        let place = self.place(node);
        let (mut services, mut records) = (Vec::new(), Vec::new());
        checks.retain(|key| keys.contains(key));
        for key in &keys {
            let looked = self.look(key, &place);
            let service = looked.service.filter(|service| planes.translates(service));
            services.extend(service);
            records.extend(looked.records);
            checks.set(key, looked.health).await;
        }
        if let Some(dns) = &planes.dns {
            dns.set_zone(records);
        }
        let network = planes.network.clone();
        let work = move || network.set_services(services);
        report("all services", tokio::task::spawn_blocking(work).await);
    }
}

/// What one service asks of this box.
#[derive(Default)]
struct Looked {
    service: Option<net::Service>,
    records: Option<net::ServiceRecords>,
    health: Option<(u16, usize)>,
}

fn report(what: &str, result: Result<net::Result<()>, tokio::task::JoinError>) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(
            service = what,
            error = crate::pod::ops::describe(&error),
            "could not program a service"
        ),
        Err(error) => tracing::error!(service = what, %error, "programming a service failed"),
    }
}

/// Takes in an event of a reflector: `apply` gets each object and whether it is there; then the copy on disk follows.
async fn take<T: DeserializeOwned>(
    event: Event,
    store: &Store,
    kind: &'static str,
    apply: impl FnOnce(Vec<(T, bool)>, bool) -> Vec<Key>,
) -> Vec<Key> {
    let (objects, alive, restarted) = match event {
        Event::Applied(o) => (vec![o], true, false),
        Event::Deleted(o) => (vec![o], false, false),
        Event::Restarted(all) => (all, true, true),
    };
    let parsed = objects
        .iter()
        .filter_map(|o| serde_json::from_value::<T>((**o).clone()).ok())
        .map(|o| (o, alive))
        .collect();
    let keys = apply(parsed, restarted);
    let name = |o: &Value| {
        (
            amphipod_api::meta::namespace(o).to_string(),
            amphipod_api::meta::name(o).to_string(),
        )
    };
    let stored = match (restarted, alive) {
        (true, _) => {
            let all = objects
                .iter()
                .map(|o| (name(o).0, name(o).1, o.to_string()))
                .collect();
            store.replace_objects(kind, all).await
        }
        (false, true) => {
            store
                .put_object(
                    kind,
                    name(&objects[0]).0,
                    name(&objects[0]).1,
                    objects[0].to_string(),
                )
                .await
        }
        (false, false) => {
            store
                .remove_object(kind, name(&objects[0]).0, name(&objects[0]).1)
                .await
        }
    };
    if let Err(error) = stored {
        tracing::warn!(
            kind,
            error = format!("{error:#}"),
            "services are kept in memory only; free or repair the disk"
        );
    }
    keys
}
