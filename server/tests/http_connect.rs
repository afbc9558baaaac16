//! Streams to nodes, against a stand-in for the agent that speaks TLS with the identity the server gives to agents.
#![allow(clippy::unwrap_used)]

mod http_support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use http_support::{As, World};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// Answers as an agent would: paths are echoed, upgrades echo bytes, some paths refuse.
async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri().to_string();
    if request.headers().contains_key("upgrade") {
        let protocol = request.headers()["upgrade"].clone();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            io.write_all(format!("{uri}\n").as_bytes()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        let response = Response::builder()
            .status(101)
            .header("upgrade", protocol)
            .header("connection", "Upgrade");
        return Ok(response.body(Full::default()).unwrap());
    }
    let (code, text) = if uri.contains("previous") {
        (
            400,
            "previous terminated container \"c\" in pod \"web\" not found".to_owned(),
        )
    } else {
        (
            200,
            format!("{uri} auth={:?}", request.headers().get("authorization")),
        )
    };
    Ok(Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Full::from(text))
        .unwrap())
}

/// An agent of node `box-1`, and pods that are on it.
async fn agent(world: &World) -> SocketAddr {
    let (cert, key) = world.server.node_credentials("box-1").unwrap();
    let ca = world.server.ca_pem().as_bytes().to_vec();
    let mut config =
        amphipod_api::tls::server_config(cert.as_bytes(), key.as_bytes(), Some(&ca)).unwrap();
    Arc::get_mut(&mut config).unwrap().alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(config.clone());
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                assert!(
                    tls.get_ref().1.peer_certificates().is_some(),
                    "the server shows its certificate"
                );
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service_fn(answer))
                    .with_upgrades()
                    .await;
            });
        }
    });
    world
        .apply(
            r#"
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}
---
{apiVersion: v1, kind: Node, metadata: {name: box-1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {nodeName: box-1, containers: [{name: c, image: x}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: two}, spec: {nodeName: box-1, containers: [{name: a, image: x}, {name: b, image: x}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: waiting}, spec: {containers: [{name: c, image: x}]}}
"#,
        )
        .await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    }});
    let mut admin = world.client(As::Admin).await;
    let headers = [("content-type", "application/merge-patch+json")];
    let got = admin
        .send(
            Method::PATCH,
            "/api/v1/nodes/box-1/status",
            &headers,
            status.to_string(),
        )
        .await;
    assert_eq!(got.code, 200, "{}", got.text());
    address
}

#[tokio::test]
async fn logs_come_from_the_node_and_its_refusals_are_statuses() {
    let world = World::start().await;
    agent(&world).await;
    let logs = world.kubectl(&["logs", "web", "--tail=5"]).await;
    assert_eq!(logs, "/containerLogs/default/web/c?tailLines=5 auth=None");
    let refused = world.kubectl_fails(&["logs", "web", "--previous"]).await;
    assert!(
        refused.contains("previous terminated container \"c\" in pod \"web\" not found"),
        "{refused}"
    );
    assert_eq!(world.kubectl(&["logs", "waiting"]).await, "");
    let mut admin = world.client(As::Admin).await;
    let logs = |pod: &str| format!("/api/v1/namespaces/default/pods/{pod}/log");
    let got = admin.get(&logs("two")).await;
    assert_eq!(
        got.message(),
        "a container name must be specified for pod two, choose one of: [a b]"
    );
    let got = admin.get(&format!("{}?container=x", logs("two"))).await;
    assert_eq!(got.message(), "container x is not valid for pod two");
    assert_eq!(
        admin.get(&logs("none")).await.message(),
        "pods \"none\" not found"
    );
}

#[tokio::test]
async fn upgrades_are_passed_through_byte_by_byte() {
    let world = World::start().await;
    agent(&world).await;
    let pods = "/api/v1/namespaces/default/pods";
    for (path, protocol, onward) in [
        (
            "web/exec?command=sh&command=-c&command=echo%20hi&stdin=true&stdout=true&tty=true",
            "SPDY/3.1",
            "/exec/default/web/c?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20hi",
        ),
        (
            "web/attach?stdout=true",
            "websocket",
            "/attach/default/web/c?output=1",
        ),
        (
            "web/portforward?ports=80&ports=81",
            "websocket",
            "/portForward/default/web?port=80&port=81",
        ),
    ] {
        let mut wire = world.client(As::Admin).await;
        let headers = [("connection", "Upgrade"), ("upgrade", protocol)];
        let response = wire
            .open(Method::POST, &format!("{pods}/{path}"), &headers, "")
            .await;
        assert_eq!(response.status(), 101, "{path}");
        assert_eq!(response.headers()["upgrade"], protocol);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut told = vec![0; onward.len() + 1];
        io.read_exact(&mut told).await.unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), format!("{onward}\n"));
        let noise: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(io);
        let sent = noise.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write
        });
        let mut echoed = vec![0; noise.len()];
        read.read_exact(&mut echoed).await.unwrap();
        assert!(echoed == noise);
        writing.await.unwrap().shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn streams_that_cannot_be_are_refused_with_a_reason() {
    let world = World::start().await;
    agent(&world).await;
    let mut admin = world.client(As::Admin).await;
    let exec =
        |pod: &str| format!("/api/v1/namespaces/default/pods/{pod}/exec?command=sh&stdout=true");
    let got = admin.send(Method::POST, &exec("web"), &[], "").await;
    assert_eq!(
        (got.code.as_u16(), got.message().as_str()),
        (400, "Upgrade request required")
    );
    let refused = world
        .kubectl_fails(&["exec", "waiting", "--", "true"])
        .await;
    assert!(
        refused.contains("pod waiting does not have a host assigned"),
        "{refused}"
    );
    let got = admin
        .send(
            Method::POST,
            &exec("two"),
            &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")],
            "",
        )
        .await;
    assert_eq!(
        got.message(),
        "a container name must be specified for pod two, choose one of: [a b]"
    );
}

#[tokio::test]
async fn a_node_that_is_away_is_told_as_such() {
    let world = World::start().await;
    agent(&world).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": free.port()}}}});
    let mut admin = world.client(As::Admin).await;
    let headers = [("content-type", "application/merge-patch+json")];
    admin
        .send(
            Method::PATCH,
            "/api/v1/nodes/box-1/status",
            &headers,
            status.to_string(),
        )
        .await;
    let refused = world.kubectl_fails(&["logs", "web"]).await;
    assert!(
        refused.contains(&format!("dial tcp {free}: connect: connection refused")),
        "{refused}"
    );
}

#[tokio::test]
async fn nodes_are_proxied_without_the_callers_credentials() {
    let world = World::start().await;
    agent(&world).await;
    let out = world
        .kubectl(&["get", "--raw", "/api/v1/nodes/box-1/proxy/pods?x=1"])
        .await;
    assert_eq!(out, "/pods?x=1 auth=None");
    let mut admin = world.client(As::Admin).await;
    let got = admin.get("/api/v1/nodes/box-1/proxy").await;
    assert_eq!(
        (got.code.as_u16(), got.header("location")),
        (301, "/api/v1/nodes/box-1/proxy/")
    );
}
