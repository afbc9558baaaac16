//! The history of a workload's template: ControllerRevisions, one for each template that there was.
//! <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/controller-revision-v1/>

use std::sync::Arc;

use amphipod_api::meta::{i64_at, str_at};
use amphipod_api::names;
use serde_json::{Value, json};

use super::claims::Owner;
use super::{Result, Tools};
use crate::cache::Object;
use crate::registry::DeleteOptions;

const REVISIONS: &str = "controllerrevisions.apps";
/// Label of revisions, and of pods.
pub const HASH: &str = "controller-revision-hash";

/// The revisions of one owner, the oldest first.
pub struct History {
    revisions: Vec<(Arc<Object>, Value)>,
}

/// The name and template of one revision.
#[derive(Clone)]
pub struct Revision {
    pub name: String,
    /// What stands for it in labels of a DaemonSet's pods; those of a StatefulSet have its name.
    pub hash: String,
    pub template: Value,
}

fn revision(value: &Value) -> Revision {
    Revision {
        name: str_at(value, &["metadata", "name"]).to_owned(),
        hash: str_at(value, &["metadata", "labels", HASH]).to_owned(),
        template: value["data"]["spec"]["template"].clone(),
    }
}

/// A short text that differs where templates differ (FNV-1a).
fn hash(data: &Value, collisions: i64) -> String {
    let mut hash = 0x811c_9dc5_u32;
    let text = data.to_string();
    let salt = match collisions {
        0 => String::new(),
        n => n.to_string(),
    };
    for byte in text.bytes().chain(salt.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    names::safe_encode(hash)
}

impl History {
    /// The history with the present template as its last revision: made if it is new, moved to the end if it was there before.
    ///
    /// # Errors
    /// The refusal of a write.
    pub async fn with_present(tools: &Tools, owner: &Owner<'_>) -> Result<(History, Revision)> {
        let mut history = History::read(owner.claim(tools, REVISIONS).await?);
        let set = owner.object.value();
        let mut template = set["spec"]["template"].clone();
        // Clients up to v1.34 find the present revision by comparing bytes, and theirs have this.
        template["metadata"]["creationTimestamp"] = Value::Null;
        template["$patch"] = "replace".into();
        let data = json!({"spec": {"template": template}});
        let number = |value: &Value| i64_at(value, &["revision"]).unwrap_or(0);
        let next = history.revisions.last().map_or(1, |(_, v)| number(v) + 1);
        let context = tools.context(REVISIONS, &owner.object.meta.namespace)?;
        let known = history
            .revisions
            .iter()
            .position(|(_, value)| value["data"] == data);
        match known {
            Some(at) if at + 1 == history.revisions.len() => {}
            Some(at) => {
                let (object, _) = history.revisions.remove(at);
                let write = |value: &mut Value| {
                    value["revision"] = next.into();
                    Ok(())
                };
                let moved = tools
                    .registry
                    .update_with(&context, &object.meta.name, write)
                    .await?;
                history.push(moved);
            }
            None => {
                let made = make(tools, owner, &set, &data, next).await?;
                history.push(made);
            }
        }
        let present = match history.revisions.last() {
            Some((_, value)) => revision(value),
            None => unreachable!("the present revision was just found or made"),
        };
        Ok((history, present))
    }

    fn read(objects: Vec<Arc<Object>>) -> History {
        let mut history = History {
            revisions: Vec::new(),
        };
        objects.into_iter().for_each(|object| history.push(object));
        history
            .revisions
            .sort_by_key(|(_, value)| i64_at(value, &["revision"]).unwrap_or(0));
        history
    }

    fn push(&mut self, object: Arc<Object>) {
        let value = object.value();
        self.revisions.push((object, value));
    }

    /// A revision by its name.
    pub fn get(&self, name: &str) -> Option<Revision> {
        self.revisions
            .iter()
            .find(|(object, _)| *object.meta.name == *name)
            .map(|(_, value)| revision(value))
    }

    /// The names of the revisions with these hashes.
    pub fn named_by_hash(&self, hashes: &[&str]) -> Vec<String> {
        self.revisions
            .iter()
            .map(|(_, value)| revision(value))
            .filter(|revision| hashes.contains(&revision.hash.as_str()))
            .map(|revision| revision.name)
            .collect()
    }

    /// Removes the oldest revisions beyond `limit` that are not `live`.
    ///
    /// # Errors
    /// The refusal of a deletion.
    pub async fn prune(&self, tools: &Tools, limit: i64, live: &[String]) -> Result<()> {
        let old: Vec<&Arc<Object>> = self
            .revisions
            .iter()
            .map(|(object, _)| object)
            .filter(|object| !live.iter().any(|name| *object.meta.name == **name))
            .collect();
        let limit = usize::try_from(limit).unwrap_or(0);
        for object in &old[..old.len().saturating_sub(limit)] {
            let context = tools.context(REVISIONS, &object.meta.namespace)?;
            let gone = tools
                .registry
                .delete(&context, &object.meta.name, &DeleteOptions::default())
                .await;
            if let Err(status) = gone
                && !status.is_not_found()
            {
                return Err(status);
            }
        }
        Ok(())
    }
}

async fn make(
    tools: &Tools,
    owner: &Owner<'_>,
    set: &Value,
    data: &Value,
    number: i64,
) -> Result<Arc<Object>> {
    let context = tools.context(REVISIONS, &owner.object.meta.namespace)?;
    let mut collisions = 0;
    loop {
        let hash = hash(data, collisions);
        let mut labels = set["spec"]["template"]["metadata"]["labels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
        labels[HASH] = hash.as_str().into();
        let name = format!("{}-{hash}", owner.object.meta.name);
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner.reference()]},
            "data": data, "revision": number,
        });
        match tools.registry.create(&context, object.into()).await {
            // Another template has this hash.
            Err(status) if status.is_already_exists() && collisions < 16 => collisions += 1,
            made => return made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_stable_and_salted() {
        let data = json!({"spec": {"template": {"a": 1}}});
        assert_eq!(hash(&data, 0), hash(&data.clone(), 0));
        assert_ne!(hash(&data, 0), hash(&data, 1));
    }
}
