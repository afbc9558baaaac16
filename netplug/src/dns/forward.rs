//! Asking other servers for the names that are not ours.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Upstreams;

/// Clients give up after 5 s: within that time, two servers or one server twice can be tried.
const TRY: Duration = Duration::from_millis(2000);
const TRIES: usize = 2;
/// A server that did not answer is asked last for this long.
const SULK: Duration = Duration::from_secs(10);
/// Questions under way at once; also ends loops that lead back to us through others.
const AT_ONCE: usize = 256;
/// What `resolv.conf` may name (`MAXNS` in glibc).
const MAX_SERVERS: usize = 3;

/// The servers that know other names.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Upstreams,
    /// Our own addresses: never asked.
    ourselves: Vec<SocketAddr>,
    state: Mutex<State>,
    places: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    servers: Vec<Server>,
    /// Of the file that `servers` were read from.
    changed: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    failed: Option<Instant>,
}

impl Forwarder {
    pub fn new(upstreams: Upstreams, ourselves: Vec<SocketAddr>) -> Forwarder {
        Forwarder {
            upstreams,
            ourselves,
            state: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// The servers in the order in which they should be asked.
    fn servers(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = match &self.upstreams {
            Upstreams::None => return Vec::new(),
            Upstreams::Fixed(servers) => state.servers.is_empty().then(|| servers.clone()),
            Upstreams::ResolvConf(path) => reread(path, &mut state.changed),
        };
        if let Some(fresh) = fresh {
            let others = fresh
                .into_iter()
                .filter(|a| !self.is_ourselves(a))
                .take(MAX_SERVERS);
            state.servers = others
                .map(|address| Server {
                    address,
                    failed: None,
                })
                .collect();
        }
        let mut order = state.servers.clone();
        order.sort_by_key(|s| s.failed.is_some_and(|at| at.elapsed() < SULK));
        order.into_iter().map(|s| s.address).collect()
    }

    fn is_ourselves(&self, address: &SocketAddr) -> bool {
        let same = |own: &SocketAddr| {
            own.port() == address.port()
                && (own.ip() == address.ip()
                    || own.ip().is_unspecified() && address.ip().is_loopback())
        };
        self.ourselves.iter().any(same)
    }

    /// Whether an address is one that we serve on.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.ourselves.iter().any(|own| own.ip() == ip)
    }

    fn note(&self, address: SocketAddr, failed: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = state.servers.iter_mut().find(|s| s.address == address) {
            server.failed = failed.then(Instant::now);
        }
    }

    /// Asks with the client's own packet; the answer carries the client's id. `None`: nobody answered.
    pub async fn ask(&self, packet: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let _place = self.places.try_acquire().ok()?;
        let servers = self.servers();
        // A cycle over nothing is nothing.
        for address in servers.iter().cycle().take(TRIES) {
            let attempt = async {
                if tcp {
                    by_tcp(*address, packet).await
                } else {
                    by_udp(*address, packet).await
                }
            };
            match timeout(TRY, attempt).await {
                Ok(Ok(answer)) => {
                    self.note(*address, false);
                    return Some(answer);
                }
                _ => self.note(*address, true),
            }
        }
        None
    }
}

/// The `nameserver` lines of a file if it changed since.
fn reread(path: &Path, changed: &mut Option<SystemTime>) -> Option<Vec<SocketAddr>> {
    let now = fs::metadata(path).and_then(|m| m.modified()).ok();
    if now.is_some() && now == *changed {
        return None;
    }
    *changed = now;
    Some(nameservers(&fs::read_to_string(path).unwrap_or_default()))
}

/// The addresses of the `nameserver` lines (`man 5 resolv.conf`), at port 53.
pub fn nameservers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words
            .next()
            .filter(|w| *w == "nameserver")
            .and_then(|_| words.next())?;
        // Link-local servers carry a zone, which a plain socket address cannot.
        address
            .parse::<IpAddr>()
            .ok()
            .map(|ip| SocketAddr::new(ip, 53))
    };
    text.lines().filter_map(server).collect()
}

