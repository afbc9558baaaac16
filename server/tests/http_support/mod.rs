//! A server on a loopback port, real kubectl, and a client that shows exactly what is on the wire.
#![allow(clippy::unwrap_used, dead_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use amphipod_server::{Server, ServerConfig};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;

/// A server with a directory of its own, gone with the test.
pub struct World {
    pub server: Server,
    pub dir: tempfile::TempDir,
}

/// As whom to connect.
pub enum As {
    Admin,
    /// (certificate, key), PEM.
    Certificate(String, String),
    Nobody,
}

impl World {
    /// The API alone, without controllers.
    pub async fn start() -> World {
        World::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ServerConfig)) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServerConfig {
            data_dir: dir.path().to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            run_controllers: false,
            ..ServerConfig::default()
        };
        change(&mut config);
        World {
            server: Server::start(config).await.unwrap(),
            dir,
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// kubectl as the administrator; (success, standard output, standard error).
    pub async fn kubectl_raw(&self, args: &[&str], stdin: &str) -> (bool, String, String) {
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let stdin = stdin.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(stdin.as_bytes())
                .unwrap();
            let done = child.wait_with_output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            (done.status.success(), text(done.stdout), text(done.stderr))
        })
        .await
        .unwrap()
    }

    /// What kubectl prints when it succeeds.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        let (ok, out, err) = self.kubectl_raw(args, "").await;
        assert!(ok, "kubectl {args:?}: {err}");
        out
    }

    /// What kubectl complains when it fails.
    pub async fn kubectl_fails(&self, args: &[&str]) -> String {
        let (ok, out, err) = self.kubectl_raw(args, "").await;
        assert!(!ok, "kubectl {args:?} printed {out}");
        err
    }

    /// `kubectl apply -f -`
    pub async fn apply(&self, yaml: &str) -> String {
        let (ok, out, err) = self
            .kubectl_raw(
                &["apply", "-f", "-"],
                &format!("# YAML, also where it looks like JSON\n{yaml}"),
            )
            .await;
        assert!(ok, "apply: {err}");
        out
    }

    pub async fn client(&self, who: As) -> Wire {
        let identity = match who {
            As::Nobody => None,
            As::Certificate(cert, key) => Some((cert, key)),
            As::Admin => {
                let read = |name: &str| {
                    std::fs::read_to_string(self.dir.path().join("pki").join(name)).unwrap()
                };
                Some((read("admin.crt"), read("admin.key")))
            }
        };
        let identity = identity
            .as_ref()
            .map(|(cert, key)| (cert.as_bytes(), key.as_bytes()));
        let mut config =
            amphipod_api::tls::client_config(self.server.ca_pem().as_bytes(), identity).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = tokio::net::TcpStream::connect(self.server.local_addr())
            .await
            .unwrap();
        let name = ServerName::try_from("kubernetes.default.svc").unwrap();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .unwrap();
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Wire(sender)
    }

    /// A token of the service account `default/NAME`, which is made.
    pub async fn service_account(&self, name: &str) -> String {
        self.kubectl(&["create", "serviceaccount", name]).await;
        self.kubectl(&["create", "token", name])
            .await
            .trim()
            .to_owned()
    }
}

/// One connection.
pub struct Wire(pub SendRequest<Full<Bytes>>);

/// An answer, whole.
#[derive(Debug)]
pub struct Got {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The `message` of a Status.
    pub fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Wire {
    /// Sends a request and gives the response with its body unread.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "kubernetes.default.svc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.ready().await.unwrap();
        self.0
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap()
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        let response = self.open(method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Got {
            code: head.status,
            headers: head.headers,
            bytes,
        }
    }

    pub async fn get(&mut self, path: &str) -> Got {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn get_with(&mut self, path: &str, headers: &[(&str, &str)]) -> Got {
        self.send(Method::GET, path, headers, "").await
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> Got {
        self.send(
            Method::POST,
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
        .await
    }
}

/// The next line of a streamed body.
pub async fn line(body: &mut Incoming, rest: &mut Vec<u8>) -> Option<Value> {
    loop {
        if let Some(at) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=at).collect();
            return Some(serde_json::from_slice(&line).unwrap());
        }
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame())
            .await
            .expect("nothing came")?;
        rest.extend_from_slice(&frame.ok()?.into_data().ok()?);
    }
}
