//! Security contexts and the host's namespaces.

use std::collections::HashSet;

use amphipod_api::meta::{array_at, bool_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use super::container::host_network_ports;
use super::one_of_required;
use crate::resources::validate::{Errors, one_of};

fn id(path: &FieldPath, value: Option<&Value>, errors: &mut Errors) {
    if let Some(id) = value.and_then(Value::as_i64) {
        for problem in names::in_range(id, 0, i64::from(i32::MAX)) {
            errors.push(FieldError::invalid(path, id, problem));
        }
    }
}

/// `securityContext` of the pod, and what else it shares with the host.
pub fn pod(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let context = &spec["securityContext"];
    let here = path.child("securityContext");
    if bool_at(spec, &["hostNetwork"]) == Some(true) {
        host_network_ports(spec, path, errors);
    }
    if bool_at(spec, &["shareProcessNamespace"]) == Some(true)
        && bool_at(spec, &["hostPID"]) == Some(true)
    {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(
            path.child("shareProcessNamespace"),
            true,
            why,
        ));
    }
    if bool_at(spec, &["hostUsers"]) == Some(false) {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if bool_at(spec, &[field]) == Some(true) {
                let why = format!("when `hostUsers` is false, `{field}` must not be true");
                errors.push(FieldError::forbidden(path.child(field), why));
            }
        }
    }
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&here.child(field), context.get(field), errors);
    }
    for (index, group) in array_at(context, &["supplementalGroups"])
        .iter()
        .enumerate()
    {
        id(
            &here.child("supplementalGroups").index(index),
            Some(group),
            errors,
        );
    }
    sysctls(context, &here.child("sysctls"), errors);
    if let Some(policy) = context.get("fsGroupChangePolicy").and_then(Value::as_str) {
        one_of(
            &here.child("fsGroupChangePolicy"),
            policy,
            &["Always", "OnRootMismatch"],
            errors,
        );
    }
    if let Some(policy) = context
        .get("supplementalGroupsPolicy")
        .and_then(Value::as_str)
    {
        one_of(
            &here.child("supplementalGroupsPolicy"),
            policy,
            &["Merge", "Strict"],
            errors,
        );
    }
    profiles(context, &here, errors);
}

/// `net.ipv4.tcp_syncookies`, also with slashes.
fn is_sysctl(name: &str) -> bool {
    let segment = |s: &str| {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = s.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if ok(*a) && ok(*z))
            && bytes.iter().all(|b| ok(*b) || *b == b'-' || *b == b'_')
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(context: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, sysctl) in array_at(context, &["sysctls"]).iter().enumerate() {
        let path = path.index(index);
        let name = str_at(sysctl, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else if !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(path.child("name"), name, why));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
    }
}

/// Seccomp and AppArmor, which look alike.
fn profiles(context: &Value, path: &FieldPath, errors: &mut Errors) {
    for (field, what) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let Some(profile) = context.get(field) else {
            continue;
        };
        let path = path.child(field);
        let kind = str_at(profile, &["type"]);
        let file = str_at(profile, &["localhostProfile"]);
        one_of_required(
            &path.child("type"),
            kind,
            &["Localhost", "RuntimeDefault", "Unconfined"],
            errors,
        );
        if kind == "Localhost" {
            if file.is_empty() {
                let why = match what {
                    "seccomp" => "must be set when seccomp type is Localhost ",
                    _ => "must be set when AppArmor type is Localhost",
                };
                errors.push(FieldError::required(path.child("localhostProfile"), why));
            } else if what == "seccomp" {
                super::container::descending_path(&path.child("localhostProfile"), file, errors);
            }
        } else if !file.is_empty() {
            let why = format!("can only be set when {what} type is Localhost");
            errors.push(FieldError::invalid(
                path.child("localhostProfile"),
                file,
                why,
            ));
        }
    }
}

/// `securityContext` of a container.
pub fn container(context: &Value, path: &FieldPath, errors: &mut Errors) {
    if !context.is_object() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        id(&path.child(field), context.get(field), errors);
    }
    if let Some(mount) = context.get("procMount").and_then(Value::as_str) {
        one_of(
            &path.child("procMount"),
            mount,
            &["Default", "Unmasked"],
            errors,
        );
    }
    profiles(context, path, errors);
    if bool_at(context, &["allowPrivilegeEscalation"]) == Some(false) {
        if bool_at(context, &["privileged"]) == Some(true) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(path, context.clone(), why));
        }
        if array_at(context, &["capabilities", "add"])
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN")
        {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(path, context.clone(), why));
        }
    }
}
