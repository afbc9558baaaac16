//! Reading request bodies: limited, in a form that we can read.

use amphipod_api::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::registry::Input;

/// The largest body that is read, as upstream.
pub const LIMIT: usize = 3 << 20;

/// Media types that we read.
const READABLE: &[&str] = &["application/json", "application/yaml"];

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    Json,
    Yaml,
}

/// The syntax by `Content-Type`; JSON if it says nothing.
///
/// # Errors
/// 415 for what we do not read, such as protobuf.
pub fn syntax(headers: &HeaderMap) -> Result<Syntax, Status> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Syntax::Json) };
    let text = value.to_str().unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "application/json" | "" | "*/*" => Ok(Syntax::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Syntax::Yaml),
        _ => Err(Status::unsupported_media_type(READABLE)),
    }
}

/// The whole body.
///
/// # Errors
/// 413 if it is too large, 400 if the client hangs up.
pub async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, Status> {
    if headers.get(CONTENT_ENCODING).is_some_and(|e| e != "identity") {
        return Err(Status::unsupported_media_type(READABLE));
    }
    match Limited::new(body, LIMIT).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::request_entity_too_large(format!("limit is {LIMIT}")))
        }
        Err(error) => Err(Status::bad_request(format!("reading the body: {error}"))),
    }
}

/// The body as an object for the registry.
///
/// # Errors
/// As [`syntax`] and [`read`].
pub async fn input(headers: &HeaderMap, body: Incoming) -> Result<Input, Status> {
    let syntax = syntax(headers)?;
    let bytes = read(headers, body).await?;
    Ok(match syntax {
        Syntax::Json => Input::Json(bytes),
        Syntax::Yaml => Input::Yaml(bytes),
    })
}

/// The body as any document; `Null` if it is empty. For bodies that are no stored object.
///
/// # Errors
/// As [`input`], and 400 for what is neither JSON nor YAML.
pub async fn value(headers: &HeaderMap, body: Incoming, kind: &str) -> Result<Value, Status> {
    let syntax = syntax(headers)?;
    let bytes = read(headers, body).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let broken = |error: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {error}"
        ))
    };
    match syntax {
        Syntax::Json => serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string())),
        Syntax::Yaml => serde_yaml_ng::from_slice(&bytes).map_err(|e| broken(e.to_string())),
    }
}
