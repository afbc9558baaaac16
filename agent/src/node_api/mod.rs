//! The node API on port 10250: logs, exec, attach, port-forward and usage of this box's pods, for the server.
//!
//! Paths and parameters are the kubelet's. The server is a pipe that knows nothing of exec's protocols: SPDY/3.1 and WebSocket, in all
//! their versions, are spoken here and only here.
//!
//! Callers prove who they are with a client certificate of the cluster's CA, and must be the API server or an administrator.

mod handlers;
mod logs;
pub mod mux;
mod port_forward;
mod remote;
mod request;
pub mod spdy;
mod stats;
mod upgrade;
pub mod websocket;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use amphipod_api::pki::CertInfo;
use amphipod_api::tls::{self, CurrentCert};
use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::config::AgentConfig;
use crate::handle::AgentHandle;

/// The common name of the API server's client certificate.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// How long a peer may take for the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running node API; dropping it stops accepting.
pub struct NodeApi {
    _accepting: AbortOnDropHandle<()>,
}

impl NodeApi {
    /// Listens on `config.node_api_port` of all addresses.
    ///
    /// # Errors
    /// The port is taken, or the cluster's CA cannot be read.
    pub async fn start(
        config: &AgentConfig,
        shown: Arc<CurrentCert>,
        handle: AgentHandle,
    ) -> Result<NodeApi> {
        let ca = &config.credentials.ca;
        let ca = std::fs::read(ca).with_context(|| format!("reading {}", ca.display()))?;
        let mut tls = Arc::unwrap_or_clone(tls::server_config_with(shown, Some(&ca))?);
        // Upgrades, which most of this API is made of, exist only in HTTP/1.1.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let wanted = SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.node_api_port));
        let listener = TcpListener::bind(wanted)
            .await
            .with_context(|| format!("listening on {wanted} for the node API"))?;
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(
                        acceptor.clone(),
                        stream,
                        handle.clone(),
                    ))),
                    // Out of descriptors, most likely: a pause lets others finish.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Ok(NodeApi {
            _accepting: AbortOnDropHandle::new(accepting),
        })
    }
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Without a certificate: may ask for health only.
    Nobody,
    /// With a certificate of the cluster that gives no right here.
    Stranger,
    Allowed,
}

/// Serves one connection that came through the tunnel, at whose end is the API server.
pub(crate) async fn serve_tunnelled(io: hyper::upgrade::Upgraded, handle: AgentHandle) {
    serve_requests(io, Caller::Allowed, handle).await;
}

async fn serve(acceptor: TlsAcceptor, stream: tokio::net::TcpStream, handle: AgentHandle) {
    let _ = stream.set_nodelay(true);
    // A handshake that fails is the peer's to explain.
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
        return;
    };
    let caller = match stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
    {
        None => Caller::Nobody,
        Some(cert) => match CertInfo::from_der(cert) {
            Ok(cert)
                if cert.common_name == API_SERVER
                    || cert.organizations.iter().any(|o| o == "system:masters") =>
            {
                Caller::Allowed
            }
            _ => Caller::Stranger,
        },
    };
    serve_requests(TokioIo::new(stream), caller, handle).await;
}

async fn serve_requests<I>(io: I, caller: Caller, handle: AgentHandle)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let handle = handle.clone();
        async move {
            Ok::<_, std::convert::Infallible>(handlers::answer(&handle, caller, request).await)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(io, service)
        .with_upgrades()
        .await;
}
