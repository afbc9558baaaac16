//! What is wanted as chains of iptables. Pure.
//!
//! ```text
//! mangle  PREROUTING ─ pre ─ who may not use a frontend, and frontends that lose packets    FORWARD ─ clamp
//! nat     PREROUTING ─ pre ─ external, services ─ f*: one frontend, one of its endpoints    OUTPUT ─ services
//!         POSTROUTING ─ post ─ hide
//! filter  INPUT, FORWARD, OUTPUT ─ refuse      FORWARD ─ policies ─ egress, ingress ─ o*, i*: one group      INPUT ─ tunnel
//! ```
//!
//! Every frontend has a chain of its own, so that a change of endpoints rewrites that chain alone. Names of our chains begin with the prefix of our links.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::NetConfig;
use crate::firewall::Tunnel;
use crate::policies::{Cell, Groups};
use crate::policy::Direction;
use crate::service::Protocol;
use crate::services::{Frontend, Key, Scope};

/// Mark on packets whose source is to be hidden, as kube-proxy uses it.
const HIDE_MARK: &str = "0x4000";

/// A chain: its table and its name.
pub type Chain = (&'static str, String);
/// Rules by chain, as the arguments that follow `-A CHAIN`.
pub type Chains = BTreeMap<Chain, Vec<String>>;

/// A rule of a built-in chain that leads to one of ours: table, built-in chain, arguments.
pub type Jump = (&'static str, &'static str, String);

/// What is wanted in one IP family.
#[derive(Debug, Default)]
pub struct State {
    pub frontends: BTreeMap<Key, Arc<Frontend>>,
    pub hairpins: BTreeSet<IpAddr>,
    /// `None`: not known yet, what is there stays.
    pub groups: Option<Groups>,
    /// The outer `None`: not known yet, what is there stays.
    pub tunnel: Option<Option<Tunnel>>,
}

/// What of the configuration matters in one IP family.
#[derive(Debug)]
pub struct Shape {
    pub v4: bool,
    prefix: String,
    pods: Option<IpNet>,
    cluster: Option<IpNet>,
    services: Option<IpNet>,
    masquerade: bool,
}

/// FNV-1a, so that names are the same in every run.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn digest(what: impl Hash) -> String {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    what.hash(&mut hash);
    format!("{:012x}", hash.finish() & 0xffff_ffff_ffff)
}

