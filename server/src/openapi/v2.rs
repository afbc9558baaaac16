//! `/openapi/v2`: one document of everything, which old clients read (as JSON or protobuf).

use amphipod_api::patch::PatchType;
use serde_json::{Map, Value, json};

use super::operations::{Operation, PARAMETERS, Path, paths};
use super::schemas::{Style, schemas};
use super::{protobuf, v3, version};
use crate::resources::{Catalog, Descriptor};

/// The document as JSON.
pub fn document(catalog: &Catalog) -> Value {
    let all = catalog.snapshot();
    let all: Vec<&Descriptor> = all.iter().map(|d| &**d).collect();
    let mut all_paths = Map::new();
    for d in &all {
        for path in paths(d) {
            let value = path_item(&path);
            all_paths.insert(path.path, value);
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version()["gitVersion"]},
        "paths": all_paths,
        "definitions": schemas(&all, Style::V2),
        "securityDefinitions": {
            "BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header",
                "description": "Bearer Token authentication",
            },
        },
        "security": [{"BearerToken": []}],
    })
}

/// The document as the protobuf message `openapi.v2.Document`.
pub fn document_protobuf(catalog: &Catalog) -> Vec<u8> {
    protobuf::document(&document(catalog))
}

fn path_item(path: &Path) -> Value {
    let mut out = Map::new();
    for operation in &path.operations {
        out.insert(operation.method.into(), self::operation(operation));
    }
    let variables = path.variables.iter().map(|name| {
        json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true,
            "description": v3::variable(name)})
    });
    if !path.variables.is_empty() {
        out.insert("parameters".into(), variables.collect());
    }
    Value::Object(out)
}

fn operation(o: &Operation) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if let Some(body) = &o.body {
        parameters.push(json!({"name": "body", "in": "body", "required": o.method != "delete", "schema": Style::V2.refer(body)}));
    }
    parameters.extend(PARAMETERS.iter().filter(|(name, ..)| o.parameters.contains(name)).map(|(name, kind, text)| {
        json!({"name": name, "in": "query", "description": text, "type": kind, "uniqueItems": true})
    }));
    let (group, version, kind) = &o.kind;
    let answer = o
        .answer
        .as_ref()
        .map_or_else(|| json!({"type": "string"}), |name| Style::V2.refer(name));
    let consumes: Value = if o.method == "patch" {
        json!(PatchType::ALL.map(PatchType::content_type))
    } else {
        json!(["*/*"])
    };
    json!({
        "operationId": o.id,
        "description": o.description,
        "consumes": consumes,
        "produces": ["application/json", "application/yaml"],
        "schemes": ["https"],
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": answer}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-action": o.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    })
}
