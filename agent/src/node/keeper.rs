//! Keeps our Node object: registers it, renews its Lease, tells its status when it changes (or every half hour) or when the server
//! believes something else, and learns from it the pod range and the labels.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use amphipod_api::client::{Client, ClientError, Target};
use amphipod_api::clock::WallClock;
use amphipod_api::meta;
use amphipod_api::patch::PatchType;
use amphipod_api::reflector::{Backoff, Event, Reflector, ReflectorConfig};
use amphipod_runtime::image::ImageStore;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::lease::LeaseKeeper;
use super::machine::{Machine, own_address};
use super::object::{self, Facts};
use super::pressure::{Left, Pressure, pressure};
use crate::config::AgentConfig;
use crate::deps::Deps;
use crate::events::Severity;
use crate::store::Store;

/// How often pressure and addresses are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// By how much the wall clock must have been set for tokens and certificates to be looked at again.
const CLOCK_STEP: Duration = Duration::from_secs(30);
/// How long a request may take: meanwhile nobody looks at pressure.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the status is told without a change. The Lease says that we live, so this only freshens the conditions'
/// heartbeat times; each report is a write to the server's disk (44 KiB of flash with the file system's journal).
const REPORT: Duration = Duration::from_secs(1800);

pub struct NodeKeeper {
    pub config: AgentConfig,
    pub machine: Machine,
    /// What pods are told of the node; its addresses change when the machine's do.
    pub deps: Arc<Deps>,
    pub client: Client,
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
        let mut reflector = Reflector::spawn(
            self.client.clone(),
            self.target(),
            ReflectorConfig::default(),
        );
        let mut lease = LeaseKeeper::new(
            self.client.clone(),
            self.config.node_name.clone(),
            self.config.node_lease_seconds,
        );
        let mut clock = WallClock::new(CLOCK_STEP);
        let mut report = Report::default();
        let mut short = Pressure::default();
        let mut look = tokio::time::interval(LOOK);
        let mut beat = tokio::time::interval(lease.interval());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = report.retry;
            tokio::select! {
                _ = look.tick() => {
                    short = pressure(&Left::look(&self.config.data_dir), &self.config.eviction);
                    let _ = self.pressure.try_send(short);
                    self.look_at_addresses().await;
                }
                // Also while the server is away: this is how we notice first that it is back.
                _ = beat.tick() => {
                    if let Some(step) = clock.step() {
                        tracing::warn!(
                            "the clock of this machine was set by {step:#}; tokens and certificates are looked at again"
                        );
                        self.deps.clock.send_replace(());
                    }
                    lease.renew();
                }
                Some(event) = reflector.next() => match event {
                    Event::Applied(node) => {
                        self.learn(&node).await;
                        report.hear(&node, false);
                    }
                    // Revisions may have been lost, also those of a server that was restored from a backup.
                    Event::Restarted(all) => match all.first() {
                        Some(node) => {
                            self.learn(node).await;
                            report.hear(node, true);
                        }
                        None => report.known = None,
                    },
                    // Somebody removed our object: a node that lives registers again.
                    Event::Deleted(_) => report.known = None,
                },
                Ok(()) = self.network_trouble.changed() => {}
                () = self.dirty.notified() => {}
                () = self.client.answers_again() => report.retry = None,
                () = sleep_until(retry), if retry.is_some() => report.retry = None,
            }
            if report.retry.is_some() {
                continue;
            }
            match tokio::time::timeout(PATIENCE, self.tell(&mut report, short)).await {
                Ok(Ok(())) => report.failures = 0,
                Ok(Err(error)) => {
                    if report.failures == 0 {
                        tracing::warn!(%error, "the server did not hear this node's status; going on without it and trying again");
                    }
                    report.fail();
                }
                Err(_) => report.fail(),
            }
        }
    }

    /// Tells what the server does not know, and every now and then all.
    async fn tell(&self, report: &mut Report, short: Pressure) -> Result<(), ClientError> {
        if report.known.is_none() {
            let node = self.register().await?;
            report.hear(&node, true);
            if !std::mem::replace(&mut report.begun, true) {
                let events = &self.deps.events;
                events.node(Severity::Normal, "Starting", "Starting kubelet.".into());
            }
        }
        let Some(known) = &report.known else {
            return Ok(());
        };
        let now = jiff::Timestamp::now();
        let status = object::status(&self.facts(short, now), &known.status);
        let due = report.told_at.is_none_or(|at| at.elapsed() >= REPORT);
        if !due && known.is_told(&status) {
            return Ok(());
        }
        let Some(changed) = object::patch(&known.status, &status, due) else {
            return Ok(());
        };
        let target = self.target().subresource("status");
        let patch = json!({"status": changed});
        match self
            .client
            .patch(&target, PatchType::StrategicMerge, &patch)
            .await
        {
            Ok(node) => {
                self.tell_changes(&known.status, &status);
                report.hear(&node, true);
                if let Some(known) = &mut report.known {
                    known.told = Some(status);
                }
                report.told_at = Some(Instant::now());
                Ok(())
            }
            // Registered anew at the next occasion.
            Err(error) if error.is_not_found() => {
                report.known = None;
                Err(error)
            }
            Err(error) => Err(error),
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
            self.deps.readdressed.notify_one();
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

    /// Makes sure that the object exists and has our labels and annotations; the object as it is now.
    async fn register(&self) -> Result<Value, ClientError> {
        let mut wanted = object::node(&self.machine, &self.config);
        let now = jiff::Timestamp::now();
        wanted["status"] = object::status(&self.facts(Pressure::default(), now), &Value::Null);
        let node = match self.client.create(&Target::core("nodes"), &wanted).await {
            Ok(node) => node,
            Err(e) if e.is_already_exists() => {
                let labels = object::labels(&self.machine, &self.config);
                let node = self.client.get(&self.target()).await?;
                let annotations = object::annotations(&self.config);
                let same = labels
                    .iter()
                    .all(|(k, v)| meta::label(&node, k) == v.as_str())
                    && annotations
                        .iter()
                        .all(|(k, v)| meta::annotation(&node, k) == v.as_str());
                if same {
                    node
                } else {
                    self.client
                        .patch(
                            &self.target(),
                            PatchType::Merge,
                            &json!({"metadata": {"labels": labels, "annotations": annotations}}),
                        )
                        .await?
                }
            }
            Err(e) => return Err(e),
        };
        self.learn(&node).await;
        Ok(node)
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
}

/// What the server knows of us, and when to tell it more.
#[derive(Default)]
struct Report {
    /// `None`: our object is not there, or nothing is known of it.
    known: Option<Known>,
    /// This process has registered before.
    begun: bool,
    /// When the status was told last.
    told_at: Option<Instant>,
    /// Not before then.
    retry: Option<Instant>,
    failures: u32,
}

/// Our object as the server was last seen to have it.
struct Known {
    revision: u64,
    status: Value,
    /// What we said to make it so. The server may store some of that in other words, which is no reason to say it again.
    told: Option<Value>,
}

impl Known {
    fn is_told(&self, status: &Value) -> bool {
        match &self.told {
            Some(told) => object::patch(told, status, false).is_none(),
            None => object::patch(&self.status, status, false).is_none(),
        }
    }
}

impl Report {
    /// The server has this. `now`: it answered so; else an older revision is an echo from before.
    fn hear(&mut self, node: &Value, now: bool) {
        let revision = meta::resource_version(node).parse().unwrap_or(0);
        if !now
            && self
                .known
                .as_ref()
                .is_some_and(|known| known.revision >= revision)
        {
            return;
        }
        self.known = Some(Known {
            revision,
            status: node["status"].clone(),
            told: None,
        });
    }

    fn fail(&mut self) {
        let pause = Backoff::default().delay(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.retry = Some(Instant::now() + pause);
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(revision: &str, ready: &str) -> Value {
        json!({"metadata": {"resourceVersion": revision},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn echoes_of_what_was_told_are_not_taken_for_changes() {
        let mut report = Report::default();
        let status = |report: &Report| {
            let known = report.known.as_ref().unwrap();
            known.status["conditions"][0]["status"].clone()
        };
        report.hear(&node("7", "True"), true);
        report.hear(&node("5", "Unknown"), false);
        assert_eq!(status(&report), "True");
        report.hear(&node("9", "Unknown"), false);
        assert_eq!(status(&report), "Unknown");
        report.hear(&node("3", "True"), true);
        assert_eq!(status(&report), "True", "a restored server begins lower");
    }

    #[test]
    fn what_the_server_stores_in_other_words_is_told_once() {
        let said = json!({"nodeInfo": {"kubeProxyVersion": ""}});
        let mut known = Known {
            revision: 1,
            status: json!({"nodeInfo": {}}),
            told: None,
        };
        assert!(!known.is_told(&said));
        known.told = Some(said.clone());
        assert!(known.is_told(&said));
    }
}
