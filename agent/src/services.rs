//! Services and EndpointSlices as this box uses them: data plane, DNS and service variables, from the agent's own copy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
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

fn protocol(text: Option<&str>) -> net::Protocol {
    match text {
        Some("UDP") => net::Protocol::Udp,
        Some("SCTP") => net::Protocol::Sctp,
        _ => net::Protocol::Tcp,
    }
}

fn ips(list: Option<&Vec<String>>) -> Vec<IpAddr> {
    list.into_iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn cluster_ips(s: &Service) -> Vec<IpAddr> {
    let spec = s.spec.as_ref();
    let list = ips(spec.and_then(|s| s.cluster_ips.as_ref()));
    if list.is_empty() {
        spec.and_then(|s| s.cluster_ip.as_ref())
            .and_then(|ip| ip.parse().ok())
            .into_iter()
            .collect()
    } else {
        list
    }
}

/// A service for the data plane; `None` if it has no frontend (headless, ExternalName).
pub fn compile(
    service: &Service,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    node: &str,
) -> Option<net::Service> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ips = cluster_ips(service);
    if cluster_ips.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        let name = p.name.clone().unwrap_or_default();
        let protocol = protocol(p.protocol.as_deref());
        Some(net::ServicePort {
            endpoints: endpoints(slices, &name, protocol, node),
            name,
            protocol,
            port: u16::try_from(p.port).ok()?,
            node_port: p
                .node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p > 0),
        })
    });
    let affinity = match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let seconds = spec
                .session_affinity_config
                .as_ref()
                .and_then(|c| c.client_ip.as_ref())
                .and_then(|c| c.timeout_seconds);
            net::Affinity::ClientIp {
                seconds: seconds.unwrap_or(10800).clamp(1, 86400) as u32,
            }
        }
        _ => net::Affinity::None,
    };
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten());
    Some(net::Service {
        key: key(
            service.metadata.namespace.as_ref(),
            service.metadata.name.as_ref(),
        ),
        cluster_ips,
        external_ips: ips(spec.external_ips.as_ref()),
        load_balancer_ips: ingress
            .filter(|i| i.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
            .filter_map(|i| i.ip.as_ref()?.parse().ok())
            .collect(),
        ports: ports.collect(),
        affinity,
        internal_traffic_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_traffic_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|r| r.trim().parse().ok())
            .collect(),
    })
}

fn endpoints(
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
    port: &str,
    protocol_: net::Protocol,
    node: &str,
) -> Vec<net::Endpoint> {
    let mut out: BTreeMap<(IpAddr, u16), net::Endpoint> = BTreeMap::new();
    for slice in slices.values() {
        let ports = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or_default() == port
                && protocol(p.protocol.as_deref()) == protocol_
        });
        for number in ports
            .filter_map(|p| p.port)
            .filter_map(|p| u16::try_from(p).ok())
        {
            for e in slice.endpoints.iter().flatten() {
                let c = e.conditions.as_ref();
                let ready = c.and_then(|c| c.ready).unwrap_or(true);
                for ip in e.addresses.iter().filter_map(|a| a.parse().ok()) {
                    let endpoint = net::Endpoint {
                        ip,
                        port: number,
                        ready,
                        serving: c.and_then(|c| c.serving).unwrap_or(ready),
                        terminating: c.and_then(|c| c.terminating).unwrap_or(false),
                        local: e.node_name.as_deref() == Some(node),
                    };
                    // While slices are rearranged, an endpoint can stand in two of them: the better word counts.
                    let old = out.entry((ip, number)).or_insert_with(|| endpoint.clone());
                    if endpoint.ready && !old.ready {
                        *old = endpoint;
                    }
                }
            }
        }
    }
    out.into_values().collect()
}

