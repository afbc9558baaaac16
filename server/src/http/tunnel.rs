//! Connections that agents open and the server uses: one per node, on which the roles turn around.
//!
//! An agent asks for an upgrade ([`amphipod_api::join::tunnel_path`]) over its own mutually authenticated TLS connection. From
//! then on the server is the HTTP/2 client on it and the agent the server. Each `CONNECT` is one connection, to the node API or into the
//! pod network of that box, with HTTP/2's flow control.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amphipod_api::Status;
use amphipod_api::join::{NODE_API, TUNNEL_PROTOCOL};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::app::Call;
use super::body::Body;
use super::connect::{BoxStream, Direct, NodeDialer, Place};
use super::respond::Answer;

/// For a stream in a tunnel to open. An agent that does not answer for so long is gone.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for an agent that is not connected: agents come back within seconds after a restart.
const ARRIVAL: Duration = Duration::from_secs(5);
/// What one stream, and all of a tunnel, may have on its way to us before we have read it.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// The tunnels there are, by node.
#[derive(Default)]
pub struct Tunnels {
    open: Mutex<HashMap<String, Tunnel>>,
    arrived: Notify,
}

#[derive(Clone)]
struct Tunnel {
    sender: SendRequest<Empty<Bytes>>,
    /// Ends the connection.
    end: CancellationToken,
}

impl Tunnels {
    fn get(&self, node: &str) -> Option<Tunnel> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(node) {
            Some(tunnel) if tunnel.sender.is_closed() => {
                open.remove(node);
                None
            }
            found => found.cloned(),
        }
    }

    /// Puts a new tunnel into the place of an old one, which then ends with its last stream.
    fn put(&self, node: &str, tunnel: Tunnel) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(node.to_owned(), tunnel);
        drop(open);
        self.arrived.notify_waiters();
    }

    /// Waits until the node has a tunnel.
    async fn wait(&self, node: &str) -> Tunnel {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(tunnel) = self.get(node) {
                return tunnel;
            }
            arrived.await;
        }
    }

    /// How many boxes are connected.
    pub fn count(&self) -> usize {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, tunnel| !tunnel.sender.is_closed());
        open.len()
    }
}

impl Tunnel {
    /// Opens one stream to `authority` (`HOST:PORT`).
    async fn connect(mut self, authority: &str) -> Result<BoxStream, String> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority
            .parse()
            .map_err(|error| format!("{authority:?} is no address: {error}"))?;
        let opened = async {
            self.sender
                .ready()
                .await
                .map_err(|error| error.to_string())?;
            let sent = self.sender.send_request(request).await;
            sent.map_err(|error| error.to_string())
        };
        let mut response = match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
            Ok(response) => response?,
            Err(_) => {
                // Half-dead: the box lost its power, or its way to us. It opens a new one when it is back.
                self.end.cancel();
                return Err(format!("dial {authority}: i/o timeout"));
            }
        };
        if response.status() != StatusCode::OK {
            let why = Limited::new(response.into_body(), 4096).collect().await;
            let why = why.map(|why| why.to_bytes()).unwrap_or_default();
            return Err(String::from_utf8_lossy(&why).into_owned());
        }
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }
}

/// Answers an agent that opens its tunnel.
///
/// # Errors
/// Somebody else's tunnel, or no upgrade.
pub fn serve(call: &Call, node: &str, extensions: &mut http::Extensions) -> Answer {
    if call.user.node_name() != Some(node) {
        let message = format!("only node {node:?} itself may open its tunnel");
        return Err(Status::failure(
            403,
            amphipod_api::Reason::FORBIDDEN,
            message,
        ));
    }
    let asked = call.headers.get(UPGRADE).map(HeaderValue::as_bytes);
    let upgrade = extensions
        .remove::<OnUpgrade>()
        .filter(|_| asked == Some(TUNNEL_PROTOCOL.as_bytes()))
        .ok_or_else(|| {
            Status::bad_request(format!("an upgrade to {TUNNEL_PROTOCOL} is required"))
        })?;
    let (tunnels, node) = (call.app.tunnels.clone(), node.to_owned());
    let end = call.stop().child_token();
    tokio::spawn(async move {
        let ended = tokio::select! {
            () = end.cancelled() => return,
            ended = run(upgrade, &tunnels, &node, end.clone()) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(node, %error, "a tunnel ended");
        }
    });
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}

async fn run(
    upgrade: OnUpgrade,
    tunnels: &Tunnels,
    node: &str,
    end: CancellationToken,
) -> Result<(), hyper::Error> {
    let io = upgrade.await?;
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(io)
        .await?;
    tunnels.put(node, Tunnel { sender, end });
    connection.await
}

/// Reaches boxes through the tunnels that they opened; a box without one by its address.
pub struct ByTunnel {
    tunnels: Arc<Tunnels>,
    direct: Direct,
}

impl ByTunnel {
    pub fn new(tunnels: Arc<Tunnels>, direct: Direct) -> ByTunnel {
        ByTunnel { tunnels, direct }
    }

    async fn reach(&self, place: Place<'_>) -> Result<BoxStream, String> {
        let (node, authority) = match place {
            Place::NodeApi { node } => (node, NODE_API.to_owned()),
            Place::PodNetwork {
                node: Some(node),
                address,
            } => (node, address.to_string()),
            Place::PodNetwork { node: None, .. } => return self.direct.dial(place).await,
        };
        if let Some(tunnel) = self.tunnels.get(node) {
            return tunnel.connect(&authority).await;
        }
        let arrival = tokio::time::timeout(ARRIVAL, self.tunnels.wait(node));
        tokio::pin!(arrival);
        let refused = tokio::select! {
            biased;
            Ok(tunnel) = &mut arrival => return tunnel.connect(&authority).await,
            reached = self.direct.dial(place) => match reached {
                Ok(stream) => return Ok(stream),
                Err(why) => why,
            },
        };
        match arrival.await {
            Ok(tunnel) => tunnel.connect(&authority).await,
            Err(_) => Err(refused),
        }
    }
}

impl NodeDialer for ByTunnel {
    fn dial<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, Result<BoxStream, String>> {
        Box::pin(self.reach(place))
    }
}
