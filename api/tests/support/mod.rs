//! A fake API server over real TLS: one collection of ConfigMaps in memory, with revisions, watches, compaction, and
//! connections that can be cut.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod_api::client::{Auth, Client, ClientConfig};
use amphipod_api::pki::{Ca, Identity, LEAF_LIFETIME};
use amphipod_api::{Status, tls};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Either, Full, channel::Channel};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

type Body = Either<Full<Bytes>, Channel<Bytes>>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Value>,
    /// (revision, type, object)
    log: Vec<(u64, &'static str, Value)>,
    /// Watches from before this are 410.
    compacted: u64,
    no_streaming_lists: bool,
    requests: Vec<String>,
}

pub struct FakeServer {
    pub url: String,
    pub ca: Ca,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Each change ends all connections; odd: new ones are refused, too.
    cut: watch::Sender<u64>,
    listener: tokio::task::JoinHandle<()>,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut.send_modify(|n| *n += 2);
    }
}

impl FakeServer {
    pub async fn start() -> FakeServer {
        let (ca, _) = Ca::create("test-ca").unwrap();
        let Identity { cert_pem, key_pem } = ca
            .issue_server("server", &["127.0.0.1".into()], LEAF_LIFETIME)
            .unwrap();
        let config = tls::server_config(
            cert_pem.as_bytes(),
            key_pem.as_bytes(),
            Some(ca.cert_pem().as_bytes()),
        )
        .unwrap();
        let acceptor = TlsAcceptor::from(config);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", socket.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let (changed, changes) = watch::channel(0);
        let (cut, mut cuts) = watch::channel(0);
        let shared = state.clone();
        let listener = tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                if *cuts.borrow_and_update() % 2 == 1 {
                    continue;
                }
                let (acceptor, shared, changes, mut cuts) = (
                    acceptor.clone(),
                    shared.clone(),
                    changes.clone(),
                    cuts.clone(),
                );
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let certificate = stream
                        .get_ref()
                        .1
                        .peer_certificates()
                        .map(|c| c[0].to_vec());
                    let service = hyper::service::service_fn(move |request| {
                        answer(
                            request,
                            shared.clone(),
                            changes.clone(),
                            certificate.clone(),
                        )
                    });
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        FakeServer {
            url,
            ca,
            state,
            changed,
            cut,
            listener,
        }
    }

    pub fn client(&self) -> Client {
        self.client_as(Auth::Token("t".into()))
    }

    pub fn client_as(&self, auth: Auth) -> Client {
        let mut config = ClientConfig::new(&self.url, self.ca.cert_pem(), auth);
        config.timeout = Duration::from_secs(10);
        Client::new(config).unwrap()
    }

