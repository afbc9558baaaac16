//! Validation of a job's spec. Source: `ValidateJob` and `ValidateJobSpecUpdate` in `pkg/apis/batch/validation` (v1.36).

use amphipod_api::meta::{at, bool_at, child, i64_at, map_at, name, str_at, uid};
use amphipod_api::{FieldError, FieldPath, LabelSelector, names};
use serde_json::{Value, json};

use super::super::workload::{SPEC, immutable_selector};
use super::{NAME_LABELS, UID_LABELS, policies};
use crate::resources::validate::{
    Errors, immutable, label_selector, non_negative, one_of, pod, problems,
};

/// From here on, much of an indexed job's status could become too large.
const MANY_COMPLETIONS: i64 = 100_000;
const MOST_INDEXED: i64 = 100_000;
const MOST_WITH_MANY_COMPLETIONS: i64 = 10_000;
const LONGEST_MANAGED_BY: usize = 63;

pub fn is_indexed(spec: &Value) -> bool {
    str_at(spec, &["completionMode"]) == "Indexed"
}

/// Whether labels and selector are those that are generated, if they are to be.
pub fn generated_selector(obj: &Value, errors: &mut Errors) {
    let spec = &obj["spec"];
    if bool_at(spec, &["manualSelector"]) == Some(true) || spec.get("selector").is_none() {
        return;
    }
    let labels = map_at(spec, &["template", "metadata", "labels"]);
    let path = FieldPath::new("spec.template.metadata.labels");
    let mut expected = serde_json::Map::new();
    for (keys, value) in [(UID_LABELS, uid(obj)), (NAME_LABELS, name(obj))] {
        for key in keys {
            let why = format!("must be '{value}'");
            match labels.get(key) {
                None => errors.push(FieldError::required(path.key(key), why)),
                Some(given) if *given != value => {
                    errors.push(FieldError::invalid(path.key(key), labels.clone(), why));
                }
                Some(_) => {}
            }
            expected.insert(key.to_owned(), value.into());
        }
    }
    if LabelSelector::from_object(&spec["selector"]).is_ok_and(|s| !s.matches(&expected)) {
        errors.push(FieldError::invalid(
            SPEC.child("selector"),
            spec["selector"].clone(),
            "`selector` not auto-generated",
        ));
    }
}

/// The selector itself, and that it selects the template.
pub fn selector(spec: &Value, errors: &mut Errors) {
    let Some(selector) = spec.get("selector") else {
        errors.push(FieldError::required(SPEC.child("selector"), ""));
        return;
    };
    label_selector(selector, &SPEC.child("selector"), errors);
    let labels = map_at(spec, &["template", "metadata", "labels"]);
    if LabelSelector::from_object(selector).is_ok_and(|s| !s.matches(labels)) {
        errors.push(FieldError::invalid(
            SPEC.child("template.metadata.labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// The pods of an indexed job have host names, which must be possible.
pub fn host_names(obj: &Value, errors: &mut Errors) {
    let spec = &obj["spec"];
    let completions = i64_at(spec, &["completions"]).unwrap_or(0);
    if !is_indexed(spec) || completions <= 0 {
        return;
    }
    let longest = format!("{}-{}", name(obj), completions - 1);
    if !names::dns1123_label(&longest).is_empty() {
        let why = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.push(FieldError::invalid("metadata.name", name(obj), why));
    }
}

/// What holds for the specs of jobs and of templates of jobs.
pub fn spec(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(&path.child(field), spec.get(field), errors);
    }
    if spec.get("maxFailedIndexes").is_some() && spec.get("backoffLimitPerIndex").is_none() {
        let why = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(
            path.child("backoffLimitPerIndex"),
            why,
        ));
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        managed_by(manager, &path.child("managedBy"), errors);
    }
    let mode = str_at(spec, &["completionMode"]);
    if !mode.is_empty() {
        one_of(
            &path.child("completionMode"),
            mode,
            &["NonIndexed", "Indexed"],
            errors,
        );
    }
    if is_indexed(spec) {
        indexed(spec, path, errors);
    } else if mode.is_empty() || mode == "NonIndexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(given) = spec.get(field) {
                let why = "requires indexed completion mode";
                errors.push(FieldError::invalid(path.child(field), given.clone(), why));
            }
        }
    }
    if spec.get("podFailurePolicy").is_some() {
        policies::pod_failure(spec, &path.child("podFailurePolicy"), errors);
    }
    match spec.get("successPolicy") {
        Some(_) if is_indexed(spec) => {
            policies::success(spec, &path.child("successPolicy"), errors);
        }
        Some(policy) => errors.push(FieldError::invalid(
            path.child("successPolicy"),
            policy.clone(),
            "requires indexed completion mode",
        )),
        None => {}
    }
    let replace = str_at(spec, &["podReplacementPolicy"]);
    if !replace.is_empty() {
        let known: &[&str] = match spec.get("podFailurePolicy") {
            Some(_) => &["Failed"],
            None => &["Failed", "TerminatingOrFailed"],
        };
        one_of(&path.child("podReplacementPolicy"), replace, known, errors);
    }
    template(spec, &path.child("template"), errors);
}

