//! Forgetting UDP flows that would stick to endpoints that are gone: a flow keeps its translation as long as packets come, and UDP never ends by itself.

use std::io;
use std::net::SocketAddr;

use crate::netlink::message::{attribute, attributes};
use crate::netlink::{Message, Socket};
use crate::service::Protocol;
use crate::services::{Change, Frontend, Key};

const SUBSYS_CTNETLINK: u16 = 1;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_ZONE: u16 = 18;
const UDP: u8 = 17;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ips = attribute(bytes, CTA_TUPLE_IP)?;
    let proto = attribute(bytes, CTA_TUPLE_PROTO)?;
    if attribute(proto, 1)? != [UDP] {
        return None;
    }
    // Attributes 1 and 2 are IPv4 source and destination, 3 and 4 IPv6.
    let ip = |v4, v6| {
        attributes(ips)
            .find(|(k, _)| *k == v4 || *k == v6)
            .and_then(|(_, v)| crate::link::ip_from(v))
    };
    let port = |kind| {
        attribute(proto, kind)
            .and_then(|v| v.try_into().ok())
            .map(u16::from_be_bytes)
    };
    Some(Tuple {
        source: SocketAddr::new(ip(1, 3)?, port(2)?),
        destination: SocketAddr::new(ip(2, 4)?, port(3)?),
    })
}

/// The frontends of a transaction whose flows must be looked at, with the endpoints that flows may keep.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    frontends: Vec<(Key, Vec<SocketAddr>)>,
}

impl Stale {
    /// UDP frontends that lost an endpoint, or that had none and whose flows passed by untranslated.
    pub fn of<'a>(
        changes: impl IntoIterator<Item = &'a Change>,
        endpoints: impl Fn(&Key) -> Vec<SocketAddr>,
    ) -> Stale {
        let lost = |change: &&Change| {
            let side = |f: &Option<std::sync::Arc<Frontend>>| {
                f.as_ref()
                    .map(|f| f.endpoints().to_vec())
                    .unwrap_or_default()
            };
            let (old, new) = (side(&change.old), side(&change.new));
            change.key.protocol == Protocol::Udp
                && (old.iter().any(|e| !new.contains(e)) || (old.is_empty() && !new.is_empty()))
        };
        Stale {
            frontends: changes
                .into_iter()
                .filter(lost)
                .map(|c| (c.key, endpoints(&c.key)))
                .collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Whether a flow is to be forgotten.
    fn covers(&self, original: &Tuple, reply: &Tuple) -> bool {
        let Some((_, keep)) = self.frontends.iter().find(|(key, _)| {
            key.port == original.destination.port()
                && key.ip.is_ipv4() == original.destination.is_ipv4()
                && match key.ip.is_unspecified() {
                    // Only flows that were translated: others may lead to the same port of somebody else.
                    true => reply.source.ip() != original.destination.ip(),
                    false => key.ip == original.destination.ip(),
                }
        }) else {
            return false;
        };
        !keep.contains(&reply.source)
    }
}

/// Opens a socket for [`forget`] in the current namespace.
pub fn open() -> io::Result<Socket> {
    Socket::open(libc::NETLINK_NETFILTER)
}

/// Deletes the flows of these frontends that lead to nobody any more. Returns how many.
pub fn forget(socket: &mut Socket, stale: &Stale) -> io::Result<usize> {
    let mut messages = Vec::new();
    for v4 in [true, false] {
        if !stale
            .frontends
            .iter()
            .any(|(key, _)| key.ip.is_ipv4() == v4)
        {
            continue;
        }
        let family = (if v4 { libc::AF_INET } else { libc::AF_INET6 }) as u8;
        let question = Message::new(SUBSYS_CTNETLINK << 8 | CT_GET, 0, &[family, 0, 0, 0]);
        socket.query(question, true, |_, payload| {
            let Some(attrs) = payload.get(4..) else {
                return;
            };
            let sides = (
                attribute(attrs, CTA_TUPLE_ORIG),
                attribute(attrs, CTA_TUPLE_REPLY),
            );
            let (Some(original_bytes), Some(reply_bytes)) = sides else {
                return;
            };
            let (Some(original), Some(reply)) = (tuple(original_bytes), tuple(reply_bytes)) else {
                return;
            };
            if stale.covers(&original, &reply) {
                let mut m = Message::new(SUBSYS_CTNETLINK << 8 | CT_DELETE, 0, &[family, 0, 0, 0]);
                m.nest(CTA_TUPLE_ORIG, |m| {
                    m.raw(original_bytes);
                });
                if let Some(zone) = attribute(attrs, CTA_ZONE) {
                    m.attr(CTA_ZONE, zone);
                }
                messages.push(m);
            }
        })?;
    }
    let count = messages.len();
    // In portions, as every answer takes room in the socket.
    for portion in messages.chunks_mut(64) {
        for result in socket.pipeline(portion)? {
            match result {
                // It ended by itself.
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::services::Scope;

    fn key(ip: &str, protocol: Protocol) -> Key {
        Key {
            scope: Scope::Everyone,
            ip: ip.parse().unwrap(),
            protocol,
            port: 53,
        }
    }

    fn to(endpoints: &[&str]) -> Option<Arc<Frontend>> {
        let endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        Some(Arc::new(Frontend::Forward {
            endpoints,
            masquerade: false,
            affinity: 0,
            sources: vec![],
        }))
    }

    fn flow(from: &str, to: &str) -> Tuple {
        Tuple {
            source: from.parse().unwrap(),
            destination: to.parse().unwrap(),
        }
    }

    #[test]
    fn flows_to_endpoints_that_are_gone_are_forgotten_and_others_kept() {
        let change = Change {
            key: key("10.43.0.10", Protocol::Udp),
            old: to(&["10.42.0.2:53", "10.42.0.3:53"]),
            new: to(&["10.42.0.3:53"]),
        };
        let stale = Stale::of([&change], |_| vec!["10.42.0.3:53".parse().unwrap()]);
        let original = flow("10.42.0.9:999", "10.43.0.10:53");
        assert!(stale.covers(&original, &flow("10.42.0.2:53", "10.42.0.9:999")));
        assert!(!stale.covers(&original, &flow("10.42.0.3:53", "10.42.0.9:999")));
        assert!(!stale.covers(
            &flow("10.42.0.9:999", "10.43.0.11:53"),
            &flow("10.42.0.2:53", "10.42.0.9:999")
        ));
    }

    #[test]
    fn tcp_and_growing_services_cost_nothing() {
        let none = |_: &Key| vec![];
        let tcp = Change {
            key: key("10.43.0.10", Protocol::Tcp),
            old: to(&["10.42.0.2:53"]),
            new: None,
        };
        let grown = Change {
            key: key("10.43.0.10", Protocol::Udp),
            old: to(&["10.42.0.2:53"]),
            new: to(&["10.42.0.2:53", "10.42.0.3:53"]),
        };
        assert!(Stale::of([&tcp, &grown], none).is_empty());
        let first = Change {
            key: key("10.43.0.10", Protocol::Udp),
            old: None,
            new: to(&["10.42.0.2:53"]),
        };
        assert!(!Stale::of([&first], none).is_empty());
    }
}
