//! Tells the server of pod statuses: the newest of each pod, one request at a time for each, again until it is heard.

use std::sync::Arc;

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use amphipod_api::patch::PatchType;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, Semaphore, watch};

use super::link::Link;

/// What is to be told of one pod.
#[derive(Clone, Default)]
struct Wish {
    status: Option<Arc<PodStatus>>,
    /// Then remove the pod from the API.
    delete: bool,
    /// The pod as the server was last seen to have it.
    seen: Option<Arc<Pod>>,
}

/// Tells the statuses of one pod. Dropping it ends the telling.
pub struct StatusWriter {
    wish: watch::Sender<Wish>,
    deleted: Arc<Notify>,
    task: tokio::task::AbortHandle,
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Shared by all pods: how many requests may be under way.
#[derive(Clone)]
pub struct StatusManager {
    client: Client,
    link: Link,
    slots: Arc<Semaphore>,
}

impl StatusManager {
    pub fn new(client: Client, link: Link) -> Self {
        Self {
            client,
            link,
            slots: Arc::new(Semaphore::new(16)),
        }
    }

    /// `known`: the status that the server has, as far as we know.
    pub fn writer(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        known: &PodStatus,
    ) -> StatusWriter {
        let (wish, wishes) = watch::channel(Wish::default());
        let deleted = Arc::new(Notify::new());
        let teller = Teller {
            manager: self.clone(),
            target: Target::core("pods").namespace(namespace).name(name),
            uid: uid.to_string(),
            told: fields(known),
            revision: 0,
            deleted: deleted.clone(),
        };
        let task = tokio::spawn(teller.run(wishes)).abort_handle();
        StatusWriter {
            wish,
            deleted,
            task,
        }
    }
}

impl StatusWriter {
    /// Tells `status`, soon; a newer one replaces one that was not told yet.
    pub fn tell(&self, status: Arc<PodStatus>) {
        self.wish.send_modify(|w| w.status = Some(status));
    }

    /// The server was seen to have this. If somebody else changed the status since we told it last (the node was thought dead),
    /// or it was forgotten (a restored backup), it is told again.
    pub fn server_has(&self, pod: Arc<Pod>) {
        self.wish.send_modify(|w| w.seen = Some(pod));
    }

    /// Then removes the pod from the API. [`Self::deleted`] completes when it is gone.
    pub fn delete(&self) {
        self.wish.send_modify(|w| w.delete = true);
    }

