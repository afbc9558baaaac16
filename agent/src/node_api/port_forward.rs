//! Port-forward: connections of the client's machine, carried into a pod's network namespace.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::TcpStream;

use super::mux::{self, Writer};
use super::spdy::{self, Stream};
use super::websocket::Channels;

/// How long the second stream of a connection may take to follow the first.
const PAIR_WITHIN: Duration = Duration::from_secs(30);

/// Where connections are made: the pod's network namespace, or the box's own for pods on the host network.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) netns: Option<PathBuf>,
    /// `NAMESPACE/NAME`, for messages.
    pub(super) pod: String,
}

/// Serves `portforward.k8s.io`: for each connection the client opens an error stream and a data stream, which share a `requestid`
/// header and name the port in a `port` header.
pub(super) async fn over_spdy(mut connection: spdy::Connection, target: Target) {
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    while let Some(stream) = connection.next().await {
        waiting.retain(|_, (_, since)| since.elapsed() < PAIR_WITHIN);
        // Old clients send no request id; they open the two streams of a connection one after the other.
        let id = stream.headers.get("requestid").cloned().unwrap_or_default();
        let Some((other, _)) = waiting.remove(&id) else {
            waiting.insert(id, (stream, tokio::time::Instant::now()));
            continue;
        };
        let is_error = |stream: &Stream| {
            stream
                .headers
                .get("streamtype")
                .is_some_and(|kind| kind == "error")
        };
        let (error, data) = if is_error(&other) {
            (other, stream)
        } else {
            (stream, other)
        };
        let port = data.headers.get("port").and_then(|port| port.parse().ok());
        tokio::spawn(forward(
            target.clone(),
            port,
            data.reader,
            data.writer,
            error.writer,
        ));
    }
}

/// Serves the older form over WebSocket: for the N-th port in `ports`, channel 2N is data and 2N+1 errors, and each begins with the
/// port in two little-endian bytes.
pub(super) async fn over_websocket(mut channels: Channels, ports: Vec<u16>, target: Target) {
    for (index, port) in ports.into_iter().enumerate() {
        let (data, error) = (2 * index as u32, 2 * index as u32 + 1);
        let Some(input) = channels.inputs.remove(&(data as u8)) else {
            continue;
        };
        let mut writer = Writer::new(data, channels.out.clone());
        let mut errors = Writer::new(error, channels.out.clone());
        let head = port.to_le_bytes();
        if writer.write_all(&head).await.is_err() || errors.write_all(&head).await.is_err() {
            return;
        }
        tokio::spawn(forward(
            target.clone(),
            Some(port),
            mux::reader(input),
            writer,
            errors,
        ));
    }
    let _ = channels.closed.await;
}

/// Carries one connection until both sides have ended.
async fn forward(
    target: Target,
    port: Option<u16>,
    mut from_client: impl AsyncRead + Unpin,
    mut to_client: Writer,
    mut errors: Writer,
) {
    let outcome = match port {
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the port is not a number between 1 and 65535",
        )),
        Some(port) => {
            async {
                let mut connection = connect(target.netns.as_deref(), port).await?;
                let (mut from_pod, mut to_pod) = connection.split();
                let up = async {
                    tokio::io::copy(&mut from_client, &mut to_pod).await?;
                    to_pod.shutdown().await
                };
                let down = async {
                    tokio::io::copy(&mut from_pod, &mut to_client).await?;
                    to_client.shutdown().await
                };
                tokio::pin!(up);
                tokio::pin!(down);
                // The pod's end of the connection decides: when it has closed, nobody hears the client any more.
                tokio::select! {
                    ended = &mut down => ended,
                    ended = &mut up => match ended {
                        Ok(()) => down.await,
                        Err(error) => Err(error),
                    },
                }
            }
            .await
        }
    };
    if let Err(error) = outcome {
        let port = port.unwrap_or_default();
        let text = format!(
            "error forwarding port {port} to pod {}: {error}",
            target.pod
        );
        let _ = errors.write_all(text.as_bytes()).await;
    }
    let _ = to_client.shutdown().await;
    let _ = errors.shutdown().await;
}

/// Connects to `localhost:port` inside a network namespace.
///
/// A thread that has entered a network namespace must never serve anything else, so each connection has one of its own for the
/// moment of connecting; the socket stays in the namespace that it was made in.
async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let Some(netns) = netns else {
        return TcpStream::connect(("localhost", port)).await;
    };
    let netns = netns.to_owned();
    let (done, connected) = tokio::sync::oneshot::channel();
    let connecting = move || -> io::Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(&netns)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ] {
            match std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
                Ok(stream) => {
                    stream.set_nonblocking(true)?;
                    return Ok(stream);
                }
                // What IPv4 said is what most users look for.
                Err(error) if address.is_ipv4() => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    };
    std::thread::Builder::new()
        .name("port-forward".into())
        .stack_size(64 * 1024)
        .spawn(move || drop(done.send(connecting())))?;
    let stream = connected
        .await
        .map_err(|_| io::Error::other("the connecting thread ended"))??;
    TcpStream::from_std(stream)
}
