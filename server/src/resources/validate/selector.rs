//! Labels and label selectors inside specs.

use amphipod_api::meta::{array_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::{Map, Value};

use super::{Errors, problems};

/// A map of labels.
pub fn labels(map: &Map<String, Value>, path: &FieldPath) -> Errors {
    names::labels(
        map.iter()
            .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())),
        path,
    )
}

/// A `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &FieldPath, errors: &mut Errors) {
    errors.extend(labels(
        map_at(selector, &["matchLabels"]),
        &path.child("matchLabels"),
    ));
    let path = path.child("matchExpressions");
    for (index, requirement) in array_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.index(index);
        let values = array_at(requirement, &["values"]);
        match str_at(requirement, &["operator"]) {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(path.child("values"), why));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(path.child("values"), why));
                }
            }
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = str_at(requirement, &["key"]);
        problems(&path.child("key"), key, names::qualified_name(key), errors);
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            problems(
                &path.child("values").index(index),
                value,
                names::label_value(value),
                errors,
            );
        }
    }
}