fn proto(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl Shape {
    pub fn of(config: &NetConfig, v4: bool) -> Shape {
        let net = |nets: &[IpNet]| nets.iter().find(|n| n.addr().is_ipv4() == v4).copied();
        Shape {
            v4,
            prefix: config.device_prefix().to_owned(),
            pods: net(&config.pod_cidrs),
            cluster: net(&config.cluster_cidrs),
            services: net(&config.service_cidrs),
            masquerade: config.masquerade,
        }
    }

    pub fn name(&self, chain: &str) -> String {
        format!("{}-{chain}", self.prefix)
    }

    /// Whether a chain is ours.
    pub fn owns(&self, chain: &str) -> bool {
        chain
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.starts_with('-'))
    }

    /// Whether a chain is left alone while nobody said what should be in it.
    pub fn is_kept(&self, chain: &str, state: &State) -> bool {
        let rest = chain.strip_prefix(&self.prefix).unwrap_or_default();
        let of_policies = ["-i_", "-o_", "-ingress", "-egress"];
        state.groups.is_none() && of_policies.iter().any(|p| rest.starts_with(p))
            || state.tunnel.is_none() && ["-tunnel", "-overlay"].contains(&rest)
    }

    /// The rules of built-in chains, each of which comes before all others there.
    pub fn jumps(&self) -> Vec<Jump> {
        let to = |chain: &str| format!("-j {}", self.name(chain));
        let opening = |chain: &str| format!("-m conntrack --ctstate NEW -j {}", self.name(chain));
        let mut jumps = vec![
            ("mangle", "PREROUTING", opening("pre")),
            ("mangle", "OUTPUT", opening("lost")),
            ("mangle", "FORWARD", to("clamp")),
            ("nat", "PREROUTING", to("pre")),
            ("nat", "OUTPUT", to("services")),
            ("nat", "POSTROUTING", to("post")),
            ("filter", "INPUT", to("new")),
            ("filter", "OUTPUT", to("new")),
            ("filter", "FORWARD", to("forward")),
            ("filter", "INPUT", to("overlay")),
        ];
        if self.v4 {
            jumps.push(("raw", "PREROUTING", to("loopback")));
        }
        jumps
    }

    /// Matches packets to a frontend.
    fn to(&self, key: &Key) -> String {
        let at = match key.ip.is_unspecified() {
            true => "-m addrtype --dst-type LOCAL".to_owned(),
            false => format!("-d {}", IpNet::from(key.ip)),
        };
        let protocol = proto(key.protocol);
        format!("{at} -p {protocol} -m {protocol} --dport {}", key.port)
    }

    fn frontend_chain(&self, key: &Key) -> String {
        self.name(&format!("f{}", digest(key)))
    }

    /// All chains. Those that are to be kept as they are are left out.
    pub fn render(&self, state: &State) -> Chains {
        let mut chains = Chains::new();
        self.base(&mut chains);
        for (key, frontend) in &state.frontends {
            self.frontend(&mut chains, key, frontend);
        }
        self.finish(&mut chains, state);
        if let Some(groups) = &state.groups {
            self.groups(&mut chains, groups);
        }
        if let Some(tunnel) = &state.tunnel {
            self.tunnel(&mut chains, tunnel.as_ref());
        }
        chains
    }

    fn add(&self, chains: &mut Chains, table: &'static str, chain: &str, rule: String) {
        chains
            .entry((table, self.name(chain)))
            .or_default()
            .push(rule);
    }

    /// Rules that do not depend on services, first in their chains; and every chain that others lead to.
    fn base(&self, chains: &mut Chains) {
        for (table, names) in [
            ("mangle", &["pre", "guard", "lost", "clamp"][..]),
            (
                "nat",
                &["pre", "external", "services", "post", "hide", "hide-marked"],
            ),
            (
                "filter",
                &[
                    "new", "forward", "refuse", "policies", "egress", "ingress", "overlay",
                ],
            ),
        ] {
            for name in names {
                chains.entry((table, self.name(name))).or_default();
            }
        }
        let jump = |to: &str| format!("-j {}", self.name(to));
        self.add(chains, "mangle", "pre", jump("guard"));
        self.add(
            chains,
            "mangle",
            "clamp",
            format!(
                "-o {}+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
                crate::peers::device(&self.prefix)
            ),
        );
        let outside = self.outside();
        self.add(
            chains,
            "nat",
            "pre",
            format!("{outside} {}", jump("external")),
        );
        self.add(chains, "nat", "pre", jump("services"));
        let opens = "-m conntrack ! --ctstate RELATED,ESTABLISHED";
        for chain in ["new", "forward"] {
            self.add(
                chains,
                "filter",
                chain,
                format!("{opens} {}", jump("refuse")),
            );
        }
        // Only there: between a pod and its own box nothing is forbidden.
        self.add(
            chains,
            "filter",
            "forward",
            format!("{opens} {}", jump("policies")),
        );
        if self.v4 {
            // Pod links may route 127.0.0.0/8 so that host ports work on localhost; nobody may use that to reach the box's own localhost.
            self.add(
                chains,
                "raw",
                "loopback",
                "-d 127.0.0.0/8 ! -i lo -j DROP".into(),
            );
        }
    }

    /// Matches clients outside the cluster.
    fn outside(&self) -> String {
        self.cluster
            .map_or(String::new(), |net| format!("! -s {net}"))
    }

    fn frontend(&self, chains: &mut Chains, key: &Key, frontend: &Frontend) {
        let to = self.to(key);
        match frontend {
            Frontend::Forward {
                endpoints,
                masquerade,
                affinity,
                sources,
            } => {
                let chain = self.frontend_chain(key);
                let find = match key.scope {
                    Scope::External => "external",
                    Scope::Everyone => "services",
                };
                self.add(chains, "nat", find, format!("{to} -j {chain}"));
                let rules = self.choose(chains, key, endpoints, *masquerade, *affinity);
                chains.insert(("nat", chain), rules);
                if !sources.is_empty() && !key.ip.is_unspecified() && key.scope == Scope::Everyone {
                    let allowed = self.name(&format!("s{}", digest(key)));
                    self.add(chains, "mangle", "guard", format!("{to} -j {allowed}"));
                    let mut rules: Vec<String> = sources
                        .iter()
                        .map(|net| format!("-s {net} -j RETURN"))
                        .collect();
                    rules.push("-j DROP".into());
                    chains.insert(("mangle", allowed), rules);
                }
            }
            Frontend::Drop => match key.scope {
                Scope::External => self.add(
                    chains,
                    "mangle",
                    "pre",
                    format!("{} {to} -j DROP", self.outside()),
                ),
                Scope::Everyone => self.add(chains, "mangle", "lost", format!("{to} -j DROP")),
            },
            // For clients outside, the refusal for everyone is met as well.
            Frontend::Reject if key.scope == Scope::Everyone => {
                self.add(chains, "filter", "refuse", format!("{to} -j REJECT"));
            }
            Frontend::Reject => {}
        }
    }

    /// The rules that choose an endpoint: whoever is remembered keeps the one it had.
    fn choose(
        &self,
        chains: &mut Chains,
        key: &Key,
        endpoints: &[SocketAddr],
        masquerade: bool,
        affinity: u32,
    ) -> Vec<String> {
        let mut rules = Vec::new();
        if masquerade {
            rules.push(format!("-j MARK --set-xmark {HIDE_MARK}/{HIDE_MARK}"));
        }
        let protocol = proto(key.protocol);
        let mut targets = Vec::new();
        for endpoint in endpoints {
            let dnat = format!("-j DNAT --to-destination {endpoint}");
            if affinity == 0 {
                targets.push(format!("-p {protocol} {dnat}"));
                continue;
            }
            let chain = self.name(&format!("e{}", digest((key, endpoint))));
            rules.push(format!(
                "-m recent --name {chain} --rcheck --seconds {affinity} --reap --rsource -j {chain}"
            ));
            chains.insert(
                ("nat", chain.clone()),
                vec![format!(
                    "-p {protocol} -m recent --name {chain} --set --rsource {dnat}"
                )],
            );
            targets.push(format!("-j {chain}"));
        }
        let count = targets.len();
        for (i, target) in targets.into_iter().enumerate() {
            let left = count - i;
            rules.push(match left {
                1 => target,
                _ => format!(
                    "-m statistic --mode random --probability {:.10} {target}",
                    1.0 / left as f64
                ),
            });
        }
        rules
    }

    /// What comes after the rules of all frontends.
    fn finish(&self, chains: &mut Chains, state: &State) {
        let jump = |to: &str| format!("-j {}", self.name(to));
        self.add(chains, "mangle", "pre", jump("lost"));
        if let Some(services) = self.services {
            self.add(
                chains,
                "filter",
                "refuse",
                format!("-d {services} -m addrtype ! --dst-type LOCAL -j REJECT"),
            );
        }
        let hide = format!("-g {}", self.name("hide"));
        self.add(
            chains,
            "nat",
            "post",
            format!(
                "-m mark --mark {HIDE_MARK}/{HIDE_MARK} -g {}",
                self.name("hide-marked")
            ),
        );
        self.add(
            chains,
            "nat",
            "hide-marked",
            format!("-j MARK --set-xmark 0x0/{HIDE_MARK}"),
        );
        self.add(chains, "nat", "hide-marked", hide.clone());
        for ip in &state.hairpins {
            let itself = format!("-s {0} -d {0}", IpNet::from(*ip));
            self.add(chains, "nat", "post", format!("{itself} {hide}"));
            // Nobody can be kept from talking to itself.
            self.add(chains, "filter", "policies", format!("{itself} -j RETURN"));
        }
        self.add(chains, "filter", "policies", jump("egress"));
        self.add(chains, "filter", "policies", jump("ingress"));
        self.hide(chains, &hide);
    }

    /// Which connections get an address of the box as their source, and which.
    fn hide(&self, chains: &mut Chains, hide: &str) {
        if self.v4 {
            self.add(
                chains,
                "nat",
                "post",
                format!("-s 127.0.0.0/8 -m conntrack --ctstate DNAT {hide}"),
            );
        }
        if let (Some(cluster), Some(services)) = (self.cluster, self.services) {
            // Somebody outside the cluster uses a ClusterIP through this box: the answer must come back the same way.
            self.add(chains, "nat", "post", format!("! -s {cluster} -m conntrack --ctstate DNAT --ctorigdst {services} -m addrtype ! --src-type LOCAL {hide}"));
        }
        if let Some(pods) = self.pods {
            // Pods see the gateway, always the same, as pod links have no address of their own.
            let gateway = crate::config::gateway(&pods);
            self.add(
                chains,
                "nat",
                "hide",
                format!(
                    "-o {}+ -j SNAT --to-source {gateway} --random-fully",
                    self.prefix
                ),
            );
            if self.masquerade {
                let multicast = if self.v4 { "224.0.0.0/4" } else { "ff00::/8" };
                let world = self.cluster.unwrap_or(pods);
                self.add(
                    chains,
                    "nat",
                    "post",
                    format!("-s {pods} -d {multicast} -j RETURN"),
                );
                self.add(
                    chains,
                    "nat",
                    "post",
                    format!(
                        "-s {pods} ! -d {world} ! -o {}+ -j MASQUERADE --random-fully",
                        self.prefix
                    ),
                );
            }
        }
        self.add(chains, "nat", "hide", "-j MASQUERADE --random-fully".into());
    }

    fn groups(&self, chains: &mut Chains, groups: &Groups) {
        for (name, group) in groups {
            let direction = crate::policies::direction_of(name);
            let (lead, whose, peer, kind) = match direction {
                Some(Direction::Egress) => ("egress", "-s", "--dst-range", "o"),
                _ => ("ingress", "-d", "--src-range", "i"),
            };
            let chain = self.name(&format!("{kind}_{}", digest(name)));
            for ip in &group.pods {
                self.add(
                    chains,
                    "filter",
                    lead,
                    format!("{whose} {} -g {chain}", IpNet::from(*ip)),
                );
            }
            let allow = |cell: &Cell| {
                let peers = format!("-m iprange {peer} {}-{}", cell.peers.0, cell.peers.1);
                let protocol = Protocol::from_number(cell.protocols.0)
                    .filter(|_| cell.protocols.0 == cell.protocols.1);
                let ports = protocol.map_or(String::new(), |p| {
                    format!(
                        "-p {0} -m {0} --dport {1}:{2} ",
                        proto(p),
                        cell.ports.0,
                        cell.ports.1
                    )
                });
                format!("{ports}{peers} -j RETURN")
            };
            let mut rules: Vec<String> = group.cells.iter().map(allow).collect();
            rules.push("-j DROP".into());
            chains.insert(("filter", chain), rules);
        }
    }

    fn tunnel(&self, chains: &mut Chains, tunnel: Option<&Tunnel>) {
        let chain = self.name("tunnel");
        chains.entry(("filter", chain.clone())).or_default();
        let Some(tunnel) = tunnel else { return };
        // The network's number in a VXLAN header (RFC 7348), behind headers of IP and UDP.
        let network = match self.v4 {
            true => format!("0>>22&0x3C@12>>8={}", tunnel.network),
            false => format!("52>>8={}", tunnel.network),
        };
        self.add(
            chains,
            "filter",
            "overlay",
            format!(
                "-p udp -m udp --dport {} -m u32 --u32 {network} -j {chain}",
                tunnel.port
            ),
        );
        for ip in tunnel.senders.iter().filter(|ip| ip.is_ipv4() == self.v4) {
            self.add(
                chains,
                "filter",
                "tunnel",
                format!("-s {} -j RETURN", IpNet::from(*ip)),
            );
        }
        self.add(chains, "filter", "tunnel", "-j DROP".into());
    }
}

/// The input of `iptables-restore --noflush` that makes `new` of `old`: only chains that differ are written. Empty if nothing differs.
pub fn difference(old: &Chains, new: &Chains) -> String {
    let mut text = String::new();
    for table in ["raw", "mangle", "nat", "filter"] {
        let of_table = |c: &&Chain| c.0 == table;
        let changed: Vec<_> = new
            .iter()
            .filter(|(c, rules)| c.0 == table && old.get(*c) != Some(*rules))
            .collect();
        let gone: Vec<_> = old
            .keys()
            .filter(of_table)
            .filter(|c| !new.contains_key(*c))
            .collect();
        if changed.is_empty() && gone.is_empty() {
            continue;
        }
        text += &format!("*{table}\n");
        for name in changed
            .iter()
            .map(|(c, _)| &c.1)
            .chain(gone.iter().map(|c| &c.1))
        {
            text += &format!(":{name} - [0:0]\n");
        }
        for ((_, name), rules) in changed {
            for rule in rules {
                text += &format!("-A {name} {rule}\n");
            }
        }
        for (_, name) in gone {
            text += &format!("-X {name}\n");
        }
        text += "COMMIT\n";
    }
    text
}
