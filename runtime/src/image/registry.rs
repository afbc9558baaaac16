//! Talking to registries (OCI distribution-spec v1.1): endpoints, credentials, tokens, and who to ask next.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_LENGTH, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::RegistryAuth;
use super::challenge::{Challenge, challenges};
use super::digest::Digest;
use super::dns::SystemResolver;
use super::endpoint::{
    Authorization, Endpoint, endpoints, host_and_port, is_loopback, upstream_host,
};
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::ACCEPT_MANIFESTS;
use super::options::RegistryConfig;
use super::reference::{Reference, Target};
use super::retry::{Backoff, Failure};
use super::tls;

/// Manifests, indexes and configs: what every registry must accept, and what containerd reads.
pub(crate) const DOCUMENT_LIMIT: u64 = 4 << 20;
const TOKEN_LIMIT: u64 = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for so long a connection is broken off; what came is kept.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The conversation about one image: its endpoints in order, credentials, tokens, one connection pool.
pub(crate) struct Session {
    image: Reference,
    endpoints: Vec<Endpoint>,
    credentials: Vec<RegistryAuth>,
    client: Client,
}

impl Session {
    pub(crate) fn new(
        image: &Reference,
        auth: &[RegistryAuth],
        config: &RegistryConfig,
    ) -> Result<Self> {
        let endpoints = endpoints(image, config)?;
        let mut credentials: Vec<RegistryAuth> =
            auth.iter().filter(|a| a.is_for(image)).cloned().collect();
        credentials.sort_by_key(|a| std::cmp::Reverse(a.exactness()));
        let hosts: BTreeSet<String> = endpoints.iter().map(|e| host_and_port(&e.base)).collect();
        let trusted = config.ca.iter().filter(|(host, _)| {
            *host == "*"
                || *host == image.registry()
                || hosts.contains(*host)
                || hosts.contains(&format!("{host}:443"))
        });
        let needs_tls = endpoints
            .iter()
            .any(|e| e.base.scheme() == "https" && !e.may_fall_back);
        let tls = tls::client_config(trusted.map(|(_, pem)| pem.as_str()), needs_tls)?;
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("amphipod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .referer(false)
            .dns_resolver(SystemResolver::new())
            // Several connections at once download layers faster than one shared window.
            .http1_only();
        if endpoints
            .iter()
            .all(|e| is_loopback(e.base.host_str().unwrap_or_default()))
        {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| {
            ImageError::new(ErrorKind::Store, format!("preparing the HTTP client: {e}"))
        })?;
        Ok(Self {
            image: image.clone(),
            endpoints,
            credentials,
            client,
        })
    }

    /// The digest that the registry has for the reference now; `None` if it does not say.
    pub(crate) async fn head(&self) -> Result<Option<Digest>> {
        let response = self
            .request(
                Method::HEAD,
                &self.manifest_path(),
                &[(ACCEPT.as_str(), ACCEPT_MANIFESTS)],
            )
            .await?;
        let digest = response
            .headers()
            .get("docker-content-digest")
            .and_then(|v| v.to_str().ok());
        Ok(digest.and_then(|d| d.parse().ok()))
    }

    /// The manifest or index of the reference, with its digest and media type.
    pub(crate) async fn manifest(&self) -> Result<(Vec<u8>, Digest, String)> {
        let (bytes, media_type) = self.document(&self.manifest_path()).await?;
        match self.image.target() {
            Target::Digest(digest) => {
                check(digest, &bytes)?;
                Ok((bytes, digest.clone(), media_type))
            }
            Target::Tag(_) => {
                let digest = Digest::sha256(&bytes);
                Ok((bytes, digest, media_type))
            }
        }
    }

    /// A manifest that an index names.
    pub(crate) async fn manifest_by_digest(&self, digest: &Digest) -> Result<Vec<u8>> {
        let (bytes, _) = self.document(&format!("manifests/{digest}")).await?;
        check(digest, &bytes)?;
        Ok(bytes)
    }

    /// A small blob, whole.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let (bytes, _) = self.document(&format!("blobs/{digest}")).await?;
        check(digest, &bytes)?;
        Ok(bytes)
    }

    /// Opens a blob from `offset`. The answer's status says whether the registry heeded the offset (206) or not (200).
    pub(crate) async fn open_blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response, Failure> {
        let range = format!("bytes={offset}-");
        let headers: &[(&str, &str)] = if offset > 0 {
            &[(RANGE.as_str(), &range)]
        } else {
            &[]
        };
        self.ask(&Method::GET, &format!("blobs/{digest}"), headers)
            .await
    }

    fn manifest_path(&self) -> String {
        match self.image.target() {
            Target::Tag(tag) => format!("manifests/{tag}"),
            Target::Digest(digest) => format!("manifests/{digest}"),
        }
    }

