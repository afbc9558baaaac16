//! Reading a body against a schema in one pass: unknown and duplicate fields are noted, values of the wrong type are
//! refused in the words of Go's decoder, nulls are dropped and scalars with several spellings get their canonical one.

use std::cell::RefCell;
use std::fmt;

use amphipod_api::{Quantity, Status};
use base64::Engine;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::syntax::go_syntax_error;
use super::time::{micro_time, whole_time};
use super::{Struct, Ty, yaml};

/// A body that was read.
#[derive(Debug)]
pub struct Decoded {
    /// The object, without unknown fields and nulls.
    pub value: Value,
    /// What strict field validation refuses and `Warn` warns of: `unknown field "spec.x"`, `duplicate field "spec.y"`.
    pub strict: Vec<String>,
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Neither JSON nor YAML.
    Syntax(String),
    /// A value has the wrong type; the text is that of Go's decoder.
    Type(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (DecodeError::Syntax(text) | DecodeError::Type(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for DecodeError {}

impl DecodeError {
    /// The 400 answer for a body that should have been a `kind` of `api_version` (`v1`, `apps/v1`).
    pub fn status(&self, api_version: &str, kind: &str) -> Status {
        let version = api_version.rsplit('/').next().unwrap_or(api_version);
        match self {
            DecodeError::Syntax(text) => Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {text}"
            )),
            DecodeError::Type(text) => cannot_be_handled(version, kind, text),
        }
    }
}

/// The 400 answer of strict field validation, for `Decoded::strict` that is not empty.
pub fn strict_status(api_version: &str, kind: &str, strict: &[String]) -> Status {
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    cannot_be_handled(
        version,
        kind,
        &format!("strict decoding error: {}", strict.join(", ")),
    )
}

fn cannot_be_handled(version: &str, kind: &str, why: &str) -> Status {
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
    ))
}

/// Reads JSON. Trailing text is an error.
pub fn decode_json(ty: &Ty, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let decoded =
        read(ty, &mut deserializer).and_then(|decoded| deserializer.end().map(|()| decoded));
    decoded.map_err(|e| DecodeError::Syntax(go_syntax_error(&e, body)))?
}

/// Reads one YAML document.
pub fn decode_yaml(ty: &Ty, body: &[u8]) -> Result<Decoded, DecodeError> {
    yaml::check(body).map_err(DecodeError::Syntax)?;
    read(ty, serde_yaml_ng::Deserializer::from_slice(body))
        .map_err(|e| DecodeError::Syntax(e.to_string()))?
}

/// Checks a value that is already parsed.
pub fn decode_value(ty: &Ty, value: Value) -> Result<Decoded, DecodeError> {
    read(ty, value).map_err(|e| DecodeError::Syntax(e.to_string()))?
}

/// Reads a whole body. The outer error is of syntax, the inner one of types.
fn read<'de, D>(ty: &Ty, deserializer: D) -> Result<Result<Decoded, DecodeError>, D::Error>
where
    D: Deserializer<'de>,
{
    let notes = Notes::default();
    let seed = Seed {
        ty,
        path: &Path::Root,
        owner: None,
        notes: &notes,
    };
    let value = seed.deserialize(deserializer)?;
    if let Some(error) = notes.error.into_inner() {
        return Ok(Err(DecodeError::Type(error)));
    }
    Ok(Ok(Decoded {
        value: value.unwrap_or_default(),
        strict: notes.strict.into_inner(),
    }))
}

