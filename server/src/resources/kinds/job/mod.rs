//! Job: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/>.

mod policies;
mod status;
mod validate;

use amphipod_api::meta::{
    at, bool_at, child, condition_is_true, i64_at, is_deleting, map_at, metadata_mut,
    name as name_of, str_at, uid,
};
use amphipod_api::time::{human_duration, parse_time};
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use super::workload::{SPEC, default_template, template_warnings};
use crate::resources::common::{
    create_with_status, fill, fill_text, items_mut, object_mut, spec_mut, update_with_status,
};
use crate::resources::table::{age_cell, containers_and_images, name, selector, since};
use crate::resources::{Column, Descriptor, SelectableField, Strategy, StrategyContext};

pub(super) use validate::spec as validate_spec;

/// Labels of a job's pods with the uid of the job, the old name of the label first.
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
/// Labels of a job's pods with the name of the job, the old name of the label first.
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Job>("batch", "v1", "Job", "jobs")
        .in_all()
        .status()
        .fields(vec![
            SelectableField::at("status.successful", "status.succeeded").with_default("0"),
        ])
        .columns(vec![
            Column::name(),
            Column::new("Status", "How far the job has come."),
            Column::new("Completions", "Pods that succeeded, of those wanted."),
            Column::new("Duration", "How long it has run, or ran."),
            Column::age(),
            Column::new("Containers", "Names of the containers in the template.").wide(),
            Column::new("Images", "Images of the containers in the template.").wide(),
            Column::new("Selector", "Label selector of the pods.").wide(),
        ])
        .strategy(Job)
        .build()
}

struct Job;

impl Strategy for Job {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        // Without both, it is one pod; with parallelism alone, a work queue.
        if !is_set(spec, "completions") && !is_set(spec, "parallelism") {
            fill(spec, "completions", 1);
        }
        fill(spec, "parallelism", 1);
        let limit = match is_set(spec, "backoffLimitPerIndex") {
            true => i32::MAX,
            false => 6,
        };
        fill(spec, "backoffLimit", limit);
        fill_text(spec, "completionMode", "NonIndexed");
        fill(spec, "suspend", false);
        fill(spec, "manualSelector", false);
        let replace = match object_mut(spec, "podFailurePolicy") {
            Some(policy) => {
                for rule in items_mut(policy, "rules") {
                    items_mut(rule, "onPodConditions")
                        .for_each(|pattern| fill_text(pattern, "status", "True"));
                }
                "Failed"
            }
            None => "TerminatingOrFailed",
        };
        fill_text(spec, "podReplacementPolicy", replace);
        default_template(spec);
        label_like_template(obj);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        if bool_at(obj, &["spec", "manualSelector"]) != Some(true) {
            generate_selector(obj);
            label_like_template(obj);
        }
        create_with_status(obj, json!({}));
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        update_with_status(new, old, sub, &["spec"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate::generated_selector(obj, &mut errors);
        validate::spec(&obj["spec"], &SPEC, &mut errors);
        validate::selector(&obj["spec"], &mut errors);
        validate::host_names(obj, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if sub == Some("status") {
            status::update(new, old, &mut errors);
            return errors;
        }
        errors = self.validate_create(new);
        validate::update(new, old, &mut errors);
        errors
    }

    fn orphans_by_default(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        let mut warnings = warnings(obj, &obj["spec"], &SPEC);
        warnings.extend(template_warnings(obj));
        warnings
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let [containers, images] = containers_and_images(at(obj, &["spec", "template", "spec"]));
        vec![
            name(obj),
            phase(obj).into(),
            completions(obj).into(),
            duration(obj, now).into(),
            age_cell(obj, now),
            containers,
            images,
            selector(at(obj, &["spec", "selector"])).into(),
        ]
    }
}

/// What is odd about the name of an object that makes pods, and about the spec of a job.
pub(super) fn warnings(obj: &Value, spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    let problems = names::dns1123_label(name_of(obj));
    if !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    warnings.extend(validate::warnings(spec, path));
    warnings
}

fn is_set(map: &Map<String, Value>, field: &str) -> bool {
    map.get(field).is_some_and(|value| !value.is_null())
}

/// A job without labels has those of its pods.
fn label_like_template(obj: &mut Value) {
    let labels = map_at(obj, &["spec", "template", "metadata", "labels"]);
    if !labels.is_empty() && map_at(obj, &["metadata", "labels"]).is_empty() {
        let labels = labels.clone();
        metadata_mut(obj).insert("labels".into(), labels.into());
    }
}

/// A selector that selects the pods of this job and no others, and the labels that it selects. What the user gave stays; if it does not
/// fit, validation says so.
fn generate_selector(obj: &mut Value) {
    let (uid, name) = (uid(obj).to_owned(), name_of(obj).to_owned());
    let Some(template) = spec_mut(obj).get_mut("template") else {
        return;
    };
    if let Some(labels) = metadata_mut(template)
        .entry("labels")
        .or_insert_with(|| json!({}))
        .as_object_mut()
    {
        for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
            for key in keys {
                labels.entry(key).or_insert_with(|| json!(value));
            }
        }
    }
    let selector = spec_mut(obj).entry("selector").or_insert_with(|| json!({}));
    child(selector, "matchLabels")
        .entry(UID_LABELS[1])
        .or_insert_with(|| json!(uid));
}

fn phase(obj: &Value) -> &'static str {
    let is = |kind: &str| condition_is_true(obj, kind);
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if is_deleting(obj) => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(obj: &Value) -> String {
    let succeeded = i64_at(obj, &["status", "succeeded"]).unwrap_or(0);
    let parallelism = i64_at(obj, &["spec", "parallelism"]).unwrap_or(0);
    match i64_at(obj, &["spec", "completions"]) {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

fn duration(obj: &Value, now: Timestamp) -> String {
    let start = str_at(obj, &["status", "startTime"]);
    match (
        parse_time(start),
        parse_time(str_at(obj, &["status", "completionTime"])),
    ) {
        (None, _) => String::new(),
        (Some(_), None) => since(start, now),
        (Some(start), Some(end)) => human_duration(end.duration_since(start)),
    }
}

#[cfg(test)]
mod tests;
