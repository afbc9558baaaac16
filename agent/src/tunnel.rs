//! The one connection that this box keeps to its server, so that the server reaches a box that nothing can connect to.
//!
//! The box opens it, by TLS with certificates on both sides, and asks for an upgrade; then the roles turn around and the server sends
//! HTTP/2 `CONNECT` requests. Each becomes one connection: to the node API, or to a port of one of this box's pods.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphipod_api::join::{NODE_API, TUNNEL_PROTOCOL, tunnel_path};
use amphipod_api::reflector::Backoff;
use amphipod_api::relay::relay;
use amphipod_api::tls;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::config::AgentConfig;
use crate::handle::AgentHandle;
use crate::join::host_port;

/// For connecting, and for the upgrade.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pings keep the state of NATs alive, and find a server that is gone without a word.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// What one stream, and all of the tunnel, may have on its way to us before we have read it.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A tunnel that lived so long was good: the next attempt is made at once.
const GOOD: Duration = Duration::from_secs(60);

/// Keeps the tunnel open; takes a new one when `renewed` tells of a new certificate. Never ends.
pub(crate) async fn run(
    config: AgentConfig,
    handle: AgentHandle,
    mut renewed: watch::Receiver<()>,
) {
    let mut failures = 0;
    loop {
        let begin = Instant::now();
        let why = match keep(&config, &handle, &mut renewed).await {
            Ok(()) => {
                failures = 0;
                continue;
            }
            Err(why) => why,
        };
        if begin.elapsed() > GOOD {
            failures = 0;
        }
        if failures == 0 {
            tracing::warn!(
                "the connection by which the server reaches this box is not there, trying again: {why:#}"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(Backoff::default().delay(failures)) => {}
            Ok(()) = renewed.changed() => {}
        }
        failures += 1;
    }
}

/// One tunnel, until it breaks (an error) or is to be replaced.
async fn keep(
    config: &AgentConfig,
    handle: &AgentHandle,
    renewed: &mut watch::Receiver<()>,
) -> Result<()> {
    renewed.mark_unchanged();
    let opened = tokio::time::timeout(PATIENCE, open(config)).await;
    let io = opened.context("no answer from the server")??;
    tracing::info!("the server reaches this box by a connection from here");
    let handle = handle.clone();
    let service = service_fn(move |request| {
        let handle = handle.clone();
        async move { Ok::<_, Infallible>(connect(request, handle).await) }
    });
    let mut serving = Box::pin(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(1000)
            .serve_connection(io, service),
    );
    let replaced = tokio::select! {
        ended = &mut serving => {
            ended.context("the tunnel broke")?;
            bail!("the server closed the tunnel");
        }
        replaced = renewed.changed() => replaced,
    };
    if replaced.is_err() {
        // Nobody renews any more: the agent stops.
        return Ok(serving.await?);
    }
    // What is open goes on to its end beside the new tunnel.
    serving.as_mut().graceful_shutdown();
    tokio::spawn(serving);
    Ok(())
}

/// Connects to the server and upgrades.
async fn open(config: &AgentConfig) -> Result<hyper::upgrade::Upgraded> {
    let (host, port) = host_port(&config.server_url)?;
    let read = |path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("reading {}", path.display()))
    };
    let files = &config.credentials;
    let (ca, cert, key) = (read(&files.ca)?, read(&files.cert)?, read(&files.key)?);
    let mut tls = tls::client_config(&ca, Some((&cert, &key)))?;
    // Upgrades exist in HTTP/1.1 only.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect((host.as_str(), port))
        .await
        .with_context(|| format!("connecting to {host}:{port}"))?;
    let _ = tcp.set_nodelay(true);
    let name = ServerName::try_from(host.clone()).context("reading the server's name")?;
    let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(tls)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(tunnel_path(&config.node_name))
        .header(HOST, format!("{host}:{port}"))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, TUNNEL_PROTOCOL)
        .body(Empty::new())?;
    let response = sender.send_request(request).await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(response).await?),
        StatusCode::UNAUTHORIZED => bail!(
            "the server refuses this box's certificate: it was removed from the cluster, or the certificate is over; a new token lets it join again"
        ),
        code => bail!("the server answered {code}"),
    }
}

/// Answers the server's wish for a connection.
async fn connect(mut request: Request<Incoming>, handle: AgentHandle) -> Response<Full<Bytes>> {
    let refuse = |code: StatusCode, why: String| {
        let mut response = Response::new(Full::from(why));
        *response.status_mut() = code;
        response
    };
    if request.method() != Method::CONNECT {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT".to_owned());
    }
    let authority = request
        .uri()
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    let upgrade = hyper::upgrade::on(&mut request);
    if authority == NODE_API {
        tokio::spawn(async move {
            if let Ok(io) = upgrade.await {
                crate::node_api::serve_tunnelled(io, handle).await;
            }
        });
        return Response::default();
    }
    let Ok(address) = authority.parse::<SocketAddr>() else {
        return refuse(
            StatusCode::BAD_REQUEST,
            format!("{authority:?} is no address"),
        );
    };
    // The server reaches pods by this way, not whatever else this box can reach.
    if !handle.pods().iter().any(|pod| pod.ip == Some(address.ip())) {
        let why = format!("dial tcp {address}: no pod of this node has the address");
        return refuse(StatusCode::FORBIDDEN, why);
    }
    let tcp = match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            let why = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
                _ => error.to_string(),
            };
            return refuse(
                StatusCode::BAD_GATEWAY,
                format!("dial tcp {address}: connect: {why}"),
            );
        }
        Err(_) => {
            return refuse(
                StatusCode::GATEWAY_TIMEOUT,
                format!("dial tcp {address}: i/o timeout"),
            );
        }
    };
    let _ = tcp.set_nodelay(true);
    tokio::spawn(async move {
        if let Ok(io) = upgrade.await {
            relay(TokioIo::new(io), tcp).await;
        }
    });
    Response::default()
}
