//! What goes over the wire: forms, limits, refusals, streams.
#![allow(clippy::unwrap_used)]

mod http_support;

use std::io::Read as _;

use http::Method;
use http_support::{As, World, line};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": "1"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn objects_come_as_tables_metadata_yaml_and_pretty_json() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    assert_eq!(admin.post(MAPS, &config_map("a")).await.code, 201);
    let path = format!("{MAPS}/a");

    let table = admin
        .get_with(
            MAPS,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
        )
        .await
        .json();
    assert_eq!(
        (&table["kind"], &table["apiVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "a");

    let bare = format!("{path}?includeObject=Object");
    let whole = admin
        .get_with(
            &bare,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
        )
        .await
        .json();
    assert_eq!(whole["rows"][0]["object"]["data"]["x"], "1");

    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let metadata = admin.get_with(MAPS, &[("accept", accept)]).await.json();
    assert_eq!(metadata["kind"], "PartialObjectMetadataList");
    assert_eq!(metadata["items"][0]["metadata"]["name"], "a");
    assert!(metadata["items"][0].get("data").is_none());

    let yaml = admin
        .get_with(&path, &[("accept", "application/yaml")])
        .await;
    assert_eq!(yaml.header("content-type"), "application/yaml");
    assert!(
        yaml.text().contains("\nkind: ConfigMap\n"),
        "{}",
        yaml.text()
    );

    let pretty = admin.get(&format!("{path}?pretty=true")).await;
    assert!(
        pretty.text().contains("\n  \"kind\": \"ConfigMap\""),
        "{}",
        pretty.text()
    );

    let refused = admin.get_with(&path, &[("accept", "text/html")]).await;
    assert_eq!(refused.code, 406);
    assert_eq!(refused.json()["reason"], "NotAcceptable");
}

#[tokio::test]
async fn every_answer_has_an_audit_id_and_head_has_no_body() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    let got = admin
        .get_with("/api/v1/namespaces/default", &[("audit-id", "mine")])
        .await;
    assert_eq!(got.header("audit-id"), "mine");
    assert_eq!(
        admin
            .get("/api/v1/namespaces/default")
            .await
            .header("audit-id")
            .len(),
        36
    );
    let head = admin
        .send(Method::HEAD, "/api/v1/namespaces/default", &[], "")
        .await;
    assert_eq!((head.code.as_u16(), head.bytes.len()), (200, 0));
    assert_eq!(head.header("content-length"), got.bytes.len().to_string());
}

#[tokio::test]
async fn refusals_are_statuses_that_clients_know() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    for (path, code, message) in [
        (
            "/nowhere",
            404,
            "the server could not find the requested resource",
        ),
        (
            "/api/v1/chairs",
            404,
            "the server could not find the requested resource",
        ),
        (
            "/apis/none/v1/chairs",
            404,
            "the server could not find the requested resource",
        ),
        (
            "/api/v1/namespaces/default/nodes",
            404,
            "the server could not find the requested resource",
        ),
        (
            "/api/v1/configmaps/a",
            404,
            "the server could not find the requested resource",
        ),
        (
            "/api/v1/namespaces/default/configmaps/none",
            404,
            "configmaps \"none\" not found",
        ),
        (
            "/api/v1/pods?limit=x",
            400,
            "strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "/api/v1/pods?fieldSelector=spec.x%3D1",
            400,
            "field label not supported: spec.x",
        ),
        (
            "/api/v1/pods?watch=1&resourceVersion=x",
            400,
            "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
    ] {
        let got = admin.get(path).await;
        assert_eq!(
            (got.code.as_u16(), got.message().as_str()),
            (code, message),
            "{path}"
        );
        assert_eq!(got.json()["kind"], "Status", "{path}");
    }
    let got = admin
        .send(Method::POST, "/api/v1/configmaps", &[], "{}")
        .await;
    assert_eq!(got.code, 405);
    assert_eq!(
        got.message(),
        "the server does not allow this method on the requested resource"
    );
    let got = admin.get("/api/v1/pods?labelSelector=a%20b").await;
    assert_eq!(got.code, 400);
    assert!(
        got.message().starts_with("unable to parse requirement: "),
        "{}",
        got.message()
    );
}

#[tokio::test]
async fn bodies_are_limited_and_must_be_readable() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    let large = format!("{{\"data\":{{\"x\":\"{}\"}}}}", "x".repeat(4 << 20));
    let got = admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/json")],
            large,
        )
        .await;
    assert_eq!(
        (got.code.as_u16(), got.json()["reason"].clone()),
        (413, json!("RequestEntityTooLarge"))
    );

    let mut admin = world.client(As::Admin).await;
    let got = admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/cbor")],
            "x",
        )
        .await;
    assert_eq!(
        (got.code.as_u16(), got.json()["reason"].clone()),
        (415, json!("UnsupportedMediaType"))
    );
    let got = admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/json")],
            "{",
        )
        .await;
    assert_eq!(got.code, 400);
    let got = admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            "x",
        )
        .await;
    assert_eq!(got.code, 400);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\n";
    let got = admin
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/yaml")],
            yaml,
        )
        .await;
    assert_eq!(got.code, 201, "{}", got.text());
    let got = admin
        .send(
            Method::PATCH,
            &format!("{MAPS}/y"),
            &[("content-type", "application/json")],
            "{}",
        )
        .await;
    assert_eq!(got.code, 415);
}