/// Whether a packet answers a question: same id, and the same question byte by byte, so that also the case of the letters guards against forgery.
pub fn answers(question: &[u8], id: [u8; 2], packet: &[u8]) -> bool {
    let Some(end) = question_end(question) else {
        return false;
    };
    packet.len() >= 12
        && packet[..2] == id
        && packet[2] & 0x80 != 0
        && (packet.get(12..end) == question.get(12..end)
            || (packet[4..6] == [0, 0] && packet[3] & 0x0f != 0))
}

/// Where the first question of a packet ends.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 5).filter(|end| *end <= packet.len()),
            len @ 1..64 => at += usize::from(len) + 1,
            _ => return None,
        }
    }
}

async fn by_udp(server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A socket of its own for each question: the port is one more thing that a forger has to guess.
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let id = random_id();
    let mut question = packet.to_vec();
    question[..2].copy_from_slice(&id);
    socket.send(&question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if answers(&question, id, &buffer[..n]) {
            buffer.truncate(n);
            buffer[..2].copy_from_slice(&packet[..2]);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_frame(&mut stream, packet).await?;
    let answer = read_frame(&mut stream).await?;
    let id = [packet[0], packet[1]];
    if answers(packet, id, &answer) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Numbers nobody can guess, from the random keys of the standard library's hash maps.
fn random_id() -> [u8; 2] {
    use std::hash::{BuildHasher, RandomState};
    let [a, b, ..] = RandomState::new().hash_one(Instant::now()).to_ne_bytes();
    [a, b]
}

/// Writes a message as DNS over TCP has it: length first (RFC 1035, 4.2.2).
pub async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(message.len() + 2);
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(message);
    stream.write_all(&frame).await
}

/// Reads one message.
pub async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_resolv_conf_and_again_when_it_changed() {
        assert_eq!(
            nameservers(
                "# x\nnameserver 192.0.2.1\nsearch a b\nnameserver\t2001:db8::1 # y\nnameserver nonsense\n; nameserver 1.1.1.1\nnameserver fe80::1%eth0\n"
            ),
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse::<SocketAddr>().unwrap()
            ]
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let forwarder = Forwarder::new(
            Upstreams::ResolvConf(path.clone()),
            vec!["10.42.0.1:53".parse().unwrap()],
        );
        assert!(forwarder.servers().is_empty());
        fs::write(&path, "nameserver 10.42.0.1\nnameserver 192.0.2.1\n").unwrap();
        assert_eq!(
            forwarder.servers(),
            ["192.0.2.1:53".parse().unwrap()],
            "never ourselves"
        );
        fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(forwarder.servers(), ["192.0.2.2:53".parse().unwrap()]);
    }

    #[test]
    fn servers_that_failed_are_asked_last() {
        let (a, b) = (
            "192.0.2.1:53".parse().unwrap(),
            "192.0.2.2:53".parse().unwrap(),
        );
        let forwarder = Forwarder::new(Upstreams::Fixed(vec![a, b]), vec![]);
        assert_eq!(forwarder.servers(), [a, b]);
        forwarder.note(a, true);
        assert_eq!(forwarder.servers(), [b, a]);
        forwarder.note(a, false);
        assert_eq!(forwarder.servers(), [a, b]);
    }

    #[test]
    fn only_the_answer_to_the_question_is_taken() {
        let question = b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        assert!(answers(question, [1, 2], &answer));
        assert!(!answers(question, [1, 3], &answer));
        assert!(!answers(question, [1, 2], question));
        answer[13] = b'A';
        assert!(!answers(question, [1, 2], &answer));
        assert!(!answers(question, [1, 2], &answer[..11]));
        assert!(!answers(b"short", [1, 2], &answer));
    }
}
