//! The status of a replica set, from its pods. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::controllers::pods::Pod;
use crate::controllers::some;

/// Why pods could not be made or deleted.
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`
    pub reason: &'static str,
    pub message: String,
}

/// The status, and when it will be another one if nothing happens: a ready pod becomes available.
pub fn of(
    set: &ReplicaSet,
    pods: &[Pod],
    failure: Option<Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let wanted_labels = spec
        .template
        .and_then(|template| template.metadata?.labels)
        .unwrap_or_default();
    let labeled = |pod: &Pod| {
        wanted_labels
            .iter()
            .all(|(key, value)| pod.object.meta.labels.get(key) == Some(value))
    };
    let active = || pods.iter().filter(|pod| pod.is_active());
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let terminating = pods.iter().filter(|pod| pod.is_terminating()).count();
    let next = active()
        .filter_map(|pod| pod.available_in(min_ready, now))
        .filter(|left| !left.is_zero())
        .min();

    let before = set.status.clone().unwrap_or_default();
    let mut conditions = before.conditions.unwrap_or_default();
    match failure {
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        // The first failure stays as it was told.
        Some(_)
            if conditions
                .iter()
                .any(|condition| condition.type_ == "ReplicaFailure") => {}
        Some(failure) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.message),
            last_transition_time: Some(Time(now)),
        }),
    }
    let status = ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: some(count(&labeled)),
        ready_replicas: some(count(&|pod| pod.ready)),
        available_replicas: some(count(&|pod| pod.is_available(min_ready, now))),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    };
    (status, next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::controllers::replica_set::rank::tests::pod;

    #[test]
    fn pods_are_counted_and_a_ready_one_becomes_available_in_time() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 3},
            "spec": {"replicas": 3, "minReadySeconds": 10, "selector": {}, "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": {"replicas": 0},
        }))
        .unwrap();
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let label = json!({"metadata": {"labels": {"a": "b"}}});
        let pods = [
            pod(
                "available",
                "n",
                "Running",
                Some("2026-01-01T00:00:00Z"),
                label.clone(),
            ),
            pod("ready", "n", "Running", Some("2026-01-01T23:59:57Z"), label),
            pod("other", "n", "Running", None, json!({})),
            pod("over", "n", "Failed", None, json!({})),
            pod(
                "going",
                "n",
                "Running",
                None,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
        ];
        let (status, next) = of(&set, &pods, None, now);
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
                "terminatingReplicas": 1, "observedGeneration": 3})
        );
        assert_eq!(next, Some(Duration::from_secs(7)));
        let failure = Failure {
            reason: "FailedCreate",
            message: "no".into(),
        };
        let (status, _) = of(&set, &pods, Some(failure), now);
        assert_eq!(
            status.conditions.unwrap()[0].reason.as_deref(),
            Some("FailedCreate")
        );
    }
}