    fn change(&self, edit: impl FnOnce(&mut State, u64) -> (&'static str, Value)) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        let (kind, object) = edit(&mut state, revision);
        state.log.push((revision, kind, object));
        drop(state);
        self.changed.send_replace(revision);
        revision
    }

    /// Creates or changes an object; its data holds the revision.
    pub fn put(&self, name: &str) -> u64 {
        self.change(|state, revision| {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": "d", "resourceVersion": revision.to_string()},
            });
            let old = state.objects.insert(name.into(), object.clone());
            (if old.is_some() { "MODIFIED" } else { "ADDED" }, object)
        })
    }

    pub fn delete(&self, name: &str) {
        self.change(|state, revision| {
            let mut object = state.objects.remove(name).expect("an object to delete");
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            ("DELETED", object)
        });
    }

    /// Forgets all history.
    pub fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.compacted = state.revision;
        state.log.clear();
    }

    pub fn refuse_streaming_lists(&self) {
        self.state.lock().unwrap().no_streaming_lists = true;
    }

    /// Breaks all connections; new ones are taken.
    pub fn cut_connections(&self) {
        self.cut.send_modify(|n| *n += 2);
    }

    pub fn go_away(&self) {
        self.cut.send_modify(|n| *n = (*n | 1) + 2);
    }

    pub fn come_back(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// name → revision
    pub fn picture(&self) -> HashMap<String, String> {
        let state = self.state.lock().unwrap();
        state.objects.values().map(revision_of).collect()
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

pub fn revision_of(object: &Value) -> (String, String) {
    let meta = &object["metadata"];
    (
        meta["name"].as_str().unwrap().into(),
        meta["resourceVersion"].as_str().unwrap().into(),
    )
}

fn json_response(code: u16, value: &Value) -> Response<Body> {
    let body = Full::from(serde_json::to_vec(value).unwrap());
    Response::builder()
        .status(code)
        .body(Either::Left(body))
        .unwrap()
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    mut changes: watch::Receiver<u64>,
    certificate: Option<Vec<u8>>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_string();
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .unwrap_or("")
        .split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.into(), v.into()))
        .collect();
    let get = |name: &str| query.get(name).cloned().unwrap_or_default();
    state
        .lock()
        .unwrap()
        .requests
        .push(format!("{} {}", parts.method, parts.uri));
    if path == "/echo" {
        let text = |name: &str| {
            parts
                .headers
                .get(name)
                .map(|v| v.to_str().unwrap().to_string())
        };
        let body = body.collect().await.unwrap().to_bytes();
        return Ok(json_response(
            200,
            &json!({
                "version": format!("{:?}", parts.version),
                "authorization": text("authorization"), "contentType": text("content-type"), "userAgent": text("user-agent"),
                "user": certificate.map(|der| amphipod_api::pki::CertInfo::from_der(&der).unwrap().common_name),
                "body": String::from_utf8_lossy(&body),
            }),
        ));
    }
    if path == "/broken" {
        return Ok(Response::builder()
            .status(502)
            .body(Either::Left(Full::from("upstream is down")))
            .unwrap());
    }
    if path != "/api/v1/namespaces/d/configmaps" || parts.method != Method::GET {
        let status = Status::not_found(
            &amphipod_api::GroupResource::new("", "configmaps"),
            path.rsplit('/').next().unwrap(),
        );
        return Ok(json_response(404, &status.to_value()));
    }
    let (initial, start, mut sent, compacted, refuse) = {
        let state = state.lock().unwrap();
        let initial: Vec<Value> = state.objects.values().cloned().collect();
        (
            initial,
            get("resourceVersion"),
            state.revision,
            state.compacted,
            state.no_streaming_lists,
        )
    };
    if get("watch") != "true" {
        let items: Vec<Value> = initial
            .into_iter()
            .map(|mut object| {
                object
                    .as_object_mut()
                    .unwrap()
                    .retain(|key, _| key == "metadata");
                object
            })
            .collect();
        return Ok(json_response(
            200,
            &json!({
                "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": sent.to_string()}, "items": items,
            }),
        ));
    }
    let streaming = get("sendInitialEvents") == "true";
    if streaming && refuse {
        return Ok(json_response(
            422,
            &Status::bad_request("sendInitialEvents is forbidden").to_value(),
        ));
    }
    let (mut sender, channel) = Channel::new(64);
    tokio::spawn(async move {
        let line = |kind: &str, object: &Value| {
            Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
        };
        if streaming {
            for object in &initial {
                if sender.send_data(line("ADDED", object)).await.is_err() {
                    return;
                }
            }
            let bookmark = json!({
                "kind": "ConfigMap", "apiVersion": "v1",
                "metadata": {"resourceVersion": sent.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}},
            });
            if sender.send_data(line("BOOKMARK", &bookmark)).await.is_err() {
                return;
            }
        } else {
            sent = start.parse().unwrap();
            if sent < compacted {
                let status = Status::too_old_resource_version(sent, compacted);
                let _ = sender.send_data(line("ERROR", &status.to_value())).await;
                return;
            }
        }
        loop {
            let new: Vec<(u64, &str, Value)> = state
                .lock()
                .unwrap()
                .log
                .iter()
                .filter(|(revision, ..)| *revision > sent)
                .cloned()
                .collect();
            for (revision, kind, object) in new {
                // In two pieces, as networks like to do.
                let line = line(kind, &object);
                let half = line.len() / 2;
                if sender.send_data(line.slice(..half)).await.is_err()
                    || sender.send_data(line.slice(half..)).await.is_err()
                {
                    return;
                }
                sent = revision;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(Response::new(Either::Right(channel)))
}
