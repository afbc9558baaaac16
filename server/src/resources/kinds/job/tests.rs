//! Defaults, validation and columns of jobs.

#![allow(clippy::unwrap_used)]

use amphipod_api::patch::apply_merge_patch;
use serde_json::{Value, json};

use super::*;

/// A job as it is stored, with `more` merged in.
fn job(more: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "work", "namespace": "ns", "uid": "u"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}}},
    });
    apply_merge_patch(&mut job, &more);
    Job.default(&mut job);
    if bool_at(&job, &["spec", "manualSelector"]) != Some(true) {
        generate_selector(&mut job);
        label_like_template(&mut job);
    }
    job
}

fn errors(job: &Value) -> Vec<String> {
    let errors = Job.validate_create(job);
    errors.iter().map(ToString::to_string).collect()
}

fn refused(old: &Value, change: Value) -> Vec<String> {
    let mut new = old.clone();
    apply_merge_patch(&mut new, &change);
    let errors = Job.validate_update(&new, old, None);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_upstreams() {
    let made = job(json!({}));
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        (
            "selector",
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}),
        ),
    ] {
        assert_eq!(made["spec"][field], value, "{field}");
    }
    let labels = json!({
        "batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
        "batch.kubernetes.io/job-name": "work", "job-name": "work",
    });
    assert_eq!(made["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(made["metadata"]["labels"], labels);
    assert_eq!(errors(&made), [""; 0]);
    // A work queue, and a limit for each index.
    let queue = job(json!({"spec": {"parallelism": 3}}));
    assert_eq!(queue["spec"].get("completions"), None);
    let each = json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1});
    assert_eq!(job(json!({"spec": each}))["spec"]["backoffLimit"], i32::MAX);
    let policy =
        json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let made = job(json!({"spec": {"podFailurePolicy": policy}}));
    assert_eq!(made["spec"]["podReplacementPolicy"], "Failed");
    let pattern = &made["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0];
    assert_eq!(pattern["status"], "True");
}

#[test]
fn what_is_wrong_is_told_in_upstreams_words() {
    let code = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let codes = |values: &[i32]| {
        code(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": values}}))
    };
    let indexed = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 3});
        apply_merge_patch(&mut spec, &more);
        spec
    };
    let rules = |rule: Value| indexed(json!({"successPolicy": {"rules": [rule]}}));
    for (spec, wrong) in [
        (
            json!({"template": {"spec": {"restartPolicy": null}}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            json!({"completions": -1}),
            "spec.completions: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"completionMode": "Odd"}),
            "spec.completionMode: Unsupported value: \"Odd\": supported values: \"NonIndexed\", \"Indexed\"",
        ),
        (
            json!({"completionMode": "Indexed", "parallelism": 1}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            json!({"backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            indexed(json!({"maxFailedIndexes": 1})),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            indexed(json!({"maxFailedIndexes": 4, "backoffLimitPerIndex": 1})),
            "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions",
        ),
        (
            json!({"managedBy": "me"}),
            "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        (
            json!({"podReplacementPolicy": "Never"}),
            "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"",
        ),
        (
            codes(&[0]),
            "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
        ),
        (
            codes(&[2, 1]),
            "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1]: must be ordered",
        ),
        (
            codes(&[2, 2]),
            "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Duplicate value: 2",
        ),
        (
            code(
                json!({"action": "FailIndex", "onPodConditions": [{"type": "A", "status": "True"}]}),
            ),
            "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
        ),
        (
            code(json!({"onPodConditions": [{"type": "A", "status": "True"}]})),
            "spec.podFailurePolicy.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
        ),
        (
            code(json!({"action": "Count"})),
            "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (
            rules(json!({"succeededIndexes": "0,5"})),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0,5\": error parsing succeededIndexes: too large index: \"5\"",
        ),
        (
            rules(json!({"succeededIndexes": "0-1", "succeededCount": 3})),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            json!({"successPolicy": {"rules": []}}),
            "spec.successPolicy: Invalid value: {\"rules\":[]}: requires indexed completion mode",
        ),
        (
            json!({"template": {"metadata": {"labels": {"job-name": "other"}}}}),
            "spec.template.metadata.labels[job-name]: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"work\",\"controller-uid\":\"u\",\"job-name\":\"other\"}: must be 'work'",
        ),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            "spec.template.metadata.labels: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"work\",\"controller-uid\":\"u\",\"job-name\":\"work\"}: `selector` does not match template `labels`",
        ),
    ] {
        let errors = errors(&job(json!({"spec": spec})));
        assert!(
            errors.iter().any(|error| error == wrong),
            "{wrong}\nnot in {errors:#?}"
        );
    }
    let long = "x".repeat(62);
    let named = job(json!({"metadata": {"name": long}, "spec": indexed(json!({}))}));
    let wrong = format!(
        "metadata.name: Invalid value: \"{long}\": will not able to create pod with invalid DNS label: {long}-2"
    );
    assert_eq!(errors(&named), [wrong]);
}

#[test]
fn what_makes_a_job_what_it_is_may_not_change() {
    let old = job(json!({}));
    for (change, wrong) in [
        (
            json!({"completions": 2}),
            "spec.completions: Invalid value: 2: field is immutable",
        ),
        (
            json!({"completionMode": "Indexed"}),
            "spec.completionMode: Invalid value: \"Indexed\": field is immutable",
        ),
        (
            json!({"managedBy": "a.io/b"}),
            "spec.managedBy: Invalid value: \"a.io/b\": field is immutable",
        ),
    ] {
        assert_eq!(refused(&old, json!({"spec": change})), [wrong]);
    }
    let changed = json!({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}});
    let template = refused(&old, changed.clone());
    assert!(template[0].starts_with("spec.template: Invalid value: "));
    for field in [
        "parallelism",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ] {
        assert_eq!(
            refused(&old, json!({"spec": {field: 3}})),
            [""; 0],
            "{field}"
        );
    }
    // One that waits may still be told where to run.
    let waits = job(json!({"spec": {"suspend": true}}));
    assert_eq!(refused(&waits, changed.clone()), [""; 0]);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}});
    let directed = json!({"spec": {"template": {"spec": {"affinity": affinity}, "metadata": {"annotations": {"x": "y"}}}}});
    assert_eq!(refused(&waits, directed.clone()), [""; 0]);
    assert_eq!(refused(&old, directed).len(), 1);
    let other = json!({"spec": {"template": {"spec": {"hostNetwork": true}}}});
    assert_eq!(refused(&waits, other).len(), 1);
    let began =
        job(json!({"spec": {"suspend": true}, "status": {"startTime": "2026-01-01T00:00:00Z"}}));
    assert_eq!(refused(&began, changed).len(), 1);
    // An indexed one grows and shrinks as a whole.
    let indexed =
        job(json!({"spec": {"completionMode": "Indexed", "completions": 3, "parallelism": 3}}));
    assert_eq!(
        refused(
            &indexed,
            json!({"spec": {"completions": 5, "parallelism": 5}})
        ),
        [""; 0]
    );
    assert_eq!(
        refused(&indexed, json!({"spec": {"completions": 5}})),
        [
            "spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism"
        ]
    );
}

