//! A REST client for one API server: our own CA, a client certificate or a bearer token, HTTP/2 or HTTP/1.1.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use crate::gvk::GroupVersionResource;
use crate::meta;
use crate::patch::PatchType;
use crate::status::Status;
use crate::{files, tls};

/// Longest single watch event or error body that is read.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

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

/// Why a request did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a failure.
    #[error("{0}")]
    Status(#[from] Status),
    /// The server was not reached, or the connection broke. Worth trying again.
    #[error("talking to the API server: {}", chain(.0))]
    Transport(#[source] reqwest::Error),
    /// The answer makes no sense.
    #[error("reading the API server's answer: {0}")]
    Decode(String),
    /// The client cannot be made as configured.
    #[error("configuring the API client: {0}")]
    Config(String),
}

/// reqwest's messages leave out their sources, which hold what an operator needs.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

impl ClientError {
    /// The server's Status, if it answered with one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            ClientError::Status(status) => Some(status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Whether the server could not be reached (as opposed to: it refused).
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ClientError::Transport(_))
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Transport(_) => true,
            ClientError::Status(status) => matches!(status.code, 429 | 500 | 502 | 503 | 504),
            ClientError::Decode(_) | ClientError::Config(_) => false,
        }
    }
}

/// A collection, an object, or a subresource of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub resource: GroupVersionResource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    /// A collection in all namespaces (or a cluster-scoped one).
    pub fn new(group: &str, version: &str, plural: &str) -> Target {
        GroupVersionResource::new(group, version, plural).into()
    }

    /// A resource of the core group, `v1`.
    pub fn core(plural: &str) -> Target {
        Target::new("", "v1", plural)
    }

    /// In a namespace; empty means none.
    pub fn namespace(mut self, namespace: &str) -> Target {
        self.namespace = (!namespace.is_empty()).then(|| namespace.into());
        self
    }

    pub fn name(mut self, name: &str) -> Target {
        self.name = Some(name.into());
        self
    }

    pub fn subresource(mut self, subresource: &str) -> Target {
        self.subresource = Some(subresource.into());
        self
    }

    /// The object that `object` is, by its namespace and name.
    pub fn of(self, object: &Value) -> Target {
        self.namespace(meta::namespace(object))
            .name(meta::name(object))
    }

    /// The URL path.
    pub fn path(&self) -> String {
        self.resource.path(
            self.namespace.as_deref(),
            self.name.as_deref(),
            self.subresource.as_deref(),
        )
    }
}

impl From<GroupVersionResource> for Target {
    fn from(resource: GroupVersionResource) -> Target {
        Target {
            resource,
            namespace: None,
            name: None,
            subresource: None,
        }
    }
}

/// What a list or watch selects. `Default` selects everything at the newest revision.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    pub label_selector: String,
    pub field_selector: String,
    /// `""` newest, `"0"` any, else at least this.
    pub resource_version: String,
    /// At most so many items; 0 means all.
    pub limit: u32,
    pub continue_token: String,
}

impl ListParams {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        for (name, value) in [
            ("labelSelector", &self.label_selector),
            ("fieldSelector", &self.field_selector),
            ("resourceVersion", &self.resource_version),
            ("continue", &self.continue_token),
        ] {
            if !value.is_empty() {
                query.push((name, value.clone()));
            }
        }
        if self.limit > 0 {
            query.push(("limit", self.limit.to_string()));
        }
        query
    }
}

/// A list as the server answered it.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub resource_version: String,
    /// For the next page; empty on the last.
    pub continue_token: String,
    pub items: Vec<Value>,
}

/// Options of a watch besides those of a list. `list.resource_version` is where it starts.
#[derive(Clone, Debug, Default)]
pub struct WatchParams {
    pub list: ListParams,
    /// Ask for the present objects first, and a bookmark annotated `k8s.io/initial-events-end` after them.
    pub send_initial_events: bool,
    /// After which the server ends the watch; 0 leaves it to the server.
    pub timeout_seconds: u32,
}

