//! Probes and lifecycle hooks.

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use super::port_number_or_name;
use crate::resources::validate::{Errors, non_negative, one_of};

/// The three probes of a container.
pub fn probes(container: &Value, path: &FieldPath, errors: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(name) else {
            continue;
        };
        let path = path.child(name);
        handler(
            probe,
            &path,
            &["exec", "httpGet", "tcpSocket", "grpc"],
            errors,
        );
        let fields = [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ];
        for field in fields {
            non_negative(&path.child(field), probe.get(field), errors);
        }
        let threshold = i64_at(probe, &["successThreshold"]).unwrap_or(1);
        if name != "readinessProbe" && threshold != 1 {
            errors.push(FieldError::invalid(
                path.child("successThreshold"),
                threshold,
                "must be 1",
            ));
        }
        if let Some(grace) = i64_at(probe, &["terminationGracePeriodSeconds"]) {
            let path = path.child("terminationGracePeriodSeconds");
            if name == "readinessProbe" {
                errors.push(FieldError::invalid(
                    path,
                    grace,
                    "must not be set for readinessProbes",
                ));
            } else if grace <= 0 {
                errors.push(FieldError::invalid(path, grace, "must be greater than 0"));
            }
        }
    }
}

/// The hooks of a container; `grace` is the pod's terminationGracePeriodSeconds.
pub fn lifecycle(container: &Value, path: &FieldPath, grace: i64, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let Some(action) = container.get("lifecycle").and_then(|l| l.get(hook)) else {
            continue;
        };
        let path = path.child(hook);
        handler(
            action,
            &path,
            &["exec", "httpGet", "tcpSocket", "sleep"],
            errors,
        );
        if let Some(seconds) = i64_at(action, &["sleep", "seconds"])
            && (seconds < 0 || seconds > grace)
        {
            let why = format!(
                "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
            );
            errors.push(FieldError::invalid(path.child("sleep"), seconds, why));
        }
    }
}

/// Exactly one of `kinds`.
fn handler(action: &Value, path: &FieldPath, kinds: &[&'static str], errors: &mut Errors) {
    let mut found = false;
    for kind in kinds {
        let Some(what) = action.get(*kind) else {
            continue;
        };
        let path = path.child(kind);
        if found {
            errors.push(FieldError::forbidden(
                path,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        found = true;
        match *kind {
            "exec" if array_at(what, &["command"]).is_empty() => {
                errors.push(FieldError::required(path.child("command"), ""));
            }
            "httpGet" => http_get(what, &path, errors),
            "tcpSocket" => port_number_or_name(&path.child("port"), &what["port"], errors),
            "grpc" => {
                let number = i64_at(what, &["port"]).unwrap_or(0);
                for problem in names::port_number(number) {
                    errors.push(FieldError::invalid(path.child("port"), number, problem));
                }
            }
            _ => {}
        }
    }
    if !found {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(get: &Value, path: &FieldPath, errors: &mut Errors) {
    if str_at(get, &["path"]).is_empty() {
        errors.push(FieldError::required(path.child("path"), ""));
    }
    port_number_or_name(&path.child("port"), &get["port"], errors);
    one_of(
        &path.child("scheme"),
        str_at(get, &["scheme"]),
        &["HTTP", "HTTPS"],
        errors,
    );
    for header in array_at(get, &["httpHeaders"]) {
        let name = str_at(header, &["name"]);
        for problem in names::http_header_name(name) {
            errors.push(FieldError::invalid(
                path.child("httpHeaders"),
                name,
                problem,
            ));
        }
    }
}
