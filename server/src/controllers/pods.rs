//! What controllers ask of pods, read without the rest of them.

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{Status, time};
use jiff::Timestamp;
use serde::Deserialize;

use crate::cache::{Event, EventType, Object};

/// A pod as controllers see it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub object: Arc<Object>,
    /// Empty until it has one.
    pub node: String,
    pub phase: Phase,
    /// Whether the condition Ready is True, and since when it is what it is.
    pub ready: bool,
    pub ready_changed: Option<Timestamp>,
    /// The most restarts of any of its containers: of ordinary ones, and of init containers (sidecars).
    pub restarts: (i32, i32),
    /// `controller.kubernetes.io/pod-deletion-cost`
    pub deletion_cost: i32,
}

/// `status.phase`, in the order in which pods get more worth keeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Phase {
    #[default]
    Pending,
    Unknown,
    Running,
    Succeeded,
    Failed,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Wire {
    metadata: WireMeta,
    spec: WireSpec,
    status: WireStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireMeta {
    annotations: Option<WireAnnotations>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireAnnotations {
    #[serde(rename = "controller.kubernetes.io/pod-deletion-cost")]
    cost: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSpec {
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    phase: Option<Phase>,
    conditions: Option<Vec<WireCondition>>,
    container_statuses: Option<Vec<WireContainer>>,
    init_container_statuses: Option<Vec<WireContainer>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireCondition {
    r#type: String,
    status: String,
    last_transition_time: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireContainer {
    restart_count: i32,
}

impl Pod {
    /// Reads a pod.
    ///
    /// # Errors
    /// The stored object is not a pod.
    pub fn read(object: &Arc<Object>) -> Result<Pod, Status> {
        let wire: Wire = super::typed(object)?;
        let ready = wire
            .status
            .conditions
            .into_iter()
            .flatten()
            .find(|c| c.r#type == "Ready");
        let most = |containers: Option<Vec<WireContainer>>| {
            containers
                .into_iter()
                .flatten()
                .map(|c| c.restart_count)
                .max()
                .unwrap_or(0)
        };
        Ok(Pod {
            object: object.clone(),
            node: wire.spec.node_name.unwrap_or_default(),
            phase: wire.status.phase.unwrap_or_default(),
            ready: ready.as_ref().is_some_and(|c| c.status == "True"),
            ready_changed: ready.and_then(|c| time::parse_time(&c.last_transition_time?)),
            restarts: (
                most(wire.status.container_statuses),
                most(wire.status.init_container_statuses),
            ),
            deletion_cost: wire
                .metadata
                .annotations
                .and_then(|a| a.cost?.parse().ok())
                .unwrap_or(0),
        })
    }

    /// Succeeded or Failed: it never runs again.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    pub fn is_deleting(&self) -> bool {
        self.object.meta.is_deleting()
    }

    /// Neither over nor going.
    pub fn is_active(&self) -> bool {
        !self.is_over() && !self.is_deleting()
    }

    /// Going, but not over yet.
    pub fn is_terminating(&self) -> bool {
        !self.is_over() && self.is_deleting()
    }

    pub fn created(&self) -> Option<Timestamp> {
        time::parse_time(self.object.meta.creation_timestamp.as_deref()?)
    }

    /// How long until the pod counts as available, if it stays ready: zero if it is. `None`: it is not ready.
    pub fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        if !self.ready {
            return None;
        }
        if min_ready_seconds <= 0 {
            return Some(Duration::ZERO);
        }
        let since = self.ready_changed?;
        let left = i64::from(min_ready_seconds).saturating_mul(1000)
            - (now.as_millisecond() - since.as_millisecond());
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }

    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.available_in(min_ready_seconds, now) == Some(Duration::ZERO)
    }
}

/// Whether a change of a pod is one that those who count pods need to know of: not every word of its status is.
pub fn counts(event: &Event) -> bool {
    let Some(prev) = event
        .prev
        .as_ref()
        .filter(|_| event.kind == EventType::Modified)
    else {
        return true;
    };
    let (was, is) = (&prev.meta, &event.object.meta);
    if was.labels != is.labels || was.owners != is.owners || was.is_deleting() != is.is_deleting() {
        return true;
    }
    match (Pod::read(prev), Pod::read(&event.object)) {
        (Ok(was), Ok(is)) => {
            (was.phase, was.ready, was.ready_changed, &was.node)
                != (is.phase, is.ready, is.ready_changed, &is.node)
        }
        _ => true,
    }
}
