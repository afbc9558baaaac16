//! ReplicaSet, and ReplicationController, which came before it and differs in its selector: a plain set of labels, taken from the
//! template when it is not given. <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/>

use amphipod_api::meta::{at, i64_at, map_at, metadata_mut};
use amphipod_api::{FieldError, LabelSelector, Status};
use jiff::Timestamp;
use k8s_openapi::api::{apps, core};
use serde_json::{Value, json};

use super::Kind;
use super::pod::pod_template;
use super::workload::{
    self, SPEC, immutable_selector, replica_counts, selector_and_template, template_warnings,
};
use crate::resources::common::{create_with_status, fill, spec_mut, update_with_status};
use crate::resources::table::{age_cell, containers_and_images, labels, name, selector};
use crate::resources::validate::non_negative;
use crate::resources::{Column, Descriptor, SelectableField, Strategy, StrategyContext};

pub fn replica_set() -> Descriptor {
    described(
        Kind::new::<apps::v1::ReplicaSet>("apps", "v1", "ReplicaSet", "replicasets").short(&["rs"]),
        Replicas::Set,
    )
}

pub fn replication_controller() -> Descriptor {
    described(
        Kind::new::<core::v1::ReplicationController>(
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
        )
        .short(&["rc"]),
        Replicas::Controller,
    )
}

fn described(kind: Kind, replicas: Replicas) -> Descriptor {
    kind.in_all()
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
            Column::new("Selector", "Label selector of the pods.").wide(),
        ])
        .strategy(replicas)
        .build()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Replicas {
    Set,
    Controller,
}

impl Strategy for Replicas {
    fn default(&self, obj: &mut Value) {
        let template_labels = map_at(obj, &["spec", "template", "metadata", "labels"]).clone();
        if *self == Replicas::Controller && !template_labels.is_empty() {
            if map_at(obj, &["metadata", "labels"]).is_empty() {
                metadata_mut(obj).insert("labels".into(), template_labels.clone().into());
            }
            if map_at(obj, &["spec", "selector"]).is_empty() {
                spec_mut(obj).insert("selector".into(), template_labels.into());
            }
        }
        let spec = spec_mut(obj);
        fill(spec, "replicas", 1);
        if *self == Replicas::Set {
            spec.entry("template").or_insert_with(|| json!({}));
        }
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
        for field in ["replicas", "minReadySeconds"] {
            non_negative(&SPEC.child(field), spec.get(field), &mut errors);
        }
        match self {
            Replicas::Set => selector_and_template(spec, &mut errors),
            Replicas::Controller => {
                let selector = map_at(spec, &["selector"]);
                if selector.is_empty() {
                    errors.push(FieldError::required(SPEC.child("selector"), ""));
                }
                workload::template(spec, &LabelSelector::from_set(selector), &mut errors);
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
                    "fullyLabeledReplicas",
                    "readyReplicas",
                    "availableReplicas",
                ],
                "status.replicas",
            );
        }
        let mut errors = self.validate_create(new);
        if *self == Replicas::Set {
            immutable_selector(new, old, &mut errors);
        }
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        template_warnings(obj)
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
            match self {
                Replicas::Set => selector(at(obj, &["spec", "selector"])).into(),
                Replicas::Controller => labels(map_at(obj, &["spec", "selector"])),
            },
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
        Replicas::Controller.default(&mut rc);
        assert_eq!(
            (&rc["metadata"]["labels"], &rc["spec"]["selector"]),
            (&json!({"a": "b"}), &json!({"a": "b"}))
        );
        assert_eq!(rc["spec"]["replicas"], 1);

        let mut rc = json!({"metadata": {"labels": {"x": "y"}},
            "spec": {"selector": {"c": "d"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}});
        Replicas::Controller.default(&mut rc);
        assert_eq!(
            (&rc["metadata"]["labels"], &rc["spec"]["selector"]),
            (&json!({"x": "y"}), &json!({"c": "d"}))
        );
        let errors = Replicas::Controller.validate_create(&rc);
        assert!(
            errors.iter().any(|error| error
                .to_string()
                .contains("`selector` does not match template `labels`")),
            "{errors:?}"
        );
    }
}
