//! Pods and pod templates. Source: `ValidatePodSpec` and what it calls in `pkg/apis/core/validation` (v1.36).

use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use super::Errors;

/// Where a pod spec stands: some rules are for pods only.
#[derive(Clone, Copy)]
pub enum Where<'a> {
    /// The pod itself.
    Pod(&'a Value),
    Template,
}

/// A port number, or the name of a port.
pub fn port_number_or_name(path: &FieldPath, port: &Value, errors: &mut Errors) {
    match port {
        Value::String(name) => super::problems(path, name, names::port_name(name), errors),
        _ => {
            let number = port.as_i64().unwrap_or(0);
            for problem in names::port_number(number) {
                errors.push(FieldError::invalid(path, number, problem));
            }
        }
    }
}

pub fn pod_annotations(_: &Value) -> Errors {
    Vec::new()
}

pub fn pod_spec(_spec: &Value, _path: &FieldPath, _place: Where) -> Errors {
    Vec::new()
}

pub fn pod_template(_template: &Value, _path: &FieldPath) -> Errors {
    Vec::new()
}

pub fn warnings(_spec: &Value, _path: &FieldPath) -> Vec<String> {
    Vec::new()
}
