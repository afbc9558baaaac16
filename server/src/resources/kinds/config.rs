//! ConfigMap and Secret: <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/>.

use amphipod_api::meta::{annotation, bool_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::{Map, Value};

use super::Kind;
use crate::resources::common::fill_text;
use crate::resources::table::{age_cell, name};
use crate::resources::validate::immutable;
use crate::resources::{Column, Descriptor, SelectableField, Strategy};

/// All values together.
const MAX_BYTES: usize = 1024 * 1024;

pub fn config_map() -> Descriptor {
    Kind::new::<v1::ConfigMap>("", "v1", "ConfigMap", "configmaps")
        .short(&["cm"])
        .columns(vec![
            Column::name(),
            Column::new("Data", "Number of entries."),
            Column::age(),
        ])
        .strategy(ConfigMap)
        .build()
}

pub fn secret() -> Descriptor {
    Kind::new::<v1::Secret>("", "v1", "Secret", "secrets")
        .fields(vec![SelectableField::new("type")])
        .columns(vec![
            Column::name(),
            Column::new("Type", "What the secret is used for."),
            Column::new("Data", "Number of entries."),
            Column::age(),
        ])
        .strategy(Secret)
        .build()
}

struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let data = map_at(obj, &["data"]);
        let binary = map_at(obj, &["binaryData"]);
        let mut size = 0;
        check_keys(&FieldPath::new("data"), data, &mut errors);
        for (key, value) in data {
            if binary.contains_key(key) {
                let path = FieldPath::new("data");
                errors.push(FieldError::invalid(
                    path.key(key),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
            size += value.as_str().map_or(0, str::len);
        }
        check_keys(&FieldPath::new("binaryData"), binary, &mut errors);
        size += binary.values().map(decoded_len).sum::<usize>();
        if size > MAX_BYTES {
            errors.push(FieldError::too_long("", MAX_BYTES));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = frozen(new, old, &["data", "binaryData"]);
        errors.extend(self.validate_create(new));
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let entries = map_at(obj, &["data"]).len() + map_at(obj, &["binaryData"]).len();
        vec![name(obj), entries.into(), age_cell(obj, now)]
    }
}

fn check_keys(path: &FieldPath, data: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    for key in data.keys() {
        for problem in names::config_map_key(key) {
            errors.push(FieldError::invalid(path.key(key), key.as_str(), problem));
        }
    }
}

/// What an immutable ConfigMap or Secret does not let change.
fn frozen(new: &Value, old: &Value, fields: &[&'static str]) -> Vec<FieldError> {
    if bool_at(old, &["immutable"]) != Some(true) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if bool_at(new, &["immutable"]) != Some(true) {
        errors.push(FieldError::forbidden(
            "immutable",
            "field is immutable when `immutable` is set",
        ));
    }
    for field in fields {
        if map_at(new, &[*field]) != map_at(old, &[*field]) {
            errors.push(FieldError::forbidden(
                *field,
                "field is immutable when `immutable` is set",
            ));
        }
    }
    errors
}

fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    (text.len() / 4 * 3).saturating_sub(text.bytes().rev().take(2).filter(|b| *b == b'=').count())
}

/// The types of secrets that must have certain keys.
const REQUIRED_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

struct Secret;

impl Strategy for Secret {
    fn default(&self, obj: &mut Value) {
        let Some(map) = obj.as_object_mut() else {
            return;
        };
        fill_text(map, "type", "Opaque");
        // stringData is for writing only: it becomes data.
        if let Some(Value::Object(plain)) = map.remove("stringData") {
            let data = map
                .entry("data")
                .or_insert_with(|| Value::Object(Map::new()));
            if let Some(data) = data.as_object_mut() {
                for (key, value) in plain {
                    data.insert(
                        key,
                        STANDARD.encode(value.as_str().unwrap_or_default()).into(),
                    );
                }
            }
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = FieldPath::new("data");
        let data = map_at(obj, &["data"]);
        check_keys(&path, data, &mut errors);
        if data.values().map(decoded_len).sum::<usize>() > MAX_BYTES {
            errors.push(FieldError::too_long(path, MAX_BYTES));
        }
        let kind = str_at(obj, &["type"]);
        if kind == "kubernetes.io/service-account-token"
            && annotation(obj, "kubernetes.io/service-account.name")
                .unwrap_or_default()
                .is_empty()
        {
            let metadata = FieldPath::new("metadata");
            let annotations = metadata.child("annotations");
            errors.push(FieldError::required(
                annotations.key("kubernetes.io/service-account.name"),
                "",
            ));
        }
        if kind == "kubernetes.io/basic-auth"
            && !data.contains_key("username")
            && !data.contains_key("password")
        {
            errors.push(FieldError::required("data[%s][username]", ""));
            errors.push(FieldError::required("data[%s][password]", ""));
        }
        let required = REQUIRED_KEYS
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, keys)| *keys)
            .unwrap_or_default();
        for key in required {
            match data.get(*key) {
                None => errors.push(FieldError::required(path.key(key), "")),
                Some(value) if key.starts_with(".docker") && !is_json(value) => {
                    errors.push(FieldError::invalid(
                        path.key(key),
                        "<secret contents redacted>",
                        "invalid character in JSON",
                    ));
                }
                Some(_) => {}
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        immutable(
            &FieldPath::new("type"),
            new.get("type"),
            old.get("type"),
            &mut errors,
        );
        errors.extend(frozen(new, old, &["data"]));
        errors.extend(self.validate_create(new));
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let entries = map_at(obj, &["data"]).len();
        vec![
            name(obj),
            str_at(obj, &["type"]).into(),
            entries.into(),
            age_cell(obj, now),
        ]
    }
}

fn is_json(value: &Value) -> bool {
    let decoded = STANDARD
        .decode(value.as_str().unwrap_or_default())
        .unwrap_or_default();
    serde_json::from_slice::<Map<String, Value>>(&decoded).is_ok()
}
