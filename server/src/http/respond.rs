//! Answers: headers that all share, documents in the form that was negotiated, refusals as `Status`.

use amphipod_api::Status;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::body::Body;
use super::negotiate::{Encoding, Form};

/// What handlers give.
pub type Answer = Result<Response<Body>, Status>;

/// An answer with a body and its media type.
pub fn with_body(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Plain text, as health checks and metrics answer.
pub fn text(code: StatusCode, body: impl Into<Body>) -> Response<Body> {
    with_body(code, "text/plain; charset=utf-8", body)
}

/// A document that is JSON already.
pub fn json_bytes(code: StatusCode, form: Form, bytes: Bytes) -> Response<Body> {
    if form.encoding == Encoding::Json && !form.pretty {
        return with_body(code, "application/json", bytes);
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) => document(code, form, &value),
        Err(_) => with_body(code, "application/json", bytes),
    }
}

/// A document, written in the form.
pub fn document(code: StatusCode, form: Form, value: &Value) -> Response<Body> {
    let body = match form.encoding {
        Encoding::Yaml => serde_yaml_ng::to_string(value)
            .unwrap_or_default()
            .into_bytes(),
        Encoding::Json if form.pretty => {
            let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
            bytes.push(b'\n');
            bytes
        }
        Encoding::Json => serde_json::to_vec(value).unwrap_or_default(),
    };
    with_body(code, form.content_type(), body)
}

/// A refusal, or the success of a delete.
pub fn status(form: Form, status: &Status) -> Response<Body> {
    let code =
        StatusCode::from_u16(status.http_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match form {
        Form {
            encoding: Encoding::Json,
            pretty: false,
            ..
        } => {
            let mut json = status.to_json();
            json.push(b'\n');
            with_body(code, "application/json", json)
        }
        _ => document(code, form, &status.to_value()),
    };
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if seconds > 0 {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// `Warning: 299 - "text"` headers, which kubectl prints. Each text once.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut told: Vec<&String> = Vec::new();
    for warning in warnings {
        if told.contains(&warning) {
            continue;
        }
        told.push(warning);
        let mut quoted = String::with_capacity(warning.len() + 10);
        quoted.push_str("299 - \"");
        for c in warning.chars() {
            match c {
                '"' | '\\' => {
                    quoted.push('\\');
                    quoted.push(c);
                }
                c if c.is_control() => quoted.push(' '),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}
