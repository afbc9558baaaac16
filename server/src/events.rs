//! Events: what scheduler and controllers tell users about objects (core/v1 Event).
//!
//! Telling never waits and never fails: events go through a bounded queue to one task, and are dropped, with a log line, when they come
//! faster than they can be written. The same event again raises the count of the first instead of making another.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use amphipod_api::time;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::auth::UserInfo;
use crate::cache::Object;
use crate::registry::{Context, Registry};

/// Events that may wait to be written.
const QUEUE: usize = 1024;

/// How many events are remembered for counting.
const REMEMBERED: usize = 512;

/// Normal, or something to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

/// The object that an event is about (core/v1 ObjectReference).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Reference {
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str, uid: &str) -> Reference {
        Reference {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// An object of the cache, whose kind its table does not know.
    pub fn to(api_version: &str, kind: &str, object: &Object) -> Reference {
        Reference::new(
            api_version,
            kind,
            &object.meta.namespace,
            &object.meta.name,
            &object.meta.uid,
        )
    }
}

/// What is told. Equal ones are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Told {
    about: Reference,
    kind: Kind,
    reason: &'static str,
    message: String,
}

/// Tells events in the name of one component. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<(Told, Timestamp)>,
}

impl Recorder {
    /// Starts the task that writes; it ends with the last clone of the recorder.
    pub fn start(
        registry: Arc<Registry>,
        user: Arc<UserInfo>,
        component: &'static str,
    ) -> Recorder {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut memory = Memory::default();
            while let Some((told, when)) = receiver.recv().await {
                if let Err(error) =
                    write(&registry, &user, component, &mut memory, told, when).await
                {
                    tracing::debug!(%error, component, "an event was not written");
                }
            }
        });
        Recorder { sender }
    }

    /// Tells something.
    pub fn tell(
        &self,
        about: Reference,
        kind: Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let told = Told {
            about,
            kind,
            reason,
            message: message.into(),
        };
        if self.sender.try_send((told, Timestamp::now())).is_err() {
            tracing::warn!(
                reason,
                "events come faster than they can be written; one was dropped"
            );
        }
    }
}

/// The names and counts of the latest events.
#[derive(Default)]
struct Memory {
    known: HashMap<Told, (String, u32)>,
    order: VecDeque<Told>,
}

impl Memory {
    fn remember(&mut self, told: Told, name: String, count: u32) {
        if self.known.insert(told.clone(), (name, count)).is_none() {
            self.order.push_back(told);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

async fn write(
    registry: &Registry,
    user: &Arc<UserInfo>,
    component: &str,
    memory: &mut Memory,
    told: Told,
    when: Timestamp,
) -> Result<(), amphipod_api::Status> {
    // Events about cluster-scoped objects live in the namespace `default`.
    let namespace = if told.about.namespace.is_empty() {
        "default"
    } else {
        &told.about.namespace
    };
    let context: Context = registry.context(user, "events", namespace)?;
    let now = time::format_time(when);
    if let Some((name, count)) = memory.known.get(&told).cloned() {
        let raised = registry
            .update_with(&context, &name, |event| {
                event["count"] = json!(count + 1);
                event["lastTimestamp"] = json!(now);
                Ok(())
            })
            .await;
        match raised {
            Ok(_) => {
                memory.remember(told, name, count + 1);
                return Ok(());
            }
            // Events expire; then a new one begins.
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status),
        }
    }
    let name = format!("{}.{:x}", told.about.name, when.as_nanosecond());
    registry
        .create(
            &context,
            event(&told, component, namespace, &name, &now).into(),
        )
        .await?;
    memory.remember(told, name, 1);
    Ok(())
}

fn event(told: &Told, component: &str, namespace: &str, name: &str, now: &str) -> Value {
    let about = &told.about;
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace, "name": about.name, "uid": about.uid,
        },
        "type": match told.kind { Kind::Normal => "Normal", Kind::Warning => "Warning" },
        "reason": told.reason, "message": told.message,
        "source": {"component": component}, "reportingComponent": component, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let told = |n: usize| Told {
            about: Reference::new("v1", "Pod", "ns", &n.to_string(), ""),
            kind: Kind::Normal,
            reason: "R",
            message: String::new(),
        };
        let mut memory = Memory::default();
        for n in 0..=REMEMBERED {
            memory.remember(told(n), "name".into(), 1);
        }
        assert_eq!(memory.known.len(), REMEMBERED);
        assert!(!memory.known.contains_key(&told(0)) && memory.known.contains_key(&told(1)));
    }
}
