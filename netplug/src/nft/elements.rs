//! Frontends as elements of our sets, and back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::batch::Value;
use super::schema::{
    ALLOWED, Class, Family, GUARDED, HAIRPIN, LANES, Lane, REJECT_ADDRESS, REJECT_LOCAL,
};
use crate::firewall::Found;
use crate::link::octets;
use crate::netlink::message::{attribute, attributes};
use crate::service::Protocol;
use crate::services::{Frontend, Key, Scope};

use super::uapi::{data, elem};

/// Elements by set.
pub type Elements = BTreeMap<String, BTreeMap<Vec<u8>, Value>>;

/// A port in a register: network order, padded.
fn port_bytes(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = if key.ip.is_unspecified() {
        Vec::new()
    } else {
        octets(key.ip)
    };
    bytes.extend_from_slice(&[key.protocol.number(), 0, 0, 0]);
    bytes.extend_from_slice(&port_bytes(key.port));
    bytes
}

fn endpoint_bytes(endpoint: &SocketAddr) -> Vec<u8> {
    let mut bytes = octets(endpoint.ip());
    bytes.extend_from_slice(&port_bytes(endpoint.port()));
    bytes
}

/// The class of a frontend that has one.
pub fn class(frontend: &Frontend) -> Option<Class> {
    match frontend {
        Frontend::Forward {
            endpoints,
            masquerade,
            affinity,
            ..
        } => Some(Class::Forward {
            endpoints: endpoints.len() as u32,
            affinity: *affinity,
            masquerade: *masquerade,
        }),
        Frontend::Drop => Some(Class::Drop),
        Frontend::Reject => None,
    }
}

/// Adds the elements of one frontend.
pub fn encode(key: &Key, frontend: &Frontend, to: &mut Elements) {
    let lane = Lane::of(key);
    let bytes = key_bytes(key);
    let mut add = |set: String, key: Vec<u8>, value| to.entry(set).or_default().insert(key, value);
    if let Some(class) = class(frontend) {
        add(class.name(lane), bytes.clone(), Value::None);
    }
    match frontend {
        Frontend::Forward {
            endpoints,
            affinity,
            sources,
            ..
        } => {
            for (i, endpoint) in endpoints.iter().enumerate() {
                add(
                    lane.endpoints(),
                    [&bytes[..], &(i as u32).to_ne_bytes()].concat(),
                    Value::Bytes(endpoint_bytes(endpoint)),
                );
            }
            if *affinity > 0 && key.scope == Scope::Everyone {
                add(lane.sticky(*affinity), bytes.clone(), Value::None);
            }
            if !sources.is_empty() && lane.by_address && key.scope == Scope::Everyone {
                add(GUARDED.into(), bytes.clone(), Value::None);
                for net in sources {
                    let with = |ip| [bytes.clone(), octets(ip)].concat();
                    add(
                        ALLOWED.into(),
                        with(net.network()),
                        Value::UpTo(with(net.broadcast())),
                    );
                }
            }
        }
        // For clients outside, the refusal for everyone is met as well.
        Frontend::Reject if key.scope == Scope::Everyone => {
            let set = if lane.by_address {
                REJECT_ADDRESS
            } else {
                REJECT_LOCAL
            };
            add(set.into(), bytes, Value::None);
        }
        Frontend::Reject | Frontend::Drop => {}
    }
}

/// The element of a pod that may meet itself.
pub fn hairpin(ip: IpAddr) -> Vec<u8> {
    [octets(ip), octets(ip)].concat()
}

/// An element as the kernel tells it: key, data, end of the interval.
pub type Told = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// Reads one `NFT_MSG_NEWSETELEM` (after its header).
pub fn told(payload: &[u8], to: &mut Vec<Told>) {
    let Some(list) = payload
        .get(4..)
        .and_then(|p| attribute(p, elem::LIST_ELEMENTS))
    else {
        return;
    };
    let value = |bytes: &[u8], kind| {
        attribute(bytes, kind)
            .and_then(|v| attribute(v, data::VALUE))
            .map(<[u8]>::to_vec)
    };
    for (_, element) in attributes(list) {
        if let Some(key) = value(element, elem::KEY) {
            to.push((
                key,
                value(element, elem::DATA),
                value(element, elem::KEY_END),
            ));
        }
    }
}

