//! Paths that are no resources: discovery, schemas, health, version, keys, metrics.

use amphipod_api::Status;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::app::Call;
use super::negotiate::Offers;
use super::respond::{self, Answer};
use crate::cache::Cache;
use crate::resources::Descriptor;

/// The Kubernetes version whose API this is.
pub const KUBERNETES_VERSION: (&str, &str) = ("1", "36");

/// Answers a path that is no resource.
///
/// # Errors
/// 404 for paths that are nothing.
pub async fn serve(call: Call) -> Answer {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let path = call.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        [""] => document(&call, &root_paths()),
        ["version"] => document(&call, &version()),
        ["healthz" | "livez" | "readyz", ..] => {
            call.app.health.answer(path, &call.query).ok_or_else(Status::no_such_resource)
        }
        ["metrics"] => Ok(metrics(&call)),
        [".well-known", "openid-configuration"] => document(&call, &openid_configuration(&call)),
        ["openid", "v1", "jwks"] => {
            let keys = call.app.tokens.keys().jwks().to_string();
            Ok(respond::with_body(StatusCode::OK, "application/jwk-set+json", keys))
        }
        ["api" | "apis", ..] => discovery(&call, &parts),
        _ => Err(Status::no_such_resource()),
    }
}

fn document(call: &Call, value: &Value) -> Answer {
    Ok(respond::document(StatusCode::OK, call.form(Offers::Whole)?, value))
}

/// `/version`
pub fn version() -> Value {
    let (major, minor) = KUBERNETES_VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+amphipod{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// The processor by Go's names, which images and node labels use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
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
    let stored = catalog.iter().filter(|d| d.stored && d.storage_as.is_none());
    let objects: Vec<(String, usize)> = stored
        .filter_map(|d: &std::sync::Arc<Descriptor>| Some((d.resource(), cache.table(&d.storage_resource())?.len())))
        .filter(|(_, n)| *n > 0)
        .collect();
    let text = call.app.metrics.text(cache.revision(), &objects);
    respond::with_body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// `/api`, `/api/v1`, `/apis`, `/apis/GROUP`, `/apis/GROUP/VERSION`
fn discovery(call: &Call, parts: &[&str]) -> Answer {
    let catalog = call.app.registry.catalog().snapshot();
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for d in catalog.iter() {
        let at = match groups.iter().position(|(group, _)| *group == d.group) {
            Some(at) => at,
            None => {
                groups.push((d.group.to_string(), Vec::new()));
                groups.len() - 1
            }
        };
        if !groups[at].1.iter().any(|v| *v == d.version) {
            groups[at].1.push(d.version.to_string());
        }
    }
    let group = |name: &str, versions: &[String]| {
        let version = |v: &String| json!({"groupVersion": format!("{name}/{v}"), "version": v});
        json!({
            "name": name,
            "versions": versions.iter().map(version).collect::<Vec<_>>(),
            "preferredVersion": versions.first().map(version),
        })
    };
    let resources = |group: &str, version: &str| -> Option<Value> {
        let mut list = Vec::new();
        for d in catalog.iter().filter(|d| d.group == group && d.version == version) {
            let verbs: Vec<&str> = d.verbs.iter().map(|v| v.as_str()).collect();
            list.push(json!({
                "name": d.plural, "singularName": d.singular, "namespaced": d.namespaced(), "kind": d.kind,
                "verbs": verbs, "shortNames": d.short_names, "categories": d.categories,
            }));
            for s in &d.subresources {
                let verbs: Vec<&str> = s.verbs.iter().map(|v| v.as_str()).collect();
                let kind = s.body.as_ref().map_or(&d.kind, |(_, _, kind)| kind);
                list.push(json!({
                    "name": format!("{}/{}", d.plural, s.name), "singularName": "",
                    "namespaced": d.namespaced(), "kind": kind, "verbs": verbs,
                }));
            }
        }
        let api_version = amphipod_api::gvk::api_version(group, version);
        (!list.is_empty()).then(|| {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": list})
        })
    };
    let found = match parts {
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        })),
        ["api", version] => resources("", version),
        ["apis"] => {
            let named = groups.iter().filter(|(name, _)| !name.is_empty());
            let all: Vec<Value> = named.map(|(name, versions)| group(name, versions)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all}))
        }
        ["apis", name] => groups.iter().find(|(have, _)| have == name && !have.is_empty()).map(|(name, versions)| {
            let mut group = group(name, versions);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }),
        ["apis", group, version] => resources(group, version),
        _ => None,
    };
    document(call, &found.ok_or_else(Status::no_such_resource)?)
}
