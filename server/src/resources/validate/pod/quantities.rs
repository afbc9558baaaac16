//! Amounts of resources: limits, requests, overhead.

use amphipod_api::meta::map_at;
use amphipod_api::{FieldError, FieldPath, Quantity, names};
use serde_json::{Map, Value};

use crate::resources::validate::{Errors, NON_NEGATIVE, problems};

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Resources of which more may be used than is asked for.
fn is_overcommitted(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

/// The decoder lets only quantities through: None is for values that never came that way.
fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok()
}

/// Amounts by resource name.
pub fn list(amounts: &Map<String, Value>, path: &FieldPath, errors: &mut Errors) {
    for (name, value) in amounts {
        let path = path.key(name);
        resource_name(&path, name, errors);
        amount(&path, name, value, errors);
    }
}

fn resource_name(path: &FieldPath, name: &str, errors: &mut Errors) {
    problems(path, name, names::qualified_name(name), errors);
    if !name.contains('/') {
        let standard = ["cpu", "memory", "ephemeral-storage"].contains(&name)
            || name.starts_with("hugepages-");
        if !standard {
            errors.push(FieldError::invalid(
                path,
                name,
                "must be a standard resource for containers",
            ));
        }
    }
}

fn amount(path: &FieldPath, name: &str, value: &Value, errors: &mut Errors) {
    let Some(amount) = quantity(value) else {
        return;
    };
    if amount.signum() < 0 {
        errors.push(FieldError::invalid(path, value.clone(), NON_NEGATIVE));
    }
    if !is_native(name) && !amount.is_integer() {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must be an integer",
        ));
    }
}

/// `resources` of a container.
pub fn requirements(resources: &Value, path: &FieldPath, errors: &mut Errors) {
    let (limits, requests) = (
        map_at(resources, &["limits"]),
        map_at(resources, &["requests"]),
    );
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut huge, mut cpu_or_memory) = (false, false);
    for (name, value) in limits {
        let path = limits_path.key(name);
        resource_name(&path, name, errors);
        amount(&path, name, value, errors);
        huge |= name.starts_with("hugepages-");
        cpu_or_memory |= name == "cpu" || name == "memory";
    }
    for (name, value) in requests {
        let path = requests_path.key(name);
        resource_name(&path, name, errors);
        amount(&path, name, value, errors);
        huge |= name.starts_with("hugepages-");
        cpu_or_memory |= name == "cpu" || name == "memory";
        let Some(asked) = quantity(value) else {
            continue;
        };
        match limits.get(name).and_then(quantity) {
            Some(most) => {
                let why = if is_overcommitted(name) {
                    if asked <= most {
                        continue;
                    }
                    format!("must be less than or equal to {name} limit of {most}")
                } else {
                    if asked == most {
                        continue;
                    }
                    format!("must be equal to {name} limit of {most}")
                };
                errors.push(FieldError::invalid(requests_path, asked.to_string(), why));
            }
            None if !is_overcommitted(name) => {
                errors.push(FieldError::required(
                    limits_path,
                    "Limit must be set for non overcommitable resources",
                ));
            }
            None => {}
        }
    }
    if huge && !cpu_or_memory {
        errors.push(FieldError::forbidden(
            path,
            "HugePages require cpu or memory",
        ));
    }
}
