//! What the failure of a pod comes to: `podFailurePolicy`, and how long to wait before the next. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy>
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-backoff-failure-policy>

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern,
};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use crate::cache::Object;

/// The pause after the first failure, and the longest; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What the policy says about the failure of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Judgement {
    /// It counts towards the limits.
    #[default]
    Counts,
    Ignored,
    /// Its index has failed.
    FailsIndex,
    /// The job has failed; why.
    FailsJob(String),
}

/// Judges a failed pod by the first rule that fits.
pub fn judge(policy: &PodFailurePolicy, pod: &Object, status: &PodStatus) -> Judgement {
    let (namespace, name) = (&pod.meta.namespace, &pod.meta.name);
    for (index, rule) in policy.rules.iter().enumerate() {
        let why = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => exit_code(status, codes).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code} matching {} rule at index {index}", rule.action)
            }),
            (None, Some(patterns)) => condition(status, patterns).map(|condition| {
                format!("Pod {namespace}/{name} has condition {condition} matching {} rule at index {index}", rule.action)
            }),
            (None, None) => None,
        };
        match (why, rule.action.as_str()) {
            (Some(_), "Ignore") => return Judgement::Ignored,
            (Some(_), "Count") => return Judgement::Counts,
            (Some(_), "FailIndex") => return Judgement::FailsIndex,
            (Some(why), "FailJob") => return Judgement::FailsJob(why),
            _ => {}
        }
    }
    Judgement::Counts
}

/// The first container that ended as the rule says, ordinary ones before init containers, and its exit code.
fn exit_code<'a>(
    status: &'a PodStatus,
    rule: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let fits = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = rule.container_name.as_ref();
        let listed = rule.values.contains(&code);
        let wanted = match rule.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (code != 0 && wanted && named.is_none_or(|name| *name == container.name))
            .then_some((container.name.as_str(), code))
    };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find_map(fits)
}

fn condition<'a>(
    status: &'a PodStatus,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Option<&'a str> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| {
        patterns.iter().any(|p| {
            p.type_ == condition.type_ && p.status.as_deref().unwrap_or("True") == condition.status
        })
    })?;
    Some(&found.type_)
}

/// How long to wait before the next pod after so many failures in a row, the last of them then.
pub fn pause(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    let Ok(doublings) = u32::try_from(failures - 1) else {
        return Duration::ZERO;
    };
    let pause = FIRST_PAUSE
        .saturating_mul(1 << doublings.min(10))
        .min(LONGEST_PAUSE);
    let passed = now.duration_since(last);
    match Duration::try_from(passed) {
        Ok(passed) => pause.saturating_sub(passed),
        // The clocks of two machines differ; or ours was set back by much, and nobody waits until it has caught up.
        Err(_) if passed.unsigned_abs() > LONGEST_PAUSE => Duration::ZERO,
        Err(_) => pause,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::cache::{FieldSet, detached};

    #[test]
    fn pauses_double_and_end() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let after = |failures, passed: i64| {
            let last = Timestamp::from_second(now.as_second() - passed).unwrap();
            pause(failures, last, now).as_secs()
        };
        assert_eq!(after(0, 0), 0);
        assert_eq!(after(1, 0), 10);
        assert_eq!(after(1, 4), 6);
        assert_eq!(after(1, 11), 0);
        assert_eq!(after(2, 0), 20);
        assert_eq!(after(7, 0), 600);
        assert_eq!(after(i32::MAX, 0), 600);
        // Of a clock that is a bit ahead, and of one that was set back by a year.
        assert_eq!(after(1, -5), 10);
        assert_eq!(after(1, -31_536_000), 0);
    }

    #[test]
    fn the_first_rule_that_fits_judges() {
        let rule = |action: &str, more: serde_json::Value| {
            let mut rule = json!({"action": action});
            amphipod_api::patch::apply_merge_patch(&mut rule, &more);
            rule
        };
        let codes = |operator: &str, values: &[i32]| json!({"onExitCodes": {"operator": operator, "values": values}});
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            rule("FailJob", codes("In", &[42])),
            rule("FailIndex", json!({"onExitCodes": {"containerName": "main", "operator": "In", "values": [7]}})),
            rule("Ignore", json!({"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})),
            rule("Count", codes("NotIn", &[3])),
            rule("Ignore", codes("In", &[3])),
        ]}))
        .unwrap();
        let pod = detached(
            &mut json!({"metadata": {"name": "a", "namespace": "n"}}),
            1,
            &FieldSet::default(),
        )
        .unwrap();
        let ended = |name: &str, code: i32| -> PodStatus {
            serde_json::from_value(json!({"containerStatuses": [{
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}}]}))
            .unwrap()
        };
        let judged = |status: &PodStatus| judge(&policy, &pod, status);
        assert_eq!(
            judged(&ended("main", 42)),
            Judgement::FailsJob(
                "Container main for pod n/a failed with exit code 42 matching FailJob rule at index 0".into()
            )
        );
        assert_eq!(judged(&ended("main", 7)), Judgement::FailsIndex);
        assert_eq!(judged(&ended("other", 7)), Judgement::Counts);
        assert_eq!(judged(&ended("main", 3)), Judgement::Ignored);
        let mut disrupted = ended("main", 137);
        disrupted.conditions =
            serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True"}]))
                .unwrap();
        assert_eq!(judged(&disrupted), Judgement::Ignored);
    }
}
