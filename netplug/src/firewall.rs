//! What the data plane asks of a packet filter: nftables, or iptables where that cannot be.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::iptables::Iptables;
use crate::nft::{self, Nftables, Watch};
use crate::policy::PolicyGroup;
use crate::services::{Change, Frontend, Key};
use crate::{Error, NetConfig, Result};

/// What a filter was found to hold when it was opened.
#[derive(Debug, Default)]
pub struct Found {
    pub frontends: HashMap<Key, Arc<Frontend>>,
    /// Addresses that are masqueraded when they talk to themselves through a service.
    pub hairpins: HashSet<IpAddr>,
}

/// Changes that become visible to packets all at once, or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    pub changes: Vec<Change>,
    pub add_hairpins: Vec<IpAddr>,
    pub remove_hairpins: Vec<IpAddr>,
}

impl Transaction {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.add_hairpins.is_empty() && self.remove_hairpins.is_empty()
    }
}

/// An overlay that believes what it is sent: only its peers may send to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// UDP port of VXLAN.
    pub port: u16,
    /// Identifier of the VXLAN network; others on the same port are none of ours.
    pub network: u32,
    /// Addresses of the peers, of both families.
    pub senders: BTreeSet<IpAddr>,
}

/// Which of the kernel's packet filters is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallKind {
    /// nftables by netlink: no program of the host is needed, and a change costs the same however many services there are.
    #[default]
    Nftables,
    /// The program `iptables` of the host and its companions.
    Iptables,
}

impl FirewallKind {
    /// Whether this box has what it needs.
    ///
    /// # Errors
    /// [`Error::Config`], which says what is missing and what to do.
    pub fn check(self) -> Result<()> {
        match self {
            FirewallKind::Nftables => Ok(()),
            FirewallKind::Iptables => crate::iptables::check(),
        }
    }
}

impl FromStr for FirewallKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<FirewallKind> {
        match text {
            "nftables" => Ok(FirewallKind::Nftables),
            "iptables" => Ok(FirewallKind::Iptables),
            other => Err(Error::Config(format!(
                "firewall {other:?}: want nftables or iptables"
            ))),
        }
    }
}

/// The packet filter that the configuration names, and what is left in the other one.
///
/// # Errors
/// The kernel's, or [`Error::Config`] where a program is missing.
pub fn open(config: &NetConfig) -> Result<(Box<dyn Firewall>, Found)> {
    let mut firewall: Box<dyn Firewall> = match config.firewall {
        FirewallKind::Nftables => Box::new(Nftables::new(config)?),
        FirewallKind::Iptables => Box::new(Iptables::new(config)?),
    };
    let found = firewall.open(false)?;
    match config.firewall {
        FirewallKind::Nftables => {
            if nft::has_iptables_chain(&format!("{}-", config.device_prefix())) {
                Iptables::new(config)?.remove()?;
            }
        }
        // Kernels without nftables have nothing to remove.
        FirewallKind::Iptables => {
            if nft::usable() {
                Nftables::new(config)?.remove()?;
            }
        }
    }
    Ok((firewall, found))
}

/// A packet filter that knows our base rules.
pub trait Firewall: Send + std::fmt::Debug {
    /// A subscription to what others do to our rules.
    fn watch(&self) -> Result<Watch>;
    /// Makes the base rules, or finds them; tells what is installed. Keeps what an earlier run installed, also when its base rules were other ones.
    /// `anew`: makes the rules again also if they seem to be there.
    fn open(&mut self, anew: bool) -> Result<Found>;
    /// Applies changes. Their `old` sides are what is installed. After an error [`Firewall::open`] tells anew what is there.
    fn apply(&mut self, transaction: &Transaction) -> Result<()>;
    /// Makes exactly these policies hold, at once. What an earlier run installed holds until then, unless the rules had to be made anew.
    fn set_policies(&mut self, groups: &[PolicyGroup]) -> Result<()>;
    /// Drops what others than the peers send to the overlay; `None`: there is no overlay. What an earlier run installed holds until then.
    fn set_tunnel(&mut self, tunnel: Option<&Tunnel>) -> Result<()>;
    /// Removes everything that is ours.
    fn remove(&mut self) -> Result<()>;
}
