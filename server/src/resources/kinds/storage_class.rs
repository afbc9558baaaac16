//! StorageClass: <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/storage-class-v1/>.

use amphipod_api::meta::{bool_at, map_at, name, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use jiff::Timestamp;
use k8s_openapi::api::storage::v1;
use serde_json::Value;

use super::Kind;
use crate::resources::common::fill_text;
use crate::resources::table::age_cell;
use crate::resources::validate::{immutable, one_of, problems};
use crate::resources::volumes::is_default_class;
use crate::resources::{Column, Descriptor, Strategy};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::StorageClass>("storage.k8s.io", "v1", "StorageClass", "storageclasses")
        .cluster()
        .short(&["sc"])
        .columns(vec![
            Column::name(),
            Column::new("Provisioner", "Who makes the volumes."),
            Column::new(
                "ReclaimPolicy",
                "What becomes of volumes whose claim is gone.",
            ),
            Column::new("VolumeBindingMode", "Whether claims wait for a pod."),
            Column::new("AllowVolumeExpansion", "Whether claims may grow."),
            Column::age(),
        ])
        .strategy(StorageClass)
        .build()
}

struct StorageClass;

/// Parameters of a class: how many, and how many bytes together.
const MOST_PARAMETERS: usize = 512;
const MOST_BYTES: usize = 256 * 1024;

impl Strategy for StorageClass {
    fn default(&self, obj: &mut Value) {
        if let Some(map) = obj.as_object_mut() {
            fill_text(map, "reclaimPolicy", "Delete");
            fill_text(map, "volumeBindingMode", "Immediate");
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = FieldPath::new("provisioner");
        let provisioner = str_at(obj, &["provisioner"]);
        if provisioner.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            let found = names::qualified_name(&provisioner.to_lowercase());
            problems(&path, provisioner, found, &mut errors);
        }
        let path = FieldPath::new("parameters");
        let parameters = map_at(obj, &["parameters"]);
        if parameters.len() > MOST_PARAMETERS {
            errors.push(FieldError::too_long(path, MOST_PARAMETERS));
        }
        if parameters.contains_key("") {
            errors.push(FieldError::invalid(path, "", "field can not be empty."));
        }
        let bytes = |(key, value): (&String, &Value)| key.len() + str_at(value, &[]).len();
        if parameters.iter().map(bytes).sum::<usize>() > MOST_BYTES {
            errors.push(FieldError::too_long(path, MOST_BYTES));
        }
        one_of(
            &FieldPath::new("reclaimPolicy"),
            str_at(obj, &["reclaimPolicy"]),
            &["Delete", "Retain"],
            &mut errors,
        );
        one_of(
            &FieldPath::new("volumeBindingMode"),
            str_at(obj, &["volumeBindingMode"]),
            &["Immediate", "WaitForFirstConsumer"],
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = self.validate_create(new);
        for (field, why) in [
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ] {
            if new.get(field) != old.get(field) {
                errors.push(FieldError::forbidden(field, why));
            }
        }
        immutable(
            &FieldPath::new("volumeBindingMode"),
            new.get("volumeBindingMode"),
            old.get("volumeBindingMode"),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut shown = name(obj).to_owned();
        if is_default_class(obj) {
            shown.push_str(" (default)");
        }
        vec![
            shown.into(),
            str_at(obj, &["provisioner"]).into(),
            str_at(obj, &["reclaimPolicy"]).into(),
            str_at(obj, &["volumeBindingMode"]).into(),
            bool_at(obj, &["allowVolumeExpansion"])
                .unwrap_or(false)
                .into(),
            age_cell(obj, now),
        ]
    }
}
