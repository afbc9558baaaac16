//! What the packet filter of a box is to hold, and what it holds as far as we know.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use crate::Result;
use crate::conntrack::{self, Stale};
use crate::firewall::{Firewall, Transaction, Tunnel};
use crate::ledger::Ledger;
use crate::netlink::Socket;
use crate::peers::Ways;
use crate::policy::PolicyGroup;
use crate::services::{Book, Key, Scope};

#[derive(Debug)]
pub(super) struct State {
    pub ledger: Ledger,
    pub book: Book,
    pub firewall: Box<dyn Firewall>,
    /// The connection table in the namespace of the box.
    pub flows: Socket,
    /// Addresses that the firewall knows as pods that may meet themselves.
    pub hairpins: HashSet<IpAddr>,
    /// Whether [`Network::set_services`] was called: until then, what an earlier run installed and nobody claims is left alone.
    pub told: bool,
    /// What [`Network::set_policies`] was told.
    pub policies: Option<Vec<PolicyGroup>>,
    /// Who may send to the overlay; the outer `None`: not known yet.
    pub tunnel: Option<Option<Tunnel>>,
}

impl State {
    fn hairpin_changes(&self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let wanted: HashSet<IpAddr> = self
            .ledger
            .entries()
            .flat_map(|e| e.network.ips.iter().copied())
            .collect();
        (
            wanted.difference(&self.hairpins).copied().collect(),
            self.hairpins.difference(&wanted).copied().collect(),
        )
    }

    /// Brings these frontends, and the pods, to the kernel. If the kernel refuses, somebody else changed our table: starts from what is there.
    pub fn apply(&mut self, keys: &BTreeSet<Key>) -> Result<()> {
        match self.send(keys) {
            Err(error) => {
                tracing::warn!(
                    "the packet filter is not as we left it ({error}: {:?}); comparing and repairing it",
                    error.errno()
                );
                self.recover(false)
            }
            done => done,
        }
    }

    fn send(&mut self, keys: &BTreeSet<Key>) -> Result<()> {
        let (add_hairpins, remove_hairpins) = self.hairpin_changes();
        let transaction = Transaction {
            changes: self.book.changes(keys),
            add_hairpins,
            remove_hairpins,
        };
        if transaction.is_empty() {
            return Ok(());
        }
        self.firewall.apply(&transaction)?;
        self.hairpins.extend(&transaction.add_hairpins);
        self.hairpins
            .retain(|ip| !transaction.remove_hairpins.contains(ip));
        let changes = transaction.changes.clone();
        self.book.done(transaction.changes);
        let stale = Stale::of(&changes, |key| {
            let both = [Scope::External, Scope::Everyone].map(|scope| Key { scope, ..*key });
            both.iter()
                .filter_map(|k| self.book.current().get(k))
                .flat_map(|f| f.endpoints().to_vec())
                .collect()
        });
        if !stale.is_empty()
            && let Err(error) = conntrack::forget(&mut self.flows, &stale)
        {
            tracing::warn!(
                "UDP flows to endpoints that are gone may linger for minutes: the connection table could not be cleaned: {error}"
            );
        }
        Ok(())
    }

    /// Lets the peers of the overlay, and nobody else, send to it.
    pub fn set_tunnel(&mut self, ways: &Ways) -> Result<()> {
        let tunnel = ways.tunnel();
        if !ways.told() || self.tunnel.as_ref() == Some(&tunnel) {
            return Ok(());
        }
        self.firewall.set_tunnel(tunnel.as_ref())?;
        self.tunnel = Some(tunnel);
        Ok(())
    }

    /// Compares everything.
    pub fn settle(&mut self) -> Result<()> {
        let keys = if self.told {
            self.book.keys()
        } else {
            self.book.claimed()
        };
        self.apply(&keys)
    }

    /// Asks the kernel what is there and goes on from that.
    pub fn recover(&mut self, anew: bool) -> Result<()> {
        let found = self.firewall.open(anew)?;
        if let Some(groups) = &self.policies {
            self.firewall.set_policies(groups)?;
        }
        if let Some(tunnel) = self.tunnel.as_ref().filter(|_| anew) {
            self.firewall.set_tunnel(tunnel.as_ref())?;
        }
        self.book.installed(found.frontends);
        self.hairpins = found.hairpins;
        let keys = if self.told {
            self.book.keys()
        } else {
            self.book.claimed()
        };
        self.send(&keys)
    }
}
