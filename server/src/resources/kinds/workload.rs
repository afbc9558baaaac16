//! Deployment and ControllerRevision, and what all kinds with a pod template share: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/>.

use amphipod_api::meta::{array_at, at, controller_of, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, LabelSelector, Status};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use super::pod::pod_template;
use crate::resources::common::{
    create_with_status, fill, fill_text, keep_meta, set_generation_like, spec_mut,
    update_with_status,
};
use crate::resources::table::{NONE, age_cell, containers_and_images, name, selector};
use crate::resources::validate::{Errors, immutable, label_selector, non_negative, one_of, pod};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub(super) const SPEC: FieldPath = FieldPath::new("spec");

pub fn deployment() -> Descriptor {
    Kind::new::<v1::Deployment>("apps", "v1", "Deployment", "deployments")
        .short(&["deploy"])
        .in_all()
        .scale()
        .status()
        .columns(vec![
            Column::name(),
            Column::new("Ready", "Ready pods, of those wanted."),
            Column::new("Up-to-date", "Pods of the current template."),
            Column::new("Available", "Pods ready for at least minReadySeconds."),
            Column::age(),
            Column::new("Containers", "Names of the containers in the template.").wide(),
            Column::new("Images", "Images of the containers in the template.").wide(),
            Column::new("Selector", "Label selector of the pods.").wide(),
        ])
        .strategy(Deployment)
        .build()
}

pub fn controller_revision() -> Descriptor {
    Kind::new::<v1::ControllerRevision>("apps", "v1", "ControllerRevision", "controllerrevisions")
        .columns(vec![
            Column::name(),
            Column::new("Controller", "Owner of the revision."),
            Column::new("Revision", "Number of the revision."),
            Column::age(),
        ])
        .strategy(ControllerRevision)
        .build()
}

/// Defaults of the field `template`, which is made if it is not there.
pub(super) fn default_template(holder: &mut Map<String, Value>) {
    let template = holder.entry("template").or_insert_with(|| json!({}));
    if let Some(template) = template.as_object_mut() {
        pod_template(template);
    }
}

/// What is told of the pods that `spec.template` makes.
pub(super) fn template_warnings(obj: &Value) -> Vec<String> {
    pod::warnings(
        &obj["spec"]["template"]["spec"],
        &FieldPath::new("spec.template.spec"),
    )
}

/// The template, its labels against the selector, and the selector itself.
pub(super) fn selector_and_template(spec: &Value, errors: &mut Errors) {
    let path = SPEC.child("selector");
    let empty = match spec.get("selector") {
        None => {
            errors.push(FieldError::required(path, ""));
            true
        }
        Some(selector) => {
            label_selector(selector, &path, errors);
            map_at(selector, &["matchLabels"]).is_empty()
                && array_at(selector, &["matchExpressions"]).is_empty()
        }
    };
    if empty && spec.get("selector").is_some() {
        errors.push(FieldError::invalid(
            path,
            spec.get("selector").cloned().unwrap_or_default(),
            "empty selector is invalid for deployment",
        ));
    }
    // What is wrong with the selector was just told.
    let selector = LabelSelector::from_object(&spec["selector"]);
    template(spec, &selector.unwrap_or_default(), errors);
}