    async fn document(&self, path: &str) -> Result<(Vec<u8>, String)> {
        let mut backoff = Backoff::new();
        loop {
            let answer = async {
                let response = self
                    .ask(&Method::GET, path, &[(ACCEPT.as_str(), ACCEPT_MANIFESTS)])
                    .await?;
                let media_type = response
                    .headers()
                    .get("content-type")
                    .and_then(|v| v.to_str().ok());
                let media_type = media_type.unwrap_or_default().to_owned();
                let bytes = read_bounded(response, DOCUMENT_LIMIT).await?;
                Ok::<_, Failure>((bytes, media_type))
            };
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(failure) => backoff.pause(failure).await?,
            }
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response> {
        let mut backoff = Backoff::new();
        loop {
            match self.ask(&method, path, headers).await {
                Ok(response) => return Ok(response),
                Err(failure) => backoff.pause(failure).await?,
            }
        }
    }

    /// Asks each endpoint until one answers with success. The registry itself comes last, and its error counts most.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, Failure> {
        let up = self
            .endpoints
            .iter()
            .filter(|e| !e.down.load(Ordering::Relaxed));
        let down = self
            .endpoints
            .iter()
            .filter(|e| e.down.load(Ordering::Relaxed));
        let mut order: Vec<&Endpoint> = up.chain(down).collect();
        let last = order.pop();
        let mut notes = String::new();
        for endpoint in order {
            match self.ask_endpoint(endpoint, method, path, headers).await {
                Ok(response) => return Ok(response),
                Err(failure) => {
                    let _ = write!(
                        notes,
                        " (before that, {}: {})",
                        host_and_port(&endpoint.base),
                        failure.error
                    );
                }
            }
        }
        let Some(last) = last else {
            return Err(ImageError::new(
                ErrorKind::Network,
                "no registry is configured for this image",
            )
            .into());
        };
        self.ask_endpoint(last, method, path, headers)
            .await
            .map_err(|mut failure| {
                failure.error =
                    ImageError::new(failure.error.kind(), format!("{}{notes}", failure.error));
                failure
            })
    }

    async fn ask_endpoint(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, Failure> {
        let mut url = endpoint.url(self.image.repository(), path)?;
        if host_and_port(&endpoint.base) != upstream_host(self.image.registry()) {
            // Pull-through mirrors of several registries are told which one is meant, as containerd does.
            url.query_pairs_mut()
                .append_pair("ns", self.image.registry());
        }
        let send = async |authorization: Option<&Authorization>| {
            let mut request = self.client.request(method.clone(), url.clone());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            self.send(endpoint, authorize(request, authorization), method, &url)
                .await
        };
        let known = endpoint.authorization();
        let response = match send(known.as_ref()).await {
            Err(first) if first.connecting && endpoint.fall_back() => {
                let plain = Box::pin(self.ask_endpoint(endpoint, method, path, headers)).await;
                return plain.map_err(|second| endpoint.neither_way(first, second));
            }
            other => other?,
        };
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.accept(response, method, &url);
        }
        let mut refusal = None;
        let asked = challenges(
            response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| v.to_str().ok()),
        );
        let anonymous = RegistryAuth::default();
        let credentials = match self.credentials.is_empty() {
            true => std::slice::from_ref(&anonymous),
            false => &self.credentials,
        };
        for credential in credentials {
            let authorization = match self.authorization(endpoint, &asked, credential).await {
                Ok(Some(authorization)) => authorization,
                Ok(None) => continue,
                Err(failure) if failure.error.kind() == ErrorKind::Unauthorized => {
                    refusal = Some(failure);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let response = send(Some(&authorization)).await?;
            match self.accept(response, method, &url) {
                Err(failure) if failure.error.kind() == ErrorKind::Unauthorized => {
                    refusal = Some(failure)
                }
                accepted => {
                    *endpoint
                        .authorization
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
                    return accepted;
                }
            }
        }
        Err(refusal.unwrap_or_else(|| {
            self.denied("authorization failed: no basic auth credentials")
                .into()
        }))
    }

    /// Turns a credential into what the challenge asks for; `None` if they do not fit together.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        asked: &[Challenge],
        credential: &RegistryAuth,
    ) -> Result<Option<Authorization>, Failure> {
        if !credential.registry_token.is_empty() {
            return Ok(Some(Authorization::Bearer(
                credential.registry_token.clone(),
            )));
        }
        if let Some(bearer) = asked.iter().find(|c| c.is("bearer")) {
            return Ok(Some(Authorization::Bearer(
                self.token(endpoint, bearer, credential).await?,
            )));
        }
        if asked.iter().any(|c| c.is("basic")) && !credential.username.is_empty() {
            let (user, password) = (credential.username.clone(), credential.password.clone());
            return Ok(Some(Authorization::Basic(user, password)));
        }
        Ok(None)
    }

