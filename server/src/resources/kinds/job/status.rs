//! Validation of a job's status, which controllers outside the server may write, too (`managedBy`): clients can rely on what it says.
//! Source: `validateJobStatus`, `ValidateJobStatusUpdate` (v1.36). Most rules are looked at only when one of their fields changes, so
//! that a status that is wrong already can be mended step by step.

use std::collections::HashSet;

use amphipod_api::meta::{array_at, at, bool_at, condition_is_true, i64_at, str_at};
use amphipod_api::time::parse_time;
use amphipod_api::{FieldError, FieldPath};
use serde_json::Value;

use super::policies::indexes;
use super::validate::is_indexed;
use crate::resources::validate::{Errors, non_negative};

const STATUS: FieldPath = FieldPath::new("status");

/// An update of the status.
pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        non_negative(&STATUS.child(field), at(new, &["status", field]), errors);
    }
    uncounted(new, errors);
    conditions(new, old, errors);
    times(new, old, errors);
    finished(new, old, errors);
    index_lists(new, old, errors);
    counters(new, old, errors);
}

fn is_finished(job: &Value) -> bool {
    condition_is_true(job, "Complete") || condition_is_true(job, "Failed")
}

/// An error that shows no value.
fn bare(path: FieldPath, why: impl Into<String>) -> FieldError {
    FieldError {
        value: None,
        ..FieldError::invalid(path, Value::Null, why)
    }
}

fn uncounted(new: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for list in ["succeeded", "failed"] {
        let path = STATUS.child("uncountedTerminatedPods");
        let path = path.child(list);
        let uids = array_at(new, &["status", "uncountedTerminatedPods", list]);
        for (index, uid) in uids.iter().enumerate() {
            let uid = uid.as_str().unwrap_or_default();
            if uid.is_empty() {
                errors.push(FieldError::invalid(
                    path.index(index),
                    uid,
                    "must not be empty",
                ));
            } else if !seen.insert(uid) {
                errors.push(FieldError::duplicate(path.index(index), uid));
            }
        }
    }
}

