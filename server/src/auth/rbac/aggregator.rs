//! Keeps the rules of aggregated ClusterRoles: one loop over the events of the clusterroles table.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{RESOURCES, aggregation};
use crate::auth::UserInfo;
use crate::registry::Registry;

/// Runs until `stop`.
pub async fn run(registry: Arc<Registry>, stop: CancellationToken) {
    let user = Arc::new(UserInfo::service_account(
        "kube-system",
        "clusterrole-aggregation-controller",
    ));
    let Some(table) = registry.cache().table(RESOURCES[0]) else {
        return;
    };
    loop {
        let (_, mut watch) = table.list_and_watch(None);
        reconcile(&registry, &user).await;
        loop {
            let events = tokio::select! {
                () = stop.cancelled() => return,
                events = watch.next() => events,
            };
            match events {
                Ok(_) => reconcile(&registry, &user).await,
                // Too slow: begin again with a fresh look.
                Err(_) => break,
            }
        }
    }
}

/// Writes the roles whose rules are not what they should be.
async fn reconcile(registry: &Registry, user: &Arc<UserInfo>) {
    let Some(table) = registry.cache().table(RESOURCES[0]) else {
        return;
    };
    let Ok(cx) = registry.context(user, RESOURCES[0], "") else {
        return;
    };
    let roles: Vec<Value> = table
        .list(None)
        .items
        .iter()
        .map(|object| object.value())
        .collect();
    for role in &roles {
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        let others = roles
            .iter()
            .filter(|other| other["metadata"]["name"] != role["metadata"]["name"]);
        let rules = aggregation::rules_of(role, others);
        if rules.is_null()
            || rules == role["rules"]
            || (rules.as_array().is_some_and(Vec::is_empty) && role["rules"].is_null())
        {
            continue;
        }
        let written = registry
            .update_with(&cx, name, |object| {
                object["rules"] = rules.clone();
                Ok(())
            })
            .await;
        if let Err(status) = written {
            warn!(role = name, %status, "an aggregated role was not brought up to date; it will be tried with the next change");
        }
    }
}
