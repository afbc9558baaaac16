//! DaemonSet: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/daemon-set-v1/>.

use amphipod_api::meta::{at, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1;
use serde_json::{Value, json};

use super::Kind;
use super::workload::{
    SPEC, count_or_percent, default_template, immutable_selector, int_or_percent,
    selector_and_template, template_warnings,
};
use crate::resources::common::{create_with_status, fill, fill_text, spec_mut, update_with_status};
use crate::resources::table::{age_cell, containers_and_images, labels, name, selector};
use crate::resources::validate::{Errors, non_negative, one_of};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    let count = |name: &'static str, what: &'static str| Column::new(name, what).of_type("integer");
    Kind::new::<v1::DaemonSet>("apps", "v1", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .in_all()
        .status()
        .columns(vec![
            Column::name(),
            count("Desired", "Nodes that are to have a pod."),
            count("Current", "Those of them that have one."),
            count("Ready", "Pods that are ready."),
            count("Up-to-date", "Pods of the present template."),
            count("Available", "Pods ready for at least minReadySeconds."),
            Column::new("Node Selector", "Labels of the nodes."),
            Column::age(),
            Column::new("Containers", "Names of the containers in the template.").wide(),
            Column::new("Images", "Images of the containers in the template.").wide(),
            Column::new("Selector", "Label selector of the pods.").wide(),
        ])
        .strategy(DaemonSet)
        .build()
}

struct DaemonSet;

impl Strategy for DaemonSet {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        fill(spec, "revisionHistoryLimit", 10);
        let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
        if let Some(strategy) = strategy.as_object_mut() {
            fill_text(strategy, "type", "RollingUpdate");
            if strategy.get("type") == Some(&json!("RollingUpdate")) {
                let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(rolling) = rolling.as_object_mut() {
                    fill(rolling, "maxUnavailable", 1);
                    fill(rolling, "maxSurge", 0);
                }
            }
        }
        default_template(spec);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        let none = json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0});
        create_with_status(obj, none);
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
        let spec = &obj["spec"];
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            non_negative(&SPEC.child(field), spec.get(field), &mut errors);
        }
        update_strategy(&spec["updateStrategy"], &mut errors);
        selector_and_template(spec, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            let mut errors = Vec::new();
            let status = FieldPath::new("status");
            for (field, number) in map_at(new, &["status"]) {
                non_negative(&status.child(field), Some(number), &mut errors);
            }
            return errors;
        }
        let mut errors = self.validate_create(new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| Value::from(i64_at(obj, &["status", field]).unwrap_or(0));
        let [containers, images] = containers_and_images(at(obj, &["spec", "template", "spec"]));
        vec![
            name(obj),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            labels(map_at(obj, &["spec", "template", "spec", "nodeSelector"])),
            age_cell(obj, now),
            containers,
            images,
            selector(at(obj, &["spec", "selector"])).into(),
        ]
    }
}

fn update_strategy(strategy: &Value, errors: &mut Errors) {
    let path = SPEC.child("updateStrategy");
    let kind = str_at(strategy, &["type"]);
    one_of(
        &path.child("type"),
        kind,
        &["OnDelete", "RollingUpdate"],
        errors,
    );
    let Some(rolling) = strategy
        .get("rollingUpdate")
        .filter(|_| kind == "RollingUpdate")
    else {
        return;
    };
    let path = FieldPath::new("spec.updateStrategy.rollingUpdate");
    let unavailable = rolling.get("maxUnavailable").unwrap_or(&Value::Null);
    let surge = rolling.get("maxSurge").unwrap_or(&Value::Null);
    int_or_percent(&path.child("maxUnavailable"), unavailable, errors);
    int_or_percent(&path.child("maxSurge"), surge, errors);
    match (
        count_or_percent(unavailable).unwrap_or(0),
        count_or_percent(surge).unwrap_or(0),
    ) {
        (0, 0) => errors.push(FieldError::required(
            path.child("maxUnavailable"),
            "cannot be 0 when maxSurge is 0",
        )),
        (1.., 1..) => errors.push(FieldError::invalid(
            path.child("maxSurge"),
            surge.clone(),
            "may not be set when maxUnavailable is non-zero",
        )),
        _ => {}
    }
}