/// Takes fields off the front of a key.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&mut self) -> Option<[u8; 4]> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*word)
    }

    fn ip(&mut self, family: Family) -> Option<IpAddr> {
        let (bytes, rest) = self.0.split_at_checked(family.address_len() as usize)?;
        self.0 = rest;
        crate::link::ip_from(bytes)
    }

    fn port(&mut self) -> Option<u16> {
        let [a, b, ..] = self.word()?;
        Some(u16::from_be_bytes([a, b]))
    }

    fn number(&mut self) -> Option<u32> {
        self.word().map(u32::from_ne_bytes)
    }

    fn key(&mut self, family: Family, lane: Lane) -> Option<Key> {
        let any: IpAddr = if family.v4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let ip = if lane.by_address {
            self.ip(family)?
        } else {
            any
        };
        let protocol = Protocol::from_number(self.word()?[0])?;
        Some(Key {
            scope: lane.scope,
            ip,
            protocol,
            port: self.port()?,
        })
    }

    fn endpoint(&mut self, family: Family) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip(family)?, self.port()?))
    }
}

/// Rebuilds what is installed in one family from what the kernel tells. `read` gives the elements of a set.
pub fn decode<E>(
    family: Family,
    classes: &HashSet<(Lane, Class)>,
    found: &mut Found,
    mut read: impl FnMut(&str) -> Result<Vec<Told>, E>,
) -> Result<(), E> {
    let everyone = |by_address| Lane {
        scope: Scope::Everyone,
        by_address,
    };
    let mut sources: HashMap<Key, Vec<IpNet>> = HashMap::new();
    for (start, _, end) in read(ALLOWED)? {
        let mut fields = Fields(&start);
        let (Some(key), Some(first)) = (fields.key(family, everyone(true)), fields.ip(family))
        else {
            continue;
        };
        let last = end.and_then(|end| {
            let mut fields = Fields(&end);
            fields.key(family, everyone(true))?;
            fields.ip(family)
        });
        sources
            .entry(key)
            .or_default()
            .extend(subnet(first, last.unwrap_or(first)));
    }
    for lane in LANES {
        let mut endpoints: HashMap<Key, BTreeMap<u32, SocketAddr>> = HashMap::new();
        for (key, data, _) in read(&lane.endpoints())? {
            let mut fields = Fields(&key);
            let parsed = (
                fields.key(family, lane),
                fields.number(),
                data.and_then(|d| Fields(&d).endpoint(family)),
            );
            if let (Some(key), Some(number), Some(endpoint)) = parsed {
                endpoints.entry(key).or_default().insert(number, endpoint);
            }
        }
        for (_, class) in classes.iter().filter(|(l, _)| *l == lane) {
            for (key, ..) in read(&class.name(lane))? {
                let Some(key) = Fields(&key).key(family, lane) else {
                    continue;
                };
                let frontend = match *class {
                    Class::Drop => Frontend::Drop,
                    Class::Forward {
                        affinity,
                        masquerade,
                        ..
                    } => Frontend::Forward {
                        endpoints: endpoints
                            .remove(&key)
                            .unwrap_or_default()
                            .into_values()
                            .collect(),
                        masquerade,
                        affinity,
                        sources: sources.get(&key).cloned().unwrap_or_default(),
                    },
                };
                found.frontends.insert(key, Arc::new(frontend));
            }
        }
    }
    for (set, by_address) in [(REJECT_ADDRESS, true), (REJECT_LOCAL, false)] {
        for (key, ..) in read(set)? {
            if let Some(key) = Fields(&key).key(family, everyone(by_address)) {
                found.frontends.insert(key, Arc::new(Frontend::Reject));
            }
        }
    }
    for (key, ..) in read(HAIRPIN)? {
        found.hairpins.extend(Fields(&key).ip(family));
    }
    Ok(())
}

/// The remembered clients whose endpoint their frontend has no more.
pub fn stale_clients(
    told: Vec<Told>,
    family: Family,
    lost: &[(Key, Vec<SocketAddr>)],
) -> Vec<Vec<u8>> {
    let is_stale = |(key, data, _): &Told| {
        let mut fields = Fields(key);
        fields.ip(family)?;
        let used = fields.key(
            family,
            Lane {
                scope: Scope::Everyone,
                by_address: true,
            },
        )?;
        let endpoint = Fields(data.as_ref()?).endpoint(family)?;
        let same = |k: &Key| {
            k.protocol == used.protocol
                && k.port == used.port
                && (k.ip == used.ip || k.ip.is_unspecified())
        };
        Some(
            lost.iter()
                .any(|(key, endpoints)| same(key) && endpoints.contains(&endpoint)),
        )
    };
    told.into_iter()
        .filter(|t| is_stale(t) == Some(true))
        .map(|(key, ..)| key)
        .collect()
}