/// A service as DNS tells it.
pub fn records(
    service: &Service,
    slices: &BTreeMap<String, Arc<EndpointSlice>>,
) -> Option<net::ServiceRecords> {
    let spec = service.spec.as_ref()?;
    let dns_port = |p: &k8s_openapi::api::core::v1::ServicePort| {
        Some(net::DnsPort {
            name: p.name.clone().unwrap_or_default(),
            protocol: protocol(p.protocol.as_deref()),
            port: u16::try_from(p.port).ok()?,
        })
    };
    let ports: Vec<net::DnsPort> = spec.ports.iter().flatten().filter_map(dns_port).collect();
    let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => net::RecordKind::External {
            name: spec.external_name.clone()?,
        },
        (_, Some("None")) => {
            let mut endpoints = Vec::new();
            for slice in slices.values() {
                let own: Vec<net::DnsPort> = slice
                    .ports
                    .iter()
                    .flatten()
                    .filter_map(|p| {
                        let port = u16::try_from(p.port?).ok()?;
                        Some(net::DnsPort {
                            name: p.name.clone().unwrap_or_default(),
                            protocol: protocol(p.protocol.as_deref()),
                            port,
                        })
                    })
                    .collect();
                for e in slice.endpoints.iter().flatten() {
                    if e.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                        continue;
                    }
                    endpoints.extend(e.addresses.iter().filter_map(|a| a.parse().ok()).map(|ip| {
                        net::DnsEndpoint {
                            ip,
                            hostname: e.hostname.clone(),
                            ports: own.clone(),
                        }
                    }));
                }
            }
            net::RecordKind::Headless { endpoints, ports }
        }
        _ => {
            let ips = cluster_ips(service);
            if ips.is_empty() {
                return None;
            }
            net::RecordKind::Cluster { ips, ports }
        }
    };
    Some(net::ServiceRecords {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        kind,
    })
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
        if planes.borrow_and_update().is_some() {
            self.apply_all(&planes, &node).await;
        }
        loop {
            tokio::select! {
                Some(event) = services.next() => self.take_services(event, &store, &mut dirty).await,
                Some(event) = slices.next() => self.take_slices(event, &store, &mut dirty).await,
                Ok(()) = planes.changed() => {
                    self.apply_all(&planes, &node).await;
                    dirty.clear();
                }
            }
            if dirty.len() > 32 {
                self.apply_all(&planes, &node).await;
            } else {
                for key in &dirty {
                    self.apply(&planes, &node, key).await;
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

    fn look(&self, key: &str, node: &str) -> (Option<net::Service>, Option<net::ServiceRecords>) {
        let state = self.state.read().unwrap_or_else(|e| e.into_inner());
        let none = BTreeMap::new();
        let Some(service) = state.services.get(key) else {
            return (None, None);
        };
        let slices = state.slices.get(key).unwrap_or(&none);
        (compile(service, slices, node), records(service, slices))
    }

    async fn apply(&self, planes: &watch::Receiver<Option<Planes>>, node: &str, key: &str) {
        let Some(planes) = planes.borrow().clone() else {
            return;
        };
        let (service, records) = self.look(key, node);
        let service = service.filter(|service| planes.translates(service));
        if let Some(dns) = &planes.dns {
            match records {
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
    }

    async fn apply_all(&self, planes: &watch::Receiver<Option<Planes>>, node: &str) {
        let Some(planes) = planes.borrow().clone() else {
            return;
        };
        let keys: Vec<Key> = self
            .state
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .services
            .keys()
            .cloned()
            .collect();
        let (services, records): (Vec<_>, Vec<_>) = keys.iter().map(|k| self.look(k, node)).unzip();
        if let Some(dns) = &planes.dns {
            dns.set_zone(records.into_iter().flatten().collect());
        }
        let network = planes.network.clone();
        let services = services
            .into_iter()
            .flatten()
            .filter(|service| planes.translates(service))
            .collect();
        let work = move || network.set_services(services);
        report("all services", tokio::task::spawn_blocking(work).await);
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn service(v: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": v}))
            .unwrap()
    }

    fn slices(v: Value) -> BTreeMap<String, Arc<EndpointSlice>> {
        let slice = serde_json::from_value(v).unwrap();
        [("x".to_string(), Arc::new(slice))].into()
    }

    fn two() -> BTreeMap<String, Arc<EndpointSlice>> {
        slices(
            json!({"metadata": {"namespace": "n"}, "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.42.0.2"], "nodeName": "me", "conditions": {"ready": true}},
                          {"addresses": ["10.42.1.2"], "nodeName": "other", "hostname": "h", "conditions": {"ready": false, "serving": true, "terminating": true}}]}),
        )
    }

    #[test]
    fn ports_find_their_endpoints_by_name() {
        let s = service(
            json!({"type": "NodePort", "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "externalTrafficPolicy": "Local",
            "ports": [{"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP"}, {"name": "other", "port": 81}]}),
        );
        let c = compile(&s, &two(), "me").unwrap();
        assert_eq!(
            (
                c.key.as_str(),
                c.external_traffic_local,
                c.ports[0].node_port
            ),
            ("n/s", true, Some(30080))
        );
        let e = &c.ports[0].endpoints;
        assert_eq!(
            (e.len(), e[0].port, e[0].ready, e[0].local),
            (2, 8080, true, true)
        );
        assert!(!e[1].ready && e[1].serving && e[1].terminating && !e[1].local);
        assert!(c.ports[1].endpoints.is_empty());
    }

    #[test]
    fn headless_and_external_services_are_names_only() {
        let headless =
            service(json!({"clusterIP": "None", "ports": [{"name": "web", "port": 80}]}));
        assert!(compile(&headless, &two(), "me").is_none());
        match records(&headless, &two()).unwrap().kind {
            net::RecordKind::Headless { endpoints, .. } => {
                assert_eq!((endpoints.len(), endpoints[0].ports[0].port), (1, 8080))
            }
            other => panic!("{other:?}"),
        }
        let external = service(json!({"type": "ExternalName", "externalName": "example.org"}));
        assert!(compile(&external, &BTreeMap::new(), "me").is_none());
        assert_eq!(
            records(&external, &BTreeMap::new()).unwrap().kind,
            net::RecordKind::External {
                name: "example.org".into()
            }
        );
    }
}
