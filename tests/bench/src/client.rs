//! The load generator's client: HTTP/1.1 over TLS with the administrator's certificate, one request at a time on each
//! connection, nothing cached, so that what is measured is the server.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const KUBECONFIG: &str = "/etc/amphipod/kubeconfig";

/// Where the server is and who we are.
#[derive(Clone)]
pub struct Server {
    address: String,
    tls: TlsConnector,
}

impl Server {
    /// From the administrator's kubeconfig of this box.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn from_kubeconfig() -> Result<Server> {
        let text = fs::read_to_string(KUBECONFIG).context("reading the kubeconfig")?;
        let field = |name: &str| -> Result<String> {
            let line = text.lines().find_map(|line| {
                line.trim()
                    .trim_start_matches("- ")
                    .strip_prefix(name)?
                    .strip_prefix(": ")
            });
            Ok(line
                .with_context(|| format!("the kubeconfig has no {name}"))?
                .trim()
                .trim_matches('"')
                .to_owned())
        };
        let pem = |name: &str| -> Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD.decode(field(name)?)?)
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem("certificate-authority-data")?) {
            roots.add(certificate?)?;
        }
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&pem("client-certificate-data")?)
                .collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let url = field("server")?;
        let port = url
            .rsplit_once(':')
            .context("the server's URL has no port")?
            .1
            .trim_end_matches('/')
            .to_owned();
        Ok(Server {
            address: format!("127.0.0.1:{port}"),
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// A new connection.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address)
            .await
            .context("connecting")?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let stream = self
            .tls
            .connect(name, stream)
            .await
            .context("the TLS handshake")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }
}

/// One kept-alive connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("accept", "application/json");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(self
            .sender
            .send_request(request.body(Full::new(body))?)
            .await?)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let response = self.send(method, path, body, &[]).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// The same, of a request that must succeed with JSON.
    ///
    /// # Errors
    /// When it does not.
    pub async fn json(&mut self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let (status, answer) = self.ask(method.clone(), path, bytes).await?;
        ensure!(
            status.is_success(),
            "{method} {path}: {status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Begins to watch `path` (which must say `watch=true`) on this connection.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn watch(mut self, path: &str) -> Result<Watch> {
        let response = self.send(Method::GET, path, Bytes::new(), &[]).await?;
        ensure!(
            response.status().is_success(),
            "watching {path}: {}",
            response.status()
        );
        Ok(Watch {
            body: response.into_body(),
            pending: BytesMut::new(),
            scanned: 0,
            _connection: self,
        })
    }
}

/// A stream of watch events, each one line of JSON.
pub struct Watch {
    body: Incoming,
    pending: BytesMut,
    /// How much of `pending` is known to hold no line feed.
    scanned: usize,
    _connection: Connection,
}

/// No figure waits longer than this for one event.
const PATIENCE: Duration = Duration::from_secs(60);

impl Watch {
    /// The next event, unparsed.
    ///
    /// # Errors
    /// When the stream ends or nothing comes for a minute.
    pub async fn line(&mut self) -> Result<Bytes> {
        loop {
            if let Some(at) = self.pending[self.scanned..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = self.pending.split_to(self.scanned + at + 1).freeze();
                self.scanned = 0;
                return Ok(line);
            }
            self.scanned = self.pending.len();
            match tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .context("waiting for an event")?
            {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
                None => bail!("the watch ended"),
            }
        }
    }

    /// The next event: its type and its object.
    ///
    /// # Errors
    /// As [`Watch::line`].
    pub async fn event(&mut self) -> Result<(String, Value)> {
        let mut event: Value = serde_json::from_slice(&self.line().await?)?;
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        Ok((kind, event["object"].take()))
    }
}
