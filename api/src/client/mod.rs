//! A REST client for one API server: our own CA, a client certificate or a bearer token, HTTP/2 or HTTP/1.1.

mod error;
mod target;
mod watch;

pub use error::ClientError;
pub use target::{List, ListParams, Target, WatchParams};
pub use watch::{WatchEvent, is_initial_events_end};

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderValue, Method, header};
use serde_json::Value;
use tokio::sync::Notify;

use crate::meta;
use crate::patch::PatchType;
use crate::status::Status;
use crate::{files, tls};

/// Who the client is.
#[derive(Clone, Default)]
pub enum Auth {
    #[default]
    Anonymous,
    /// PEM texts.
    Certificate {
        cert_pem: String,
        key_pem: String,
    },
    Token(String),
    /// A file that holds a token and may be replaced: it is read for each request.
    TokenFile(PathBuf),
}

/// Credentials are not for logs.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::Anonymous => "Anonymous",
            Auth::Certificate { .. } => "Certificate",
            Auth::Token(_) => "Token",
            Auth::TokenFile(_) => "TokenFile",
        })
    }
}

/// Where the server is and how to talk to it.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `https://HOST:PORT`
    pub server: String,
    /// The CA that signed the server's certificate, PEM. Nobody else is trusted.
    pub ca_pem: String,
    pub auth: Auth,
    /// The User-Agent header; its first word is the default field manager.
    pub user_agent: String,
    /// For whole requests; watches have no limit but the server's.
    pub timeout: Duration,
}

