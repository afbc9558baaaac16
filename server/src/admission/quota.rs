//! ResourceQuota: nothing is made, or grows, beyond what the quotas of its namespace allow. Writes in a namespace with a quota go one
//! after the other (`Registry::allocation`), so that two cannot take the same rest.

use amphipod_api::Status;
use amphipod_api::meta::{array_at, map_at, name, str_at};
use amphipod_api::quantity::Quantity;
use serde_json::Value;

use super::forbidden;
use crate::registry::{Admission, Operation, Request};
use crate::resources::amounts::{Amounts, of_list};
use crate::resources::usage;

pub struct ResourceQuota;

impl Admission for ResourceQuota {
    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let context = request.context;
        let (Some(object), false) = (object, context.namespace.is_empty()) else {
            return Ok(());
        };
        let resource = context.descriptor.storage_resource();
        let grows = match request.operation {
            Operation::Create => context.subresource.is_none(),
            Operation::Update => match context.subresource.as_deref() {
                None => ["persistentvolumeclaims", "services"].contains(&resource.as_str()),
                Some(sub) => sub == "resize",
            },
            _ => false,
        };
        if !grows {
            return Ok(());
        }
        let quotas = request
            .lookup
            .list("resourcequotas", Some(&context.namespace));
        for quota in quotas {
            if usage::concerns(&quota, &resource, object) {
                check(request, &quota, &resource, object)?;
            }
        }
        Ok(())
    }
}

/// Whether a quota has room for what an object uses more than before.
fn check(
    request: &Request<'_>,
    quota: &Value,
    resource: &str,
    object: &Value,
) -> Result<(), Status> {
    let hard = of_list(quota, &["spec", "hard"]);
    let before = request
        .old
        .filter(|old| usage::concerns(quota, resource, old))
        .map(|old| usage::of_object(resource, old))
        .unwrap_or_default();
    if resource == "pods"
        && request.operation == Operation::Create
        && let Some(missing) = unsaid(object, &hard)
    {
        let why = format!("failed quota: {}: must specify {missing}", name(quota));
        return Err(forbidden(request, why));
    }
    let more: Amounts = usage::of_object(resource, object)
        .into_iter()
        .filter(|(name, _)| hard.contains_key(name))
        .map(|(name, amount)| {
            let before = before.get(&name).copied().unwrap_or(Quantity::ZERO);
            (name, amount - before)
        })
        .filter(|(_, amount)| amount.signum() > 0)
        .collect();
    if more.is_empty() {
        return Ok(());
    }
    let used = usage::of_namespace(request.lookup, &request.context.namespace, quota);
    let have = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
    let over: Vec<&String> = more
        .iter()
        .filter(|(name, amount)| have(&used, name) + **amount > have(&hard, name))
        .map(|(name, _)| name)
        .collect();
    if over.is_empty() {
        return Ok(());
    }
    let list = |amounts: &Amounts| {
        let parts: Vec<String> = over
            .iter()
            .map(|name| format!("{name}={}", have(amounts, name)))
            .collect();
        parts.join(",")
    };
    let why = format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        name(quota),
        list(&more),
        list(&used),
        list(&hard)
    );
    Err(forbidden(request, why))
}

/// Amounts that the quota limits and a container did not name: `cpu for: a,b; memory for: b`.
fn unsaid(pod: &Value, hard: &Amounts) -> Option<String> {
    let containers = array_at(pod, &["spec", "containers"]);
    let mut missing = Vec::new();
    for limited in hard.keys() {
        let (which, resource) = match limited.split_once('.') {
            Some(("requests", resource)) => ("requests", resource),
            Some(("limits", resource)) => ("limits", resource),
            _ => ("requests", limited.as_str()),
        };
        // Extended resources count where they are asked for, and need not be.
        if !["cpu", "memory"].contains(&resource) {
            continue;
        }
        if map_at(pod, &["spec", "resources", which]).contains_key(resource) {
            continue;
        }
        let silent: Vec<&str> = containers
            .iter()
            .filter(|c| !map_at(c, &["resources", which]).contains_key(resource))
            .map(|c| str_at(c, &["name"]))
            .collect();
        if !silent.is_empty() {
            missing.push(format!("{limited} for: {}", silent.join(",")));
        }
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_must_say_what_is_limited() {
        let hard = of_list(
            &json!({"hard": {"cpu": "1", "limits.memory": "1Gi", "pods": "3"}}),
            &["hard"],
        );
        let pod = |a: Value| json!({"spec": {"containers": [{"name": "a", "resources": a}, {"name": "b"}]}});
        let all = json!({"requests": {"cpu": "1"}, "limits": {"memory": "1"}});
        assert_eq!(
            unsaid(&pod(all), &hard).as_deref(),
            Some("cpu for: b; limits.memory for: b")
        );
        assert_eq!(
            unsaid(&pod(json!({})), &hard).as_deref(),
            Some("cpu for: a,b; limits.memory for: a,b")
        );
    }
}
