//! Namespace: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/namespace-v1/>.

use amphipod_api::meta::{is_deleting, set_label, str_at};
use amphipod_api::{FieldError, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::Kind;
use crate::resources::common::{keep, keep_meta};
use crate::resources::table::{age_cell, name};
use crate::resources::{
    Column, Descriptor, SelectableField, Strategy, StrategyContext, SubresourceKind,
};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Namespace>("", "v1", "Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .put("finalize", SubresourceKind::Finalize)
        .status()
        .fields(vec![SelectableField::new("status.phase")])
        .columns(vec![
            Column::name(),
            Column::new("Status", "Active, or Terminating once deleted."),
            Column::age(),
        ])
        .strategy(Namespace)
        .build()
}

/// The finalizer of every namespace: it goes when the namespace is empty.
const FINALIZER: &str = "kubernetes";

struct Namespace;

impl Strategy for Namespace {
    fn default(&self, obj: &mut Value) {
        // Lets selectors choose namespaces by name; not to be changed by users.
        let name = str_at(obj, &["metadata", "name"]).to_owned();
        if !name.is_empty() {
            set_label(obj, "kubernetes.io/metadata.name", &name);
        }
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        obj["status"] = json!({"phase": "Active"});
        let finalizers = obj
            .pointer_mut("/spec/finalizers")
            .and_then(Value::as_array_mut);
        match finalizers {
            Some(list) => {
                if !list.iter().any(|f| f == FINALIZER) {
                    list.push(FINALIZER.into());
                }
            }
            None => obj["spec"] = json!({"finalizers": [FINALIZER]}),
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        match sub {
            Some("status") => keep(new, old, "spec"),
            Some("finalize") => {
                keep(new, old, "status");
                keep_meta(new, old, "labels");
                keep_meta(new, old, "annotations");
            }
            _ => {
                keep(new, old, "spec");
                keep(new, old, "status");
            }
        }
        Ok(())
    }

    fn validate_update(&self, new: &Value, _: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub != Some("status") {
            return Vec::new();
        }
        let phase = str_at(new, &["status", "phase"]);
        let wrong = match (is_deleting(new), phase) {
            (true, "Terminating") | (false, "Active") => return Vec::new(),
            (true, _) => "may only be 'Terminating' if `deletionTimestamp` is not empty",
            (false, _) => "may only be 'Active' if `deletionTimestamp` is empty",
        };
        vec![FieldError::invalid("status.Phase", phase, wrong)]
    }

    fn name_rule(&self) -> fn(&str) -> Vec<String> {
        names::dns1123_label
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            str_at(obj, &["status", "phase"]).into(),
            age_cell(obj, now),
        ]
    }
}
