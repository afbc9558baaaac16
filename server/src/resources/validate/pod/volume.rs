//! Volumes.

use std::collections::HashSet;

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, Quantity, names};
use serde_json::Value;

use super::container::{Volumes, descending_path};
use super::env::downward_files;
use crate::resources::kinds::claim_spec;
use crate::resources::validate::{Errors, one_of, problems};

/// `volumes`; gives those that are valid, which is what mounts can name.
pub fn volumes<'a>(list: &'a [Value], path: &FieldPath, errors: &mut Errors) -> Volumes<'a> {
    let mut valid = Volumes::new();
    for (index, volume) in list.iter().enumerate() {
        let path = path.index(index);
        let mut found = Vec::new();
        source(volume, &path, &mut found);
        let name = str_at(volume, &["name"]);
        if name.is_empty() {
            found.push(FieldError::required(path.child("name"), ""));
        } else {
            problems(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                &mut found,
            );
        }
        if valid.contains_key(name) {
            found.push(FieldError::duplicate(path.child("name"), name));
        }
        if found.is_empty() {
            valid.insert(name, volume);
        }
        errors.extend(found);
    }
    valid
}

fn source(volume: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut found = false;
    let Some(map) = volume.as_object() else {
        return;
    };
    for (kind, source) in map.iter().filter(|(key, _)| *key != "name") {
        let path = path.child(kind);
        if found {
            errors.push(FieldError::forbidden(
                path,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        found = true;
        one_source(kind, source, &path, errors);
    }
    if !found {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

fn required(path: &FieldPath, source: &Value, fields: &[&'static str], errors: &mut Errors) {
    for field in fields {
        if str_at(source, &[*field]).is_empty() {
            errors.push(FieldError::required(path.child(field), ""));
        }
    }
}

/// One source of a volume, of a pod's or of a PersistentVolume's.
pub fn one_source(kind: &str, source: &Value, path: &FieldPath, errors: &mut Errors) {
    match kind {
        "emptyDir" => {
            let limit = source
                .get("sizeLimit")
                .and_then(|l| Quantity::from_value(l).ok());
            if limit.is_some_and(|l| l.signum() < 0) {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(path.child("sizeLimit"), why));
            }
        }
        "hostPath" => {
            let target = str_at(source, &["path"]);
            if target.is_empty() {
                errors.push(FieldError::required(path.child("path"), ""));
                return;
            }
            no_backsteps(&path.child("path"), target, errors);
            one_of(
                &path.child("type"),
                str_at(source, &["type"]),
                HOST_PATH_TYPES,
                errors,
            );
        }
        "configMap" => {
            required(path, source, &["name"], errors);
            mode(
                &path.child("defaultMode"),
                source.get("defaultMode"),
                errors,
            );
            items(source, &path.child("items"), errors);
        }
        "secret" => {
            required(path, source, &["secretName"], errors);
            mode(
                &path.child("defaultMode"),
                source.get("defaultMode"),
                errors,
            );
            items(source, &path.child("items"), errors);
        }
        "downwardAPI" => {
            mode(
                &path.child("defaultMode"),
                source.get("defaultMode"),
                errors,
            );
            downward_files(array_at(source, &["items"]), path, errors);
        }
        "projected" => projected(source, path, errors),
        "persistentVolumeClaim" => required(path, source, &["claimName"], errors),
        "nfs" => {
            required(path, source, &["server", "path"], errors);
            let target = str_at(source, &["path"]);
            if !target.is_empty() && !target.starts_with('/') {
                errors.push(FieldError::invalid(
                    path.child("path"),
                    target,
                    "must be an absolute path",
                ));
            }
        }
        "csi" => {
            let driver = str_at(source, &["driver"]);
            if driver.is_empty() {
                errors.push(FieldError::required(path.child("driver"), ""));
            } else {
                let lower = driver.to_lowercase();
                problems(
                    &path.child("driver"),
                    driver,
                    names::dns1123_subdomain(&lower),
                    errors,
                );
            }
        }
        "ephemeral" => {
            let path = path.child("volumeClaimTemplate");
            match source.get("volumeClaimTemplate") {
                None => errors.push(FieldError::required(path, "")),
                Some(template) => claim_spec(&template["spec"], &path.child("spec"), errors),
            }
        }
        "image" => {
            required(path, source, &["reference"], errors);
            let policy = str_at(source, &["pullPolicy"]);
            one_of(
                &path.child("pullPolicy"),
                policy,
                &["Always", "IfNotPresent", "Never"],
                errors,
            );
        }
        _ => {}
    }
}

/// No `..` in a path of the box.
pub fn no_backsteps(path: &FieldPath, target: &str, errors: &mut Errors) {
    if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, target, "must not contain '..'"));
    }
}

/// The mode of a file, 0 to 0777.
pub fn mode(path: &FieldPath, value: Option<&Value>, errors: &mut Errors) {
    if let Some(mode) = value.and_then(Value::as_i64)
        && !(0..=0o777).contains(&mode)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode, why));
    }
}

