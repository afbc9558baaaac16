//! What the names of the cluster mean. Pure: records in, answers out.
//!
//! Kubernetes DNS-based service discovery 1.1.0 (github.com/kubernetes/dns, docs/specification.md). Names are handled in lower case.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::records::{DnsEndpoint, DnsPort, RecordKind, ServiceRecords};
use crate::service::Protocol;

/// The version of the specification, told by `dns-version.<zone> TXT`.
const SPECIFICATION: &str = "1.1.0";

/// One thing that a name has, without its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Address(IpAddr),
    Alias(String),
    Server {
        port: u16,
        target: String,
    },
    Pointer(String),
    Text(&'static str),
    /// The zone's own record and name server.
    Authority,
    NameServer(String),
}

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The name exists, with all that it has (perhaps nothing).
    Has(Vec<Fact>),
    /// The name is within the zone and does not exist.
    Nothing,
    /// The name is somebody else's.
    Foreign,
}

/// The names of one cluster.
#[derive(Debug)]
pub struct Zone {
    /// `cluster.local`, without a trailing dot.
    domain: String,
    /// Where the zone's name server is.
    servers: Vec<IpAddr>,
    /// By `name.namespace`.
    services: HashMap<String, RecordKind>,
    /// How many services each namespace has: it exists as a name while it has any.
    namespaces: HashMap<String, usize>,
    /// Names of an address: owner (`name.namespace`) and full name.
    reverse: HashMap<IpAddr, Vec<(String, String)>>,
    serial: u32,
}

