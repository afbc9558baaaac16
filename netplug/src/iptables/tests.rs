#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::read::read_saved;
use super::render::{Chains, Shape, State, difference};
use crate::NetConfig;
use crate::policies::{Cell, Group};
use crate::service::Protocol;
use crate::services::{Frontend, Key, Scope};

fn shape(v4: bool) -> Shape {
    let net = |s: &str| s.parse().unwrap();
    let mut config = NetConfig::new(
        net("10.42.0.0/24"),
        net("10.42.0.0/16"),
        net("10.43.0.0/16"),
        "/x",
    );
    config.pod_cidrs.push(net("fd42:0::/64"));
    config.cluster_cidrs.push(net("fd42::/48"));
    config.service_cidrs.push(net("fd43::/112"));
    Shape::of(&config, v4)
}

fn key(scope: Scope, ip: &str, port: u16) -> Key {
    Key {
        scope,
        ip: ip.parse().unwrap(),
        protocol: Protocol::Sctp,
        port,
    }
}

fn forward(endpoints: &[&str], affinity: u32, sources: &[&str]) -> Frontend {
    Frontend::Forward {
        endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
        masquerade: affinity > 5,
        affinity,
        sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
    }
}

fn some(v4: bool) -> State {
    let all = match v4 {
        true => vec![
            (
                key(Scope::Everyone, "10.43.0.1", 443),
                forward(
                    &["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.3:1"],
                    86400,
                    &[],
                ),
            ),
            (
                key(Scope::Everyone, "192.0.2.1", 80),
                forward(&["10.0.0.2:80"], 0, &["10.0.0.0/8", "192.168.1.0/24"]),
            ),
            (
                key(Scope::External, "192.0.2.1", 80),
                forward(&["10.0.0.2:80"], 0, &[]),
            ),
            (key(Scope::External, "0.0.0.0", 30080), Frontend::Drop),
            (key(Scope::Everyone, "0.0.0.0", 30080), Frontend::Reject),
            (key(Scope::Everyone, "10.43.0.2", 80), Frontend::Reject),
            (key(Scope::Everyone, "10.43.0.3", 80), Frontend::Drop),
        ],
        false => vec![
            (
                key(Scope::Everyone, "fd00::1", 80),
                forward(&["[fd01::9]:80", "[fd01::8]:80"], 0, &["fd00::/8"]),
            ),
            (
                key(Scope::Everyone, "::", 80),
                forward(&["[fd01::9]:80"], 3, &[]),
            ),
        ],
    };
    let hairpin: IpAddr = if v4 { "10.42.0.2" } else { "fd42::2" }.parse().unwrap();
    State {
        frontends: all.into_iter().map(|(k, f)| (k, Arc::new(f))).collect(),
        hairpins: [hairpin].into(),
        ..State::default()
    }
}

#[test]
fn what_was_written_is_read_back() {
    for v4 in [true, false] {
        let (shape, state) = (shape(v4), some(v4));
        let written = difference(&Chains::new(), &shape.render(&state));
        let found = shape.decode(&read_saved(&written));
        assert_eq!(
            found.frontends.into_iter().collect::<BTreeMap<_, _>>(),
            state.frontends
        );
        assert_eq!(
            found.hairpins.into_iter().collect::<BTreeSet<_>>(),
            state.hairpins
        );
    }
}

#[test]
fn only_chains_that_differ_are_written() {
    let (shape, mut state) = (shape(true), some(true));
    let before = shape.render(&state);
    assert_eq!(difference(&before, &shape.render(&state)), "");
    let changed = key(Scope::External, "192.0.2.1", 80);
    state
        .frontends
        .insert(changed, Arc::new(forward(&["10.0.0.9:80"], 0, &[])));
    let text = difference(&before, &shape.render(&state));
    assert_eq!(
        text.lines().filter(|l| l.starts_with(':')).count(),
        1,
        "{text}"
    );
    assert!(
        text.contains("-j DNAT --to-destination 10.0.0.9:80"),
        "{text}"
    );
    state.frontends.remove(&changed);
    let text = difference(&before, &shape.render(&state));
    assert_eq!(text.matches("-X ").count(), 1, "{text}");
}

#[test]
fn names_are_short_enough_and_ours() {
    let mut state = some(true);
    let cell = Cell {
        peers: ("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()),
        protocols: (6, 6),
        ports: (1, 80),
    };
    let group = Group {
        pods: ["10.42.0.2".parse().unwrap()].into(),
        cells: [cell].into(),
    };
    state.groups = Some([("in_0123456789abcdef".to_owned(), group)].into());
    let shape = shape(true);
    let chains = shape.render(&state);
    for (_, name) in chains.keys() {
        assert!(name.len() <= 28 && shape.owns(name), "{name}");
    }
    let rules: Vec<&String> = chains.values().flatten().collect();
    assert!(
        rules.iter().any(|r| *r
            == "-p tcp -m tcp --dport 1:80 -m iprange --src-range 10.0.0.1-10.0.0.9 -j RETURN"),
        "{rules:?}"
    );
}

#[test]
fn the_first_endpoints_get_their_share_of_what_is_left() {
    let state = some(true);
    let chains = shape(true).render(&state);
    let shares: Vec<&str> = chains
        .values()
        .flatten()
        .filter_map(|rule| rule.split_once("--probability "))
        .map(|(_, rest)| rest.split(' ').next().unwrap())
        .collect();
    assert_eq!(shares, ["0.3333333333", "0.5000000000"]);
}
