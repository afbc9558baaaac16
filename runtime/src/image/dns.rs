//! Names of registries to addresses: `/etc/hosts`, then the servers of `/etc/resolv.conf` (resolv.conf(5)).
//!
//! Ours, because the binary is static: the C library's resolver would load modules (nsswitch.conf(5)) of whatever C
//! library the host has, or fail to.

use std::fs;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use reqwest::dns::{Addrs, Resolve, Resolving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const DNS_PORT: u16 = 53;
/// What a server may send over UDP; longer answers come with the truncation flag.
const UDP_LIMIT: usize = 4096;

/// Resolves as the two files say at that moment: no state, no cache.
#[derive(Clone)]
pub(crate) struct SystemResolver {
    hosts: PathBuf,
    config: PathBuf,
}

impl SystemResolver {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            hosts: "/etc/hosts".into(),
            config: "/etc/resolv.conf".into(),
        })
    }

    async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let hosts = fs::read_to_string(&self.hosts).unwrap_or_default();
        let known = in_hosts(&hosts, host);
        if !known.is_empty() {
            return Ok(known);
        }
        let config = Config::parse(&fs::read_to_string(&self.config).unwrap_or_default());
        ask(&config, host).await
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.look_up(name.as_str()).await?;
            Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// The addresses that hosts(5) has for a name. `localhost` needs no line.
pub fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let mut found = Vec::new();
    for line in hosts.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        if let Some(address) = address
            && words.any(|word| word.eq_ignore_ascii_case(name))
        {
            found.push(address);
        }
    }
    let local =
        name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    if found.is_empty() && local {
        found.extend([
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]);
    }
    found
}

/// What resolv.conf says, with the defaults and bounds of its manual page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    dots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Config {
    /// Reads the file; lines that mean nothing are passed over.
    pub fn parse(text: &str) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            search: Vec::new(),
            dots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if config.servers.len() < 3 => {
                    config.servers.extend(words.next().and_then(server));
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            config
                .servers
                .push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT));
        }
        config
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else {
            return;
        };
        let Ok(value) = value.parse::<u32>() else {
            return;
        };
        match name {
            "ndots" => self.dots = value.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30).into()),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The full names to ask for, in order.
    pub fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let searched = self
            .search
            .iter()
            .map(|domain| format!("{host}.{}.", domain.trim_matches('.')));
        let mut names: Vec<String> = searched.collect();
        let first = host.matches('.').count() >= self.dots;
        names.insert(if first { 0 } else { names.len() }, format!("{host}."));
        names
    }
}

/// A server's address; IPv6 ones may name an interface (`fe80::1%eth0`).
fn server(text: &str) -> Option<SocketAddr> {
    let (address, zone) = text
        .split_once('%')
        .map_or((text, None), |(a, z)| (a, Some(z)));
    match (address.parse().ok()?, zone) {
        (IpAddr::V6(v6), Some(zone)) => {
            let index = nix::net::if_::if_nametoindex(zone).ok()?;
            Some(std::net::SocketAddrV6::new(v6, DNS_PORT, 0, index).into())
        }
        (address, _) => Some(SocketAddr::new(address, DNS_PORT)),
    }
}

/// What one server says about one name.
enum Answer {
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no address.
    Nothing,
}

async fn ask(config: &Config, host: &str) -> Result<Vec<IpAddr>, String> {
    let mut trouble = None;
    for candidate in config.candidates(host) {
        let Ok(name) = Name::from_ascii(&candidate) else {
            continue;
        };
        match ask_servers(config, &name).await {
            Ok(Answer::Addresses(addresses)) => return Ok(addresses),
            Ok(Answer::Nothing) => {}
            Err(e) => trouble = Some(e),
        }
    }
    Err(match trouble {
        Some(trouble) => format!("lookup {host}: {trouble}"),
        None => format!("lookup {host}: no such host"),
    })
}

async fn ask_servers(config: &Config, name: &Name) -> Result<Answer, String> {
    let mut trouble = String::new();
    for _ in 0..config.attempts {
        for server in &config.servers {
            let both = tokio::join!(
                timeout(config.timeout, exchange(*server, name, RecordType::A)),
                timeout(config.timeout, exchange(*server, name, RecordType::AAAA)),
            );
            let mut found = Vec::new();
            let mut answered = false;
            for answer in [both.0, both.1] {
                match answer {
                    Ok(Ok(addresses)) => {
                        answered = true;
                        found.extend(addresses);
                    }
                    Ok(Err(e)) => trouble = format!("{server}: {e}"),
                    Err(_) => trouble = format!("{server}: no answer in time"),
                }
            }
            match (found.is_empty(), answered) {
                (false, _) => return Ok(Answer::Addresses(found)),
                (true, true) => return Ok(Answer::Nothing),
                (true, false) => {}
            }
        }
    }
    Err(trouble)
}

