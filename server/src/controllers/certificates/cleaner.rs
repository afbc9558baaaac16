//! Takes away requests that are dealt with, or that nobody dealt with, after upstream's times.

use std::time::Duration;

use amphipod_api::meta::str_at;
use amphipod_api::time::parse_time;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use super::{NAME, RESOURCE, condition, issued};

/// After a certificate was issued, or refused.
const SETTLED: SignedDuration = SignedDuration::from_hours(1);
/// After a request was made that nobody decided.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub struct Cleaner;

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(RESOURCE, itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, &key.name))
    }
}

async fn reconcile(tools: &Tools, name: &str) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get("", name) else {
        return Ok(Outcome::Done);
    };
    let left = end(&object.value()).duration_since(Timestamp::now());
    if let Ok(left) = Duration::try_from(left)
        && !left.is_zero()
    {
        return Ok(Outcome::After(left));
    }
    let cx = tools.context(RESOURCE, "")?;
    tools
        .registry
        .delete(&cx, name, &Default::default())
        .await?;
    Ok(Outcome::Done)
}

/// When a request is to go.
fn end(csr: &Value) -> Timestamp {
    let settled = ["Denied", "Failed", "Approved"]
        .into_iter()
        .filter_map(|kind| condition(csr, kind))
        .find_map(|c| parse_time(str_at(c, &["lastUpdateTime"])));
    let made = parse_time(str_at(csr, &["metadata", "creationTimestamp"]));
    let decided =
        issued(csr) || condition(csr, "Denied").is_some() || condition(csr, "Failed").is_some();
    let (from, keep) = match settled {
        Some(at) if decided => (at, SETTLED),
        _ => (made.unwrap_or_default(), PENDING),
    };
    from.saturating_add(keep).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn settled_requests_go_after_an_hour_and_others_after_a_day() {
        let at = |text: &str| parse_time(text).unwrap();
        let mut csr =
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {}});
        assert_eq!(end(&csr), at("2026-01-02T00:00:00Z"));
        csr["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]);
        assert_eq!(
            end(&csr),
            at("2026-01-02T00:00:00Z"),
            "approved, but not signed"
        );
        csr["status"]["certificate"] = "eA==".into();
        assert_eq!(end(&csr), at("2026-01-01T06:00:00Z"));
    }
}