    pub fn deleted(&self) -> Arc<Notify> {
        self.deleted.clone()
    }
}

struct Teller {
    manager: StatusManager,
    target: Target,
    uid: String,
    /// What the server was told last.
    told: Map<String, Value>,
    /// Revision of the pod that `told` stands for. Echoes of our own words are not newer.
    revision: u64,
    deleted: Arc<Notify>,
}

fn fields(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

enum Heard {
    Yes,
    /// The pod is not there (any more), or another one has its name.
    Gone,
    No,
}

impl Teller {
    async fn run(mut self, mut wishes: watch::Receiver<Wish>) {
        let mut failures = 0;
        let mut gone = false;
        while wishes.changed().await.is_ok() {
            loop {
                let wish = wishes.borrow_and_update().clone();
                if let Some(seen) = &wish.seen {
                    self.learn(seen);
                }
                let heard = if gone {
                    Heard::Gone
                } else {
                    self.send(&wish).await
                };
                match heard {
                    Heard::Yes if wish.delete => {
                        gone = true;
                        self.deleted.notify_one();
                    }
                    Heard::Yes => {}
                    Heard::Gone => {
                        gone = true;
                        if wish.delete {
                            self.deleted.notify_one();
                        }
                    }
                    Heard::No => {
                        failures += 1;
                        self.manager.link.wait_retry(failures).await;
                        continue;
                    }
                }
                failures = 0;
                break;
            }
        }
    }

    /// Takes in what the server has, if that is newer than what we told it.
    fn learn(&mut self, seen: &Pod) {
        let now = revision(
            seen.metadata
                .resource_version
                .as_deref()
                .unwrap_or_default(),
        );
        if now > self.revision {
            self.revision = now;
            self.told = fields(&seen.status.clone().unwrap_or_default());
        }
    }

    /// Another pod has our pod's name, or the object is much written to just now.
    async fn conflict(&self) -> Heard {
        match self.manager.client.get_opt(&self.target).await {
            Ok(Some(pod)) if meta::uid(&pod) == self.uid => Heard::No,
            Ok(_) => Heard::Gone,
            Err(_) => Heard::No,
        }
    }

    async fn send(&mut self, wish: &Wish) -> Heard {
        let Ok(_slot) = self.manager.slots.acquire().await else {
            return Heard::No;
        };
        if let Some(status) = &wish.status {
            let Ok(Value::Object(new)) = serde_json::to_value(&**status) else {
                return Heard::Yes;
            };
            let patch = patch(&self.told, &new);
            if !patch.is_empty() {
                let patch = json!({"metadata": {"uid": self.uid}, "status": patch});
                let target = self.target.clone().subresource("status");
                match self
                    .manager
                    .client
                    .patch(&target, PatchType::StrategicMerge, &patch)
                    .await
                {
                    Ok(pod) => {
                        self.told = new;
                        self.revision = revision(meta::resource_version(&pod));
                    }
                    Err(e) if e.is_not_found() => return Heard::Gone,
                    Err(e) if e.is_conflict() => return self.conflict().await,
                    Err(e) if e.is_retryable() => return Heard::No,
                    Err(error) => {
                        tracing::warn!(pod = self.target.path(), %error, "the server refused a pod's status");
                        self.told = new;
                    }
                }
            }
        }
        if !wish.delete {
            return Heard::Yes;
        }
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}});
        match self.manager.client.delete(&self.target, &options).await {
            Ok(_) => Heard::Yes,
            Err(e) if e.is_not_found() => Heard::Gone,
            Err(e) if e.is_conflict() => self.conflict().await,
            Err(e) if e.is_retryable() => Heard::No,
            Err(error) => {
                tracing::warn!(pod = self.target.path(), %error, "the server refused to remove a pod that has ended");
                Heard::No
            }
        }
    }
}

/// A strategic merge patch that turns `old` into `new`: only what differs; fields that went are null; addresses that went
/// are deleted by their key, because these lists merge.
fn patch(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (field, value) in new {
        if old.get(field) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        if (field == "podIPs" || field == "hostIPs")
            && let Value::Array(list) = &mut value
        {
            for gone in old
                .get(field)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                if !list.contains(gone) {
                    list.push(json!({"$patch": "delete", "ip": gone["ip"]}));
                }
            }
        }
        if field == "conditions"
            && let Value::Array(list) = &mut value
        {
            let had = old
                .get(field)
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice);
            list.retain(|c| !had.contains(c));
            // Conditions merge by type: what a condition no longer says has to be taken back.
            for condition in list.iter_mut() {
                let before = had.iter().find(|h| h["type"] == condition["type"]);
                for gone in before.and_then(Value::as_object).into_iter().flatten() {
                    if condition.get(gone.0).is_none() {
                        condition[gone.0] = Value::Null;
                    }
                }
            }
            if list.is_empty() {
                continue;
            }
        }
        out.insert(field.clone(), value);
    }
    for field in old.keys() {
        if OURS.contains(&field.as_str()) && !new.contains_key(field) {
            out.insert(field.clone(), Value::Null);
        }
    }
    out
}

/// Fields of the status that nobody else writes: what we no longer say is taken back.
const OURS: [&str; 8] = [
    "message",
    "reason",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

/// A resourceVersion as a number; revisions of one server can be compared (KEP-5504).
fn revision(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_holds_only_what_differs() {
        let map = |v: Value| {
            if let Value::Object(m) = v {
                m
            } else {
                Map::new()
            }
        };
        let old = map(
            json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "reason": "x", "qosClass": "B",
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False", "reason": "r"}]}),
        );
        let new = map(
            json!({"phase": "Running", "podIPs": [{"ip": "2"}], "qosClass": "B",
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}),
        );
        let want = json!({"phase": "Running", "podIPs": [{"ip": "2"}, {"$patch": "delete", "ip": "1"}], "reason": null,
            "conditions": [{"type": "B", "status": "True", "reason": null}]});
        assert_eq!(Value::Object(patch(&old, &new)), want);
        assert!(patch(&new, &new).is_empty());
    }
}
