//! How the server reaches a node: one small trait, with two ways behind it, a direct one and the agents' tunnels.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bootstrap::pki::Pki;
use crate::cache::Cache;

/// How long a connection, or a handshake on it, may take.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const NODE_API_PORT: u16 = 10250;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection.
pub type BoxStream = Box<dyn Stream>;

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The node API of an agent (kubelet paths). The stream is authenticated both ways: the agent's certificate names
    /// the node, ours is `kube-apiserver-kubelet-client`.
    NodeApi { node: &'a str },
    /// A plain TCP port in the pod network, on this node if it is known.
    PodNetwork {
        node: Option<&'a str>,
        address: SocketAddr,
    },
}

/// Opens connections into the fleet.
pub trait NodeDialer: Send + Sync {
    /// Connects.
    ///
    /// Fails with what to tell the user: `dial tcp 10.0.0.1:10250: connect: connection refused`.
    fn dial<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, Result<BoxStream, String>>;
}

/// Connects from here, to the addresses that Nodes report.
pub struct Direct {
    cache: Arc<Cache>,
    pki: Arc<Pki>,
}

impl Direct {
    pub fn new(cache: Arc<Cache>, pki: Arc<Pki>) -> Self {
        Direct { cache, pki }
    }

    /// The address and port of a node's API.
    fn address(&self, node: &str) -> Result<SocketAddr, String> {
        let object = self
            .cache
            .table("nodes")
            .and_then(|nodes| nodes.get("", node))
            .ok_or_else(|| format!("nodes {node:?} not found"))?;
        let value = object.value();
        let port = value["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
            .as_u64()
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
            .unwrap_or(NODE_API_PORT);
        let addresses = value["status"]["addresses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ["InternalIP", "ExternalIP", "Hostname"]
            .iter()
            .flat_map(|kind| addresses.iter().filter(move |a| a["type"] == **kind))
            .find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
            .map(|ip| SocketAddr::new(ip, port))
            .ok_or_else(|| {
                format!("no preferred addresses found for node {node:?}; known addresses: []")
            })
    }

    async fn node_api(&self, node: &str) -> Result<BoxStream, String> {
        let address = self.address(node)?;
        let tcp = tcp(address).await?;
        let identity = self.pki.kubelet_client();
        let mut config = amphipod_api::tls::client_config(
            self.pki.ca_pem().as_bytes(),
            Some((identity.cert_pem.as_bytes(), identity.key_pem.as_bytes())),
        )
        .map_err(|error| error.to_string())?;
        // Upgrades exist in HTTP/1.1 only.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The certificate names the node: addresses change, identities do not.
        let name = ServerName::try_from(node.to_owned()).unwrap_or(ServerName::from(address.ip()));
        let connect = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        match tokio::time::timeout(DIAL_TIMEOUT, connect).await {
            Ok(Ok(tls)) => Ok(Box::new(tls)),
            Ok(Err(error)) => Err(format!("remote error: {address}: {error}")),
            Err(_) => Err(format!("dial tcp {address}: TLS handshake timeout")),
        }
    }
}

impl NodeDialer for Direct {
    fn dial<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, Result<BoxStream, String>> {
        Box::pin(async move {
            match place {
                Place::NodeApi { node } => self.node_api(node).await,
                Place::PodNetwork { address, .. } => Ok(Box::new(tcp(address).await?) as BoxStream),
            }
        })
    }
}

/// A TCP connection, with Go's words for what went wrong: users search for those.
async fn tcp(address: SocketAddr) -> Result<TcpStream, String> {
    use std::io::ErrorKind;
    let stream = match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
        Err(_) => return Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(error)) => {
            let why = match error.kind() {
                ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                ErrorKind::HostUnreachable => "no route to host".to_owned(),
                ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
                ErrorKind::TimedOut => "connection timed out".to_owned(),
                _ => error.to_string(),
            };
            return Err(format!("dial tcp {address}: connect: {why}"));
        }
        Ok(Ok(stream)) => stream,
    };
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