fn conditions(new: &Value, old: &Value, errors: &mut Errors) {
    let is = |kind: &str| condition_is_true(new, kind);
    let was = |kind: &str| condition_is_true(old, kind);
    let changed = |kind: &str| is(kind) != was(kind);
    let mut wrong = |why: String| errors.push(bare(STATUS.child("conditions"), why));
    if is("Complete") && is("Failed") && (changed("Complete") || changed("Failed")) {
        wrong("cannot set Complete=True and Failed=true conditions".into());
    }
    if is("Complete") && is("FailureTarget") && (changed("Complete") || changed("FailureTarget")) {
        wrong("cannot set Complete=True and FailureTarget=true conditions".into());
    }
    if is("Failed") && changed("Failed") && !is("FailureTarget") {
        wrong("cannot set Failed=True condition without the FailureTarget=true condition".into());
    }
    if is("Complete") && changed("Complete") && !is("SuccessCriteriaMet") {
        wrong(
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition"
                .into(),
        );
    }
    for other in ["Failed", "FailureTarget"] {
        if is("SuccessCriteriaMet") && is(other) {
            wrong(format!(
                "cannot set SuccessCriteriaMet=True and {other}=true conditions"
            ));
        }
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if was(kind) && !is(kind) {
            wrong(format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    if was("SuccessCriteriaMet") && !is("SuccessCriteriaMet") {
        wrong("cannot disable the SuccessCriteriaMet=True condition".into());
    }
    if was("Complete") && !was("SuccessCriteriaMet") && is("SuccessCriteriaMet") {
        wrong(
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"
                .into(),
        );
    }
}

fn times(new: &Value, old: &Value, errors: &mut Errors) {
    let [start, end] = ["startTime", "completionTime"].map(|field| str_at(new, &["status", field]));
    let [had_start, had_end] =
        ["startTime", "completionTime"].map(|field| str_at(old, &["status", field]));
    let path = STATUS.child("completionTime");
    let complete = condition_is_true(new, "Complete");
    if end != had_end || complete != condition_is_true(old, "Complete") {
        if !end.is_empty() && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.push(FieldError::invalid(path, end, why));
        }
        if end.is_empty() && complete {
            let why = "completionTime is required for Complete jobs";
            errors.push(FieldError::required(path, why));
        }
    }
    if (start != had_start || end != had_end)
        && let (Some(from), Some(to)) = (parse_time(start), parse_time(end))
        && to < from
    {
        let why = "must be equal to or after `startTime`";
        errors.push(FieldError::invalid(path, end, why));
    }
    if !end.is_empty() && !had_end.is_empty() && end != had_end {
        errors.push(FieldError::invalid(path, end, "field is immutable"));
    }
    if !had_start.is_empty()
        && start != had_start
        && bool_at(new, &["spec", "suspend"]) != Some(true)
    {
        let why = "startTime cannot be removed for unsuspended job";
        errors.push(FieldError::required(STATUS.child("startTime"), why));
    }
}

/// What a finished job has no more.
fn finished(new: &Value, old: &Value, errors: &mut Errors) {
    let count = |job: &Value, field: &str| i64_at(job, &["status", field]).unwrap_or(0);
    let changed = |field: &str| at(new, &["status", field]) != at(old, &["status", field]);
    let ready = count(new, "ready");
    if ready > count(new, "active") && (changed("ready") || changed("active")) {
        let why = "cannot set more ready pods than active";
        errors.push(FieldError::invalid(STATUS.child("ready"), ready, why));
    }
    if !is_finished(new) {
        return;
    }
    let ends = !is_finished(old);
    for field in ["active", "terminating"] {
        let left = count(new, field);
        if left > 0 && (ends || changed(field)) {
            let why = format!("{field}>0 is invalid for finished job");
            errors.push(FieldError::invalid(STATUS.child(field), left, why));
        }
    }
    if str_at(new, &["status", "startTime"]).is_empty() && (ends || changed("startTime")) {
        let why = "startTime is required for finished job";
        errors.push(FieldError::required(STATUS.child("startTime"), why));
    }
    let field = "uncountedTerminatedPods";
    let left = ["succeeded", "failed"]
        .iter()
        .any(|list| !array_at(new, &["status", field, list]).is_empty());
    if left && (ends || changed(field)) {
        errors.push(FieldError::invalid(
            STATUS.child(field),
            new["status"][field].clone(),
            "must be empty for finished job",
        ));
    }
}

fn index_lists(new: &Value, old: &Value, errors: &mut Errors) {
    let of = |job: &Value, field: &str| {
        at(job, &["status", field])
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let spec = &new["spec"];
    let completions = i64_at(spec, &["completions"]);
    let mut lists = Vec::new();
    for field in ["completedIndexes", "failedIndexes"] {
        let given = of(new, field);
        let changed = given != of(old, field);
        let path = STATUS.child(field);
        let list = given.clone().unwrap_or_default();
        let read = completions.map(|completions| indexes(&list, completions));
        if changed && let Some(Err(why)) = &read {
            let why = format!("error parsing {field}: {why}");
            errors.push(FieldError::invalid(path, list.clone(), why));
        }
        let misplaced = match field {
            "completedIndexes" => (!list.is_empty() && !is_indexed(spec)).then_some(
                "cannot set non-empty completedIndexes when non-indexed completion mode",
            ),
            _ => (given.is_some() && spec.get("backoffLimitPerIndex").is_none())
                .then_some("cannot set non-null failedIndexes when backoffLimitPerIndex is null"),
        };
        if let Some(why) = misplaced.filter(|_| changed) {
            errors.push(FieldError::invalid(path, list.clone(), why));
        }
        lists.push((list, changed, read));
    }
    if let [
        (_, completed_changed, Some(Ok(completed))),
        (text, failed_changed, Some(Ok(failed))),
    ] = &lists[..]
        && (*completed_changed || *failed_changed)
    {
        let both = completed.iter().find_map(|(x, y)| {
            let other = failed.iter().find(|(from, to)| x <= to && from <= y)?;
            Some((*x).max(other.0))
        });
        if let Some(index) = both {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            let path = STATUS.child("failedIndexes");
            errors.push(FieldError::invalid(path, text.as_str(), why));
        }
    }
}

fn counters(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = &new["spec"];
    // One that is made smaller as a whole forgets indexes.
    let shrinks = is_indexed(spec) && spec.get("completions") == spec.get("parallelism");
    for field in ["failed", "succeeded"] {
        let [is, was] = [new, old].map(|job| i64_at(job, &["status", field]).unwrap_or(0));
        if is < was && !(field == "succeeded" && shrinks) {
            let why = format!("cannot decrease the {field} counter");
            errors.push(FieldError::invalid(STATUS.child(field), is, why));
        }
    }
}