/// The template, whose labels a selector must select, unless it selects everything.
pub(super) fn template(spec: &Value, selector: &LabelSelector, errors: &mut Errors) {
    let path = SPEC.child("template");
    let Some(template) = spec.get("template") else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let labels = map_at(template, &["metadata", "labels"]);
    if !selector.is_everything() && !selector.matches(labels) {
        errors.push(FieldError::invalid(
            path.child("metadata").child("labels"),
            Value::Object(labels.clone()),
            "`selector` does not match template `labels`",
        ));
    }
    errors.extend(pod::pod_template(template, &path));
    let policy = str_at(template, &["spec", "restartPolicy"]);
    if policy != "Always" {
        errors.push(FieldError::not_supported(
            path.child("spec").child("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some() {
        errors.push(FieldError::forbidden(
            path.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

struct Deployment;

impl Strategy for Deployment {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "progressDeadlineSeconds", 600);
        let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
        if let Some(strategy) = strategy.as_object_mut() {
            fill_text(strategy, "type", "RollingUpdate");
            if strategy.get("type") == Some(&json!("RollingUpdate")) {
                let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(rolling) = rolling.as_object_mut() {
                    fill(rolling, "maxUnavailable", "25%");
                    fill(rolling, "maxSurge", "25%");
                }
            }
        }
        default_template(spec);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
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
        if sub == Some("status") {
            keep_meta(new, old, "labels");
        } else if at(new, &["metadata", "annotations"]) != at(old, &["metadata", "annotations"])
            && new.get("spec") == old.get("spec")
        {
            // Annotations are copied to replica sets: they count as a change of the spec.
            set_generation_like(new, old, 1);
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = &obj["spec"];
        non_negative(&SPEC.child("replicas"), spec.get("replicas"), &mut errors);
        selector_and_template(spec, &mut errors);
        deployment_strategy(&spec["strategy"], &mut errors);
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            non_negative(&SPEC.child(field), spec.get(field), &mut errors);
        }
        if let Some(deadline) = i64_at(spec, &["progressDeadlineSeconds"]) {
            let path = SPEC.child("progressDeadlineSeconds");
            non_negative(&path, spec.get("progressDeadlineSeconds"), &mut errors);
            if deadline <= i64_at(spec, &["minReadySeconds"]).unwrap_or(0) {
                errors.push(FieldError::invalid(
                    path,
                    deadline,
                    "must be greater than minReadySeconds",
                ));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return replica_counts(
                new,
                &[
                    "replicas",
                    "updatedReplicas",
                    "readyReplicas",
                    "availableReplicas",
                    "unavailableReplicas",
                ],
                "status.replicas",
            );
        }
        let mut errors = self.validate_create(new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| i64_at(obj, &["status", field]).unwrap_or(0);
        let wanted = i64_at(obj, &["spec", "replicas"]).unwrap_or(0);
        let [containers, images] = containers_and_images(at(obj, &["spec", "template", "spec"]));
        vec![
            name(obj),
            format!("{}/{wanted}", count("readyReplicas")).into(),
            count("updatedReplicas").into(),
            count("availableReplicas").into(),
            age_cell(obj, now),
            containers,
            images,
            selector(at(obj, &["spec", "selector"])).into(),
        ]
    }
}

pub(super) fn immutable_selector(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(
        &SPEC.child("selector"),
        at(new, &["spec", "selector"]),
        at(old, &["spec", "selector"]),
        errors,
    );
}

/// Counts of a status: none negative, none above the number of replicas.
pub(super) fn replica_counts(obj: &Value, fields: &[&'static str], than: &str) -> Errors {
    let mut errors = Vec::new();
    let status = FieldPath::new("status");
    for field in fields.iter().chain(&["observedGeneration"]) {
        non_negative(
            &status.child(field),
            at(obj, &["status", field]),
            &mut errors,
        );
    }
    let count = |field: &str| i64_at(obj, &["status", field]).unwrap_or(0);
    for field in [
        "updatedReplicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
    ] {
        if fields.contains(&field) && count(field) > count("replicas") {
            let why = format!("cannot be greater than {than}");
            errors.push(FieldError::invalid(status.child(field), count(field), why));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let path = status.child("availableReplicas");
        errors.push(FieldError::invalid(
            path,
            count("availableReplicas"),
            "cannot be greater than readyReplicas",
        ));
    }
    errors
}

fn deployment_strategy(strategy: &Value, errors: &mut Errors) {
    let path = SPEC.child("strategy");
    let rolling = strategy.get("rollingUpdate");
    match str_at(strategy, &["type"]) {
        "Recreate" => {
            if rolling.is_some() {
                errors.push(FieldError::forbidden(
                    path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => match rolling {
            None => errors.push(FieldError::required(
                path.child("rollingUpdate"),
                "this should be defaulted and never be nil",
            )),
            Some(rolling) => rolling_update(rolling, &path.child("rollingUpdate"), errors),
        },
        other => one_of(
            &path.child("type"),
            other,
            &["Recreate", "RollingUpdate"],
            errors,
        ),
    }
}

fn rolling_update(rolling: &Value, path: &FieldPath, errors: &mut Errors) {
    let unavailable = rolling.get("maxUnavailable").unwrap_or(&Value::Null);
    let surge = rolling.get("maxSurge").unwrap_or(&Value::Null);
    int_or_percent(&path.child("maxUnavailable"), unavailable, errors);
    int_or_percent(&path.child("maxSurge"), surge, errors);
    if count_or_percent(unavailable) == Some(0) && count_or_percent(surge) == Some(0) {
        errors.push(FieldError::invalid(
            path.child("maxUnavailable"),
            unavailable.clone(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    if percent(unavailable).is_some_and(|p| p > 100) {
        errors.push(FieldError::invalid(
            path.child("maxUnavailable"),
            unavailable.clone(),
            "must not be greater than 100%",
        ));
    }
}

fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

pub(super) fn count_or_percent(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| percent(value))
}

pub(super) fn int_or_percent(path: &FieldPath, value: &Value, errors: &mut Errors) {
    match value {
        Value::String(text)
            if text
                .strip_suffix('%')
                .is_none_or(|n| n.is_empty() || !n.bytes().all(|b| b.is_ascii_digit())) =>
        {
            errors.push(FieldError::invalid(path, text.as_str(), PERCENT));
        }
        Value::Number(_) => non_negative(path, Some(value), errors),
        _ => {}
    }
}

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        non_negative(
            &FieldPath::new("revision"),
            obj.get("revision"),
            &mut errors,
        );
        match obj.get("data") {
            None => errors.push(FieldError::required("data", "data is mandatory")),
            Some(Value::Object(_)) => {}
            Some(_) => errors.push(FieldError::invalid(
                "data",
                "<value omitted>",
                "data must be a valid JSON object",
            )),
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = self.validate_create(new);
        immutable(
            &FieldPath::new("data"),
            new.get("data"),
            old.get("data"),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let controller = match controller_of(obj) {
            None => NONE.to_owned(),
            Some(owner) => {
                let group = str_at(owner, &["apiVersion"])
                    .split_once('/')
                    .map_or("", |(group, _)| group);
                let kind = str_at(owner, &["kind"]).to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", str_at(owner, &["name"]))
            }
        };
        vec![
            name(obj),
            controller.into(),
            i64_at(obj, &["revision"]).unwrap_or(0).into(),
            age_cell(obj, now),
        ]
    }
}
