//! One immutable object, encoded once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::fields::{FieldSet, FieldValues};

/// What an event tells a watcher about an object. The word on the wire is [`EventType::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        }
    }
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// The part of `metadata` that lists, selectors, garbage collection and deletion ask for all the time.
/// Annotations are left out for the memory's sake: [`Object::value`] has them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    #[serde(deserialize_with = "null_default")]
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// `metadata.resourceVersion` as a number: the store's revision.
    #[serde(skip)]
    pub revision: u64,
    pub generation: i64,
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// RFC 3339, as written.
    pub creation_timestamp: Option<Box<str>>,
    /// RFC 3339, as written; set while the object is being deleted.
    pub deletion_timestamp: Option<Box<str>>,
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub finalizers: Vec<String>,
    #[serde(rename = "ownerReferences", deserialize_with = "null_default")]
    pub owners: Vec<Owner>,
}

impl Meta {
    /// The owner that manages this object, of which there is at most one.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|owner| owner.controller)
    }

    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An object at one revision. Shared by `Arc`, never changed.
///
/// Its JSON lies in one allocation inside the watch event line of its change, so that neither a response nor an event
/// ever encodes or copies it again.
pub struct Object {
    pub meta: Meta,
    /// The complete JSON, including `metadata.resourceVersion`.
    pub bytes: Bytes,
    /// `{"type":"…","object":` + `bytes` + `}\n`, for the type of the change that made this object.
    line: Bytes,
    line_type: EventType,
    fields: FieldValues,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}@{}",
            self.meta.namespace, self.meta.name, self.meta.revision
        )
    }
}

impl Object {
    /// Makes an object from what the store keeps (JSON without resourceVersion) and the revision of its change.
    /// `fields` are the selectable fields to extract.
    ///
    /// # Errors
    /// The bytes are not the JSON of an object with metadata.
    pub fn decode(
        stored: &[u8],
        revision: u64,
        line_type: EventType,
        fields: &FieldSet,
    ) -> Result<Object, serde_json::Error> {
        let (mut meta, at) = decode_meta(stored)?;
        meta.revision = revision;
        let values = fields.extract(stored)?;
        let head = line_head(line_type);
        let start = head.len();
        // What is not stored has no version.
        let version = match revision {
            0 => String::new(),
            revision => format!("\"resourceVersion\":\"{revision}\","),
        };
        let mut line = Vec::with_capacity(start + stored.len() + version.len() + LINE_TAIL.len());
        line.extend_from_slice(head);
        line.extend_from_slice(&stored[..at]);
        line.extend_from_slice(version.as_bytes());
        line.extend_from_slice(&stored[at..]);
        let end = line.len();
        line.extend_from_slice(LINE_TAIL);
        let line = Bytes::from(line);
        Ok(Object {
            meta,
            bytes: line.slice(start..end),
            line,
            line_type,
            fields: values,
        })
    }

    /// The same object as told by a later change, such as its deletion: only the resourceVersion differs.
    pub fn restamped(&self, revision: u64, line_type: EventType) -> Object {
        let mut meta = self.meta.clone();
        meta.revision = revision;
        let old = format!("\"resourceVersion\":\"{}\",", self.meta.revision);
        let new = format!("\"resourceVersion\":\"{revision}\",");
        // decode() put it first into metadata, and nothing before metadata contains it: kind and apiVersion are plain.
        let at = find(&self.bytes, old.as_bytes()).unwrap_or_default();
        let mut line = line_head(line_type).to_owned();
        let start = line.len();
        line.extend_from_slice(&self.bytes[..at]);
        line.extend_from_slice(new.as_bytes());
        line.extend_from_slice(&self.bytes[at + old.len()..]);
        let end = line.len();
        line.extend_from_slice(LINE_TAIL);
        let line = Bytes::from(line);
        Object {
            meta,
            bytes: line.slice(start..end),
            line,
            line_type,
            fields: self.fields.clone(),
        }
    }

    /// The same object with other fields extracted.
    pub(super) fn with_fields(&self, fields: &FieldSet) -> Result<Object, serde_json::Error> {
        Ok(Object {
            meta: self.meta.clone(),
            bytes: self.bytes.clone(),
            line: self.line.clone(),
            line_type: self.line_type,
            fields: fields.extract(&self.bytes)?,
        })
    }

    /// The same object in another shape: `change` is applied to its JSON.
    pub fn reshaped(&self, change: impl FnOnce(&mut Value)) -> Object {
        let mut value = self.value();
        change(&mut value);
        let head = line_head(self.line_type);
        let mut line = head.to_owned();
        // A value that was parsed from JSON encodes.
        let _ = serde_json::to_writer(&mut line, &value);
        let end = line.len();
        line.extend_from_slice(LINE_TAIL);
        let line = Bytes::from(line);
        Object {
            meta: self.meta.clone(),
            bytes: line.slice(head.len()..end),
            line,
            line_type: self.line_type,
            fields: self.fields.clone(),
        }
    }

    /// The object's JSON parsed; a fresh copy each time, to be changed at will.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The object as a typed one (`k8s_openapi` types).
    ///
    /// # Errors
    /// The JSON does not fit the type: the object's schema and the type disagree.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }

    /// The watch event line that tells of this object, newline included. Free for the type of its own change.
    pub fn event_line(&self, event: EventType) -> Bytes {
        if event == self.line_type {
            return self.line.clone();
        }
        let mut line = line_head(event).to_owned();
        line.extend_from_slice(&self.bytes);
        line.extend_from_slice(LINE_TAIL);
        Bytes::from(line)
    }

    /// The value of a selectable field (`spec.nodeName`), empty if unset. `None`: the field is not selectable.
    /// `metadata.name` and `metadata.namespace` always are.
    pub fn field(&self, set: &FieldSet, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.meta.name),
            "metadata.namespace" => Some(&self.meta.namespace),
            _ => set.position(path).map(|index| self.fields.get(index)),
        }
    }

    /// The value of the field at a position of the table's field set; empty if unset.
    pub(super) fn field_at(&self, index: usize) -> &str {
        self.fields.get(index)
    }

    /// Bytes that this object holds, roughly.
    pub fn size(&self) -> usize {
        self.line.len() + 256
    }
}

/// Encodes an object for the store: compact JSON whose metadata has no resourceVersion.
pub fn encode(value: &mut Value) -> Bytes {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

const LINE_TAIL: &[u8] = b"}\n";

fn line_head(event: EventType) -> &'static [u8] {
    match event {
        EventType::Added => br#"{"type":"ADDED","object":"#,
        EventType::Modified => br#"{"type":"MODIFIED","object":"#,
        EventType::Deleted => br#"{"type":"DELETED","object":"#,
    }
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// The metadata, and the offset just behind its opening brace.
fn decode_meta(stored: &[u8]) -> Result<(Meta, usize), serde_json::Error> {
    let outer: Outer<'_> = serde_json::from_slice(stored)?;
    let meta: Meta = serde_json::from_str(outer.metadata.get())?;
    let at = outer.metadata.get().as_ptr() as usize - stored.as_ptr() as usize + 1;
    Ok((meta, at))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// An object made from a value that is stored nowhere yet: for tests and for answers to dry runs.
pub fn detached(
    value: &mut Value,
    revision: u64,
    fields: &FieldSet,
) -> Result<Arc<Object>, serde_json::Error> {
    let stored = encode(value);
    Object::decode(&stored, revision, EventType::Added, fields).map(Arc::new)
}