#[test]
fn a_status_may_not_take_back_what_it_said() {
    let is = |kind: &str| json!({"type": kind, "status": "True"});
    let start = "2026-01-01T00:00:00Z";
    let told = |old: Value, new: Value| -> Vec<String> {
        let [old, new] = [old, new].map(|status| job(json!({"status": status})));
        let errors = Job.validate_update(&new, &old, Some("status"));
        errors.iter().map(ToString::to_string).collect()
    };
    let done = json!({"conditions": [is("SuccessCriteriaMet"), is("Complete")], "startTime": start, "completionTime": start, "succeeded": 1});
    assert_eq!(told(json!({"startTime": start}), done.clone()), [""; 0]);
    for (old, new, wrong) in [
        (
            json!({}),
            json!({"active": -1}),
            "status.active: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({}),
            json!({"conditions": [is("Complete")], "startTime": start, "completionTime": start}),
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            json!({}),
            json!({"conditions": [is("SuccessCriteriaMet"), is("Complete")], "startTime": start}),
            "status.completionTime: Required value: completionTime is required for Complete jobs",
        ),
        (
            done.clone(),
            json!({"startTime": start, "succeeded": 1}),
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
        ),
        (
            json!({"failed": 2}),
            json!({"failed": 1}),
            "status.failed: Invalid value: 1: cannot decrease the failed counter",
        ),
        (
            json!({}),
            json!({"uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["a"]}}),
            "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
        ),
        (
            json!({}),
            json!({"completedIndexes": "0"}),
            "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
        ),
    ] {
        let errors = told(old, new);
        assert!(
            errors.iter().any(|error| error == wrong),
            "{wrong}\nnot in {errors:#?}"
        );
    }
}

#[test]
fn rows_tell_how_far_a_job_has_come() {
    let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
    let cells = |more: Value| -> Vec<String> {
        let row = Job.row(&job(more), now);
        row[1..4]
            .iter()
            .map(|cell| cell.as_str().unwrap().to_owned())
            .collect()
    };
    let start = "2026-01-01T00:00:00Z";
    assert_eq!(cells(json!({})), ["Running", "0/1", ""]);
    assert_eq!(
        cells(json!({"spec": {"parallelism": 3}, "status": {"startTime": start, "succeeded": 1}})),
        ["Running", "1/1 of 3", "2m"]
    );
    let is = |kind: &str| json!([{"type": kind, "status": "True"}]);
    let status = json!({"startTime": start, "completionTime": "2026-01-01T00:00:07Z", "succeeded": 1, "conditions": is("Complete")});
    assert_eq!(cells(json!({"status": status})), ["Complete", "1/1", "7s"]);
    for kind in ["Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"] {
        assert_eq!(cells(json!({"status": {"conditions": is(kind)}}))[0], kind);
    }
}