/// The path of a file inside a volume: relative, inside, and not a name the volume itself uses.
pub fn file_path(path: &FieldPath, target: &str, errors: &mut Errors) {
    descending_path(path, target, errors);
    if target.starts_with("..") && !target.starts_with("../") && target != ".." {
        errors.push(FieldError::invalid(
            path,
            target,
            "must not start with '..'",
        ));
    }
}

/// `items`: which keys become which files.
fn items(source: &Value, path: &FieldPath, errors: &mut Errors) {
    for (index, item) in array_at(source, &["items"]).iter().enumerate() {
        let path = path.index(index);
        required(&path, item, &["key", "path"], errors);
        let target = str_at(item, &["path"]);
        if !target.is_empty() {
            file_path(&path.child("path"), target, errors);
        }
        mode(&path.child("mode"), item.get("mode"), errors);
    }
}

const MIN_TOKEN_SECONDS: i64 = 600;

fn projected(source: &Value, path: &FieldPath, errors: &mut Errors) {
    mode(
        &path.child("defaultMode"),
        source.get("defaultMode"),
        errors,
    );
    let list = path.child("sources");
    let mut files = HashSet::new();
    for (index, projection) in array_at(source, &["sources"]).iter().enumerate() {
        let here = list.index(index);
        let Some(map) = projection.as_object() else {
            continue;
        };
        let mut count = 0;
        for (kind, from) in map {
            let path = here.child(kind);
            count += 1;
            if count > 1 {
                errors.push(FieldError::forbidden(
                    path,
                    "may not specify more than 1 volume type",
                ));
                continue;
            }
            let mut add = |target: &str, path: &FieldPath, errors: &mut Errors| {
                if !target.is_empty() && !files.insert(target.to_owned()) {
                    errors.push(FieldError::invalid(
                        path,
                        target,
                        "conflicting duplicate paths",
                    ));
                }
            };
            match &**kind {
                "configMap" | "secret" => {
                    required(&path, from, &["name"], errors);
                    items(from, &path.child("items"), errors);
                    for item in array_at(from, &["items"]) {
                        add(str_at(item, &["path"]), &path, errors);
                    }
                }
                "downwardAPI" => {
                    downward_files(array_at(from, &["items"]), &path, errors);
                    for item in array_at(from, &["items"]) {
                        add(str_at(item, &["path"]), &path, errors);
                    }
                }
                "serviceAccountToken" => {
                    let seconds = i64_at(from, &["expirationSeconds"]).unwrap_or(3600);
                    let why = if seconds < MIN_TOKEN_SECONDS {
                        "may not specify a duration less than 10 minutes"
                    } else if seconds > 1 << 32 {
                        "may not specify a duration larger than 2^32 seconds"
                    } else {
                        ""
                    };
                    if !why.is_empty() {
                        errors.push(FieldError::invalid(
                            path.child("expirationSeconds"),
                            seconds,
                            why,
                        ));
                    }
                    required(&path, from, &["path"], errors);
                    add(str_at(from, &["path"]), &path, errors);
                }
                _ => {}
            }
        }
        if count == 0 {
            errors.push(FieldError::required(here, "must specify a volume type"));
        }
    }
}
