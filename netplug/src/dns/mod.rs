//! DNS of the box: answers for services and pods from memory, forwards the rest.

pub mod answer;
pub mod forward;
mod records;
pub mod zone;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use answer::{Outcome, Responder};
use forward::{Forwarder, read_frame, write_frame};
pub use records::{DnsEndpoint, DnsPort, RecordKind, ServiceRecords};
use zone::Zone;

/// TCP connections at once; further ones wait.
const TCP_CONNECTIONS: usize = 64;
/// A TCP client that says nothing for this long is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Where names outside the cluster domain are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// The `nameserver` lines of a file such as `/etc/resolv.conf`; read again when the file changed.
    ResolvConf(PathBuf),
    Fixed(Vec<SocketAddr>),
    /// Never ask anybody: other names are refused.
    None,
}

/// How the DNS server of a box runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// One UDP and one TCP socket each. Concrete addresses: answers must come from the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// `cluster.local` by custom.
    pub cluster_domain: String,
    pub upstreams: Upstreams,
    /// Time to live of cluster records, in seconds; CoreDNS in Kubernetes uses 30.
    pub ttl: u32,
    /// Who may ask for names outside the cluster domain, beside the box itself; empty: everybody.
    pub clients: Vec<IpNet>,
    /// Ranges whose addresses only we can name (pods and services): nobody else is asked for them.
    pub reverse: Vec<IpNet>,
}

impl DnsConfig {
    /// The defaults: domain `cluster.local`, `/etc/resolv.conf` for other names, 30 s, for everybody.
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        DnsConfig {
            listen,
            cluster_domain: "cluster.local".into(),
            upstreams: Upstreams::ResolvConf("/etc/resolv.conf".into()),
            ttl: 30,
            clients: Vec::new(),
            reverse: Vec::new(),
        }
    }
}

/// A running DNS server. Dropping it closes its sockets. Without questions it does nothing at all.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all tasks use.
#[derive(Debug)]
struct Shared {
    zone: RwLock<Zone>,
    responder: Responder,
    forwarder: Forwarder,
    clients: Vec<IpNet>,
    connections: Arc<Semaphore>,
}

impl DnsServer {
    /// Binds the sockets (in the network namespace of the calling thread) and answers from now on. Needs a tokio runtime.
    pub async fn start(config: DnsConfig) -> io::Result<DnsServer> {
        let mut sockets = Vec::new();
        for address in &config.listen {
            let tell =
                |e: io::Error| io::Error::new(e.kind(), format!("DNS server on {address}: {e}"));
            let udp = UdpSocket::bind(address).await.map_err(tell)?;
            // Port 0 means any, but the same for both.
            let tcp = TcpListener::bind(udp.local_addr()?).await.map_err(tell)?;
            sockets.push((udp, tcp));
        }
        let addresses = sockets
            .iter()
            .map(|(udp, _)| udp.local_addr())
            .collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            zone: RwLock::new(Zone::new(
                &config.cluster_domain,
                addresses.iter().map(SocketAddr::ip).collect(),
            )),
            responder: Responder::new(config.ttl, config.reverse),
            forwarder: Forwarder::new(config.upstreams, addresses.clone()),
            clients: config.clients,
            connections: Arc::new(Semaphore::new(TCP_CONNECTIONS)),
        });
        let mut tasks = Vec::new();
        for (udp, tcp) in sockets {
            tasks.push(tokio::spawn(serve_udp(shared.clone(), Arc::new(udp))));
            tasks.push(tokio::spawn(serve_tcp(shared.clone(), tcp)));
        }
        Ok(DnsServer {
            shared,
            addresses,
            tasks,
        })
    }

    /// The addresses that are served, with real ports where the configuration said 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn change<T>(&self, with: impl FnOnce(&mut Zone) -> T) -> T {
        with(
            &mut self
                .shared
                .zone
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Adds or replaces the records of one service.
    pub fn upsert(&self, records: ServiceRecords) {
        self.change(|zone| zone.upsert(records));
    }

    /// Removes the records of one service.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.change(|zone| zone.remove(namespace, name));
    }

    /// Replaces everything.
    pub fn set_zone(&self, services: Vec<ServiceRecords>) {
        self.change(|zone| {
            zone.clear();
            services.into_iter().for_each(|s| zone.upsert(s));
        });
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn outcome(&self, packet: &[u8], tcp: bool) -> Outcome {
        self.responder.respond(
            &self.zone.read().unwrap_or_else(PoisonError::into_inner),
            packet,
            tcp,
        )
    }

    fn may_forward(&self, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        self.clients.is_empty()
            || ip.is_loopback()
            || self.clients.iter().any(|net| net.contains(&ip))
            || self.forwarder.is_own(ip)
    }

    /// The answer that needs others.
    async fn elsewhere(
        &self,
        outcome: Outcome,
        packet: &[u8],
        client: SocketAddr,
        tcp: bool,
    ) -> Option<Vec<u8>> {
        match outcome {
            Outcome::Ignore => None,
            Outcome::Answer(bytes) => Some(bytes),
            Outcome::Forward if !self.may_forward(client) => {
                Some(answer::failure(packet, ResponseCode::Refused))
            }
            Outcome::Forward => {
                let found = self.forwarder.ask(packet, tcp).await;
                Some(found.unwrap_or_else(|| answer::failure(packet, ResponseCode::ServFail)))
            }
            Outcome::Chase(pending) => {
                let found = match answer::ask(&pending.question) {
                    Some(question) => self.forwarder.ask(&question, tcp).await,
                    None => None,
                };
                Some(pending.finish(found.as_deref()))
            }
        }
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (n, client) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            // The kernel is short of something: it may pass.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match shared.outcome(&buffer[..n], false) {
            Outcome::Ignore => {}
            Outcome::Answer(bytes) => drop(socket.send_to(&bytes, client).await),
            outcome => {
                let (shared, socket, packet) =
                    (shared.clone(), socket.clone(), buffer[..n].to_vec());
                tokio::spawn(async move {
                    if let Some(bytes) = shared.elsewhere(outcome, &packet, client, false).await {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok(place) = shared.connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = converse(&shared, stream, client).await;
                    drop(place);
                });
            }
            // Out of descriptors, most likely: wait until some are free again.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Answers the questions of one TCP client, one after the other.
async fn converse(shared: &Shared, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    loop {
        let packet = timeout(TCP_IDLE, read_frame(&mut stream)).await??;
        let outcome = shared.outcome(&packet, true);
        let Some(bytes) = shared.elsewhere(outcome, &packet, client, true).await else {
            return Ok(());
        };
        timeout(TCP_IDLE, write_frame(&mut stream, &bytes)).await??;
    }
}
