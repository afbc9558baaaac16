//! Passing a request on, and, when both sides agree to upgrade, passing bytes both ways without looking at them.

use amphipod_api::relay::relay;
use amphipod_api::{GroupResource, Reason, Status};
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::dial::BoxStream;
use crate::http::body::Body;
use crate::http::respond::Answer;

/// What to ask of the other side.
pub struct Onward {
    pub method: Method,
    /// Path and query, as they go on the wire.
    pub target: String,
    /// The `Host` header.
    pub host: String,
    pub headers: HeaderMap,
    /// `None`: no body.
    pub body: Option<Incoming>,
    /// Of the client's connection, if it asks for an upgrade.
    pub upgrade: Option<OnUpgrade>,
}

/// Credentials end here; the connection's own headers are made anew.
const DROPPED: [HeaderName; 8] = [
    AUTHORIZATION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    CONNECTION,
];

fn headers_to_pass(from: &HeaderMap, upgrading: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in from {
        let text = name.as_str();
        let ours = text.starts_with("impersonate-") || text.starts_with("x-remote-");
        if ours || DROPPED.contains(name) || (name == UPGRADE && !upgrading) {
            continue;
        }
        headers.append(name.clone(), value.clone());
    }
    if upgrading {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers
}

/// Sends the request over `stream` and answers with what comes back.
///
/// # Errors
/// The other side does not speak HTTP, or hangs up.
pub async fn pass(stream: BoxStream, mut onward: Onward, stop: CancellationToken) -> Answer {
    let upgrading = onward.upgrade.is_some();
    let failed = |error: hyper::Error| {
        Status::failure(
            502,
            Reason::UNKNOWN,
            format!("error talking to the backend: {error}"),
        )
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let body = onward.body.take().map_or(Body::Empty, Body::Proxied);
    let mut request = Request::new(body);
    *request.method_mut() = onward.method;
    *request.uri_mut() = onward.target.parse().map_err(|error| {
        Status::bad_request(format!("the path to proxy to is not a path: {error}"))
    })?;
    *request.headers_mut() = headers_to_pass(&onward.headers, upgrading);
    if let Ok(host) = HeaderValue::from_str(&onward.host) {
        request.headers_mut().insert(HOST, host);
    }
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = onward.upgrade
    {
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(join(client, backend, stop));
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, Body::Empty));
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONNECTION);
    parts.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, Body::Proxied(body)))
}

/// Copies bytes both ways until both sides have ended, or the server stops.
async fn join(client: OnUpgrade, backend: OnUpgrade, stop: CancellationToken) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "an upgrade was not completed");
            return;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = relay(TokioIo::new(client), TokioIo::new(backend)) => {}
    }
}

/// A refusal of the node API in plain text becomes a `Status`, as upstream tells it.
///
/// # Errors
/// Always, if the response is a refusal: that is the Status.
pub async fn check_refusal(response: Response<Body>, resource: &str, name: &str) -> Answer {
    const MOST: usize = 10 << 10;
    if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let code = response.status().as_u16();
    let text = match Limited::new(response.into_body(), MOST).collect().await {
        Ok(all) => String::from_utf8_lossy(&all.to_bytes())
            .trim_end()
            .to_owned(),
        Err(_) => String::new(),
    };
    // An agent may answer with a Status already.
    if let Ok(status) = serde_json::from_str::<Status>(&text)
        && status.kind == "Status"
    {
        return Err(status);
    }
    Err(match code {
        400 => Status::bad_request(text),
        404 => {
            let message =
                format!("the server could not find the requested resource ( {resource} {name})");
            let mut status = Status::not_found(&GroupResource::new("", resource), name);
            status.message = message;
            status
        }
        500 => Status::internal_error(text),
        code => Status::failure(code, Reason::UNKNOWN, text),
    })
}