#[tokio::test]
async fn unknown_fields_warn_and_strict_refuses_them() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    let mut odd = config_map("odd");
    odd["extra"] = json!(1);
    let got = admin
        .post(&format!("{MAPS}?fieldValidation=Strict"), &odd)
        .await;
    assert_eq!(got.code, 400);
    assert_eq!(
        got.message(),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"extra\""
    );
    let got = admin.post(MAPS, &odd).await;
    assert_eq!(got.code, 201);
    assert_eq!(
        got.header("warning"),
        "299 - \"unknown field \\\"extra\\\"\""
    );
    let got = admin
        .post(&format!("{MAPS}?fieldValidation=Never"), &odd)
        .await;
    assert_eq!(got.code, 422);
    let got = admin.post(&format!("{MAPS}?dryRun=Some"), &odd).await;
    assert_eq!(got.code, 422);
}

#[tokio::test]
async fn large_lists_are_compressed_for_who_asks() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    let mut big = config_map("big");
    big["data"]["x"] = json!("y".repeat(200_000));
    assert_eq!(admin.post(MAPS, &big).await.code, 201);
    let plain = admin.get(MAPS).await;
    assert_eq!(plain.header("content-encoding"), "");
    let packed = admin.get_with(MAPS, &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.bytes.len() < 20_000);
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed.bytes[..])
        .read_to_end(&mut unpacked)
        .unwrap();
    assert_eq!(unpacked, plain.bytes);
    let small = admin
        .get_with("/api/v1/namespaces", &[("accept-encoding", "gzip")])
        .await;
    assert_eq!(small.header("content-encoding"), "");
}

