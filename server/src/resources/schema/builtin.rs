//! Schemas of built-in kinds, out of the JSON schemas that `k8s-openapi` generates.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::facts::merge_of;
use super::{Field, Schema, Struct, Ty};

/// A built-in type, by the functions that generate its JSON schema.
#[derive(Clone, Copy)]
pub struct Builtin {
    name: fn() -> Cow<'static, str>,
    generate: fn(&mut SchemaGenerator),
}

impl Builtin {
    pub fn of<T: JsonSchema>() -> Builtin {
        Builtin {
            name: T::schema_name,
            generate: |generator| {
                generator.subschema_for::<T>();
            },
        }
    }

    /// The definition's name, e.g. `io.k8s.api.apps.v1.Deployment`.
    pub fn name(&self) -> Cow<'static, str> {
        (self.name)()
    }

    /// The compact schema. Structs already known from other kinds are shared.
    pub fn schema(&self) -> Schema {
        let definitions = definitions([*self]);
        let mut structs = match STRUCTS.lock() {
            Ok(structs) => structs,
            Err(poisoned) => poisoned.into_inner(),
        };
        let mut converter = Converter {
            definitions: &definitions,
            structs: &mut structs,
        };
        Schema {
            root: converter.named(&self.name()),
        }
    }
}

/// The JSON schemas of all types that `kinds` reach, by definition name, descriptions included: large, not to be kept.
pub fn definitions(kinds: impl IntoIterator<Item = Builtin>) -> Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    for kind in kinds {
        (kind.generate)(&mut generator);
    }
    generator.take_definitions(true)
}

/// Every struct converted so far. Types are few and their number is bounded by the API, so nothing is ever dropped.
static STRUCTS: Mutex<BTreeMap<String, Arc<Struct>>> = Mutex::new(BTreeMap::new());

struct Converter<'a> {
    definitions: &'a Map<String, Value>,
    structs: &'a mut BTreeMap<String, Arc<Struct>>,
}

impl Converter<'_> {
    /// The type of a definition.
    fn named(&mut self, name: &str) -> Ty {
        match name
            .strip_prefix("io.k8s.apimachinery.pkg.")
            .unwrap_or_default()
        {
            "api.resource.Quantity" => return Ty::Quantity,
            "util.intstr.IntOrString" => return Ty::IntOrString,
            "apis.meta.v1.Time" => return Ty::Time,
            "apis.meta.v1.MicroTime" => return Ty::MicroTime,
            _ => {}
        }
        if let Some(known) = self.structs.get(name) {
            return Ty::Struct(known.clone());
        }
        let Some(schema) = self.definitions.get(name) else {
            return Ty::Any;
        };
        match schema.get("properties").and_then(Value::as_object) {
            Some(properties) => {
                let made = Arc::new(Struct::new(name));
                self.structs.insert(name.to_owned(), made.clone());
                let required = schema.get("required").and_then(Value::as_array);
                let fields = properties.iter().map(|(field, schema)| Field {
                    name: field.as_str().into(),
                    ty: self.inline(schema),
                    required: required.is_some_and(|r| r.iter().any(|f| f == field)),
                    merge: merge_of(name, field),
                });
                let fields = fields.collect();
                made.fill(fields);
                Ty::Struct(made)
            }
            None => self.inline(schema),
        }
    }

    fn inline(&mut self, schema: &Value) -> Ty {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            return self.named(name);
        }
        let format = schema
            .get("format")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match schema
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
        {
            "string" if format == "byte" => Ty::Bytes,
            "string" => Ty::String,
            "boolean" => Ty::Bool,
            "integer" if format == "int32" => Ty::Int32,
            "integer" => Ty::Int64,
            "number" => Ty::Float,
            "array" => Ty::List(Box::new(
                schema
                    .get("items")
                    .map_or(Ty::Any, |items| self.inline(items)),
            )),
            "object" => match schema.get("additionalProperties") {
                Some(values) if values.is_object() => Ty::Map(Box::new(self.inline(values))),
                _ => Ty::Any,
            },
            _ => Ty::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn kinds_share_their_structs() {
        let pod = Builtin::of::<Pod>().schema();
        let deployment = Builtin::of::<Deployment>().schema();
        let (Some(Ty::Struct(a)), Some(Ty::Struct(b))) = (
            pod.at(["spec"]),
            deployment.at(["spec", "template", "spec"]),
        ) else {
            panic!("specs are structs");
        };
        assert!(Arc::ptr_eq(a, b));
    }

    #[test]
    fn fields_have_their_types_and_merge_facts() {
        let pod = Builtin::of::<Pod>().schema();
        let spec = pod.at(["spec"]).and_then(|t| t.field("containers"));
        assert_eq!(
            spec.and_then(|f| f.merge).map(|m| m.patch_key),
            Some("name")
        );
        let limits = pod.at(["spec", "containers", "resources", "limits", "cpu"]);
        assert!(matches!(limits, Some(Ty::Quantity)));
        let port = pod.at(["spec", "containers", "livenessProbe", "httpGet", "port"]);
        assert!(matches!(port, Some(Ty::IntOrString)));
        assert!(matches!(
            pod.at(["metadata", "managedFields", "fieldsV1"]),
            Some(Ty::Any)
        ));
        assert!(matches!(
            pod.at(["metadata", "creationTimestamp"]),
            Some(Ty::Time)
        ));
        assert!(pod.at(["spec", "nonesuch"]).is_none());
    }
}
