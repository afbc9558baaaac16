//! ReplicationController, which came before ReplicaSet and differs in its selector: a plain set of labels.
//! <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/replication-controller-v1/>

use amphipod_api::meta::{at, i64_at, map_at, metadata_mut};
use amphipod_api::{FieldError, LabelSelector, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::Kind;
use super::pod::pod_template;
use super::workload::{self, SPEC, replica_counts};
use crate::resources::common::{create_with_status, fill, spec_mut, update_with_status};
use crate::resources::table::{age_cell, containers_and_images, labels, name};
use crate::resources::validate::{non_negative, pod};
use crate::resources::{Column, Descriptor, SelectableField, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::ReplicationController>(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
    )
    .short(&["rc"])
    .in_all()
    .scale()
    .status()
    .fields(vec![
        SelectableField::new("status.replicas").with_default("0"),
    ])
    .columns(vec![
        Column::name(),
        Column::new("Desired", "Pods wanted.").of_type("integer"),
        Column::new("Current", "Pods there are.").of_type("integer"),
        Column::new("Ready", "Pods that are ready.").of_type("integer"),
        Column::age(),
        Column::new("Containers", "Names of the containers in the template.").wide(),
        Column::new("Images", "Images of the containers in the template.").wide(),
        Column::new("Selector", "Labels of the pods.").wide(),
    ])
    .strategy(ReplicationController)
    .build()
}

struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, obj: &mut Value) {
        let template_labels = map_at(obj, &["spec", "template", "metadata", "labels"]).clone();
        if !template_labels.is_empty() {
            if map_at(obj, &["metadata", "labels"]).is_empty() {
                metadata_mut(obj).insert("labels".into(), template_labels.clone().into());
            }
            if map_at(obj, &["spec", "selector"]).is_empty() {
                spec_mut(obj).insert("selector".into(), template_labels.into());
            }
        }
        let spec = spec_mut(obj);
        fill(spec, "replicas", 1);
        if let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) {
            pod_template(template);
        }
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        create_with_status(obj, json!({"replicas": 0}));
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
        for field in ["minReadySeconds", "replicas"] {
            non_negative(&SPEC.child(field), spec.get(field), &mut errors);
        }
        let selector = map_at(spec, &["selector"]);
        if selector.is_empty() {
            errors.push(FieldError::required(SPEC.child("selector"), ""));
        }
        workload::template(spec, &LabelSelector::from_set(selector), &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return replica_counts(
                new,
                &[
                    "replicas",
                    "fullyLabeledReplicas",
                    "readyReplicas",
                    "availableReplicas",
                ],
                "status.replicas",
            );
        }
        self.validate_create(new)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        pod::warnings(
            &obj["spec"]["template"]["spec"],
            &SPEC.child("template").child("spec"),
        )
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let [containers, images] = containers_and_images(at(obj, &["spec", "template", "spec"]));
        let count = |part: &str, field: &str| i64_at(obj, &[part, field]).unwrap_or(0).into();
        vec![
            name(obj),
            count("spec", "replicas"),
            count("status", "replicas"),
            count("status", "readyReplicas"),
            age_cell(obj, now),
            containers,
            images,
            labels(map_at(obj, &["spec", "selector"])),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labels_and_selector_come_from_the_template_unless_given() {
        let mut rc =
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        ReplicationController.default(&mut rc);
        assert_eq!(
            (&rc["metadata"]["labels"], &rc["spec"]["selector"]),
            (&json!({"a": "b"}), &json!({"a": "b"}))
        );
        assert_eq!(rc["spec"]["replicas"], 1);

        let mut rc = json!({"metadata": {"labels": {"x": "y"}},
            "spec": {"selector": {"c": "d"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        ReplicationController.default(&mut rc);
        assert_eq!(
            (&rc["metadata"]["labels"], &rc["spec"]["selector"]),
            (&json!({"x": "y"}), &json!({"c": "d"}))
        );
        let errors = ReplicationController.validate_create(&rc);
        assert!(
            errors.iter().any(|error| error
                .to_string()
                .contains("`selector` does not match template `labels`")),
            "{errors:?}"
        );
    }
}
