//! StatefulSet: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/stateful-set-v1/>.

use amphipod_api::meta::{self, array_at, at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1;
use serde_json::{Value, json};

use super::Kind;
use super::workload::{
    SPEC, default_template, replica_counts, selector_and_template, template_warnings,
};
use crate::resources::common::{
    create_with_status, fill, fill_text, items_mut, spec_mut, update_with_status,
};
use crate::resources::table::{age_cell, containers_and_images, name};
use crate::resources::validate::{non_negative, one_of};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::StatefulSet>("apps", "v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .in_all()
        .scale()
        .status()
        .columns(vec![
            Column::name(),
            Column::new("Ready", "Ready pods, of those wanted."),
            Column::age(),
            Column::new("Containers", "Names of the containers in the template.").wide(),
            Column::new("Images", "Images of the containers in the template.").wide(),
        ])
        .strategy(StatefulSet)
        .build()
}

struct StatefulSet;

/// The spec with the claims among the volumes of its template: what containers may mount.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let templates = array_at(&spec, &["volumeClaimTemplates"]).iter();
    let claims = templates.map(|template| meta::name(template).to_owned());
    let mut volumes = array_at(&spec, &["template", "spec", "volumes"]).to_vec();
    for name in claims.collect::<Vec<_>>() {
        volumes.retain(|volume| volume["name"] != *name);
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    if !volumes.is_empty() && spec["template"]["spec"].is_object() {
        spec["template"]["spec"]["volumes"] = volumes.into();
    }
    spec
}

/// What of the spec may change.
const CHANGEABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSet {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill_text(spec, "podManagementPolicy", "OrderedReady");
        let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
        if let Some(strategy) = strategy.as_object_mut() {
            fill_text(strategy, "type", "RollingUpdate");
            if strategy.get("type") == Some(&json!("RollingUpdate")) {
                let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(rolling) = rolling.as_object_mut() {
                    fill(rolling, "partition", 0);
                }
            }
        }
        let retention = spec
            .entry("persistentVolumeClaimRetentionPolicy")
            .or_insert_with(|| json!({}));
        if let Some(retention) = retention.as_object_mut() {
            fill_text(retention, "whenDeleted", "Retain");
            fill_text(retention, "whenScaled", "Retain");
        }
        for template in items_mut(spec, "volumeClaimTemplates") {
            fill_text(template, "apiVersion", "v1");
            fill_text(template, "kind", "PersistentVolumeClaim");
            for (part, field, text) in [
                ("spec", "volumeMode", "Filesystem"),
                ("status", "phase", "Pending"),
            ] {
                let part = template.entry(part).or_insert_with(|| json!({}));
                if let Some(part) = part.as_object_mut() {
                    fill_text(part, field, text);
                }
            }
        }
        default_template(spec);
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        create_with_status(obj, json!({"replicas": 0, "availableReplicas": 0}));
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
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            non_negative(&SPEC.child(field), spec.get(field), &mut errors);
        }
        one_of(
            &SPEC.child("podManagementPolicy"),
            str_at(spec, &["podManagementPolicy"]),
            &["OrderedReady", "Parallel"],
            &mut errors,
        );
        let strategy = SPEC.child("updateStrategy");
        let kind = str_at(spec, &["updateStrategy", "type"]);
        one_of(
            &strategy.child("type"),
            kind,
            &["OnDelete", "RollingUpdate"],
            &mut errors,
        );
        let rolling = at(spec, &["updateStrategy", "rollingUpdate"]);
        if kind == "OnDelete" && rolling.is_some() {
            errors.push(FieldError::invalid(
                strategy.child("rollingUpdate"),
                rolling.cloned().unwrap_or_default(),
                "only allowed for updateStrategy 'RollingUpdate'",
            ));
        }
        non_negative(
            &FieldPath::new("spec.updateStrategy.rollingUpdate.partition"),
            at(spec, &["updateStrategy", "rollingUpdate", "partition"]),
            &mut errors,
        );
        non_negative(
            &FieldPath::new("spec.ordinals.start"),
            at(spec, &["ordinals", "start"]),
            &mut errors,
        );
        let policy = SPEC.child("persistentVolumeClaimRetentionPolicy");
        for when in ["whenDeleted", "whenScaled"] {
            let told = str_at(spec, &["persistentVolumeClaimRetentionPolicy", when]);
            let known = ["Delete", "Retain"];
            one_of(&policy.child(when), told, &known, &mut errors);
        }
        selector_and_template(&with_claims(spec), &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return replica_counts(
                new,
                &[
                    "replicas",
                    "readyReplicas",
                    "currentReplicas",
                    "updatedReplicas",
                    "availableReplicas",
                ],
                "status.replicas",
            );
        }
        let mut errors = self.validate_create(new);
        let fixed = |obj: &Value| {
            let mut spec = obj["spec"].as_object().cloned().unwrap_or_default();
            spec.retain(|field, _| !CHANGEABLE.contains(&field.as_str()));
            spec
        };
        if fixed(new) != fixed(old) {
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden(SPEC, why));
        }
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let [containers, images] = containers_and_images(at(obj, &["spec", "template", "spec"]));
        let ready = i64_at(obj, &["status", "readyReplicas"]).unwrap_or(0);
        let wanted = i64_at(obj, &["spec", "replicas"]).unwrap_or(0);
        vec![
            name(obj),
            format!("{ready}/{wanted}").into(),
            age_cell(obj, now),
            containers,
            images,
        ]
    }
}
