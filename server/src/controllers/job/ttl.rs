//! Deletes jobs that ended a while ago, if they say so. <https://kubernetes.io/docs/concepts/workloads/controllers/ttlafterfinished/>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use super::ending::ended;
use super::{LONGEST_WAIT, RESOURCE};
use crate::controllers::{
    Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself, typed,
};
use crate::registry::{DeleteOptions, Propagation};

pub struct TtlAfterFinished;

impl Controller for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(RESOURCE, itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

/// How long the job may still stay; `None`: until somebody deletes it.
fn time_left(job: &Job, now: Timestamp) -> Option<Duration> {
    let stays = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = ended(job.status.as_ref()?)?;
    let left = ended.as_millisecond() + i64::from(stays) * 1000 - now.as_millisecond();
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    if object.meta.is_deleting() {
        return Ok(Outcome::Done);
    }
    match time_left(&typed(&object)?, Timestamp::now()) {
        None => Ok(Outcome::Done),
        Some(Duration::ZERO) => {
            let context = tools.context(RESOURCE, &key.namespace)?;
            let options = DeleteOptions {
                uid: Some(object.meta.uid.to_string()),
                // Only as it is: it may just have been given more time.
                resource_version: Some(object.meta.revision.to_string()),
                propagation: Some(Propagation::Foreground),
                ..DeleteOptions::default()
            };
            match tools.registry.delete(&context, &key.name, &options).await {
                Err(status) if !status.is_not_found() => Err(status),
                _ => Ok(Outcome::Done),
            }
        }
        Some(left) => Ok(Outcome::After(left.min(LONGEST_WAIT))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_stays_as_long_as_it_says_after_its_end() {
        let job = |ttl: Option<i32>, condition: &str| -> Job {
            serde_json::from_value(json!({
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap()
        };
        let left =
            |job: Job, now: &str| time_left(&job, now.parse().unwrap()).map(|left| left.as_secs());
        let now = "2026-01-01T00:00:04Z";
        assert_eq!(left(job(Some(10), "Complete"), now), Some(6));
        assert_eq!(left(job(Some(4), "Failed"), now), Some(0));
        assert_eq!(left(job(Some(0), "Failed"), now), Some(0));
        assert_eq!(left(job(Some(10), "SuccessCriteriaMet"), now), None);
        assert_eq!(left(job(None, "Complete"), now), None);
    }
}
