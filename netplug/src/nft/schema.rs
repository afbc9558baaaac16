//! Our table: its sets, its chains, its base rules. One table per IP family, all of the same shape.
//!
//! ```text
//! new connection ─ prerouting ─ from outside the cluster? ─ external ─ find_xa, find_xl ┐
//!                └ output ────────────────────────────────── services ─ find_a, find_l ──┤ which class set has the frontend?
//!                                                                                        ▼
//!   class chain (one per number of endpoints, affinity, masquerading):  dnat to (frontend, random number) through ep_*
//! ```
//!
//! A lane is one way to find a frontend: by address, protocol and port, or by protocol and port on any address of the box; for clients outside
//! or for everyone. There are as many classes as services differ in shape, a handful. Maps with verdicts would find the class in one step, but the
//! kernel walks all verdicts of a table at every change, and the cost of a change must not grow with the number of services; a map that leads to a
//! second map would do as well, but `nft list` before version 1.1 cannot show it and fails.

use std::net::IpAddr;

use super::uapi::shown;
use crate::services::{Key, Scope};

/// Changes whenever sets or the meaning of their elements change: a table of another layout is not adopted.
pub const LAYOUT: u32 = 1;

/// An IP family with what differs between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Family {
    pub v4: bool,
}

impl Family {
    pub fn of(ip: IpAddr) -> Family {
        Family { v4: ip.is_ipv4() }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub fn nfproto(self) -> u8 {
        if self.v4 { 2 } else { 10 }
    }

    pub fn address_len(self) -> u32 {
        if self.v4 { 4 } else { 16 }
    }

    /// Registers that an address takes.
    pub fn words(self) -> u32 {
        self.address_len() / 4
    }

    pub fn source_offset(self) -> u32 {
        if self.v4 { 12 } else { 8 }
    }

    pub fn destination_offset(self) -> u32 {
        self.source_offset() + self.address_len()
    }

    pub fn shown(self) -> u32 {
        if self.v4 { shown::IPV4 } else { shown::IPV6 }
    }
}

/// One way to find a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    pub scope: Scope,
    /// By destination address; else any address of the box.
    pub by_address: bool,
}

/// In the order of look-up.
pub const LANES: [Lane; 4] = [
    Lane {
        scope: Scope::External,
        by_address: true,
    },
    Lane {
        scope: Scope::External,
        by_address: false,
    },
    Lane {
        scope: Scope::Everyone,
        by_address: true,
    },
    Lane {
        scope: Scope::Everyone,
        by_address: false,
    },
];

impl Lane {
    pub fn of(key: &Key) -> Lane {
        Lane {
            scope: key.scope,
            by_address: !key.ip.is_unspecified(),
        }
    }

    fn name(self) -> &'static str {
        match (self.scope, self.by_address) {
            (Scope::External, true) => "xa",
            (Scope::External, false) => "xl",
            (Scope::Everyone, true) => "a",
            (Scope::Everyone, false) => "l",
        }
    }

    /// The chain that finds the class of a frontend.
    pub fn find(self) -> String {
        format!("find_{}", self.name())
    }

    /// Frontend and number → endpoint.
    pub fn endpoints(self) -> String {
        format!("ep_{}", self.name())
    }

    /// Frontends whose clients keep their endpoint for this long. Both scopes share it.
    pub fn sticky(self, seconds: u32) -> String {
        format!(
            "sticky_{}_{seconds}s",
            if self.by_address { "a" } else { "l" }
        )
    }

    /// Registers that a frontend takes.
    pub fn words(self, family: Family) -> u32 {
        2 + if self.by_address { family.words() } else { 0 }
    }

    pub fn shown(self, family: Family) -> Vec<u32> {
        let mut types = if self.by_address {
            vec![family.shown()]
        } else {
            vec![]
        };
        types.extend([shown::PROTO, shown::PORT]);
        types
    }
}

/// What a connection meets apart from its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Drop,
    Forward {
        endpoints: u32,
        affinity: u32,
        masquerade: bool,
    },
}

impl Class {
    /// The set of its frontends, and the chain where they lead.
    pub fn name(self, lane: Lane) -> String {
        let lane = lane.name();
        match self {
            Class::Drop => format!("drop_{lane}"),
            Class::Forward {
                endpoints,
                affinity,
                masquerade,
            } => {
                let sticky = if affinity > 0 {
                    format!("_for_{affinity}s")
                } else {
                    String::new()
                };
                format!(
                    "to_{lane}_{endpoints}{sticky}{}",
                    if masquerade { "_hidden" } else { "" }
                )
            }
        }
    }

    /// The inverse of [`Class::name`].
    pub fn parse(name: &str) -> Option<(Lane, Class)> {
        let (kind, rest) = name.split_once('_')?;
        let (lane, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let lane = LANES.into_iter().find(|l| l.name() == lane)?;
        match kind {
            "drop" => Some((lane, Class::Drop)),
            "to" => {
                let (rest, masquerade) = rest
                    .strip_suffix("_hidden")
                    .map_or((rest, false), |r| (r, true));
                let (endpoints, affinity) = match rest.split_once("_for_") {
                    Some((n, s)) => (n, s.strip_suffix('s')?.parse().ok()?),
                    None => (rest, 0),
                };
                Some((
                    lane,
                    Class::Forward {
                        endpoints: endpoints.parse().ok()?,
                        affinity,
                        masquerade,
                    },
                ))
            }
            _ => None,
        }
    }

    pub fn affinity(self) -> u32 {
        match self {
            Class::Drop => 0,
            Class::Forward { affinity, .. } => affinity,
        }
    }
}

/// Frontends that refuse.
pub const REJECT_ADDRESS: &str = "reject_a";
pub const REJECT_LOCAL: &str = "reject_l";
/// Client, and address, protocol and port that it used → endpoint, until it expires.
pub const CLIENTS: &str = "clients";
/// Pods that may meet themselves.
pub const HAIRPIN: &str = "hairpin";
/// Frontends that only some clients may use, and those clients.
pub const GUARDED: &str = "guarded";
pub const ALLOWED: &str = "allowed";

/// Name of the chain that says which rules the table has, by a fingerprint of them.
pub fn stamp(fingerprint: u64) -> String {
    format!("base_{LAYOUT}_{fingerprint:016x}")
}

/// The layout of a table by the name of its stamp chain.
pub fn layout_of(stamp: &str) -> Option<u32> {
    stamp.strip_prefix("base_")?.split('_').next()?.parse().ok()
}