/// The fields of an indexed job, whose status grows with its indexes.
fn indexed(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let number = |field: &str| i64_at(spec, &[field]);
    let completions = number("completions");
    if completions.is_none() {
        errors.push(FieldError::required(
            path.child("completions"),
            "when completion mode is Indexed",
        ));
    }
    let mut most = |field: &str, most: i64, why: String| {
        if let Some(given) = number(field).filter(|given| *given > most) {
            errors.push(FieldError::invalid(path.child(field), given, why));
        }
    };
    most(
        "parallelism",
        MOST_INDEXED,
        format!("must be less than or equal to {MOST_INDEXED} when completion mode is Indexed"),
    );
    if let Some(completions) = completions {
        most(
            "maxFailedIndexes",
            completions,
            "must be less than or equal to completions".into(),
        );
    }
    most(
        "maxFailedIndexes",
        MOST_INDEXED,
        format!("must be less than or equal to {MOST_INDEXED}"),
    );
    if completions.is_some_and(|many| many > MANY_COMPLETIONS)
        && number("backoffLimitPerIndex").is_some()
    {
        for field in ["parallelism", "maxFailedIndexes"] {
            let why = format!(
                "must be less than or equal to {MOST_WITH_MANY_COMPLETIONS} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
            );
            most(field, MOST_WITH_MANY_COMPLETIONS, why);
        }
        if number("maxFailedIndexes").is_none() {
            let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.push(FieldError::required(path.child("maxFailedIndexes"), why));
        }
    }
}

fn managed_by(manager: &str, path: &FieldPath, errors: &mut Errors) {
    match manager.split_once('/') {
        _ if manager.is_empty() => errors.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            problems(path, domain, names::dns1123_subdomain(domain), errors);
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !rest.bytes().all(fits) {
                let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.push(FieldError::invalid(path, rest, why));
            }
        }
        _ => errors.push(FieldError::invalid(
            path,
            manager,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        )),
    }
    if manager.len() > LONGEST_MANAGED_BY {
        errors.push(FieldError::too_long(path, LONGEST_MANAGED_BY));
    }
}

fn template(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    errors.extend(pod::pod_template(&spec["template"], path));
    let path = path.child("spec.restartPolicy");
    match str_at(spec, &["template", "spec", "restartPolicy"]) {
        // Always is what it becomes when nothing is said.
        "" | "Always" => errors.push(FieldError::required(
            path,
            "valid values: \"OnFailure\", \"Never\"",
        )),
        "Never" => {}
        "OnFailure" if spec.get("podFailurePolicy").is_some() => errors.push(FieldError::invalid(
            path,
            "OnFailure",
            "only \"Never\" is supported when podFailurePolicy is specified",
        )),
        given => one_of(&path, given, &["OnFailure", "Never"], errors),
    }
}

/// What may not change.
pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, had) = (&new["spec"], &old["spec"]);
    completions(spec, had, errors);
    immutable_selector(new, old, errors);
    let template = had.get("template").map(|template| {
        // Where its pods are to run may still be decided on, as long as there were none.
        let waits =
            bool_at(had, &["suspend"]) == Some(true) && at(old, &["status", "startTime"]).is_none();
        match waits {
            true => with_directives_of(template, &spec["template"]),
            false => template.clone(),
        }
    });
    immutable(
        &SPEC.child("template"),
        spec.get("template"),
        template.as_ref(),
        errors,
    );
    for field in [
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(&SPEC.child(field), spec.get(field), had.get(field), errors);
    }
}

/// An indexed job is made larger and smaller as a whole; for others the number is fixed.
fn completions(spec: &Value, had: &Value, errors: &mut Errors) {
    let path = SPEC.child("completions");
    let (new, old) = (spec.get("completions"), had.get("completions"));
    if !is_indexed(spec) {
        immutable(&path, new, old, errors);
    } else if let Some(new) = new
        && Some(new) != old
        && Some(new) != spec.get("parallelism")
    {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid(path, new.clone(), why));
    }
}

/// A template with the labels, annotations and scheduling directives of another: KEP-2926.
fn with_directives_of(template: &Value, other: &Value) -> Value {
    let mut changed = template.clone();
    let mut affinity = map_at(template, &["spec", "affinity"]).clone();
    match at(other, &["spec", "affinity", "nodeAffinity"]) {
        Some(nodes) => affinity.insert("nodeAffinity".into(), nodes.clone()),
        None => affinity.remove("nodeAffinity"),
    };
    // No affinity, and one that asks for nothing, are the same.
    let empty = at(other, &["spec", "affinity"]).filter(|other| **other == json!({}));
    match affinity.is_empty() {
        true => set(&mut changed, "spec", "affinity", empty),
        false => set(&mut changed, "spec", "affinity", Some(&affinity.into())),
    }
    for (parent, field) in [
        ("metadata", "annotations"),
        ("metadata", "labels"),
        ("spec", "nodeSelector"),
        ("spec", "tolerations"),
        ("spec", "schedulingGates"),
    ] {
        set(&mut changed, parent, field, at(other, &[parent, field]));
    }
    changed
}

fn set(into: &mut Value, parent: &str, field: &str, value: Option<&Value>) {
    let parent = child(into, parent);
    match value {
        Some(value) => parent.insert(field.to_owned(), value.clone()),
        None => parent.remove(field),
    };
}

/// What is allowed, and may not work.
pub fn warnings(spec: &Value, path: &FieldPath) -> Vec<String> {
    let above = |field: &str, most: i64| i64_at(spec, &[field]).is_some_and(|given| given > most);
    let many = is_indexed(spec)
        && above("completions", MANY_COMPLETIONS)
        && above("parallelism", MOST_WITH_MANY_COMPLETIONS);
    let text = format!(
        "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
    );
    many.then_some(text).into_iter().collect()
}