    /// Fetches a token (distribution, spec/auth/token.md and oauth.md).
    async fn token(
        &self,
        endpoint: &Endpoint,
        asked: &Challenge,
        credential: &RegistryAuth,
    ) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bad = |what: &str| {
            ImageError::new(
                ErrorKind::Unauthorized,
                format!("the registry's token server: {what}"),
            )
        };
        let realm = asked
            .get("realm")
            .ok_or_else(|| bad("the registry names none"))?;
        let mut url =
            Url::parse(realm).map_err(|e| bad(&format!("invalid realm {realm:?}: {e}")))?;
        let plain = url.scheme() != "https";
        if plain && endpoint.scheme() == "https" && !is_loopback(url.host_str().unwrap_or_default())
        {
            return Err(bad(&format!(
                "refusing to send credentials to {realm:?} without TLS"
            ))
            .into());
        }
        let default_scope = format!("repository:{}:pull", self.image.repository());
        let scope = asked.get("scope").unwrap_or(&default_scope);
        let mut fields = vec![("scope", scope)];
        if let Some(service) = asked.get("service") {
            fields.push(("service", service));
        }
        let request = if credential.identity_token.is_empty() {
            if !credential.username.is_empty() {
                fields.push(("account", &credential.username));
            }
            url.query_pairs_mut().extend_pairs(fields);
            let request = self.client.get(url.clone());
            match credential.username.is_empty() {
                true => request,
                false => request.basic_auth(&credential.username, Some(&credential.password)),
            }
        } else {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "amphipod"),
                ("refresh_token", &credential.identity_token),
            ]);
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut().extend_pairs(fields);
            let body = form.query().unwrap_or_default().to_owned();
            let request = self.client.post(url.clone()).body(body);
            request.header("content-type", "application/x-www-form-urlencoded")
        };
        let response = request
            .send()
            .await
            .map_err(|e| unreachable(&Method::GET, &url, e))?;
        let status = response.status();
        if matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
        ) {
            let what = format!(
                "failed to fetch {} token: unexpected status {status}",
                token_kind(credential)
            );
            return Err(self.denied(&what).into());
        }
        let response = self.accept(response, &Method::GET, &url)?;
        let bytes = read_bounded(response, TOKEN_LIMIT).await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| bad("its answer is not JSON"))?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        match token.is_empty() {
            true => Err(bad("its answer has no token").into()),
            false => Ok(token),
        }
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: RequestBuilder,
        method: &Method,
        url: &Url,
    ) -> Result<Response, Failure> {
        let answer = request.send().await;
        endpoint.down.store(answer.is_err(), Ordering::Relaxed);
        answer.map_err(|e| unreachable(method, url, e))
    }

    /// Turns a status into an error that its readers know.
    fn accept(&self, response: Response, method: &Method, url: &Url) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let image = &self.image;
        let error = match status {
            StatusCode::NOT_FOUND => {
                ImageError::new(ErrorKind::NotFound, format!("{image}: not found"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.denied(&format!("server message: unexpected status {status}"))
            }
            _ => {
                let mut shown = url.clone();
                shown.set_query(None);
                let message =
                    format!("unexpected status from {method} request to {shown}: {status}");
                ImageError::new(ErrorKind::Network, message)
            }
        };
        Err(Failure {
            again: status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                ),
            after: retry_after(response.headers()),
            connecting: false,
            error,
        })
    }

    fn denied(&self, why: &str) -> ImageError {
        let what = "pull access denied, repository does not exist or may require authorization";
        ImageError::new(ErrorKind::Unauthorized, format!("{what}: {why}"))
    }
}
fn token_kind(credential: &RegistryAuth) -> &'static str {
    match (
        credential.identity_token.is_empty(),
        credential.username.is_empty(),
    ) {
        (false, _) => "oauth",
        (true, false) => "authorized",
        (true, true) => "anonymous",
    }
}

fn authorize(request: RequestBuilder, authorization: Option<&Authorization>) -> RequestBuilder {
    match authorization {
        Some(Authorization::Basic(user, password)) => request.basic_auth(user, Some(password)),
        Some(Authorization::Bearer(token)) => request.bearer_auth(token),
        None => request,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

fn unreachable(method: &Method, url: &Url, error: reqwest::Error) -> Failure {
    let mut shown = url.clone();
    shown.set_query(None);
    Failure {
        again: true,
        after: None,
        connecting: error.is_connect(),
        error: ImageError::new(
            ErrorKind::Network,
            format!("{method} {:?}: {}", shown.as_str(), causes(error)),
        ),
    }
}

/// The chain of causes below the library's own words, which repeat the URL (and a token that may be in it).
pub(crate) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut texts: Vec<String> = Vec::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        source = cause.source();
    }
    match texts.is_empty() {
        true => error.to_string(),
        false => texts.join(": "),
    }
}

fn check(digest: &Digest, bytes: &[u8]) -> Result<()> {
    match digest.matches(bytes) {
        true => Ok(()),
        false => Err(ImageError::new(
            ErrorKind::Corrupt,
            format!("the registry's answer for {digest} does not match that digest"),
        )),
    }
}

async fn read_bounded(mut response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
    let too_long = || {
        ImageError::new(
            ErrorKind::Hostile,
            format!("the registry's answer is longer than {limit} bytes"),
        )
    };
    let stated = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|length| length > limit) {
        return Err(too_long().into());
    }
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > limit => {
                return Err(too_long().into());
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(e) => {
                let url = response.url().clone();
                return Err(unreachable(&Method::GET, &url, e));
            }
        }
    }
}
