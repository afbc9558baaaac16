//! What the API says of itself: discovery and OpenAPI documents. They are made on request, away from the threads that
//! serve connections, and clients keep them by their ETag.

use std::sync::Arc;

use amphipod_api::Status;
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Response, StatusCode};
use serde_json::Value;

use super::app::Call;
use super::body::Body;
use super::negotiate::Offers;
use super::respond::{self, Answer};
use crate::openapi::{self, discovery, media};
use crate::resources::Catalog;

/// `/api...` and `/apis...`
///
/// # Errors
/// 404 for groups and versions that are not served.
pub fn discover(call: &Call, parts: &[&str]) -> Answer {
    let catalog = call.app.registry.catalog();
    if let (["api" | "apis"], Some((version, media_type))) = (parts, aggregated(call)) {
        let list = discovery::aggregated(catalog, parts[0] == "api", version);
        let body = serde_json::to_vec(&list).unwrap_or_default();
        let mut response = tagged(
            call,
            &openapi::hash(catalog.snapshot().iter().map(|d| &**d)),
            media_type,
            || body,
        );
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("Accept"));
        return Ok(response);
    }
    let found = discovery::document(catalog, parts).ok_or_else(Status::no_such_resource)?;
    Ok(respond::document(
        StatusCode::OK,
        call.form(Offers::Whole)?,
        &found,
    ))
}

/// The first aggregated form that the client accepts.
fn aggregated(call: &Call) -> Option<(&'static str, &'static str)> {
    let accept = call
        .headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok());
    accept.flat_map(|v| v.split(',')).find_map(|clause| {
        let clause = clause.replace(' ', "");
        if !clause.contains("as=APIGroupDiscoveryList") || !clause.starts_with("application/json") {
            return None;
        }
        media::AGGREGATED.into_iter().find(|(version, _)| {
            clause
                .split(';')
                .any(|p| p.strip_prefix("v=") == Some(version))
        })
    })
}

/// `/openapi/v2`, `/openapi/v3`, `/openapi/v3/GROUP-VERSION`
///
/// # Errors
/// 404 for anything else.
pub async fn openapi(call: &Call, parts: &[&str]) -> Answer {
    let catalog: Arc<Catalog> = call.app.registry.catalog().clone();
    let hash = openapi::hash(catalog.snapshot().iter().map(|d| &**d));
    match parts {
        ["v2"] => {
            let accept = call
                .headers
                .get_all(ACCEPT)
                .iter()
                .filter_map(|v| v.to_str().ok());
            let protobuf = accept.flat_map(|v| v.split(',')).any(|clause| {
                media::V2_PROTOBUF_NAMES
                    .iter()
                    .any(|name| clause.trim().starts_with(name))
            });
            if is_known(call, &hash) {
                return Ok(not_modified(&hash));
            }
            if protobuf {
                let bytes = off_thread(move || openapi::v2_protobuf(&catalog)).await?;
                return Ok(tagged(call, &hash, media::V2_PROTOBUF, || bytes));
            }
            let bytes = off_thread(move || to_json(&openapi::v2_json(&catalog))).await?;
            Ok(tagged(call, &hash, "application/json", || bytes))
        }
        ["v3"] => Ok(tagged(call, &hash, "application/json", || {
            to_json(&openapi::v3_index(&catalog))
        })),
        ["v3", rest @ ..] => {
            let path = rest.join("/");
            let made = off_thread(move || {
                let (document, hash) = openapi::v3_document(&catalog, &path)?;
                Some((to_json(&document), hash))
            });
            let (bytes, hash) = made.await?.ok_or_else(Status::no_such_resource)?;
            Ok(tagged(call, &hash, "application/json", || bytes))
        }
        _ => Err(Status::no_such_resource()),
    }
}

fn to_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

async fn off_thread<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(make)
        .await
        .map_err(|error| Status::internal_error(format!("making a document: {error}")))
}

fn is_known(call: &Call, hash: &str) -> bool {
    let known = call
        .headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|v| v.to_str().ok());
    known
        .flat_map(|v| v.split(','))
        .any(|tag| tag.trim().trim_matches('"') == hash)
}

fn not_modified(hash: &str) -> Response<Body> {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tag(&mut response, hash);
    response
}

fn tag(response: &mut Response<Body>, hash: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        response.headers_mut().insert(ETAG, value);
    }
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("public"));
}

/// The document with its ETag, or 304 if the client has it.
fn tagged(
    call: &Call,
    hash: &str,
    media_type: &'static str,
    body: impl FnOnce() -> Vec<u8>,
) -> Response<Body> {
    if is_known(call, hash) {
        return not_modified(hash);
    }
    let mut response = respond::with_body(StatusCode::OK, media_type, body());
    tag(&mut response, hash);
    response
}