impl ClientConfig {
    pub fn new(server: impl Into<String>, ca_pem: impl Into<String>, auth: Auth) -> ClientConfig {
        ClientConfig {
            server: server.into(),
            ca_pem: ca_pem.into(),
            auth,
            user_agent: concat!("amphipod/", env!("CARGO_PKG_VERSION")).into(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// The client: cheap to clone, all clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    /// Without a trailing slash.
    server: String,
    ca_pem: String,
    user_agent: String,
    timeout: Duration,
    /// Replaced when the identity is.
    session: RwLock<Session>,
    /// The last request got no answer.
    silent: AtomicBool,
    /// Tells when there are answers again.
    answers: Notify,
    /// Tells that the server did not take our credentials (401).
    refused: Notify,
}

#[derive(Clone)]
struct Session {
    http: reqwest::Client,
    auth: Auth,
}

impl Client {
    /// Makes a client; nothing is sent yet.
    pub fn new(config: ClientConfig) -> Result<Client, ClientError> {
        let session = Session::new(&config.ca_pem, &config.user_agent, config.auth)?;
        Ok(Client {
            inner: Arc::new(Inner {
                server: config.server.trim_end_matches('/').into(),
                ca_pem: config.ca_pem,
                user_agent: config.user_agent,
                timeout: config.timeout,
                session: RwLock::new(session),
                silent: AtomicBool::new(false),
                answers: Notify::new(),
                refused: Notify::new(),
            }),
        })
    }

    /// Continues under another identity (a renewed certificate). Running requests and watches end as they were.
    pub fn set_auth(&self, auth: Auth) -> Result<(), ClientError> {
        let session = Session::new(&self.inner.ca_pem, &self.inner.user_agent, auth)?;
        *self
            .inner
            .session
            .write()
            .unwrap_or_else(|e| e.into_inner()) = session;
        Ok(())
    }

    /// Returns when the server answers somebody after requests that it did not answer: who waits before trying again need not
    /// wait longer.
    pub async fn answers_again(&self) {
        self.inner.answers.notified().await;
    }

    /// Returns when the server did not take our credentials, now or since this was asked last.
    pub async fn refused(&self) {
        self.inner.refused.notified().await;
    }

    /// The server's URL.
    pub fn server(&self) -> &str {
        &self.inner.server
    }

    pub async fn get(&self, target: &Target) -> Result<Value, ClientError> {
        self.json(Method::GET, &target.path(), &[], None).await
    }

    /// Reads an object that may not be there.
    pub async fn get_opt(&self, target: &Target) -> Result<Option<Value>, ClientError> {
        match self.get(target).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One page of a collection (the whole of it without a limit). Items get the `apiVersion` and `kind` that lists leave out.
    pub async fn list(&self, target: &Target, params: &ListParams) -> Result<List, ClientError> {
        let mut list = self
            .json(Method::GET, &target.path(), &params.query(), None)
            .await?;
        let items = match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(Value::Null) => Vec::new(),
            _ => return Err(ClientError::Decode(format!("{} is no list", target.path()))),
        };
        let api_version = list.get("apiVersion").cloned();
        let kind = meta::str_at(&list, &["kind"])
            .strip_suffix("List")
            .map(Value::from);
        let complete = |mut item: Value| {
            if let Value::Object(map) = &mut item {
                for (field, value) in [("apiVersion", &api_version), ("kind", &kind)] {
                    if let (false, Some(value)) = (map.contains_key(field), value) {
                        map.insert(field.into(), value.clone());
                    }
                }
            }
            item
        };
        Ok(List {
            resource_version: meta::resource_version(&list).into(),
            continue_token: meta::str_at(&list, &["metadata", "continue"]).into(),
            items: items.into_iter().map(complete).collect(),
        })
    }

    /// Creates an object in a collection (or posts to a subresource, such as `binding`, `eviction`, `token`).
    pub async fn create(&self, target: &Target, object: &Value) -> Result<Value, ClientError> {
        self.json(
            Method::POST,
            &target.path(),
            &[],
            Some(("application/json", object)),
        )
        .await
    }

    /// Replaces an object or subresource; `metadata.resourceVersion`, if set, must be the stored one.
    pub async fn update(&self, target: &Target, object: &Value) -> Result<Value, ClientError> {
        self.json(
            Method::PUT,
            &target.path(),
            &[],
            Some(("application/json", object)),
        )
        .await
    }

    pub async fn patch(
        &self,
        target: &Target,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Value, ClientError> {
        self.json(
            Method::PATCH,
            &target.path(),
            &[],
            Some((kind.content_type(), patch)),
        )
        .await
    }

    /// Deletes an object or a collection. `options` is a `DeleteOptions` object, or null for the defaults.
    pub async fn delete(&self, target: &Target, options: &Value) -> Result<Value, ClientError> {
        let body = (!options.is_null()).then_some(("application/json", options));
        self.json(Method::DELETE, &target.path(), &[], body).await
    }

    /// Opens a watch. Its first events are those after `params.list.resource_version`.
    pub async fn watch(
        &self,
        target: &Target,
        params: &WatchParams,
    ) -> Result<
        impl Stream<Item = Result<WatchEvent, ClientError>> + Send + Unpin + use<>,
        ClientError,
    > {
        let mut query = params.list.query();
        query.push(("watch", "true".into()));
        query.push(("allowWatchBookmarks", "true".into()));
        if params.send_initial_events {
            query.push(("sendInitialEvents", "true".into()));
            query.push(("resourceVersionMatch", "NotOlderThan".into()));
        }
        if params.timeout_seconds > 0 {
            query.push(("timeoutSeconds", params.timeout_seconds.to_string()));
        }
        // The time limit is for getting an answer, not for the stream behind it.
        let path = target.path();
        let request = self.send(Method::GET, &path, &query, None, None);
        let response = match tokio::time::timeout(self.inner.timeout, request).await {
            Ok(response) => response?,
            Err(_) => return Err(Status::timeout("opening the watch took too long", 1).into()),
        };
        Ok(Box::pin(
            watch::lines(response).map(|line| WatchEvent::parse(&line?)),
        ))
    }

    /// Any request under the server's URL; `path` begins with `/` and may carry a query. Failures are decoded; the body
    /// of a success is left as it is.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, ClientError> {
        let response = self
            .send(method, path, &[], body, Some(self.inner.timeout))
            .await?;
        response.bytes().await.map_err(ClientError::Transport)
    }

    /// As [`Client::raw`], streaming the answer, without a time limit.
    pub async fn stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>, ClientError>
    {
        let response = self.send(Method::GET, path, &[], None, None).await?;
        Ok(Box::pin(
            response
                .bytes_stream()
                .map(|chunk| chunk.map_err(ClientError::Transport)),
        ))
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        query: &[(&'static str, String)],
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ClientError> {
        let body = match body {
            None => None,
            Some((kind, value)) => {
                let bytes =
                    serde_json::to_vec(value).map_err(|e| ClientError::Decode(e.to_string()))?;
                Some((kind, Bytes::from(bytes)))
            }
        };
        let response = self
            .send(method, path, query, body, Some(self.inner.timeout))
            .await?;
        let bytes = response.bytes().await.map_err(ClientError::Transport)?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Decode(e.to_string()))
    }

    /// Sends a request and returns the response if it is a success.
    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&'static str, String)],
        body: Option<(&str, Bytes)>,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response, ClientError> {
        let session = self
            .inner
            .session
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .clone();
        let mut url = format!("{}{path}", self.inner.server);
        for (i, (name, value)) in query.iter().enumerate() {
            url.push(if i == 0 && !path.contains('?') {
                '?'
            } else {
                '&'
            });
            url.push_str(name);
            url.push('=');
            encode_query(value, &mut url);
        }
        let mut request = session
            .http
            .request(method, url)
            .header(header::ACCEPT, "application/json");
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(token) = session.auth.token()? {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| ClientError::Config("the token is no header value".into()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some((kind, bytes)) = body {
            request = request.header(header::CONTENT_TYPE, kind).body(bytes);
        }
        let sent = request.send().await;
        let was_silent = self.inner.silent.swap(sent.is_err(), Ordering::Relaxed);
        let response = sent.map_err(ClientError::Transport)?;
        if was_silent {
            self.inner.answers.notify_waiters();
        }
        if response.status().is_success() {
            return Ok(response);
        }
        if response.status() == http::StatusCode::UNAUTHORIZED {
            self.inner.refused.notify_one();
        }
        Err(error::failure(response).await)
    }
}

impl Session {
    fn new(ca_pem: &str, user_agent: &str, auth: Auth) -> Result<Session, ClientError> {
        let identity = match &auth {
            Auth::Certificate { cert_pem, key_pem } => {
                Some((cert_pem.as_bytes(), key_pem.as_bytes()))
            }
            _ => None,
        };
        let tls = tls::client_config(ca_pem.as_bytes(), identity)
            .map_err(|e| ClientError::Config(e.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(user_agent)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            // The kernel notices dead peers, so that idle watches need no timer of ours.
            .tcp_keepalive(Duration::from_secs(30))
            .tcp_keepalive_interval(Duration::from_secs(10))
            .tcp_keepalive_retries(3)
            // So do those of requests; else the kernel would go on with a connection of before an outage for a quarter of an hour,
            // and would send again less and less often, also after the outage.
            .tcp_user_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(2)
            .build()
            .map_err(|e| ClientError::Config(error::chain(&e)))?;
        Ok(Session { http, auth })
    }
}

impl Auth {
    fn token(&self) -> Result<Option<String>, ClientError> {
        match self {
            Auth::Token(token) => Ok(Some(token.clone())),
            Auth::TokenFile(path) => {
                let read = files::read_limited(path, 64 * 1024).and_then(|bytes| {
                    String::from_utf8(bytes)
                        .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
                });
                match read {
                    Ok(text) => Ok(Some(text.trim().to_string())),
                    Err(e) => Err(ClientError::Config(format!(
                        "reading the token file {}: {e}",
                        path.display()
                    ))),
                }
            }
            Auth::Anonymous | Auth::Certificate { .. } => Ok(None),
        }
    }
}

/// Percent-encodes a query value.
fn encode_query(value: &str, out: &mut String) {
    use std::fmt::Write as _;
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char)
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}
