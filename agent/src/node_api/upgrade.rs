//! HTTP/1.1 upgrades: which protocol a client wants, and the answer that switches to it.

use std::future::Future;

use amphipod_api::status::{Reason, Status};
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::handlers::{Answer, empty};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What the client switches to, with the sub-protocol chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Switch {
    Spdy(&'static str),
    /// The sub-protocol is empty when the client asked for none.
    WebSocket(&'static str),
}

/// Chooses from what the client offers; `spdy` and `websocket` list what this side speaks, best first.
pub(super) fn choose(
    headers: &HeaderMap,
    spdy: &[&'static str],
    websocket: &[&'static str],
) -> Result<Switch, Status> {
    let wants =
        |protocol: &str| words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol));
    if !words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let pick = |name: &HeaderName, ours: &[&'static str]| {
        let offered: Vec<&str> = words(headers, name).collect();
        let chosen = ours
            .iter()
            .find(|ours| offered.contains(*ours) || (ours.is_empty() && offered.is_empty()));
        chosen.copied().ok_or_else(|| {
            let message = format!("unable to negotiate a protocol: client supports {offered:?}, server supports {ours:?}");
            Status::failure(403, Reason("Forbidden".into()), message)
        })
    };
    if wants("websocket") {
        Ok(Switch::WebSocket(pick(&SEC_WEBSOCKET_PROTOCOL, websocket)?))
    } else if wants("SPDY/3.1") {
        Ok(Switch::Spdy(pick(&STREAM_PROTOCOL, spdy)?))
    } else {
        Err(Status::bad_request(
            "unable to upgrade: only SPDY/3.1 and websocket are spoken here",
        ))
    }
}

/// The comma-separated words of all headers called `name`.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// Answers 101 and gives the connection to `then`, in a task of its own.
pub(super) fn switch<F>(
    request: Request<Incoming>,
    to: &Switch,
    then: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Answer
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match to {
        Switch::Spdy(protocol) => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
        Switch::WebSocket(protocol) => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            let key = request
                .headers()
                .get(SEC_WEBSOCKET_KEY)
                .map(HeaderValue::as_bytes)
                .unwrap_or_default();
            // The key is base64 by construction, which every header may hold.
            if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key)) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            if !protocol.is_empty() {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    tokio::spawn(async move {
        if let Ok(connection) = hyper::upgrade::on(request).await {
            then(TokioIo::new(connection)).await;
        }
    });
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn the_best_common_protocol_is_chosen() {
        let spdy = ["v4.channel.k8s.io", "v3.channel.k8s.io"];
        let websocket = ["v5.channel.k8s.io", "v4.channel.k8s.io", ""];
        let offer = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            (
                "x-stream-protocol-version",
                "v3.channel.k8s.io, v4.channel.k8s.io",
            ),
        ]);
        assert_eq!(
            choose(&offer, &spdy, &websocket).unwrap(),
            Switch::Spdy("v4.channel.k8s.io")
        );
        let offer = headers(&[
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(
            choose(&offer, &spdy, &websocket).unwrap(),
            Switch::WebSocket("")
        );
        let offer = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "v9.channel.k8s.io"),
        ]);
        assert_eq!(choose(&offer, &spdy, &websocket).unwrap_err().code, 403);
        assert_eq!(
            choose(&HeaderMap::new(), &spdy, &websocket)
                .unwrap_err()
                .code,
            400
        );
    }
}
