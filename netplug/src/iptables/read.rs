//! What an earlier run wrote, from what `iptables-save` prints. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::render::{Chains, Shape};
use crate::firewall::Found;
use crate::service::Protocol;
use crate::services::{Frontend, Key, Scope};

impl Shape {
    /// Frontends and hairpins that were installed by an earlier run.
    pub fn decode(&self, saved: &Chains) -> Found {
        let mut found = Found::default();
        let rules =
            |table, chain: &str| saved.get(&(table, chain.to_owned())).into_iter().flatten();
        let named = |table, chain: &str| rules(table, &self.name(chain)).map(|r| Rule::read(r));
        for (chain, scope) in [("external", Scope::External), ("services", Scope::Everyone)] {
            for rule in named("nat", chain) {
                let (Some(key), Some(to)) = (self.key(&rule, scope), rule.get("-j")) else {
                    continue;
                };
                let mut frontend = (Vec::new(), false, 0);
                for rule in rules("nat", to).map(|r| Rule::read(r)) {
                    let target = rule.get("-j").unwrap_or_default();
                    frontend.1 |= target == "MARK";
                    frontend.2 = rule
                        .get("--seconds")
                        .and_then(|s| s.parse().ok())
                        .unwrap_or(frontend.2);
                    let own = rule.get("--to-destination").map(str::to_owned);
                    let theirs = || {
                        rules("nat", target)
                            .find_map(|r| Rule::read(r).get("--to-destination").map(str::to_owned))
                    };
                    let endpoint = own
                        .or_else(theirs)
                        .and_then(|e| e.parse::<SocketAddr>().ok());
                    frontend
                        .0
                        .extend(endpoint.filter(|e| !frontend.0.contains(e)));
                }
                let (endpoints, masquerade, affinity) = frontend;
                let sources = named("mangle", "guard")
                    .find(|r| scope == Scope::Everyone && self.key(r, scope) == Some(key));
                let sources = sources.and_then(|r| r.get("-j").map(str::to_owned)).map_or(
                    Vec::new(),
                    |chain| {
                        rules("mangle", &chain)
                            .filter_map(|r| Rule::read(r).get("-s")?.parse().ok())
                            .collect()
                    },
                );
                let forward = Frontend::Forward {
                    endpoints,
                    masquerade,
                    affinity,
                    sources,
                };
                found.frontends.insert(key, Arc::new(forward));
            }
        }
        for (table, chain, scope, frontend) in [
            ("mangle", "pre", Scope::External, Frontend::Drop),
            ("mangle", "lost", Scope::Everyone, Frontend::Drop),
            ("filter", "refuse", Scope::Everyone, Frontend::Reject),
        ] {
            for key in named(table, chain).filter_map(|rule| self.key(&rule, scope)) {
                found.frontends.insert(key, Arc::new(frontend.clone()));
            }
        }
        let hairpins = named("filter", "policies")
            .filter_map(|r| Some(r.get("-d")?.parse::<IpNet>().ok()?.addr()));
        found.hairpins.extend(hairpins);
        found
    }

    fn key(&self, rule: &Rule<'_>, scope: Scope) -> Option<Key> {
        let any: IpAddr = if self.v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let protocol = match rule.get("-p")? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        Some(Key {
            scope,
            ip: match rule.get("-d") {
                Some(net) => net.parse::<IpNet>().ok()?.addr(),
                None => any,
            },
            protocol,
            port: rule.get("--dport")?.parse().ok()?,
        })
    }
}

/// The options of a rule as `iptables-save` prints it.
struct Rule<'a>(Vec<&'a str>);

impl<'a> Rule<'a> {
    fn read(text: &'a str) -> Rule<'a> {
        Rule(text.split(' ').collect())
    }

    /// The value of an option that is not negated.
    fn get(&self, option: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|word| *word == option)?;
        let negated = at > 0 && self.0.get(at - 1) == Some(&"!");
        self.0.get(at + 1).copied().filter(|_| !negated)
    }
}

/// Reads what `iptables-save` prints.
pub fn read_saved(text: &str) -> Chains {
    let mut chains = Chains::new();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = ["raw", "mangle", "nat", "filter"]
                .into_iter()
                .find(|t| *t == name);
        } else if let (Some(table), Some(chain)) = (table, line.strip_prefix(':')) {
            let name = chain.split(' ').next().unwrap_or_default();
            chains.entry((table, name.to_owned())).or_default();
        } else if let (Some(table), Some(rule)) = (table, line.strip_prefix("-A ")) {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            chains
                .entry((table, chain.to_owned()))
                .or_default()
                .push(rule.to_owned());
        }
    }
    chains
}
