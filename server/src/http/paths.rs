//! Paths that are no resources: discovery, schemas, health, version, keys, metrics, and the fleet's own few.

use amphipod_api::Status;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::app::Call;
use super::documents;
use super::negotiate::Offers;
use super::respond::{self, Answer};
use crate::cache::Cache;
use crate::resources::Descriptor;

/// Answers a path that is no resource.
///
/// # Errors
/// 404 for paths that are nothing.
pub async fn serve(call: Call) -> Answer {
    if call.method == Method::DELETE
        && let Some(node) = call.info.path.strip_prefix(NODES)
    {
        return remove_node(&call, node).await;
    }
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let path = call.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        [""] => document(&call, &root_paths()),
        ["version"] => document(&call, &crate::openapi::version()),
        ["healthz" | "livez" | "readyz", ..] => call
            .app
            .health
            .answer(path, &call.query)
            .ok_or_else(Status::no_such_resource),
        ["metrics"] => Ok(metrics(&call)),
        [".well-known", "openid-configuration"] => document(&call, &openid_configuration(&call)),
        ["openid", "v1", "jwks"] => {
            let keys = call.app.tokens.keys().jwks().to_string();
            Ok(respond::with_body(
                StatusCode::OK,
                "application/jwk-set+json",
                keys,
            ))
        }
        ["api" | "apis", ..] => documents::discover(&call, &parts),
        ["amphipod.io", "v1", "cluster"] => {
            let facts = serde_json::to_value(&call.app.cluster);
            document(&call, &facts.unwrap_or_default())
        }
        ["openapi", rest @ ..] => documents::openapi(&call, rest).await,
        _ => Err(Status::no_such_resource()),
    }
}

fn document(call: &Call, value: &Value) -> Answer {
    Ok(respond::document(
        StatusCode::OK,
        call.form(Offers::Whole)?,
        value,
    ))
}

/// The prefix of the paths about nodes as boxes.
const NODES: &str = "/amphipod.io/v1/nodes/";

/// The node whose tunnel a request is about to become.
pub fn tunnel_of(info: &super::RequestInfo) -> Option<&str> {
    let node = info.path.strip_prefix(NODES)?.strip_suffix("/tunnel")?;
    (info.verb == "get" && !node.contains('/')).then_some(node)
}

/// Takes a box out of the cluster for good.
async fn remove_node(call: &Call, node: &str) -> Answer {
    if !amphipod_api::names::dns1123_subdomain(node).is_empty() {
        return Err(Status::no_such_resource());
    }
    if node == call.app.own_node {
        let why = format!("node {node:?} is the server's own box and cannot be removed from it");
        return Err(Status::bad_request(why));
    }
    let app = &call.app;
    app.removed.remove(&app.registry, &call.user, node).await?;
    tracing::info!(
        node,
        "a node was removed; its certificates are refused from now on"
    );
    document(
        call,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
    )
}

fn root_paths() -> Value {
    json!({"paths": [
        "/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics",
        "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
    ]})
}

fn openid_configuration(call: &Call) -> Value {
    let issuer = &call.app.tokens.issuer;
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn metrics(call: &Call) -> http::Response<super::body::Body> {
    let registry = &call.app.registry;
    let cache: &Cache = registry.cache();
    let catalog = registry.catalog().snapshot();
    let stored = catalog
        .iter()
        .filter(|d| d.stored && d.storage_as.is_none());
    let objects: Vec<(String, usize)> = stored
        .filter_map(|d: &std::sync::Arc<Descriptor>| {
            Some((d.resource(), cache.table(&d.storage_resource())?.len()))
        })
        .filter(|(_, n)| *n > 0)
        .collect();
    let mut text = call.app.metrics.text(cache.revision(), &objects);
    let connected = call.app.tunnels.count();
    text.push_str(&format!(
        "# HELP amphipod_connected_nodes Boxes that keep a connection by which they are reached.\n\
         # TYPE amphipod_connected_nodes gauge\namphipod_connected_nodes {connected}\n"
    ));
    respond::with_body(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        text,
    )
}
