//! The client over real TLS.
#![allow(clippy::unwrap_used)]

mod support;

use amphipod_api::client::{Auth, Client, ClientConfig, ListParams, Target};
use amphipod_api::pki::{Ca, LEAF_LIFETIME};
use bytes::Bytes;
use http::Method;
use serde_json::Value;
use support::FakeServer;

async fn echo(client: &Client) -> Value {
    let body = Some(("application/json", Bytes::from("{}")));
    serde_json::from_slice(&client.raw(Method::POST, "/echo", body).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_says_who_it_is() {
    let server = FakeServer::start().await;
    let by_token = echo(&server.client_as(Auth::Token("secret".into()))).await;
    assert_eq!(by_token["authorization"], "Bearer secret");
    assert_eq!(by_token["user"], Value::Null);
    assert_eq!(by_token["version"], "HTTP/2.0");
    assert_eq!(by_token["contentType"], "application/json");
    assert!(
        by_token["userAgent"]
            .as_str()
            .unwrap()
            .starts_with("amphipod/")
    );

    let identity = server
        .ca
        .issue_client("system:node:n1", &["system:nodes"], LEAF_LIFETIME)
        .unwrap();
    let client = server.client_as(Auth::Certificate {
        cert_pem: identity.cert_pem,
        key_pem: identity.key_pem,
    });
    assert_eq!(echo(&client).await["user"], "system:node:n1");

    client.set_auth(Auth::Token("other".into())).unwrap();
    let after = echo(&client).await;
    assert_eq!(
        (after["authorization"].as_str(), &after["user"]),
        (Some("Bearer other"), &Value::Null)
    );
}

#[tokio::test]
async fn a_replaced_token_file_is_used_at_once() {
    let server = FakeServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let client = server.client_as(Auth::TokenFile(path.clone()));
    let error = client
        .get(&Target::core("pods"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("reading the token file"), "{error}");
    std::fs::write(&path, "one\n").unwrap();
    assert_eq!(echo(&client).await["authorization"], "Bearer one");
    std::fs::write(&path, "two\n").unwrap();
    assert_eq!(echo(&client).await["authorization"], "Bearer two");
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted() {
    let server = FakeServer::start().await;
    let (other, _) = Ca::create("other").unwrap();
    let client = Client::new(ClientConfig::new(
        &server.url,
        other.cert_pem(),
        Auth::Anonymous,
    ))
    .unwrap();
    let error = client.get(&Target::core("pods")).await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_of_another_ca_is_turned_away() {
    let server = FakeServer::start().await;
    let (other, _) = Ca::create("other").unwrap();
    let identity = other
        .issue_client("system:admin", &["system:masters"], LEAF_LIFETIME)
        .unwrap();
    let client = server.client_as(Auth::Certificate {
        cert_pem: identity.cert_pem,
        key_pem: identity.key_pem,
    });
    assert!(
        client
            .raw(Method::POST, "/echo", None)
            .await
            .unwrap_err()
            .is_unreachable()
    );
}

#[tokio::test]
async fn failures_are_statuses_also_when_a_proxy_answers() {
    let server = FakeServer::start().await;
    let client = server.client();
    let target = Target::core("configmaps").namespace("d").name("x");
    let error = client.get(&target).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), r#"configmaps "x" not found"#);
    assert_eq!(client.get_opt(&target).await.unwrap(), None);
    let error = client.raw(Method::GET, "/broken", None).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string(),
        "the server answered 502 Bad Gateway: upstream is down"
    );
}

#[tokio::test]
async fn listed_items_get_their_kind_back() {
    let server = FakeServer::start().await;
    server.put("a");
    let params = ListParams {
        label_selector: "a in (b,c)".into(),
        limit: 5,
        ..ListParams::default()
    };
    let list = server
        .client()
        .list(&Target::core("configmaps").namespace("d"), &params)
        .await
        .unwrap();
    assert_eq!(
        (
            list.items[0]["kind"].as_str(),
            list.items[0]["apiVersion"].as_str()
        ),
        (Some("ConfigMap"), Some("v1"))
    );
    assert_eq!(list.resource_version, "1");
    assert_eq!(
        server.requests(),
        ["GET ".to_string()
            + &server.url
            + "/api/v1/namespaces/d/configmaps?labelSelector=a%20in%20%28b%2Cc%29&limit=5"]
    );
}

#[tokio::test]
async fn an_absent_server_is_told_from_a_refusing_one() {
    let server = FakeServer::start().await;
    let client = server.client();
    server.go_away();
    let error = client.get(&Target::core("pods")).await.unwrap_err();
    assert!(error.is_unreachable() && error.is_retryable(), "{error}");
}
