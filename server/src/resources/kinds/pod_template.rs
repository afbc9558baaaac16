//! PodTemplate: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-template-v1/>.

use amphipod_api::meta::{at, map_at};
use amphipod_api::{FieldError, FieldPath, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::Kind;
use super::workload::default_template;
use crate::resources::common::{raise_generation, set_generation};
use crate::resources::table::{age_cell, containers_and_images, labels, name};
use crate::resources::validate::pod;
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::PodTemplate>("", "v1", "PodTemplate", "podtemplates")
        .columns(vec![
            Column::name(),
            Column::new("Containers", "Names of the containers in the template."),
            Column::new("Images", "Images of the containers in the template."),
            Column::new("Pod Labels", "Labels of pods made from the template."),
            Column::age(),
        ])
        .strategy(PodTemplate)
        .build()
}

struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, obj: &mut Value) {
        let Some(obj) = obj.as_object_mut() else {
            return;
        };
        default_template(obj);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        set_generation(obj, 1);
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        _: Option<&str>,
    ) -> Result<(), Status> {
        raise_generation(new, old, &["template"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        pod::pod_template(&obj["template"], &FieldPath::new("template"))
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        pod::warnings(
            &obj["template"]["spec"],
            &FieldPath::new("template").child("spec"),
        )
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let [containers, images] = containers_and_images(at(obj, &["template", "spec"]));
        vec![
            name(obj),
            containers,
            images,
            labels(map_at(obj, &["template", "metadata", "labels"])),
            age_cell(obj, now),
        ]
    }
}
