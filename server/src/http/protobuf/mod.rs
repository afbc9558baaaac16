//! Request bodies in Kubernetes' protobuf form, which kubectl sends for many built-in kinds, read into the JSON that
//! everything else here works with. Types come from the kinds' schemas, field numbers from `numbers.txt`.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>
//!
//! Protobuf does not tell an absent value from a zero one as JSON does: Go sends zeros of fields that are no pointers.
//! Zeros are dropped, as Go's JSON encoder drops them (`omitempty`), but for the fields that are pointers in Go.

mod wire;

use std::collections::HashMap;
use std::sync::OnceLock;

use amphipod_api::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::resources::schema::{Struct, Ty};
use wire::{Fields, Truncated, Wire};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// As deep as messages may nest; no API type comes near.
const DEPTH: usize = 64;

/// Integers that are pointers in Go, or are never left out: their zero means zero.
const ZERO_COUNTS: &[&str] = &[
    "activeDeadlineSeconds",
    "averageUtilization",
    "backoffLimit",
    "backoffLimitPerIndex",
    "completions",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "leaseDurationSeconds",
    "leaseTransitions",
    "maxFailedIndexes",
    "minReplicas",
    "mode",
    "parallelism",
    "priority",
    "progressDeadlineSeconds",
    "replicas",
    "revision",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsUser",
    "stabilizationWindowSeconds",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "terminationGracePeriodSeconds",
    "timeoutSeconds:ClientIPConfig",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "value",
];

/// Booleans that are not pointers in Go: their `false` means nothing.
const FALSE_IS_ABSENT: &[&str] = &[
    "allowed",
    "authenticated",
    "denied",
    "globalDefault",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "incomplete",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];

/// Strings that are pointers in Go: empty is a value.
const EMPTY_COUNTS: &[&str] = &["storageClassName"];

/// What a body says it is, and its message.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    message: &'a [u8],
}

/// Opens a body.
///
/// # Errors
/// Not a protobuf body of Kubernetes.
pub fn open(body: &[u8]) -> Result<Envelope<'_>, String> {
    let unknown = body.strip_prefix(MAGIC).ok_or(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
    )?;
    let mut envelope = Envelope {
        api_version: String::new(),
        kind: String::new(),
        message: &[],
    };
    for field in Fields::new(unknown) {
        match field.map_err(broken)? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields::new(meta) {
                    match field.map_err(broken)? {
                        (1, Wire::Bytes(text)) => envelope.api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => envelope.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => envelope.message = raw,
            _ => {}
        }
    }
    Ok(envelope)
}

impl Envelope<'_> {
    /// The object as JSON, with `apiVersion` and `kind`.
    ///
    /// # Errors
    /// The message does not fit the type.
    pub fn decode(&self, ty: &Ty) -> Result<Value, String> {
        let Ty::Struct(of) = ty else {
            return Err("this kind has no protobuf form".to_owned());
        };
        let mut object = message(of, self.message, 0)?;
        object.insert("apiVersion".to_owned(), self.api_version.as_str().into());
        object.insert("kind".to_owned(), self.kind.as_str().into());
        Ok(Value::Object(object))
    }
}

fn broken(_: Truncated) -> String {
    "proto: unexpected EOF".to_owned()
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "proto: a string is not UTF-8".to_owned())
}

/// `full name of a message` → the words that name its fields, see `numbers.txt`.
fn numbers() -> &'static HashMap<String, &'static str> {
    static NUMBERS: OnceLock<HashMap<String, &'static str>> = OnceLock::new();
    NUMBERS.get_or_init(|| {
        let mut package = "";
        let mut all = HashMap::new();
        for line in include_str!("numbers.txt").lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                package = name;
            } else if !line.starts_with('#')
                && let Some((name, fields)) = line.split_once(' ')
            {
                all.insert(format!("{package}.{name}"), fields);
            }
        }
        all
    })
}