/// One event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    Added(Value),
    Modified(Value),
    Deleted(Value),
    /// Only `metadata.resourceVersion` (and annotations) mean something.
    Bookmark(Value),
    /// The watch is over; 410 means list again.
    Error(Status),
}

impl WatchEvent {
    /// Reads one line of a watch stream.
    pub fn parse(line: &[u8]) -> Result<WatchEvent, ClientError> {
        #[derive(serde::Deserialize)]
        struct Raw {
            #[serde(rename = "type")]
            kind: String,
            object: Value,
        }
        let raw: Raw = serde_json::from_slice(line)
            .map_err(|e| ClientError::Decode(format!("watch event: {e}")))?;
        Ok(match raw.kind.as_str() {
            "ADDED" => WatchEvent::Added(raw.object),
            "MODIFIED" => WatchEvent::Modified(raw.object),
            "DELETED" => WatchEvent::Deleted(raw.object),
            "BOOKMARK" => WatchEvent::Bookmark(raw.object),
            "ERROR" => WatchEvent::Error(
                serde_json::from_value(raw.object)
                    .map_err(|e| ClientError::Decode(format!("watch error: {e}")))?,
            ),
            other => {
                return Err(ClientError::Decode(format!(
                    "watch event of unknown type {other:?}"
                )));
            }
        })
    }
}

/// Whether a bookmark says that all initial events were sent.
pub fn is_initial_events_end(bookmark: &Value) -> bool {
    meta::annotation(bookmark, "k8s.io/initial-events-end") == Some("true")
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
            lines(response).map(|line| WatchEvent::parse(&line?)),
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
        let response = request.send().await.map_err(ClientError::Transport)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(failure(response).await)
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
            .pool_max_idle_per_host(2)
            .build()
            .map_err(|e| ClientError::Config(chain(&e)))?;
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

/// The error that a failed response tells: its Status, or one made up from code and body.
async fn failure(response: reqwest::Response) -> ClientError {
    let code = response.status();
    let mut body = BytesMut::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > 1024 * 1024 {
            break;
        }
    }
    status_from(code, &body).into()
}

fn status_from(code: StatusCode, body: &[u8]) -> Status {
    if let Ok(mut status) = serde_json::from_slice::<Status>(body) {
        if status.kind == "Status" {
            if status.code == 0 {
                status.code = code.as_u16();
            }
            return status;
        }
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)]);
    let reason = match code.as_u16() {
        400 => crate::Reason::BAD_REQUEST,
        401 => crate::Reason::UNAUTHORIZED,
        403 => crate::Reason::FORBIDDEN,
        404 => crate::Reason::NOT_FOUND,
        409 => crate::Reason::CONFLICT,
        410 => crate::Reason::GONE,
        429 => crate::Reason::TOO_MANY_REQUESTS,
        503 => crate::Reason::SERVICE_UNAVAILABLE,
        _ => crate::Reason::UNKNOWN,
    };
    Status::failure(
        code.as_u16(),
        reason,
        format!("the server answered {code}: {}", text.trim()),
    )
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

/// The non-empty lines of a response body.
fn lines(response: reqwest::Response) -> impl Stream<Item = Result<Bytes, ClientError>> + Send {
    let state = (Box::pin(response.bytes_stream()), BytesMut::new(), 0);
    futures_util::stream::try_unfold(state, |(mut chunks, mut buffer, mut scanned)| async move {
        loop {
            if let Some(at) = buffer[scanned..].iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(scanned + at + 1).freeze();
                scanned = 0;
                if line.len() > 1 {
                    return Ok(Some((line, (chunks, buffer, scanned))));
                }
                continue;
            }
            scanned = buffer.len();
            if scanned > MAX_MESSAGE {
                return Err(ClientError::Decode(format!(
                    "a watch event is larger than {MAX_MESSAGE} bytes"
                )));
            }
            match chunks.next().await {
                Some(chunk) => buffer.extend_from_slice(&chunk.map_err(ClientError::Transport)?),
                // What stands behind the last newline is an event cut off by a broken connection.
                None => return Ok(None),
            }
        }
    })
}
