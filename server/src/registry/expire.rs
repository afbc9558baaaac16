//! Events live for an hour after they were last told, as upstream's `--event-ttl` has it.

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{meta, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{DeleteOptions, Registry};
use crate::auth::UserInfo;

const LIFE: SignedDuration = SignedDuration::from_hours(1);
/// Expired events go in bunches: a box at rest is not woken for each.
const PAUSE: Duration = Duration::from_secs(300);

/// Deletes expired events until told to stop. Sleeps while there are none.
pub async fn events(registry: Arc<Registry>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sweep_forever(&registry) => {}
    }
}

async fn sweep_forever(registry: &Registry) {
    let user = Arc::new(UserInfo::apiserver());
    loop {
        let Ok(cx) = registry.context(&user, "events", "") else {
            return;
        };
        let table = registry.table(&cx.descriptor);
        let (snapshot, mut watch) = table.list_and_watch(None);
        if snapshot.items.is_empty() {
            // An error says that there were many events.
            let _ = watch.next().await;
        }
        tokio::time::sleep(PAUSE).await;
        let now = Timestamp::now();
        for event in table
            .list(None)
            .items
            .iter()
            .filter(|event| expired(&event.value(), now))
        {
            let Ok(cx) = registry.context(&user, "events", &event.meta.namespace) else {
                return;
            };
            let options = DeleteOptions {
                resource_version: Some(event.meta.revision.to_string()),
                ..DeleteOptions::default()
            };
            match registry.delete(&cx, &event.meta.name, &options).await {
                Ok(_) => {}
                // It was told again, or is gone already.
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => {
                    warn!(%status, "deleting expired events");
                    break;
                }
            }
        }
    }
}

/// Whether the event was last told too long ago. One without any readable time is kept.
fn expired(event: &Value, now: Timestamp) -> bool {
    let told = [
        &["lastTimestamp"][..],
        &["eventTime"],
        &["series", "lastObservedTime"],
        &["metadata", "creationTimestamp"],
    ];
    let last = told
        .iter()
        .filter_map(|path| time::parse_time(meta::str_at(event, path)))
        .max();
    last.is_some_and(|last| now.duration_since(last) > LIFE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_that_is_told_again_lives_on() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let old = json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}, "lastTimestamp": "2026-01-01T10:30:00Z"});
        assert!(expired(&old, now));
        let mut again = old.clone();
        again["series"] = json!({"lastObservedTime": "2026-01-01T11:30:00.000000Z"});
        assert!(!expired(&again, now));
        assert!(!expired(&json!({"metadata": {}}), now));
    }
}
