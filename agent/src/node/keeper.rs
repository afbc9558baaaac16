//! Keeps our Node object: registers it, renews its Lease, tells its status when it changes (or every half hour), and
//! learns from it the pod range and the labels.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use amphipod_api::patch::PatchType;
use amphipod_api::reflector::{Event, Reflector, ReflectorConfig};
use amphipod_runtime::image::ImageStore;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};

use super::machine::{Machine, own_address};
use super::object::{self, Facts};
use super::pressure::{Left, Pressure, pressure};
use crate::config::AgentConfig;
use crate::deps::Deps;
use crate::events::Severity;
use crate::server::link::Link;
use crate::store::Store;

/// How often the Lease is renewed; it lasts four times as long.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i64 = 40;
/// How often the status is told without a change. The Lease says that we live, so this only freshens the conditions'
/// heartbeat times; each report is a write to the server's disk (44 KiB of flash with the file system's journal).
const REPORT: Duration = Duration::from_secs(1800);

pub struct NodeKeeper {
    pub config: AgentConfig,
    pub machine: Machine,
    /// What pods are told of the node; its addresses change when the machine's do.
    pub deps: Arc<Deps>,
    pub client: Client,
    pub link: Link,
    pub store: Store,
    pub images: ImageStore,
    /// The pod ranges that the server assigned.
    pub pod_cidrs: watch::Sender<Vec<String>>,
    /// Why pods cannot have a network; `None` when they can.
    pub network_trouble: watch::Receiver<Option<String>>,
    pub labels: Arc<RwLock<BTreeMap<String, String>>>,
    /// Hears of pressure each time it is looked at.
    pub pressure: mpsc::Sender<Pressure>,
    /// Something that the status shows may have changed (images).
    pub dirty: Arc<Notify>,
}

impl NodeKeeper {
    fn target(&self) -> Target {
        Target::core("nodes").name(&self.config.node_name)
    }

