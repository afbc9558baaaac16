//! What the API knows about a kind's fields, in a form small enough to keep: names, types and how lists merge.
//!
//! Built-in kinds come from `k8s-openapi`'s JSON schemas, converted at first need ([`Builtin`]); descriptions are left
//! out (OpenAPI documents make their own pass, see [`crate::openapi`]). Structs are shared among all kinds.

mod builtin;
mod decode;
mod facts;
mod syntax;
mod time;
pub mod yaml;

use std::sync::{Arc, OnceLock};

pub use builtin::{Builtin, definitions};
pub use decode::{DecodeError, Decoded, decode_json, decode_value, decode_yaml, strict_status};
pub use facts::{ATOMIC, Merge, is_atomic, merge_of};

/// The type of a field.
#[derive(Clone, Debug)]
pub enum Ty {
    Struct(Arc<Struct>),
    /// String keys to values of one type.
    Map(Box<Ty>),
    List(Box<Ty>),
    String,
    /// Base64 text.
    Bytes,
    Bool,
    Int32,
    Int64,
    Float,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Anything: raw extensions, managed fields, custom resources without a schema.
    Any,
}

/// An object with known fields.
pub struct Struct {
    /// The full name, e.g. `io.k8s.api.apps.v1.DeploymentSpec`.
    pub name: Box<str>,
    /// Set once; a cell because types may contain themselves.
    fields: OnceLock<Box<[Field]>>,
}

/// One field of a struct.
#[derive(Debug)]
pub struct Field {
    pub name: Box<str>,
    pub ty: Ty,
    /// Must be present (as OpenAPI has it; the decoder does not insist).
    pub required: bool,
    /// How strategic merge and server-side apply treat the list; None: as a whole.
    pub merge: Option<&'static Merge>,
}

impl Struct {
    pub(super) fn new(name: &str) -> Self {
        Struct {
            name: name.into(),
            fields: OnceLock::new(),
        }
    }

    pub(super) fn fill(&self, mut fields: Vec<Field>) {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        // Filled by whoever made it; a second filling would be of the same fields.
        let _ = self.fields.set(fields.into());
    }

    /// The fields, sorted by name.
    pub fn fields(&self) -> &[Field] {
        self.fields.get().map(|f| &**f).unwrap_or_default()
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &fields[i])
    }

    /// The Go type's name: the last part of the full name.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

impl std::fmt::Debug for Struct {
    // Not the fields: types may contain themselves.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Struct({})", self.name)
    }
}

impl Ty {
    /// The field of this type, if it is a struct that has it.
    pub fn field(&self, name: &str) -> Option<&Field> {
        match self {
            Ty::Struct(s) => s.field(name),
            _ => None,
        }
    }

    /// The type behind a field name or map key; `Any` has only `Any` inside.
    pub fn child(&self, name: &str) -> Option<&Ty> {
        match self {
            Ty::Struct(s) => s.field(name).map(|f| &f.ty),
            Ty::Map(value) => Some(value),
            Ty::Any => Some(&Ty::Any),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(&self) -> Option<&Ty> {
        match self {
            Ty::List(item) => Some(item),
            Ty::Any => Some(&Ty::Any),
            _ => None,
        }
    }

    /// The Go type, as decoding errors name it.
    pub fn go_name(&self) -> String {
        match self {
            Ty::Struct(s) => format!("v1.{}", s.short_name()),
            Ty::Map(value) => format!("map[string]{}", value.go_name()),
            Ty::List(item) => format!("[]{}", item.go_name()),
            Ty::String | Ty::IntOrString => "string".into(),
            Ty::Bytes => "[]uint8".into(),
            Ty::Bool => "bool".into(),
            Ty::Int32 => "int32".into(),
            Ty::Int64 => "int64".into(),
            Ty::Float => "float64".into(),
            Ty::Time => "v1.Time".into(),
            Ty::MicroTime => "v1.MicroTime".into(),
            Ty::Quantity => "resource.Quantity".into(),
            Ty::Any => "runtime.RawExtension".into(),
        }
    }
}

/// The schema of one kind.
#[derive(Clone, Debug)]
pub struct Schema {
    pub root: Ty,
}

impl Schema {
    /// A schema that takes anything: kinds without one.
    pub fn any() -> Schema {
        Schema { root: Ty::Any }
    }

    /// The type at a path of field names; `[]`-like steps are implied (a list is entered by naming a field of its items).
    pub fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Ty> {
        let mut ty = &self.root;
        for name in path {
            while let Ty::List(item) = ty {
                ty = item;
            }
            ty = ty.child(name)?;
        }
        Some(ty)
    }

    /// Reads a JSON body. See [`decode_json`].
    pub fn decode_json(&self, body: &[u8]) -> Result<Decoded, DecodeError> {
        decode_json(&self.root, body)
    }

    /// Reads a YAML body.
    pub fn decode_yaml(&self, body: &[u8]) -> Result<Decoded, DecodeError> {
        decode_yaml(&self.root, body)
    }

    /// Checks a value that was made by a patch.
    pub fn decode_value(&self, value: serde_json::Value) -> Result<Decoded, DecodeError> {
        decode_value(&self.root, value)
    }
}
