//! Listening: TCP, TLS, HTTP/1.1 and HTTP/2 by ALPN, limits, and an orderly end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::holding::Crowd;
use super::patience::{PatientIo, PatientStreams};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For requests under way when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Streams of one HTTP/2 connection: client-go puts all its watches on one, and opens another when it is full.
const MAX_STREAMS: u32 = 250;

/// What is known of a connection: who is at the other end.
pub struct Peer {
    pub address: SocketAddr,
    /// The client's certificate, verified against our CA.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Accepts connections until `stop`, then waits for requests under way. `make` is called once per connection and gives
/// the handler of its requests. `patience` is how long a client may take for a request's head, leave a connection idle,
/// or not take what it is given.
pub async fn run<M, H, F>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    patience: Duration,
    stop: CancellationToken,
    make: M,
) where
    M: Fn(Peer) -> H + Send + Sync + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let make = Arc::new(make);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let crowd = Crowd::of(32);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: give connections a moment to end.
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, stop, make) = (acceptor.clone(), stop.clone(), make.clone());
        let one = crowd.enter();
        connections.spawn(async move {
            serve_one(stream, address, acceptor, patience, stop, &*make).await;
            drop((slot, one));
        });
    }
    connections.close();
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connections.wait()).await;
}

async fn serve_one<M, H, F>(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    patience: Duration,
    stop: CancellationToken,
    make: &M,
) where
    M: Fn(Peer) -> H,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let session = tls.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|c| c.clone().into_owned());
    let handler = make(Peer {
        address,
        certificate,
    });
    let exempt = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(PatientIo::new(tls, patience, exempt.clone()));
    let service = service_fn(move |request| {
        let answer = handler(request);
        let exempt = exempt.clone();
        async move {
            let answer = answer.await;
            if streams_for_a_user(&answer) {
                exempt.store(true, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let result = if h2 {
        let streams = PatientStreams::new(patience);
        let connection = hyper::server::conn::http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(64 << 10)
            .max_header_list_size(64 << 10)
            .serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            done = connection.as_mut() => done,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = streams.idle() => {
                connection.as_mut().graceful_shutdown();
                // A client that lives says goodbye; another is not waited for.
                let goodbye = tokio::time::timeout(patience, connection).await;
                goodbye.unwrap_or(Ok(()))
            }
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(64 << 10)
            .serve_connection(io, service)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            done = connection.as_mut() => done,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// Whether a person may be at the other end, who reads when it suits: exec, port-forward, logs, what a node or a pod says.
fn streams_for_a_user(answer: &Response<Body>) -> bool {
    answer.status() == StatusCode::SWITCHING_PROTOCOLS || matches!(answer.body(), Body::Proxied(_))
}

/// Finds dead peers (a box that lost its power) without waking for live ones more than every three minutes.
fn keep_alive(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &180);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &30);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
}