    /// Never ends.
    pub async fn run(mut self) {
        let mut failures = 0;
        let mut told = loop {
            match self.register().await {
                Ok(status) => break status,
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "cannot register this node; going on without the server and trying again");
                    }
                    failures += 1;
                    // Not by the link: registering may be what the server waits for.
                    tokio::time::sleep(amphipod_api::reflector::Backoff::default().delay(failures))
                        .await;
                }
            }
        };
        self.deps
            .events
            .node(Severity::Normal, "Starting", "Starting kubelet.".into());
        let mut reflector = Reflector::spawn(
            self.client.clone(),
            self.target(),
            ReflectorConfig::default(),
        );
        let mut told_at: Option<Instant> = None;
        let mut short = Pressure::default();
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let lease = self.lease_target();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    short = pressure(&Left::look(&self.config.data_dir), &self.config.eviction);
                    let _ = self.pressure.try_send(short);
                    self.look_at_addresses().await;
                    if self.link.connected() || told_at.is_none() {
                        self.renew(&lease).await;
                    }
                }
                Some(event) = reflector.next() => match event {
                    Event::Applied(node) => self.learn(&node).await,
                    Event::Restarted(all) => match all.first() {
                        Some(node) => self.learn(node).await,
                        None => told_at = self.again().await,
                    },
                    // Somebody removed our object: a node that lives registers again.
                    Event::Deleted(_) => told_at = self.again().await,
                },
                Ok(()) = self.network_trouble.changed() => {}
                () = self.dirty.notified() => {}
            }
            let now = jiff::Timestamp::now();
            let status = object::status(&self.facts(short, now), &told);
            let due = told_at.is_none_or(|at| at.elapsed() >= REPORT);
            if due || object::differs(&told, &status) {
                if !self.link.connected() && told_at.is_some() {
                    continue;
                }
                let patch = json!({"status": status});
                match self
                    .client
                    .patch(
                        &self.target().subresource("status"),
                        PatchType::Merge,
                        &patch,
                    )
                    .await
                {
                    Ok(_) => {
                        self.tell_changes(&told, &status);
                        told = status;
                        told_at = Some(Instant::now());
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the node's status was not heard; it is told again at the next tick")
                    }
                }
            }
        }
    }

    /// Events for conditions that turned, as `kubectl describe node` shows them.
    fn tell_changes(&self, old: &Value, new: &Value) {
        for (kind, state) in object::turned(old, new) {
            let severity = if object::is_good(kind, state) {
                Severity::Normal
            } else {
                Severity::Warning
            };
            let reason = object::event_reason(kind, state);
            let text = format!("Node {} status is now: {reason}", self.config.node_name);
            self.deps.events.node(severity, reason, text);
        }
    }

    /// A machine may get its address after we started, or another one.
    async fn look_at_addresses(&self) {
        if self.config.node_ip.is_some() {
            return;
        }
        let Some(now) = own_address() else { return };
        let changed = {
            let mut node = self.deps.node.write().unwrap_or_else(|e| e.into_inner());
            let changed = node.host_ips != [now];
            node.host_ips = vec![now];
            changed
        };
        if changed {
            tracing::info!(address = %now, "this machine has another address");
            let _ = self.store.put_fact("address", now.to_string()).await;
        }
    }

    fn facts(&self, short: Pressure, now: jiff::Timestamp) -> Facts<'_> {
        let mut images: Vec<(Vec<String>, u64)> = self
            .images
            .list()
            .into_iter()
            .map(|i| {
                (
                    i.repo_digests
                        .into_iter()
                        .chain(i.repo_tags)
                        .collect::<Vec<_>>(),
                    i.size_bytes,
                )
            })
            .filter(|(names, _)| !names.is_empty())
            .collect();
        images.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Facts {
            machine: &self.machine,
            config: &self.config,
            addresses: self.deps.node().host_ips,
            pressure: short,
            network_trouble: self.network_trouble.borrow().clone(),
            images,
            now,
        }
    }

    /// Makes sure that the object exists and has our labels; its present status.
    async fn register(&self) -> Result<Value, amphipod_api::ClientError> {
        let mut wanted = object::node(&self.machine, &self.config);
        let now = jiff::Timestamp::now();
        wanted["status"] = object::status(&self.facts(Pressure::default(), now), &Value::Null);
        let node = match self.client.create(&Target::core("nodes"), &wanted).await {
            Ok(node) => node,
            Err(e) if e.is_already_exists() => {
                let labels = object::labels(&self.machine, &self.config);
                let node = self.client.get(&self.target()).await?;
                let same = labels
                    .iter()
                    .all(|(k, v)| meta::label(&node, k) == v.as_str());
                if same {
                    node
                } else {
                    self.client
                        .patch(
                            &self.target(),
                            PatchType::Merge,
                            &json!({"metadata": {"labels": labels}}),
                        )
                        .await?
                }
            }
            Err(e) => return Err(e),
        };
        self.learn(&node).await;
        Ok(node["status"].clone())
    }

    async fn again(&self) -> Option<Instant> {
        if let Err(error) = self.register().await {
            tracing::warn!(%error, "this node's object was removed and could not be made again");
        }
        None
    }

    /// Takes in what the server says of us, and keeps it for the next start without a server.
    async fn learn(&self, node: &Value) {
        let text = |v: &Value| v.as_str().map(str::to_string);
        let mut cidrs: Vec<String> = meta::array_at(node, &["spec", "podCIDRs"])
            .iter()
            .filter_map(text)
            .collect();
        if cidrs.is_empty() {
            cidrs.extend(text(&node["spec"]["podCIDR"]).filter(|c| !c.is_empty()));
        }
        if !cidrs.is_empty() && *self.pod_cidrs.borrow() != cidrs {
            if let Err(error) = self.store.put_fact("podCIDRs", cidrs.join(",")).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the node's pod range is kept in memory only"
                );
            }
            self.pod_cidrs.send_replace(cidrs);
        }
        let labels: BTreeMap<String, String> = meta::labels(node)
            .iter()
            .filter_map(|(k, v)| Some((k.clone(), text(v)?)))
            .collect();
        let changed = *self.labels.read().unwrap_or_else(|e| e.into_inner()) != labels;
        if changed {
            let stored = serde_json::to_string(&labels).unwrap_or_default();
            *self.labels.write().unwrap_or_else(|e| e.into_inner()) = labels;
            let _ = self.store.put_fact("nodeLabels", stored).await;
        }
    }

    fn lease_target(&self) -> Target {
        Target::new("coordination.k8s.io", "v1", "leases")
            .namespace("kube-node-lease")
            .name(&self.config.node_name)
    }

    async fn renew(&self, target: &Target) {
        let now = amphipod_api::time::format_micro_time(jiff::Timestamp::now());
        let spec = json!({"holderIdentity": self.config.node_name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
        let renewed = self
            .client
            .patch(target, PatchType::Merge, &json!({"spec": spec}))
            .await;
        if renewed.is_err_and(|e| e.is_not_found()) {
            let mut collection = target.clone();
            collection.name = None;
            let name = &self.config.node_name;
            let uid = match self.client.get(&self.target()).await {
                Ok(node) => meta::uid(&node).to_string(),
                Err(_) => return,
            };
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease",
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]},
                "spec": spec,
            });
            if let Err(error) = self.client.create(&collection, &lease).await {
                tracing::warn!(%error, "cannot make this node's Lease; without it the node is soon taken for dead");
            }
        }
    }
}
