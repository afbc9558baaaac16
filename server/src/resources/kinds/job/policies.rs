//! Validation of a job's `podFailurePolicy` and `successPolicy`, and of lists of indexes.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy>

use std::collections::HashSet;

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, names, text};
use serde_json::Value;

use crate::resources::validate::{Errors, non_negative, one_of, problems};

/// Rules in either policy.
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PATTERNS: usize = 20;
/// Bytes of `succeededIndexes`.
const LONGEST_INDEXES: usize = 64 * 1024;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

/// `podFailurePolicy` of a job's spec.
pub fn pod_failure(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let rules = array_at(spec, &["podFailurePolicy", "rules"]);
    let path = path.child("rules");
    if rules.len() > MOST_RULES {
        errors.push(FieldError::too_many(path, rules.len(), MOST_RULES));
    }
    let containers: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| array_at(spec, &["template", "spec", list]))
        .map(|container| str_at(container, &["name"]))
        .collect();
    let per_index = spec.get("backoffLimitPerIndex").is_some();
    for (index, rule) in rules.iter().enumerate() {
        failure_rule(rule, &path.index(index), per_index, &containers, errors);
    }
}

fn failure_rule(
    rule: &Value,
    path: &FieldPath,
    per_index: bool,
    containers: &HashSet<&str>,
    errors: &mut Errors,
) {
    let action = path.child("action");
    match str_at(rule, &["action"]) {
        "FailIndex" if !per_index => errors.push(FieldError::invalid(
            action,
            "FailIndex",
            "requires the backoffLimitPerIndex to be set",
        )),
        given => required_one_of(&action, given, &ACTIONS, errors),
    }
    let codes = rule.get("onExitCodes");
    let patterns = array_at(rule, &["onPodConditions"]);
    if let Some(codes) = codes {
        exit_codes(codes, &path.child("onExitCodes"), containers, errors);
    }
    pod_conditions(patterns, &path.child("onPodConditions"), errors);
    let mut whole = |why: &str| {
        errors.push(FieldError {
            value: None,
            ..FieldError::invalid(path, Value::Null, why)
        });
    };
    match (codes, patterns) {
        (Some(_), [_, ..]) => {
            whole("specifying both OnExitCodes and OnPodConditions is not supported");
        }
        (None, []) => whole("specifying one of OnExitCodes and OnPodConditions is required"),
        _ => {}
    }
}

fn exit_codes(codes: &Value, path: &FieldPath, containers: &HashSet<&str>, errors: &mut Errors) {
    let operator = str_at(codes, &["operator"]);
    required_one_of(&path.child("operator"), operator, &["In", "NotIn"], errors);
    if let Some(name) = codes.get("containerName").and_then(Value::as_str)
        && !containers.contains(name)
    {
        errors.push(FieldError::invalid(
            path.child("containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        ));
    }
    let values = array_at(codes, &["values"]);
    let path = path.child("values");
    let mut list = |why: &str| {
        let given = codes.get("values").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(path, given, why));
    };
    if values.is_empty() {
        list("at least one value is required");
    }
    if !values.is_sorted_by_key(Value::as_i64) {
        list("must be ordered");
    }
    if values.len() > MOST_EXIT_CODES {
        errors.push(FieldError::too_many(path, values.len(), MOST_EXIT_CODES));
    }
    let mut seen = HashSet::new();
    for (index, value) in values.iter().enumerate() {
        let path = path.index(index);
        if operator == "In" && value.as_i64() == Some(0) {
            let why = "must not be 0 for the In operator";
            errors.push(FieldError::invalid(path, value.clone(), why));
        }
        if !seen.insert(value.as_i64()) {
            errors.push(FieldError::duplicate(path, value.clone()));
        }
    }
}

fn pod_conditions(patterns: &[Value], path: &FieldPath, errors: &mut Errors) {
    if patterns.len() > MOST_PATTERNS {
        errors.push(FieldError::too_many(path, patterns.len(), MOST_PATTERNS));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        let kind = str_at(pattern, &["type"]);
        problems(
            &path.child("type"),
            kind,
            names::qualified_name(kind),
            errors,
        );
        let status = str_at(pattern, &["status"]);
        let known = ["False", "True", "Unknown"];
        required_one_of(&path.child("status"), status, &known, errors);
    }
}

/// One of these texts; an empty one is said to be missing.
fn required_one_of(path: &FieldPath, given: &str, known: &[&str], errors: &mut Errors) {
    if given.is_empty() {
        let known: Vec<String> = known.iter().map(|word| text::quote(word)).collect();
        let why = format!("valid values: [{}]", known.join(" "));
        errors.push(FieldError::required(path, why));
    } else {
        one_of(path, given, known, errors);
    }
}

/// `successPolicy` of an indexed job's spec.
pub fn success(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let rules = array_at(spec, &["successPolicy", "rules"]);
    let path = path.child("rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(path, why));
    }
    if rules.len() > MOST_RULES {
        errors.push(FieldError::too_many(path, rules.len(), MOST_RULES));
    }
    let completions = i64_at(spec, &["completions"]).unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        success_rule(rule, &path.index(index), completions, errors);
    }
}

fn success_rule(rule: &Value, path: &FieldPath, completions: i64, errors: &mut Errors) {
    let wanted = rule.get("succeededIndexes").and_then(Value::as_str);
    let count = i64_at(rule, &["succeededCount"]);
    if wanted.is_none() && count.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path, why));
    }
    let mut total = 0;
    if let Some(wanted) = wanted {
        let path = path.child("succeededIndexes");
        if wanted.len() > LONGEST_INDEXES {
            errors.push(FieldError::too_long(path, LONGEST_INDEXES));
        }
        match indexes(wanted, completions) {
            Ok(intervals) => total = intervals.iter().map(|(x, y)| y - x + 1).sum(),
            Err(why) => {
                let why = format!("error parsing succeededIndexes: {why}");
                errors.push(FieldError::invalid(path, wanted, why));
            }
        }
    }
    let Some(count) = count else {
        return;
    };
    let path = path.child("succeededCount");
    non_negative(&path, Some(&count.into()), errors);
    if count > completions {
        let why = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        errors.push(FieldError::invalid(path, count, why));
    }
    if wanted.is_some() && count > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(FieldError::invalid(path, count, why));
    }
}

/// Reads a list of indexes and intervals, `0,3-5`, which must ascend and be below `completions`.
pub fn indexes(list: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut intervals: Vec<(i64, i64)> = Vec::new();
    if list.is_empty() {
        return Ok(intervals);
    }
    let number = |part: &str| {
        let quoted = text::quote(part);
        match part.parse::<i64>() {
            Err(_) => Err(format!(
                "cannot convert string to integer for index: {quoted}"
            )),
            Ok(index) if index >= completions => Err(format!("too large index: {quoted}")),
            Ok(index) => Ok(index),
        }
    };
    let ascend = |before: i64, next: i64, ok: bool| match ok {
        true => Ok(()),
        false => Err(format!(
            "non-increasing order, previous: {before}, current: {next}"
        )),
    };
    for fragment in list.split(',') {
        let parts: Vec<&str> = fragment.split('-').collect();
        let (first, last) = match parts[..] {
            [one] => (number(one)?, number(one)?),
            [first, last] => {
                let (first, last) = (number(first)?, number(last)?);
                ascend(first, last, first < last)?;
                (first, last)
            }
            _ => {
                let quoted = text::quote(fragment);
                return Err(format!(
                    "the fragment {quoted} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some((_, before)) = intervals.last() {
            ascend(*before, first, *before < first)?;
        }
        intervals.push((first, last));
    }
    Ok(intervals)
}
