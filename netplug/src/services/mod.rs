//! Services as frontends: what the packet sees. Pure: services in, plan out; no kernel here.

mod book;
mod compile;

pub use book::{Book, Change, Owner};
#[cfg(test)]
pub use compile::MAX_ENDPOINTS;
pub use compile::{host_ports, service};

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::service::Protocol;

/// Who is answered by a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Clients outside the cluster; looked up first.
    External,
    /// Whoever is left.
    Everyone,
}

/// Identity of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub scope: Scope,
    /// The unspecified address stands for every address of the box (node ports, host ports).
    pub ip: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// What happens to a new connection to a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frontend {
    /// One of the endpoints, at random, gets it.
    Forward {
        endpoints: Vec<SocketAddr>,
        /// The endpoint sees an address of the box as the client.
        masquerade: bool,
        /// Seconds for which a client keeps its endpoint; 0: not at all.
        affinity: u32,
        /// If not empty, only these clients.
        sources: Vec<IpNet>,
    },
    /// Refused, visibly.
    Reject,
    /// Lost, silently: the client tries another box.
    Drop,
}

impl Frontend {
    /// The endpoints, if there are any.
    pub fn endpoints(&self) -> &[SocketAddr] {
        match self {
            Frontend::Forward { endpoints, .. } => endpoints,
            _ => &[],
        }
    }

    /// Equal for the packet: order says nothing.
    pub fn same(&self, other: &Frontend) -> bool {
        let order = |f: &Frontend| {
            let mut f = f.clone();
            if let Frontend::Forward {
                endpoints, sources, ..
            } = &mut f
            {
                endpoints.sort_unstable();
                sources.sort_unstable();
            }
            f
        };
        order(self) == order(other)
    }
}
