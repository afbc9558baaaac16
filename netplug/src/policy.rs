//! What pods may talk to, as the kernel needs it: addresses, protocols, ports; nothing of the Kubernetes API.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Protocol;

/// Which of a pod's connections are meant, by who opens them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Others open them to the pod.
    Ingress,
    /// The pod opens them.
    Egress,
}

/// Pods of this box that are isolated in one direction, and what they may do all the same. An address belongs to at most one group of a direction;
/// pods in no group may do everything. Answers within allowed connections are always allowed, and so is what the box itself opens to its pods and
/// what pods open to the box: as upstream, a pod's own node is never shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyGroup {
    /// Identity of the group within its direction: a group that changes under the same key costs only what differs.
    pub key: String,
    pub direction: Direction,
    /// The addresses of the isolated pods, of both IP families.
    pub pods: BTreeSet<IpAddr>,
    /// Empty: nothing is allowed.
    pub allow: Vec<Allow>,
}

/// Something that is allowed. Others may overlap it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// The other end: who connects (ingress) or who is connected to (egress), after services were resolved to endpoints.
    pub peer: IpNet,
    /// Parts of `peer` that this does not allow.
    pub except: Vec<IpNet>,
    pub traffic: Traffic,
}

/// What kind of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Traffic {
    /// Every protocol.
    All,
    /// Destination ports of one protocol, both ends included.
    Ports {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
}
