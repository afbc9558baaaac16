//! Tells in the status of each ResourceQuota what its namespace uses of it. Admission does not need it: it counts for itself.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

use serde_json::{Value, json};

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools};
use crate::cache::{Event, EventType};
use crate::resources::{Descriptor, usage};

const QUOTAS: &str = "resourcequotas";
/// Kinds whose objects may use more or less after a change; and quotas themselves.
const CHANGING: [&str; 4] = ["persistentvolumeclaims", "pods", "services", QUOTAS];

pub struct ResourceQuotas;

impl Controller for ResourceQuotas {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::all(quotas_of)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// The quotas of the namespace in which something came, went, or changed so that it may use more or less.
fn quotas_of(tools: &Tools, descriptor: &Descriptor, event: &Event) -> Vec<Key> {
    let meta = &event.object.meta;
    if meta.namespace.is_empty() {
        return Vec::new();
    }
    let resource = descriptor.resource();
    // A change of other kinds does not change what they use.
    if event.kind == EventType::Modified && !CHANGING.contains(&resource.as_str()) {
        return Vec::new();
    }
    let mut keys = Vec::new();
    tools
        .table(QUOTAS)
        .for_each(Some(&meta.namespace), |quota| {
            keys.push(Key::new(&quota.meta.namespace, &quota.meta.name));
        });
    keys
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(QUOTAS).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let quota = object.value();
    let used = usage::of_namespace(&**tools.registry.cache(), &key.namespace, &quota);
    let status = json!({"hard": quota["spec"]["hard"], "used": used});
    if quota["status"] == status || quota["spec"].get("hard").is_none() {
        return Ok(Outcome::Done);
    }
    let context = tools.sub_context(QUOTAS, &key.namespace, "status")?;
    let write = |value: &mut Value| {
        value["status"] = status.clone();
        Ok(())
    };
    tools
        .registry
        .update_with(&context, &key.name, write)
        .await?;
    Ok(Outcome::Done)
}