/// Where we are in the body; lives on the stack, costs nothing until printed.
enum Path<'a> {
    Root,
    Name(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl Path<'_> {
    /// `spec.containers[0].image`
    fn full(&self, out: &mut String) {
        match self {
            Path::Root => {}
            Path::Name(parent, name) | Path::Key(parent, name) => {
                parent.full(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Path::Index(parent, index) => {
                parent.full(out);
                out.push_str(&format!("[{index}]"));
            }
        }
    }

    /// `spec.containers.image`: as Go's decoder names fields in type errors.
    fn fields(&self, out: &mut String) {
        match self {
            Path::Root => {}
            Path::Index(parent, _) | Path::Key(parent, _) => parent.fields(out),
            Path::Name(parent, name) => {
                parent.fields(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
        }
    }
}

/// What was found on the way.
#[derive(Default)]
struct Notes {
    strict: RefCell<Vec<String>>,
    /// The first error that makes the body unusable.
    error: RefCell<Option<String>>,
}

/// More complaints than this are not worth sending.
const MAX_STRICT: usize = 64;

impl Notes {
    fn strict(&self, what: &str, path: &Path) {
        let mut strict = self.strict.borrow_mut();
        if strict.len() < MAX_STRICT {
            let mut at = String::new();
            path.full(&mut at);
            strict.push(format!("{what} field {}", quote(&at)));
        }
    }

    fn fail(&self, text: String) {
        self.error.borrow_mut().get_or_insert(text);
    }
}

fn quote(s: &str) -> String {
    Value::from(s).to_string()
}

/// Reads one value of a type. Gives None for null and for what was refused.
#[derive(Clone, Copy)]
struct Seed<'a> {
    ty: &'a Ty,
    path: &'a Path<'a>,
    /// The struct that holds the field.
    owner: Option<&'a Struct>,
    notes: &'a Notes,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seed<'_> {
    /// Notes `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
    fn mismatch(&self, found: &str) -> Option<Value> {
        self.mismatch_as(found, &self.ty.go_name())
    }

    fn mismatch_as(&self, found: &str, wanted: &str) -> Option<Value> {
        // Only the first error is told; a hostile body has a million.
        if self.notes.error.borrow().is_some() {
            return None;
        }
        let text = match self.owner {
            None => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
            Some(owner) => {
                let mut at = String::new();
                self.path.fields(&mut at);
                let owner = owner.short_name();
                format!(
                    "json: cannot unmarshal {found} into Go struct field {owner}.{at} of type {wanted}"
                )
            }
        };
        self.notes.fail(text);
        None
    }

    /// Types with decoders of their own do not know the field they are in.
    fn mismatch_inner(&self, found: &str, wanted: &str) -> Option<Value> {
        self.notes.fail(format!(
            "json: cannot unmarshal {found} into Go value of type {wanted}"
        ));
        None
    }

    fn integer(&self, n: Number) -> Option<Value> {
        let fits = match self.ty {
            Ty::Int32 | Ty::IntOrString => n.as_i64().is_some_and(|i| i32::try_from(i).is_ok()),
            Ty::Int64 => n.as_i64().is_some(),
            Ty::Float | Ty::Any => true,
            Ty::Quantity => return self.quantity(&n.to_string()),
            Ty::Time | Ty::MicroTime => return self.mismatch_inner("number", "string"),
            _ => return self.mismatch("number"),
        };
        match (fits, self.ty) {
            (true, _) => Some(Value::Number(n)),
            (false, Ty::IntOrString) => self.mismatch_inner(&format!("number {n}"), "int32"),
            (false, _) => self.mismatch(&format!("number {n}")),
        }
    }

    fn text(&self, s: &str) -> Option<Value> {
        match self.ty {
            Ty::String | Ty::IntOrString | Ty::Any => Some(Value::from(s)),
            Ty::Bytes => self.bytes(s),
            Ty::Quantity => self.quantity(s),
            Ty::Time | Ty::MicroTime => {
                let read = if matches!(self.ty, Ty::Time) {
                    whole_time(s)
                } else {
                    micro_time(s)
                };
                match read {
                    Ok(time) => Some(Value::from(time)),
                    Err(text) => {
                        self.notes.fail(text);
                        None
                    }
                }
            }
            _ => self.mismatch("string"),
        }
    }

    fn quantity(&self, s: &str) -> Option<Value> {
        match s.parse::<Quantity>() {
            Ok(quantity) => Some(Value::from(quantity.to_string())),
            Err(e) => {
                self.notes.fail(e.to_string());
                None
            }
        }
    }

    fn bytes(&self, s: &str) -> Option<Value> {
        let clean: String;
        let text = if s.contains(['\r', '\n']) {
            clean = s.replace(['\r', '\n'], "");
            &clean
        } else {
            s
        };
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(_) => Some(Value::from(text)),
            Err(e) => {
                let at = match e {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                        text.trim_end_matches('=').len() / 4 * 4
                    }
                };
                self.notes
                    .fail(format!("illegal base64 data at input byte {at}"));
                None
            }
        }
    }

    /// What null stands for inside a list or a map, where it cannot be left out.
    fn zero(ty: &Ty) -> Option<Value> {
        match ty {
            Ty::String | Ty::Bytes => Some(Value::from("")),
            Ty::Struct(_) | Ty::Map(_) => Some(Value::Object(Map::new())),
            Ty::Any => Some(Value::Null),
            _ => None,
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Option<Value>, E> {
        Ok(match self.ty {
            Ty::Bool | Ty::Any => Some(Value::Bool(b)),
            Ty::IntOrString => self.mismatch_inner("bool", "int32"),
            Ty::Time | Ty::MicroTime => self.mismatch_inner("bool", "string"),
            Ty::Quantity => self.quantity(if b { "true" } else { "false" }),
            _ => self.mismatch("bool"),
        })
    }

    fn visit_i64<E>(self, n: i64) -> Result<Option<Value>, E> {
        Ok(self.integer(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Option<Value>, E> {
        Ok(self.integer(n.into()))
    }

    fn visit_f64<E>(self, n: f64) -> Result<Option<Value>, E> {
        Ok(Number::from_f64(n).and_then(|n| self.integer(n)))
    }

    fn visit_str<E>(self, s: &str) -> Result<Option<Value>, E> {
        Ok(self.text(s))
    }

    fn visit_string<E>(self, s: String) -> Result<Option<Value>, E> {
        Ok(match self.ty {
            Ty::String | Ty::Any => Some(Value::String(s)),
            _ => self.text(&s),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let Some(item) = self.ty.item() else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(match self.ty {
                Ty::Quantity => self.quantity("[]"),
                Ty::IntOrString => self.mismatch_inner("array", "int32"),
                Ty::Time | Ty::MicroTime => self.mismatch_inner("array", "string"),
                _ => self.mismatch("array"),
            });
        };
        let mut items = Vec::new();
        let mut index = 0;
        loop {
            let path = Path::Index(self.path, index);
            let seed = Seed {
                ty: item,
                path: &path,
                ..self
            };
            let Some(value) = seq.next_element_seed(seed)? else {
                break;
            };
            items.extend(value.or_else(|| Seed::zero(item)));
            index += 1;
        }
        Ok(Some(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Value>, A::Error> {
        match self.ty {
            Ty::Struct(fields) => self.visit_struct(fields, map).map(Some),
            Ty::Map(value) => self.visit_entries(value, map).map(Some),
            Ty::Any => self.visit_entries(&Ty::Any, map).map(Some),
            _ => {
                let mut map = map;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(match self.ty {
                    Ty::Quantity => self.quantity("{}"),
                    Ty::IntOrString => self.mismatch_inner("object", "int32"),
                    Ty::Time | Ty::MicroTime => self.mismatch_inner("object", "string"),
                    _ => self.mismatch("object"),
                })
            }
        }
    }
}

impl Seed<'_> {
    fn visit_struct<'de, A: MapAccess<'de>>(
        &self,
        owner: &Struct,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut seen = 0u128;
        while let Some(key) = map.next_key_seed(KeyOf(owner))? {
            let (index, field) = match key {
                Key::Known(index) => (index, &owner.fields()[index]),
                Key::Unknown(name) => {
                    self.notes.strict("unknown", &Path::Name(self.path, &name));
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let path = Path::Name(self.path, &field.name);
            let bit = 1u128.checked_shl(index as u32).unwrap_or(0);
            if seen & bit != 0 {
                self.notes.strict("duplicate", &path);
            }
            seen |= bit;
            let value = map.next_value_seed(Seed {
                ty: &field.ty,
                path: &path,
                owner: Some(owner),
                ..*self
            })?;
            match value {
                Some(value) if field.required || !is_empty(&field.ty, &value) => {
                    object.insert(field.name.to_string(), value);
                }
                _ => {
                    object.remove(&*field.name);
                }
            }
        }
        Ok(Value::Object(object))
    }

    fn visit_entries<'de, A: MapAccess<'de>>(
        &self,
        ty: &Ty,
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(AnyKey)? {
            let path = Path::Key(self.path, &key);
            if object.contains_key(&key) && !matches!(ty, Ty::Any) {
                self.notes.strict("duplicate", &path);
            }
            let value = map.next_value_seed(Seed {
                ty,
                path: &path,
                ..*self
            })?;
            if let Some(value) = value.or_else(|| Seed::zero(ty)) {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }
}

/// Empty lists and maps are the same as absent ones, and are not sent back; an empty struct says something (`emptyDir: {}`).
fn is_empty(ty: &Ty, value: &Value) -> bool {
    match (ty, value) {
        (Ty::List(_), Value::Array(items)) => items.is_empty(),
        (Ty::Map(_), Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

enum Key {
    /// Index among the struct's fields.
    Known(usize),
    Unknown(String),
}

struct KeyOf<'a>(&'a Struct);

impl<'de> DeserializeSeed<'de> for KeyOf<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeyOf<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(
            match self.0.fields().binary_search_by(|f| (*f.name).cmp(name)) {
                Ok(index) => Key::Known(index),
                Err(_) => Key::Unknown(name.to_owned()),
            },
        )
    }

    fn visit_bool<E: serde::de::Error>(self, key: bool) -> Result<Key, E> {
        Ok(Key::Unknown(key.to_string()))
    }

    fn visit_i64<E: serde::de::Error>(self, key: i64) -> Result<Key, E> {
        Ok(Key::Unknown(key.to_string()))
    }

    fn visit_u64<E: serde::de::Error>(self, key: u64) -> Result<Key, E> {
        Ok(Key::Unknown(key.to_string()))
    }
}

/// A map's key; YAML's scalars are keys, too.
struct AnyKey;

impl<'de> DeserializeSeed<'de> for AnyKey {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyKey {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map key")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_string<E>(self, key: String) -> Result<String, E> {
        Ok(key)
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E>(self, key: f64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        Err(E::custom("a map key may not be null"))
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