/// The network from a first to a last address.
fn subnet(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (bits, max) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((u32::from(a) ^ u32::from(b)).leading_zeros(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => ((u128::from(a) ^ u128::from(b)).leading_zeros(), 128),
        _ => return None,
    };
    IpNet::new(first, bits.min(max) as u8).ok()
}

/// What to delete and what to add to get from one state to another.
pub fn difference(old: Elements, mut new: Elements) -> (Elements, Elements) {
    let mut gone = Elements::new();
    for (set, elements) in old {
        let mut wanted = new.get_mut(&set);
        for (key, value) in elements {
            match &mut wanted {
                Some(wanted) if wanted.get(&key) == Some(&value) => drop(wanted.remove(&key)),
                _ => drop(gone.entry(set.clone()).or_default().insert(key, value)),
            }
        }
    }
    (gone, new)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn roundtrip(frontends: Vec<(Key, Frontend)>) {
        for v4 in [true, false] {
            let family = Family { v4 };
            let mine: Vec<_> = frontends
                .iter()
                .filter(|(k, _)| Family::of(k.ip) == family)
                .collect();
            let mut elements = Elements::new();
            mine.iter().for_each(|(k, f)| encode(k, f, &mut elements));
            let mut found = Found::default();
            let read = |set: &str| {
                let told =
                    elements
                        .get(set)
                        .into_iter()
                        .flatten()
                        .map(|(key, value)| match value {
                            Value::Bytes(b) => (key.clone(), Some(b.clone()), None),
                            Value::UpTo(end) => (key.clone(), None, Some(end.clone())),
                            _ => (key.clone(), None, None),
                        });
                Ok::<_, ()>(told.collect())
            };
            let classes = mine
                .iter()
                .filter_map(|(k, f)| Some((Lane::of(k), class(f)?)))
                .collect();
            decode(family, &classes, &mut found, read).unwrap();
            assert_eq!(found.frontends.len(), mine.len());
            for (key, frontend) in mine {
                assert_eq!(found.frontends[key].as_ref(), frontend);
            }
        }
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

    #[test]
    fn the_kernel_tells_back_what_was_installed() {
        roundtrip(vec![
            (
                key(Scope::Everyone, "10.43.0.1", 443),
                forward(&["10.0.0.2:6443", "10.0.0.1:6443"], 86400, &[]),
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
            (
                key(Scope::Everyone, "fd00::1", 80),
                forward(&["[fd01::9]:80"], 0, &["fd00::/8"]),
            ),
            (
                key(Scope::Everyone, "::", 80),
                forward(&["[fd01::9]:80"], 3, &[]),
            ),
        ]);
    }

    #[test]
    fn one_more_endpoint_costs_three_elements_however_many_there_are() {
        let key = key(Scope::Everyone, "10.43.0.1", 443);
        let (mut old, mut new) = (Elements::new(), Elements::new());
        encode(
            &key,
            &forward(&["10.0.0.1:1", "10.0.0.2:1"], 0, &[]),
            &mut old,
        );
        encode(
            &key,
            &forward(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], 0, &[]),
            &mut new,
        );
        let (gone, added) = difference(old, new);
        let count = |e: &Elements| e.values().map(BTreeMap::len).sum::<usize>();
        assert_eq!(
            (count(&gone), count(&added)),
            (1, 2),
            "the class changes, the endpoint comes"
        );
    }

    #[test]
    fn the_name_of_a_class_says_it_all() {
        for lane in LANES {
            for class in [
                Class::Drop,
                Class::Forward {
                    endpoints: 1,
                    affinity: 0,
                    masquerade: false,
                },
                Class::Forward {
                    endpoints: crate::services::MAX_ENDPOINTS as u32,
                    affinity: 86_400,
                    masquerade: true,
                },
            ] {
                let name = class.name(lane);
                assert!(name.len() < 32, "{name}");
                assert_eq!(Class::parse(&name), Some((lane, class)));
            }
        }
        assert_eq!(
            ["ep_a", "to_a", "to_q_1", "to_a_x", "drop_", "hairpin"].map(Class::parse),
            [None; 6]
        );
    }
}