/// One question to one server, over TCP if the answer does not fit.
async fn exchange(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Vec<IpAddr>, String> {
    let random = std::collections::hash_map::RandomState::new().hash_one(name);
    let mut question = Message::new(random as u16, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let bytes = question.to_vec().map_err(|e| e.to_string())?;

    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let told = |e: std::io::Error| e.to_string();
    let socket = UdpSocket::bind((local, 0)).await.map_err(told)?;
    socket.connect(server).await.map_err(told)?;
    socket.send(&bytes).await.map_err(told)?;
    let mut buffer = vec![0; UDP_LIMIT];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(told)?;
        let Some(answer) = read_answer(&buffer[..length], &question) else {
            // Not for this question: a late answer, or a forgery.
            continue;
        };
        if !answer.metadata.truncation {
            return addresses(&answer);
        }
        let mut stream = TcpStream::connect(server).await.map_err(told)?;
        let length = u16::try_from(bytes.len()).map_err(|e| e.to_string())?;
        stream
            .write_all(&[&length.to_be_bytes()[..], &bytes].concat())
            .await
            .map_err(told)?;
        let length = stream.read_u16().await.map_err(told)?;
        let mut buffer = vec![0; length.into()];
        stream.read_exact(&mut buffer).await.map_err(told)?;
        let answer = read_answer(&buffer, &question).ok_or("an answer to another question")?;
        return addresses(&answer);
    }
}

fn read_answer(bytes: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    same.then_some(answer)
}

fn addresses(answer: &Message) -> Result<Vec<IpAddr>, String> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        other => return Err(other.to_string()),
    }
    let found = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    #[test]
    fn hosts_lines_win_and_localhost_needs_none() {
        let hosts = "# comment\n10.0.0.1 Registry.lan reg # reg2\n::1 registry.lan\nbad line\n";
        let ips = |name| {
            in_hosts(hosts, name)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(ips("registry.lan"), ["10.0.0.1", "::1"]);
        assert_eq!(ips("reg"), ["10.0.0.1"]);
        assert_eq!(ips("reg2"), Vec::<String>::new());
        assert_eq!(ips("localhost"), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn names_are_completed_as_resolv_conf_says() {
        let config = Config::parse(
            "nameserver 10.0.0.2\nnameserver ::1\n;x\nsearch a.lan b.lan.\noptions ndots:2 timeout:1 rotate attempts:99\n",
        );
        assert_eq!(
            config.servers,
            ["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
        assert_eq!(
            (config.attempts, config.timeout),
            (5, Duration::from_secs(1))
        );
        assert_eq!(
            config.candidates("x.y"),
            ["x.y.a.lan.", "x.y.b.lan.", "x.y."]
        );
        assert_eq!(
            config.candidates("x.y.z"),
            ["x.y.z.", "x.y.z.a.lan.", "x.y.z.b.lan."]
        );
        assert_eq!(config.candidates("x."), ["x."]);
        assert_eq!(Config::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    /// Answers `good.` by UDP, `long.` only by TCP; first with a wrong id, which must be ignored.
    async fn name_server() -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = tokio::net::TcpListener::bind(address).await.unwrap();
        let answer = |bytes: &[u8], by_tcp: bool| {
            let question = Message::from_vec(bytes).unwrap();
            let query = question.queries[0].clone();
            let name = query.name.to_ascii();
            let mut answer =
                Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
            answer.add_query(query.clone());
            match (name.as_str(), query.query_type) {
                ("good.", RecordType::A) => {
                    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
                    answer.add_answer(Record::from_rdata(query.name.clone(), 1, data));
                }
                ("long.", RecordType::A) if by_tcp => {
                    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 2)));
                    answer.add_answer(Record::from_rdata(query.name.clone(), 1, data));
                }
                ("long.", _) => answer.metadata.truncation = !by_tcp,
                ("good.", _) => {}
                ("broken.", _) => answer.metadata.response_code = ResponseCode::ServFail,
                _ => answer.metadata.response_code = ResponseCode::NXDomain,
            }
            answer.to_vec().unwrap()
        };
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
                let right = answer(&buffer[..n], false);
                let mut wrong = right.clone();
                wrong[0] ^= 0xff;
                udp.send_to(&wrong, from).await.unwrap();
                udp.send_to(&right, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut bytes).await.unwrap();
                let right = answer(&bytes, true);
                stream.write_u16(right.len() as u16).await.unwrap();
                stream.write_all(&right).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn servers_are_asked_in_turn_and_over_tcp_where_needed() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let config = Config {
            servers: vec![dead.local_addr().unwrap(), name_server().await],
            timeout: Duration::from_millis(200),
            ..Config::parse("")
        };
        assert_eq!(
            ask(&config, "good").await.unwrap(),
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(
            ask(&config, "long").await.unwrap(),
            ["192.0.2.2".parse::<IpAddr>().unwrap()]
        );
        assert!(
            ask(&config, "missing")
                .await
                .unwrap_err()
                .contains("no such host")
        );
        assert!(
            ask(&config, "broken")
                .await
                .unwrap_err()
                .contains("lookup broken: ")
        );
    }
}