#[tokio::test]
async fn a_watch_tells_changes_as_they_happen_and_ends_by_its_timeout() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    let mut writer = world.client(As::Admin).await;
    let version = admin.get(MAPS).await.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!(
        "{MAPS}?watch=true&resourceVersion={version}&timeoutSeconds=1&allowWatchBookmarks=true"
    );
    let response = admin.open(Method::GET, &path, &[], "").await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut rest = Vec::new();
    writer.post(MAPS, &config_map("w")).await;
    let added = line(&mut body, &mut rest).await.unwrap();
    assert_eq!(
        (&added["type"], &added["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("w"))
    );
    writer
        .send(Method::DELETE, &format!("{MAPS}/w"), &[], "")
        .await;
    let deleted = line(&mut body, &mut rest).await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    // What is left is at most a bookmark; then the stream ends by itself.
    while let Some(more) = line(&mut body, &mut rest).await {
        assert_eq!(more["type"], "BOOKMARK");
    }
}

#[tokio::test]
async fn table_watches_name_their_columns_once() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    for name in ["a", "b"] {
        admin.post(MAPS, &config_map(name)).await;
    }
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let response = admin
        .open(
            Method::GET,
            &format!("{MAPS}?watch=true&timeoutSeconds=5"),
            &accept,
            "",
        )
        .await;
    let (mut body, mut rest) = (response.into_body(), Vec::new());
    let first = line(&mut body, &mut rest).await.unwrap();
    let second = line(&mut body, &mut rest).await.unwrap();
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn old_watch_paths_and_web_sockets_work() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    admin.post(MAPS, &config_map("a")).await;
    let old = "/api/v1/watch/namespaces/default/configmaps/a?timeoutSeconds=5";
    let mut wire = world.client(As::Admin).await;
    let response = wire.open(Method::GET, old, &[], "").await;
    let added = line(&mut response.into_body(), &mut Vec::new())
        .await
        .unwrap();
    assert_eq!(added["object"]["metadata"]["name"], "a");

    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let response = admin
        .open(Method::GET, &format!("{MAPS}?watch=1"), &headers, "")
        .await;
    assert_eq!(response.status(), 101);
    assert_eq!(
        response.headers()["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut head = [0u8; 4];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!((head[0], head[1]), (0x81, 126));
    let mut payload = vec![0u8; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    socket.read_exact(&mut payload).await.unwrap();
    let event: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
    // A masked close frame: the server closes, too.
    socket.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut end = Vec::new();
    socket.read_to_end(&mut end).await.unwrap();
    assert_eq!(end.first(), Some(&0x88));
}

#[tokio::test]
async fn health_version_keys_and_metrics_are_served() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        let got = admin.get(path).await;
        assert_eq!(
            (got.code.as_u16(), got.text().as_str()),
            (200, "ok"),
            "{path}"
        );
    }
    assert!(
        admin
            .get("/readyz?verbose")
            .await
            .text()
            .ends_with("readyz check passed\n")
    );
    let version = admin.get("/version").await.json();
    assert_eq!(
        (&version["major"], &version["minor"]),
        (&json!("1"), &json!("36"))
    );
    let openid = admin.get("/.well-known/openid-configuration").await.json();
    assert_eq!(
        openid["issuer"],
        "https://kubernetes.default.svc.cluster.local"
    );
    assert_eq!(
        admin.get("/openid/v1/jwks").await.json()["keys"][0]["alg"],
        "ES256"
    );
    let metrics = admin.get("/metrics").await.text();
    assert!(
        metrics.contains("apiserver_storage_objects{resource=\"namespaces\"} 4"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_restart_keeps_objects_keys_and_writes_nothing_needless() {
    let world = World::start().await;
    let mut admin = world.client(As::Admin).await;
    admin.post(MAPS, &config_map("kept")).await;
    let revision = admin.get(MAPS).await.json()["metadata"]["resourceVersion"].clone();
    let ca = world.server.ca_pem().to_owned();
    let listen = world.server.local_addr();
    let World { server, dir } = world;
    server.shutdown().await;
    let config = amphipod_server::ServerConfig {
        data_dir: dir.path().to_owned(),
        listen,
        run_controllers: false,
        ..amphipod_server::ServerConfig::default()
    };
    let server = amphipod_server::Server::start(config).await.unwrap();
    let world = World { server, dir };
    let mut admin = world.client(As::Admin).await;
    let list = admin.get(MAPS).await.json();
    assert_eq!(list["items"][0]["metadata"]["name"], "kept");
    assert_eq!(list["metadata"]["resourceVersion"], revision);
    assert_eq!(world.server.ca_pem(), ca);
}
