//! Environment variables and references to fields.

use amphipod_api::meta::str_at;
use amphipod_api::{FieldError, FieldPath, Quantity, names};
use serde_json::Value;

use crate::resources::validate::{Errors, problems};

/// `env`
pub fn variables(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (index, variable) in list.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else {
            problems(&path.child("name"), name, names::env_var_name(name), errors);
        }
        if let Some(from) = variable.get("valueFrom") {
            value_from(
                &path.child("valueFrom"),
                from,
                str_at(variable, &["value"]),
                errors,
            );
        }
    }
}

fn value_from(path: &FieldPath, from: &Value, value: &str, errors: &mut Errors) {
    let mut count = 0;
    if let Some(field) = from.get("fieldRef") {
        count += 1;
        field_ref(&path.child("fieldRef"), field, FIELDS_IN_ENV, errors);
    }
    if let Some(resource) = from.get("resourceFieldRef") {
        count += 1;
        resource_ref(&path.child("resourceFieldRef"), resource, false, errors);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(key) = from.get(kind) {
            count += 1;
            key_ref(&path.child(kind), key, errors);
        }
    }
    if let Some(file) = from.get("fileKeyRef") {
        count += 1;
        for field in ["key", "volumeName", "path"] {
            if str_at(file, &[field]).is_empty() {
                errors.push(FieldError::required(
                    path.child("fileKeyRef").child(field),
                    "",
                ));
            }
        }
    }
    let why = match count {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        }
        _ if !value.is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", why));
}

fn key_ref(path: &FieldPath, source: &Value, errors: &mut Errors) {
    let name = str_at(source, &["name"]);
    problems(
        &path.child("name"),
        name,
        names::dns1123_subdomain(name),
        errors,
    );
    let key = str_at(source, &["key"]);
    if key.is_empty() {
        errors.push(FieldError::required(path.child("key"), ""));
    } else {
        problems(&path.child("key"), key, names::config_map_key(key), errors);
    }
}

const FIELDS_IN_ENV: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields that downward API files may show.
pub const FIELDS_IN_FILES: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Fields that are known, but not all of them everywhere.
const KNOWN: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "spec.host",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
];

/// `fieldRef`: one of `supported`, or a label or annotation by its key.
pub fn field_ref(path: &FieldPath, field: &Value, supported: &[&str], errors: &mut Errors) {
    if str_at(field, &["apiVersion"]).is_empty() {
        errors.push(FieldError::required(path.child("apiVersion"), ""));
        return;
    }
    let text = str_at(field, &["fieldPath"]);
    if text.is_empty() {
        errors.push(FieldError::required(path.child("fieldPath"), ""));
        return;
    }
    if let Some((base, key)) = text.strip_suffix("']").and_then(|t| t.split_once("['")) {
        match base {
            "metadata.annotations" => problems(
                path,
                key,
                names::qualified_name(&key.to_lowercase()),
                errors,
            ),
            "metadata.labels" => problems(path, key, names::qualified_name(key), errors),
            _ => {
                let why = format!("error converting fieldPath: field label not supported: {base}");
                errors.push(FieldError::invalid(path.child("fieldPath"), text, why));
            }
        }
        return;
    }
    if supported.contains(&text) {
        return;
    }
    let path = path.child("fieldPath");
    if KNOWN.contains(&text) || FIELDS_IN_ENV.contains(&text) {
        errors.push(FieldError::not_supported(path, text, supported));
    } else {
        let why = format!("error converting fieldPath: field label not supported: {text}");
        errors.push(FieldError::invalid(path, text, why));
    }
}

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// `resourceFieldRef`; in a volume it must say of which container.
pub fn resource_ref(path: &FieldPath, source: &Value, in_volume: bool, errors: &mut Errors) {
    let resource = str_at(source, &["resource"]);
    if in_volume && str_at(source, &["containerName"]).is_empty() {
        errors.push(FieldError::required(path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource)
        && !resource.starts_with("limits.hugepages-")
        && !resource.starts_with("requests.hugepages-")
    {
        errors.push(FieldError::not_supported(
            path.child("resource"),
            resource,
            RESOURCES,
        ));
    }
    let Some(divisor) = source
        .get("divisor")
        .and_then(|d| Quantity::from_value(d).ok())
    else {
        return;
    };
    if divisor.is_zero() {
        return;
    }
    let text = divisor.to_string();
    const BYTES: &[&str] = &[
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let why = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" if !["1m", "1"].contains(&&*text) => {
            "only divisor's values 1m and 1 are supported with the cpu resource"
        }
        "memory" if !BYTES.contains(&&*text) => {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
        }
        "ephemeral-storage" if !BYTES.contains(&&*text) => {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource"
        }
        _ => return,
    };
    errors.push(FieldError::invalid(path.child("divisor"), resource, why));
}

/// `envFrom`
pub fn sources(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (index, source) in list.iter().enumerate() {
        let item = path.index(index);
        let prefix = str_at(source, &["prefix"]);
        if !prefix.is_empty() {
            problems(
                &item.child("prefix"),
                prefix,
                names::env_var_name(prefix),
                errors,
            );
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let Some(reference) = source.get(kind) else {
                continue;
            };
            count += 1;
            let path = item.child(kind);
            let name = str_at(reference, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(path.child("name"), ""));
            } else {
                problems(
                    &path.child("name"),
                    name,
                    names::dns1123_subdomain(name),
                    errors,
                );
            }
        }
        let why = match count {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", why));
    }
}

/// Items of a downward API volume.
pub fn downward_files(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (index, file) in list.iter().enumerate() {
        let path = path.index(index);
        let target = str_at(file, &["path"]);
        if target.is_empty() {
            errors.push(FieldError::required(path.child("path"), ""));
        } else {
            super::volume::file_path(&path.child("path"), target, errors);
        }
        match (file.get("fieldRef"), file.get("resourceFieldRef")) {
            (Some(field), None) => {
                field_ref(&path.child("fieldRef"), field, FIELDS_IN_FILES, errors)
            }
            (None, Some(resource)) => {
                resource_ref(&path.child("resourceFieldRef"), resource, true, errors)
            }
            (Some(field), Some(_)) => {
                field_ref(&path.child("fieldRef"), field, FIELDS_IN_FILES, errors);
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", why));
            }
            (None, None) => {
                errors.push(FieldError::required(
                    path,
                    "one of fieldRef and resourceFieldRef is required",
                ));
            }
        }
        super::volume::mode(&path.child("mode"), file.get("mode"), errors);
    }
}
