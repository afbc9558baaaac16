//! `/openapi/v3`: an index of small documents, one for each group and version.

use std::collections::BTreeMap;

use amphipod_api::patch::PatchType;
use serde_json::{Map, Value, json};

use super::operations::{Operation, PARAMETERS, Path, paths};
use super::schemas::{Style, schemas};
use super::{hash, version};
use crate::resources::{Catalog, Descriptor};

/// `api/v1`, `apis/apps/v1`
fn path_of(d: &Descriptor) -> String {
    if d.group.is_empty() {
        format!("api/{}", d.version)
    } else {
        format!("apis/{}/{}", d.group, d.version)
    }
}

/// `/openapi/v3`: where the documents are, each with the hash of its contents.
pub fn index(catalog: &Catalog) -> Value {
    let all = catalog.snapshot();
    let mut documents: BTreeMap<String, Vec<&Descriptor>> = BTreeMap::new();
    for d in all.iter() {
        documents.entry(path_of(d)).or_default().push(d);
    }
    let paths: Map<String, Value> = documents
        .into_iter()
        .map(|(path, descriptors)| {
            let url = format!("/openapi/v3/{path}?hash={}", hash(descriptors));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document at `/openapi/v3/PATH`, where PATH is `api/v1` or `apis/GROUP/VERSION`, and its hash.
pub fn document(catalog: &Catalog, path: &str) -> Option<(Value, String)> {
    let all = catalog.snapshot();
    let here: Vec<&Descriptor> = all
        .iter()
        .map(|d| &**d)
        .filter(|d| path_of(d) == path)
        .collect();
    if here.is_empty() {
        return None;
    }
    let mut all_paths = Map::new();
    for d in &here {
        for path in paths(d) {
            let value = path_item(&path);
            all_paths.insert(path.path, value);
        }
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version()["gitVersion"]},
        "paths": all_paths,
        "components": {
            "schemas": schemas(&here, Style::V3),
            "securitySchemes": {
                "BearerToken": {
                    "type": "apiKey", "name": "authorization", "in": "header",
                    "description": "Bearer Token authentication",
                },
            },
        },
        "security": [{"BearerToken": []}],
    });
    Some((document, hash(here)))
}

const BODY_TYPES: &[&str] = &["application/json", "application/yaml"];

fn path_item(path: &Path) -> Value {
    let mut out = Map::new();
    for operation in &path.operations {
        out.insert(operation.method.into(), self::operation(operation));
    }
    let variables = path.variables.iter().map(|name| {
        json!({"name": name, "in": "path", "required": true, "description": variable(name),
            "schema": {"type": "string", "uniqueItems": true}})
    });
    if !path.variables.is_empty() {
        out.insert("parameters".into(), variables.collect());
    }
    Value::Object(out)
}

pub(super) fn variable(name: &str) -> &'static str {
    if name == "namespace" {
        "The namespace."
    } else {
        "The name of the object."
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    types
        .iter()
        .map(|t| ((*t).to_owned(), json!({"schema": schema})))
        .collect::<Map<_, _>>()
        .into()
}

fn operation(o: &Operation) -> Value {
    let parameters = PARAMETERS.iter().filter(|(name, ..)| o.parameters.contains(name)).map(|(name, kind, text)| {
        json!({"name": name, "in": "query", "description": text, "schema": {"type": kind, "uniqueItems": true}})
    });
    let (group, version, kind) = &o.kind;
    let answer = match &o.answer {
        Some(name) => content(BODY_TYPES, &Style::V3.refer(name)),
        None => json!({"*/*": {"schema": {"type": "string"}}}),
    };
    let mut out = json!({
        "operationId": o.id,
        "description": o.description,
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": answer}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": o.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if let Some(body) = &o.body {
        let types = if o.method == "patch" {
            &PatchType::ALL.map(PatchType::content_type)[..]
        } else {
            BODY_TYPES
        };
        out["requestBody"] = json!({"content": content(types, &Style::V3.refer(body)), "required": o.method != "delete"});
    }
    out
}