impl Zone {
    pub fn new(domain: &str, servers: Vec<IpAddr>) -> Zone {
        Zone {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            servers,
            services: HashMap::new(),
            namespaces: HashMap::new(),
            reverse: HashMap::new(),
            serial: 1,
        }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Counts changes.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    pub fn clear(&mut self) {
        self.services.clear();
        self.namespaces.clear();
        self.reverse.clear();
        self.serial = self.serial.wrapping_add(1);
    }

    pub fn upsert(&mut self, records: ServiceRecords) {
        let namespace = records.namespace.to_ascii_lowercase();
        let key = format!("{}.{namespace}", records.name.to_ascii_lowercase());
        self.remove_key(&key, &namespace);
        let base = format!("{key}.svc.{}", self.domain);
        match &records.kind {
            RecordKind::Cluster { ips, .. } => {
                for ip in ips {
                    self.reverse
                        .entry(*ip)
                        .or_default()
                        .push((key.clone(), base.clone()));
                }
            }
            RecordKind::Headless { endpoints, .. } => {
                for endpoint in endpoints {
                    let name = format!("{}.{base}", host(endpoint));
                    self.reverse
                        .entry(endpoint.ip)
                        .or_default()
                        .push((key.clone(), name));
                }
            }
            RecordKind::External { .. } => {}
        }
        *self.namespaces.entry(namespace).or_default() += 1;
        self.services.insert(key, records.kind);
        self.serial = self.serial.wrapping_add(1);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        let namespace = namespace.to_ascii_lowercase();
        self.remove_key(
            &format!("{}.{namespace}", name.to_ascii_lowercase()),
            &namespace,
        );
        self.serial = self.serial.wrapping_add(1);
    }

    fn remove_key(&mut self, key: &str, namespace: &str) {
        let ips: Vec<IpAddr> = match self.services.remove(key) {
            None => return,
            Some(RecordKind::Cluster { ips, .. }) => ips,
            Some(RecordKind::Headless { endpoints, .. }) => {
                endpoints.into_iter().map(|e| e.ip).collect()
            }
            Some(RecordKind::External { .. }) => Vec::new(),
        };
        for ip in ips {
            if let Some(names) = self.reverse.get_mut(&ip) {
                names.retain(|(owner, _)| owner != key);
                if names.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        if let Some(count) = self.namespaces.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// What a name means; lower case, without a trailing dot.
    pub fn look_up(&self, name: &str) -> Meaning {
        if name == self.domain {
            return Meaning::Has(vec![
                Fact::Authority,
                Fact::NameServer(format!("ns.dns.{}", self.domain)),
            ]);
        }
        match name
            .strip_suffix(self.domain.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
        {
            Some(inner) => self.within(inner).map_or(Meaning::Nothing, Meaning::Has),
            None => self.pointers(name),
        }
    }

    /// What a name below the zone has, if it exists.
    fn within(&self, name: &str) -> Option<Vec<Fact>> {
        let (rest, kind) = name.rsplit_once('.').unwrap_or(("", name));
        match (kind, rest) {
            ("svc" | "pod", "") => Some(vec![]),
            ("svc", rest) => self.service(rest),
            ("pod", rest) => self.pod(rest),
            ("dns", "") => Some(vec![]),
            ("dns", "ns") => Some(self.servers.iter().copied().map(Fact::Address).collect()),
            ("dns-version", "") => Some(vec![Fact::Text(SPECIFICATION)]),
            _ => None,
        }
    }

    /// `[[_port.]_protocol.|host.]name.namespace`
    fn service(&self, name: &str) -> Option<Vec<Fact>> {
        let Some((rest, namespace)) = name.rsplit_once('.') else {
            return self.namespaces.contains_key(name).then(Vec::new);
        };
        let (prefix, service) = rest.rsplit_once('.').unwrap_or(("", rest));
        let key = format!("{service}.{namespace}");
        let kind = self.services.get(&key)?;
        let base = format!("{key}.svc.{}", self.domain);
        if prefix.is_empty() {
            return Some(match kind {
                RecordKind::Cluster { ips, .. } => ips.iter().copied().map(Fact::Address).collect(),
                RecordKind::Headless { endpoints, .. } => {
                    unique(endpoints.iter().map(|e| Fact::Address(e.ip)))
                }
                RecordKind::External { name } => {
                    vec![Fact::Alias(name.trim_end_matches('.').to_owned())]
                }
            });
        }
        match prefix.split_once('.') {
            Some((port, protocol)) => servers(
                kind,
                &base,
                Some(port.strip_prefix('_')?),
                protocol.strip_prefix('_')?,
            ),
            // Exists as a name between others if there is any such port.
            None if prefix.starts_with('_') => {
                servers(kind, &base, None, prefix.strip_prefix('_')?).map(|_| vec![])
            }
            None => {
                let RecordKind::Headless { endpoints, .. } = kind else {
                    return None;
                };
                let facts = unique(
                    endpoints
                        .iter()
                        .filter(|e| host(e) == prefix)
                        .map(|e| Fact::Address(e.ip)),
                );
                (!facts.is_empty()).then_some(facts)
            }
        }
    }

    /// `a-b-c-d.namespace`: the address is in the name, so no list of pods is needed (CoreDNS calls it "pods insecure").
    fn pod(&self, name: &str) -> Option<Vec<Fact>> {
        let Some((address, namespace)) = name.split_once('.') else {
            return Some(vec![]);
        };
        if namespace.contains('.') {
            return None;
        }
        let v4 = address
            .replace('-', ".")
            .parse::<Ipv4Addr>()
            .map(IpAddr::V4);
        let ip = v4
            .or_else(|_| {
                address
                    .replace('-', ":")
                    .parse::<Ipv6Addr>()
                    .map(IpAddr::V6)
            })
            .ok()?;
        Some(vec![Fact::Address(ip)])
    }

    fn pointers(&self, name: &str) -> Meaning {
        match reverse_address(name).and_then(|ip| self.reverse.get(&ip)) {
            Some(names) => Meaning::Has(
                names
                    .iter()
                    .map(|(_, name)| Fact::Pointer(name.clone()))
                    .collect(),
            ),
            None => Meaning::Foreign,
        }
    }
}

/// The name of an endpoint below its service.
fn host(endpoint: &DnsEndpoint) -> String {
    match &endpoint.hostname {
        Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
        _ => endpoint.ip.to_string().replace(['.', ':'], "-"),
    }
}

fn unique(facts: impl Iterator<Item = Fact>) -> Vec<Fact> {
    let mut all: Vec<Fact> = Vec::new();
    facts.for_each(|f| {
        if !all.contains(&f) {
            all.push(f);
        }
    });
    all
}

/// The SRV records of a port (`None`: of any) and protocol, if the service has such a port.
fn servers(kind: &RecordKind, base: &str, port: Option<&str>, protocol: &str) -> Option<Vec<Fact>> {
    let fits = |p: &DnsPort| {
        let name = match p.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        name == protocol
            && !p.name.is_empty()
            && port.is_none_or(|port| p.name.eq_ignore_ascii_case(port))
    };
    let facts: Vec<Fact> = match kind {
        RecordKind::Cluster { ports, .. } => ports
            .iter()
            .filter(|p| fits(p))
            .map(|p| Fact::Server {
                port: p.port,
                target: base.to_owned(),
            })
            .collect(),
        RecordKind::Headless { endpoints, ports } => unique(endpoints.iter().flat_map(|e| {
            let ports = if e.ports.is_empty() { ports } else { &e.ports };
            let target = format!("{}.{base}", host(e));
            ports.iter().filter(|p| fits(p)).map(move |p| Fact::Server {
                port: p.port,
                target: target.clone(),
            })
        })),
        RecordKind::External { .. } => vec![],
    };
    (!facts.is_empty()).then_some(facts)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = digits
            .rsplit('.')
            .map(|d| d.parse().ok())
            .collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let nibble = |d: &str| {
        (d.len() == 1)
            .then(|| u8::from_str_radix(d, 16).ok())
            .flatten()
    };
    let nibbles: Vec<u8> = digits.rsplit('.').map(nibble).collect::<Option<_>>()?;
    (nibbles.len() == 32).then(|| {
        IpAddr::from(
            nibbles
                .iter()
                .fold(0u128, |all, n| all << 4 | u128::from(*n))
                .to_be_bytes(),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn port(name: &str, protocol: Protocol, port: u16) -> DnsPort {
        DnsPort {
            name: name.into(),
            protocol,
            port,
        }
    }

    fn endpoint(addr: &str, hostname: Option<&str>) -> DnsEndpoint {
        DnsEndpoint {
            ip: ip(addr),
            hostname: hostname.map(Into::into),
            ports: vec![],
        }
    }

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local.", vec![ip("10.43.0.10")]);
        let add = |zone: &mut Zone, name: &str, kind| {
            zone.upsert(ServiceRecords {
                namespace: "default".into(),
                name: name.into(),
                kind,
            })
        };
        let ports = vec![port("http", Protocol::Tcp, 80), port("", Protocol::Udp, 53)];
        add(
            &mut zone,
            "web",
            RecordKind::Cluster {
                ips: vec![ip("10.43.0.7"), ip("fd00::7")],
                ports: ports.clone(),
            },
        );
        let endpoints = vec![
            endpoint("10.42.0.2", Some("db-0")),
            endpoint("10.42.0.3", None),
            endpoint("fd01::3", None),
        ];
        add(&mut zone, "db", RecordKind::Headless { endpoints, ports });
        add(
            &mut zone,
            "ext",
            RecordKind::External {
                name: "example.org.".into(),
            },
        );
        zone
    }

    fn address(s: &str) -> Fact {
        Fact::Address(ip(s))
    }

    fn has(name: &str, facts: Vec<Fact>) {
        assert_eq!(zone().look_up(name), Meaning::Has(facts), "{name}");
    }

    #[test]
    fn services_have_addresses_of_both_families() {
        has(
            "web.default.svc.cluster.local",
            vec![address("10.43.0.7"), address("fd00::7")],
        );
        has(
            "db.default.svc.cluster.local",
            vec![
                address("10.42.0.2"),
                address("10.42.0.3"),
                address("fd01::3"),
            ],
        );
        has(
            "ext.default.svc.cluster.local",
            vec![Fact::Alias("example.org".into())],
        );
    }

    #[test]
    fn endpoints_of_headless_services_have_names() {
        has(
            "db-0.db.default.svc.cluster.local",
            vec![address("10.42.0.2")],
        );
        has(
            "10-42-0-3.db.default.svc.cluster.local",
            vec![address("10.42.0.3")],
        );
        has(
            "fd01--3.db.default.svc.cluster.local",
            vec![address("fd01::3")],
        );
        assert_eq!(
            zone().look_up("10-42-0-2.db.default.svc.cluster.local"),
            Meaning::Nothing
        );
        assert_eq!(
            zone().look_up("db-0.web.default.svc.cluster.local"),
            Meaning::Nothing
        );
    }

    #[test]
    fn named_ports_have_servers() {
        let server = |target: &str| Fact::Server {
            port: 80,
            target: format!("{target}.default.svc.cluster.local"),
        };
        has(
            "_http._tcp.web.default.svc.cluster.local",
            vec![server("web")],
        );
        has(
            "_http._tcp.db.default.svc.cluster.local",
            vec![
                server("db-0.db"),
                server("10-42-0-3.db"),
                server("fd01--3.db"),
            ],
        );
        has("_tcp.web.default.svc.cluster.local", vec![]);
        for nothing in [
            "_udp.web",
            "_http._udp.web",
            "_x._tcp.web",
            "_._udp.web",
            "_http._tcp.ext",
            "_http.x._tcp.web",
        ] {
            assert_eq!(
                zone().look_up(&format!("{nothing}.default.svc.cluster.local")),
                Meaning::Nothing,
                "{nothing}"
            );
        }
    }

    #[test]
    fn names_between_exist_without_records_and_others_do_not() {
        for empty in ["svc", "default.svc", "pod", "default.pod", "dns"] {
            has(&format!("{empty}.cluster.local"), vec![]);
        }
        for nothing in [
            "x",
            "nope.default.svc",
            "default.default",
            "x.svc",
            "web.x.svc",
            "a.b.pod",
            "1-2-3.ns.pod",
            "1-2-3-4.a.b.pod",
            "svc.svc.svc.svc",
        ] {
            assert_eq!(
                zone().look_up(&format!("{nothing}.cluster.local")),
                Meaning::Nothing,
                "{nothing}"
            );
        }
        for foreign in [
            "example.org",
            "local",
            "xcluster.local",
            "",
            "svc.cluster.local.example.org",
        ] {
            assert_eq!(zone().look_up(foreign), Meaning::Foreign, "{foreign}");
        }
    }

    #[test]
    fn pods_are_told_from_their_names() {
        has(
            "10-42-0-9.default.pod.cluster.local",
            vec![address("10.42.0.9")],
        );
        has(
            "fd00--9.default.pod.cluster.local",
            vec![address("fd00::9")],
        );
    }

    #[test]
    fn addresses_lead_back_to_names() {
        has(
            "7.0.43.10.in-addr.arpa",
            vec![Fact::Pointer("web.default.svc.cluster.local".into())],
        );
        has(
            "2.0.42.10.in-addr.arpa",
            vec![Fact::Pointer("db-0.db.default.svc.cluster.local".into())],
        );
        let v6 = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        has(
            v6,
            vec![Fact::Pointer("web.default.svc.cluster.local".into())],
        );
        for foreign in [
            "1.0.0.127.in-addr.arpa",
            "7.0.43.in-addr.arpa",
            "x.0.43.10.in-addr.arpa",
            "in-addr.arpa",
            "7.ip6.arpa",
        ] {
            assert_eq!(zone().look_up(foreign), Meaning::Foreign, "{foreign}");
        }
    }

    #[test]
    fn removed_services_leave_no_names() {
        let mut zone = zone();
        for name in ["web", "DB", "ext", "never"] {
            zone.remove("default", name);
        }
        assert_eq!(zone.look_up("default.svc.cluster.local"), Meaning::Nothing);
        assert_eq!(zone.look_up("7.0.43.10.in-addr.arpa"), Meaning::Foreign);
        assert!(zone.reverse.is_empty() && zone.services.is_empty());
    }

    #[test]
    fn the_zone_tells_its_version_and_server() {
        has("dns-version.cluster.local", vec![Fact::Text("1.1.0")]);
        has("ns.dns.cluster.local", vec![address("10.43.0.10")]);
    }
}
