//! Reading request bodies: limited, in a form that we can read.

use std::time::Duration;

use amphipod_api::Status;
use amphipod_api::gvk::split_api_version;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::holding::{Budget, Held, SMALL};
use super::protobuf;
use crate::registry::Input;
use crate::resources::schema::yaml;
use crate::resources::{Catalog, kinds};

/// The largest body that is read, as upstream.
pub const LIMIT: usize = 3 << 20;

/// Media types that we read.
const READABLE: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    Json,
    Yaml,
    Protobuf,
}

/// The syntax by `Content-Type`; JSON if it says nothing.
///
/// # Errors
/// 415 for what we do not read.
pub fn syntax(headers: &HeaderMap) -> Result<Syntax, Status> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(Syntax::Json);
    };
    let text = value.to_str().unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "application/json" | "" | "*/*" => Ok(Syntax::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Syntax::Yaml),
        protobuf::MEDIA_TYPE => Ok(Syntax::Protobuf),
        _ => Err(Status::unsupported_media_type(READABLE)),
    }
}

/// The whole body, and its part of the budget.
///
/// # Errors
/// 413 if it is too large, at once if its length was declared; 429 if too many large ones are coming; 400 if the client
/// hangs up.
pub async fn read(
    headers: &HeaderMap,
    body: Incoming,
    budget: &Budget,
) -> Result<(Bytes, Option<Held>), Status> {
    if headers
        .get(CONTENT_ENCODING)
        .is_some_and(|e| e != "identity")
    {
        return Err(Status::unsupported_media_type(READABLE));
    }
    let too_large = || Status::request_entity_too_large(format!("limit is {LIMIT}"));
    let mut body = body;
    if body.size_hint().lower() > LIMIT as u64 {
        tokio::spawn(drain(body));
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    let mut held: Option<Held> = None;
    let mut counted = SMALL as usize;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Status::bad_request(format!("reading the body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = whole.len() + data.len();
        if length > LIMIT {
            tokio::spawn(drain(body));
            return Err(too_large());
        }
        if length > counted {
            // In steps, for a vector grows by doubling.
            let step = length.max(2 * whole.len()).min(LIMIT) - counted;
            match budget.take(step as u64) {
                Ok(more) => match &mut held {
                    Some(held) => held.join(more),
                    None => held = Some(more),
                },
                Err(status) => {
                    tokio::spawn(drain(body));
                    return Err(status);
                }
            }
            counted += step;
        }
        if whole.is_empty() && body.is_end_stream() {
            // Most bodies come in one piece.
            return Ok((data, held));
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), held))
}

/// Throws away what is still coming, within reason, beside the answer: a client that is cut off while it sends never reads it.
async fn drain(mut body: Incoming) {
    const MOST: usize = 64 << 20;
    const PATIENCE: Duration = Duration::from_secs(5);
    let _ = tokio::time::timeout(PATIENCE, async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MOST {
                break;
            }
        }
    })
    .await;
}

/// The body as an object for the registry.
///
/// # Errors
/// As [`syntax`], and 400 for protobuf that is none.
pub fn input(headers: &HeaderMap, bytes: Bytes, catalog: &Catalog) -> Result<Input, Status> {
    let syntax = syntax(headers)?;
    Ok(match syntax {
        Syntax::Json => Input::Json(bytes),
        Syntax::Yaml => Input::Yaml(bytes),
        Syntax::Protobuf => Input::Json(from_protobuf(&bytes, catalog)?),
    })
}

/// Protobuf as JSON, by the schema of the kind that it says to be.
fn from_protobuf(bytes: &[u8], catalog: &Catalog) -> Result<Bytes, Status> {
    let broken =
        |why: String| Status::bad_request(format!("the object provided is unrecognized: {why}"));
    let envelope = protobuf::open(bytes).map_err(broken)?;
    let (group, version) = split_api_version(&envelope.api_version).unwrap_or_default();
    let kind = &envelope.kind;
    let decoded = match (
        catalog.by_kind(group, version, kind),
        kinds::body(group, version, kind),
    ) {
        (Some(descriptor), _) => envelope.decode(&descriptor.schema().root),
        (None, Some(body)) => envelope.decode(&body.schema().root),
        (None, None) => {
            let text = format!(
                "no kind {kind:?} is registered for version {:?}",
                envelope.api_version
            );
            return Err(Status::bad_request(text));
        }
    };
    let value = decoded.map_err(broken)?;
    Ok(Bytes::from(serde_json::to_vec(&value).unwrap_or_default()))
}

/// The body as any document; `Null` if it is empty. For bodies that are no stored object.
///
/// # Errors
/// As [`input`], and 400 for what is neither JSON nor YAML.
pub fn value(
    headers: &HeaderMap,
    mut bytes: Bytes,
    kind: &str,
    catalog: &Catalog,
) -> Result<Value, Status> {
    let syntax = syntax(headers)?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if syntax == Syntax::Protobuf {
        bytes = from_protobuf(&bytes, catalog)?;
    }
    let broken = |error: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {error}"
        ))
    };
    match syntax {
        Syntax::Json | Syntax::Protobuf => {
            serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))
        }
        Syntax::Yaml => {
            yaml::check(&bytes).map_err(broken)?;
            serde_yaml_ng::from_slice(&bytes).map_err(|e| broken(e.to_string()))
        }
    }
}
