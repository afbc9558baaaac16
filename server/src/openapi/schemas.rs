//! Definitions of types, as OpenAPI v2 and v3 write them, out of the JSON schemas of `k8s-openapi`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resources::kinds;
use crate::resources::schema::{ATOMIC, Builtin, definitions, is_atomic, merge_of};
use crate::resources::{Descriptor, SchemaSource};

/// Which dialect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    V2,
    V3,
}

impl Style {
    fn reference(self, name: &str) -> Value {
        match self {
            Style::V2 => format!("#/definitions/{name}"),
            Style::V3 => format!("#/components/schemas/{name}"),
        }
        .into()
    }

    /// A schema that is nothing but a reference.
    pub fn refer(self, name: &str) -> Value {
        json!({"$ref": self.reference(name)})
    }
}

/// Types that every document needs.
pub const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The definition's name of a resource's kind.
pub fn name_of(d: &Descriptor) -> String {
    match &d.source {
        SchemaSource::Builtin(builtin) => builtin.name().into_owned(),
        SchemaSource::Custom { .. } => {
            let group: Vec<&str> = d.group.rsplit('.').collect();
            format!("{}.{}.{}", group.join("."), d.version, d.kind)
        }
    }
}

/// The definition's name of the kind's list.
pub fn list_name_of(d: &Descriptor) -> String {
    let name = name_of(d);
    let prefix = name.rsplit_once('.').map_or("", |(prefix, _)| prefix);
    format!("{prefix}.{}", d.list_kind)
}

/// The definition's name of a subresource's body.
pub fn body_name(group: &str, version: &str, kind: &str) -> Option<String> {
    kinds::body(group, version, kind).map(|builtin| builtin.name().into_owned())
}

/// All definitions that these resources need.
pub fn schemas(descriptors: &[&Descriptor], style: Style) -> Map<String, Value> {
    let mut wanted: Vec<Builtin> = kinds::common_types();
    let mut group_version_kinds: BTreeMap<String, Value> = BTreeMap::new();
    group_version_kinds.insert(DELETE_OPTIONS.into(), gvk("", "v1", "DeleteOptions"));
    group_version_kinds.insert(STATUS.into(), gvk("", "v1", "Status"));
    for d in descriptors {
        if let SchemaSource::Builtin(builtin) = &d.source {
            wanted.push(*builtin);
        }
        group_version_kinds.insert(name_of(d), gvk(&d.group, &d.version, &d.kind));
        for (group, version, kind) in d.subresources.iter().filter_map(|s| s.body.as_ref()) {
            if let Some(builtin) = kinds::body(group, version, kind) {
                wanted.push(builtin);
                group_version_kinds.insert(builtin.name().into_owned(), gvk(group, version, kind));
            }
        }
    }
    let mut out = Map::new();
    for (name, schema) in definitions(wanted) {
        let mut made = definition(&name, schema, style);
        if let Some(gvk) = group_version_kinds.get(&name) {
            made["x-kubernetes-group-version-kind"] = json!([gvk]);
        }
        out.insert(name, made);
    }
    out.insert(PATCH.into(), json!({"description": "A patch of an object, in one of the formats of the request's content type.", "type": "object"}));
    for d in descriptors {
        if let SchemaSource::Custom { openapi, .. } = &d.source {
            let mut made = openapi.as_ref().clone();
            made["properties"]["metadata"] =
                refer_with(style, OBJECT_META, "Standard object's metadata.");
            made["x-kubernetes-group-version-kind"] = json!([gvk(&d.group, &d.version, &d.kind)]);
            out.insert(name_of(d), made);
        }
        if d.stored {
            out.insert(list_name_of(d), list(d, style));
        }
    }
    out
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn list(d: &Descriptor, style: Style) -> Value {
    json!({
        "description": format!("{} is a list of {}.", d.list_kind, d.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The versioned schema of this representation of an object."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "items": {"type": "array", "items": style.refer(&name_of(d)), "description": "The objects."},
            "metadata": refer_with(style, LIST_META, "Metadata of the list."),
        },
        "x-kubernetes-group-version-kind": [gvk(&d.group, &d.version, &d.list_kind)],
    })
}

/// A reference with a description: in v3 a reference stands alone.
fn refer_with(style: Style, name: &str, description: &str) -> Value {
    let mut out = match style {
        Style::V2 => style.refer(name),
        Style::V3 => json!({"allOf": [style.refer(name)], "default": {}}),
    };
    if !description.is_empty() {
        out["description"] = description.into();
    }
    out
}

fn definition(name: &str, mut schema: Value, style: Style) -> Value {
    match name
        .strip_prefix("io.k8s.apimachinery.pkg.")
        .unwrap_or_default()
    {
        "api.resource.Quantity" => {
            return special(
                &schema,
                style,
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            );
        }
        "util.intstr.IntOrString" => {
            let v3 = json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
            let mut made = special(&schema, style, v3);
            made["format"] = "int-or-string".into();
            return made;
        }
        _ => {}
    }
    if is_atomic(name) {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (field, property) in properties {
            *property = convert(property.take(), style);
            annotate(name, field, property);
        }
    }
    schema
}

/// Types with several spellings: v2 has only strings.
fn special(schema: &Value, style: Style, v3: Value) -> Value {
    let mut made = if style == Style::V3 {
        v3
    } else {
        json!({"type": "string"})
    };
    made["description"] = schema["description"].clone();
    made
}

/// Rewrites references.
fn convert(schema: Value, style: Style) -> Value {
    let Value::Object(mut map) = schema else {
        return schema;
    };
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
        let description = map
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        // Inside lists and maps there is no description, and the bare reference is fine.
        return if description.is_empty() {
            style.refer(&name)
        } else {
            refer_with(style, &name, description)
        };
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = map.remove(inner) {
            map.insert(inner.into(), convert(value, style));
        }
    }
    Value::Object(map)
}

/// How the field merges.
fn annotate(owner: &str, field: &str, property: &mut Value) {
    let is_list = property["type"] == "array";
    let merge = match merge_of(owner, field) {
        Some(merge) => merge,
        None if is_list => &ATOMIC,
        None => return,
    };
    if !merge.patch_strategy.is_empty() {
        property["x-kubernetes-patch-strategy"] = merge.patch_strategy.into();
    }
    if !merge.patch_key.is_empty() {
        property["x-kubernetes-patch-merge-key"] = merge.patch_key.into();
    }
    if !merge.list_type.is_empty() {
        let kind = if is_list { "list" } else { "map" };
        property[&*format!("x-kubernetes-{kind}-type")] = merge.list_type.into();
    }
    if !merge.map_keys.is_empty() {
        property["x-kubernetes-list-map-keys"] = json!(merge.map_keys);
    }
}
