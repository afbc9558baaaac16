//! An OpenAPI v2 document as the protobuf message `openapi.v2.Document` of gnostic (`OpenAPIv2.proto`), which is how
//! kubectl before 1.27 reads it. Written by hand: one message type deep, and nothing else here needs protobuf.

use serde_json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

const VARINT: u64 = 0;
const BYTES: u64 = 2;

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push((n as u8) | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A string that is not empty.
    fn text(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str)
            && !text.is_empty()
        {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten() {
            if let Some(text) = text.as_str() {
                self.bytes(field, text.as_bytes());
            }
        }
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.varint(field << 3 | VARINT);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A `NamedX`: name and value.
    fn named(&mut self, field: u64, name: &str, write: impl FnOnce(&mut Message)) {
        self.message(field, |m| {
            m.bytes(1, name.as_bytes());
            m.message(2, write);
        });
    }

    /// `x-...` fields: their values as YAML, of which JSON is a kind.
    fn extensions(&mut self, field: u64, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, |m| m.bytes(2, value.to_string().as_bytes()));
        }
    }
}

fn object(value: Option<&Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    value
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k, v.as_object()?)))
}

/// Encodes a whole document.
pub fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    out.message(2, |info| {
        info.text(1, document.pointer("/info/title"));
        info.text(2, document.pointer("/info/version"));
    });
    out.message(8, |paths| {
        for (path, item) in object(document.get("paths")) {
            paths.named(2, path, |m| path_item(m, item));
        }
    });
    out.message(9, |definitions| {
        for (name, schema) in object(document.get("definitions")) {
            definitions.named(1, name, |m| self::schema(m, schema));
        }
    });
    out.0
}

fn path_item(out: &mut Message, item: &Map<String, Value>) {
    for (method, field) in [
        ("get", 2),
        ("put", 3),
        ("post", 4),
        ("delete", 5),
        ("patch", 8),
    ] {
        if let Some(operation) = item.get(method).and_then(Value::as_object) {
            out.message(field, |m| self::operation(m, operation));
        }
    }
    parameters(out, 9, item.get("parameters"));
    out.extensions(10, item);
}

fn operation(out: &mut Message, operation: &Map<String, Value>) {
    out.text(3, operation.get("description"));
    out.text(5, operation.get("operationId"));
    out.texts(6, operation.get("produces"));
    out.texts(7, operation.get("consumes"));
    parameters(out, 8, operation.get("parameters"));
    out.message(9, |responses| {
        for (code, response) in object(operation.get("responses")) {
            responses.named(1, code, |value| {
                value.message(1, |m| {
                    m.text(1, response.get("description"));
                    if let Some(schema) = response.get("schema").and_then(Value::as_object) {
                        m.message(2, |item| item.message(1, |m| self::schema(m, schema)));
                    }
                });
            });
        }
    });
    out.texts(10, operation.get("schemes"));
    out.extensions(13, operation);
}

fn parameters(out: &mut Message, field: u64, list: Option<&Value>) {
    for parameter in list
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
    {
        // ParametersItem, then Parameter.
        out.message(field, |item| {
            item.message(1, |m| self::parameter(m, parameter))
        });
    }
}

fn parameter(out: &mut Message, parameter: &Map<String, Value>) {
    let get = |name: &str| parameter.get(name);
    match get("in").and_then(Value::as_str) {
        Some("body") => out.message(1, |m| {
            m.text(1, get("description"));
            m.text(2, get("name"));
            m.text(3, get("in"));
            m.flag(4, get("required"));
            if let Some(schema) = get("schema").and_then(Value::as_object) {
                m.message(5, |m| self::schema(m, schema));
            }
        }),
        place => out.message(2, |m| {
            // Path parameters lack the field that query parameters have before their type.
            let (which, kind, unique) = if place == Some("path") {
                (4, 5, 19)
            } else {
                (3, 6, 20)
            };
            m.message(which, |m| {
                m.flag(1, get("required"));
                m.text(2, get("in"));
                m.text(3, get("description"));
                m.text(4, get("name"));
                m.text(kind, get("type"));
                m.flag(unique, get("uniqueItems"));
            });
        }),
    }
}

fn schema(out: &mut Message, schema: &Map<String, Value>) {
    let get = |name: &str| schema.get(name);
    out.text(1, get("$ref"));
    out.text(2, get("format"));
    out.text(4, get("description"));
    out.texts(19, get("required"));
    match get("additionalProperties") {
        Some(Value::Object(inner)) => out.message(21, |m| m.message(1, |m| self::schema(m, inner))),
        allowed => {
            if allowed.is_some() {
                out.message(21, |m| m.flag(2, allowed));
            }
        }
    }
    if get("type").is_some() {
        out.message(22, |m| m.text(1, get("type")));
    }
    if let Some(items) = get("items").and_then(Value::as_object) {
        out.message(23, |m| m.message(1, |m| self::schema(m, items)));
    }
    if get("properties").is_some() {
        out.message(25, |m| {
            for (name, property) in object(get("properties")) {
                m.named(1, name, |m| self::schema(m, property));
            }
        });
    }
    out.extensions(31, schema);
}