/// The word for a field number: a field's name, or `>TYPE`.
fn word(fields: &'static str, number: u64) -> Option<&'static str> {
    let mut at = 0;
    for word in fields.split(' ') {
        match word.strip_prefix('@') {
            Some(jump) => at = jump.parse::<u64>().ok()?.saturating_sub(1),
            None => {
                at += 1;
                if at == number {
                    return Some(word);
                }
            }
        }
    }
    None
}

fn message(of: &Struct, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    fill(&mut object, of, &of.name, bytes, depth)?;
    Ok(object)
}

/// Reads the fields of message type `name` into `object`, whose JSON fields are those of `of`.
fn fill(
    object: &mut Map<String, Value>,
    of: &Struct,
    name: &str,
    bytes: &[u8],
    depth: usize,
) -> Result<(), String> {
    if depth > DEPTH {
        return Err("proto: messages nest too deep".to_owned());
    }
    let fields = numbers().get(name).copied().unwrap_or_default();
    for field in Fields::new(bytes) {
        let (number, wire) = field.map_err(broken)?;
        // Numbers we do not know are of a newer version: passed over, as protobuf readers do.
        let Some(word) = word(fields, number) else {
            continue;
        };
        if let Some(inner) = word.strip_prefix('>') {
            let Wire::Bytes(bytes) = wire else {
                return Err(mismatch(word));
            };
            let package = name.rsplit_once('.').map_or("", |(package, _)| package);
            fill(object, of, &format!("{package}.{inner}"), bytes, depth + 1)?;
            continue;
        }
        let Some(field) = of.field(word) else {
            continue;
        };
        match (&field.ty, wire) {
            (Ty::List(item), wire) => {
                let value = value(item, wire, word, depth)?;
                match object
                    .entry(word)
                    .or_insert_with(|| Value::Array(Vec::new()))
                {
                    Value::Array(list) => list.push(value),
                    _ => return Err(mismatch(word)),
                }
            }
            (Ty::Map(of), Wire::Bytes(entry)) => {
                let (key, value) = map_entry(of, entry, word, depth)?;
                match object
                    .entry(word)
                    .or_insert_with(|| Value::Object(Map::new()))
                {
                    Value::Object(map) => map.insert(key, value),
                    _ => return Err(mismatch(word)),
                };
            }
            (ty, wire) => {
                let value = value(ty, wire, word, depth)?;
                if counts(of, word, &value) {
                    object.insert(word.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// Whether a value says something, or is only Go's zero.
fn counts(of: &Struct, field: &str, value: &Value) -> bool {
    let qualified = |list: &[&str]| {
        list.iter().any(|entry| match entry.split_once(':') {
            Some((name, owner)) => name == field && owner == of.short_name(),
            None => *entry == field,
        })
    };
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty() || qualified(EMPTY_COUNTS),
        Value::Bool(flag) => *flag || !qualified(FALSE_IS_ABSENT),
        Value::Number(number) => number.as_f64() != Some(0.0) || qualified(ZERO_COUNTS),
        _ => true,
    }
}

fn mismatch(field: &str) -> String {
    format!("proto: wrong wireType for field {field}")
}

fn map_entry(of: &Ty, entry: &[u8], field: &str, depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut found) = (String::new(), None);
    for part in Fields::new(entry) {
        match part.map_err(broken)? {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, wire) => {
                found = Some(match (of, wire) {
                    // A list as a map's value is wrapped: `ExtraValue{items}`.
                    (Ty::List(item), Wire::Bytes(wrapped)) => {
                        let mut items = Vec::new();
                        for part in Fields::new(wrapped) {
                            if let (1, wire) = part.map_err(broken)? {
                                items.push(value(item, wire, field, depth)?);
                            }
                        }
                        Value::Array(items)
                    }
                    (of, wire) => value(of, wire, field, depth)?,
                });
            }
            _ => {}
        }
    }
    Ok((key, found.unwrap_or_else(|| zero(of))))
}

fn zero(ty: &Ty) -> Value {
    match ty {
        Ty::String | Ty::Bytes => "".into(),
        Ty::Int32 | Ty::Int64 => 0.into(),
        Ty::Bool => false.into(),
        Ty::Quantity => "0".into(),
        Ty::List(_) => Value::Array(Vec::new()),
        Ty::Struct(_) | Ty::Map(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

fn value(ty: &Ty, wire: Wire<'_>, field: &str, depth: usize) -> Result<Value, String> {
    Ok(match (ty, wire) {
        (Ty::String, Wire::Bytes(text)) => utf8(text)?.into(),
        (Ty::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Ty::Bool, Wire::Varint(n)) => (n != 0).into(),
        (Ty::Int32 | Ty::Int64, Wire::Varint(n)) => (n as i64).into(),
        (Ty::Float, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Ty::Float, Wire::Fixed32(bits)) => f32::from_bits(bits).into(),
        (Ty::Struct(of), Wire::Bytes(bytes)) => Value::Object(message(of, bytes, depth + 1)?),
        (Ty::Time | Ty::MicroTime, Wire::Bytes(bytes)) => {
            timestamp(bytes, matches!(ty, Ty::MicroTime))?
        }
        (Ty::Quantity, Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(text)) => utf8(text)?.into(),
            _ => "0".into(),
        },
        (Ty::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Ty::Any, Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(json)) if !json.is_empty() => serde_json::from_slice(json)
                .map_err(|e| format!("proto: field {field} holds no JSON: {e}"))?,
            _ => Value::Null,
        },
        _ => return Err(mismatch(field)),
    })
}

fn first(bytes: &[u8], wanted: u64) -> Result<Option<Wire<'_>>, String> {
    for part in Fields::new(bytes) {
        let (number, wire) = part.map_err(broken)?;
        if number == wanted {
            return Ok(Some(wire));
        }
    }
    Ok(None)
}

/// `Timestamp{seconds, nanos}`; an empty one is Go's zero time, which JSON has as null.
fn timestamp(bytes: &[u8], micro: bool) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let varint = |wire: Option<Wire<'_>>| match wire {
        Some(Wire::Varint(n)) => n as i64,
        _ => 0,
    };
    let seconds = varint(first(bytes, 1)?);
    let nanos = i32::try_from(varint(first(bytes, 2)?)).unwrap_or(0);
    let Ok(time) = Timestamp::new(seconds, nanos) else {
        return Err("proto: a time is out of range".to_owned());
    };
    Ok(if micro {
        time::format_micro_time(time)
    } else {
        time::format_time(time)
    }
    .into())
}

/// `IntOrString{type, intVal, strVal}`
fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    Ok(
        match (first(bytes, 1)?, first(bytes, 2)?, first(bytes, 3)?) {
            (Some(Wire::Varint(1)), _, Some(Wire::Bytes(text))) => utf8(text)?.into(),
            (_, Some(Wire::Varint(n)), _) => (n as i64).into(),
            _ => 0.into(),
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::resources::Catalog;

    /// Writes the protobuf form of what tests need: the reverse of what is tested, by hand.
    fn field(number: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![(number << 3) as u8 | 2, payload.len() as u8];
        if number > 15 {
            out = vec![
                ((number << 3) as u8 & 0x7f) | 0x82,
                (number >> 4) as u8,
                payload.len() as u8,
            ];
        }
        out.extend_from_slice(payload);
        out
    }

    fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [
            MAGIC.to_vec(),
            field(1, &meta),
            field(2, message),
            field(3, b""),
            field(4, b""),
        ]
        .concat()
    }

    fn decode(group: &str, kind: &str, body: &[u8]) -> Value {
        let descriptor = Catalog::builtin().by_kind(group, "v1", kind).unwrap();
        open(body)
            .unwrap()
            .decode(&descriptor.schema().root)
            .unwrap()
    }

    #[test]
    fn what_kubectl_sends_for_a_config_map_is_read() {
        // Taken from the wire: kubectl create configmap a --from-literal=x=1
        let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\x0a\x01x\x12\x011\x1a\x00\"\x00";
        assert_eq!(
            decode("", "ConfigMap", body),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}})
        );
    }

    #[test]
    fn pointers_keep_their_zeros_and_others_lose_them() {
        // DeploymentSpec{replicas: 0, minReadySeconds: 0, paused: false}
        let spec = [0x08, 0, 0x28, 0, 0x38, 0];
        let body = body("apps/v1", "Deployment", &field(2, &spec));
        assert_eq!(
            decode("apps", "Deployment", &body)["spec"],
            json!({"replicas": 0})
        );
    }

    #[test]
    fn inlined_messages_quantities_and_int_or_string_stand_where_json_has_them() {
        let handler = field(
            2,
            &[
                field(1, b"/healthz"),
                field(2, &[0x08, 1, 0x1a, 2, b'p', b'1']),
            ]
            .concat(),
        );
        let probe = [field(1, &handler), vec![0x10, 5]].concat();
        let limits = field(
            1,
            &[field(1, b"cpu"), field(2, &field(1, b"100m"))].concat(),
        );
        let container = [field(1, b"c"), field(8, &limits), field(10, &probe)].concat();
        let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
        let spec = [field(1, &volume), field(2, &container)].concat();
        let pod = decode("", "Pod", &body("v1", "Pod", &field(2, &spec)));
        assert_eq!(
            pod["spec"],
            json!({
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{
                    "name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "p1"}, "initialDelaySeconds": 5},
                }],
            })
        );
    }

    #[test]
    fn every_field_that_a_schema_knows_has_a_number() {
        // Filled by machinery that does not read `numbers.txt` here: what a built-in kind is made of, down to the leaves.
        fn walk(ty: &Ty, seen: &mut Vec<String>, missing: &mut Vec<String>) {
            match ty {
                Ty::List(inner) | Ty::Map(inner) => walk(inner, seen, missing),
                Ty::Struct(of) if !seen.iter().any(|s| **s == *of.name) => {
                    seen.push(of.name.to_string());
                    let mut words = Vec::new();
                    collect(&of.name, &mut words);
                    for field in of.fields() {
                        let meta = matches!(&*field.name, "apiVersion" | "kind");
                        if !meta && !words.iter().any(|w| w == &*field.name) {
                            missing.push(format!("{}.{}", of.name, field.name));
                        }
                        walk(&field.ty, seen, missing);
                    }
                }
                _ => {}
            }
        }
        fn collect(name: &str, words: &mut Vec<String>) {
            for word in numbers().get(name).copied().unwrap_or_default().split(' ') {
                match word.strip_prefix('>') {
                    Some(inner) => collect(
                        &format!("{}.{inner}", name.rsplit_once('.').unwrap().0),
                        words,
                    ),
                    None => words.push(word.to_owned()),
                }
            }
        }
        let (mut seen, mut missing) = (Vec::new(), Vec::new());
        for descriptor in Catalog::builtin().snapshot().iter() {
            walk(&descriptor.schema().root, &mut seen, &mut missing);
        }
        assert!(seen.len() > 100, "{}", seen.len());
        // Alpha in v1.36, behind gates that are off, and status that clients do not send.
        const UNNUMBERED: [&str; 10] = [
            "PodSpec.schedulingGroup",
            "PodSchedulingGroup.podGroupName",
            "ResourceHealth.message",
            "VolumeMountStatus.volumeStatus",
            "VolumeStatus.image",
            "ImageVolumeStatus.imageRef",
            "PodStatus.nodeAllocatableResourceClaimStatuses",
            "NodeAllocatableResourceClaimStatus.containers",
            "NodeAllocatableResourceClaimStatus.resourceClaimName",
            "NodeAllocatableResourceClaimStatus.resources",
        ];
        missing.retain(|field| {
            !UNNUMBERED
                .iter()
                .any(|known| field.strip_prefix("io.k8s.api.core.v1.") == Some(known))
        });
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let descriptor = Catalog::builtin().by_kind("", "v1", "Pod").unwrap();
        assert!(open(b"nonsense").is_err());
        assert!(open(b"k8s\0\xff").is_err());
        let truncated = body("v1", "Pod", &[0x12, 9, 1]);
        assert!(
            open(&truncated)
                .unwrap()
                .decode(&descriptor.schema().root)
                .is_err()
        );
    }

    #[test]
    fn mutated_bodies_never_break_the_reader() {
        let descriptor = Catalog::builtin().by_kind("", "v1", "Pod").unwrap();
        let probe = [field(1, &field(2, &field(1, b"/x"))), vec![0x10, 5]].concat();
        let container = [field(1, b"c"), field(10, &probe)].concat();
        let seed = body(
            "v1",
            "Pod",
            &field(
                2,
                &[field(1, &field(1, b"v")), field(2, &container)].concat(),
            ),
        );
        let mut random = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let mut mutated = seed.clone();
            for _ in 0..4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = 4 + (random as usize) % (mutated.len() - 4);
                mutated[at] = (random >> 32) as u8;
            }
            if let Ok(envelope) = open(&mutated) {
                let _ = envelope.decode(&descriptor.schema().root);
            }
        }
    }
}
