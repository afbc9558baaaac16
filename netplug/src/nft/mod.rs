//! The nftables implementation of [`Firewall`], over netlink.

mod batch;
mod elements;
mod expr;
mod policy;
mod rules;
mod schema;
mod tunnel;
mod uapi;
mod watch;

pub use watch::{Removal, Watch};

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;

use batch::{Batch, Value};
use elements::{Elements, Told};
use schema::{CLIENTS, Class, Family, HAIRPIN, LANES, Lane};
use uapi::{chain, elem, msg, set, table};

use crate::firewall::{Firewall, Found, Transaction, Tunnel};
use crate::netlink::Socket;
use crate::netlink::message::{attribute, text};
use crate::policies::{self, Groups};
use crate::policy::PolicyGroup;
use crate::services::{Change, Frontend, Key};
use crate::{Error, NetConfig, Result};

/// Our tables, one per IP family of the pods.
#[derive(Debug)]
pub struct Nftables {
    config: NetConfig,
    socket: Socket,
    families: Vec<Family>,
    /// The class chains that exist. They are few and stay until the table is made anew.
    classes: BTreeMap<Family, HashSet<(Lane, Class)>>,
    /// The policies that are installed, where we know them.
    groups: BTreeMap<Family, Groups>,
}

/// Whether the kernel of this namespace speaks nftables and lets us.
pub fn usable() -> bool {
    let chains = || -> io::Result<()> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        socket.query(
            batch::message(msg::GETCHAIN, 0, Family { v4: true }.nfproto()),
            true,
            |_, _| {},
        )
    };
    chains().is_ok()
}

/// Whether the tables of iptables have a chain whose name begins so: an earlier run left it.
pub fn has_iptables_chain(prefix: &str) -> bool {
    let chains = || -> io::Result<bool> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        let mut found = false;
        socket.query(batch::message(msg::GETCHAIN, 0, 0), true, |_, payload| {
            let told = |kind| payload.get(4..).and_then(|p| attribute(p, kind)).map(text);
            found |= told(chain::TABLE) == Some("nat")
                && told(chain::NAME).is_some_and(|name| name.starts_with(prefix));
        })?;
        Ok(found)
    };
    chains().unwrap_or(false)
}

/// Names the chains of others that drop what no rule of theirs accepts on its way through the box, pods' packets included.
pub fn forward_drops() -> io::Result<Vec<String>> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    socket.query(batch::message(msg::GETCHAIN, 0, 0), true, |_, payload| {
        let (Some(family), Some(attrs)) = (payload.first(), payload.get(4..)) else {
            return;
        };
        let number = |bytes: &[u8], kind| {
            attribute(bytes, kind)
                .and_then(|v| v.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let name = |kind| attribute(attrs, kind).map(text).unwrap_or("");
        let hook = attribute(attrs, chain::HOOK).and_then(|h| number(h, chain::HOOK_NUM));
        // NFPROTO_INET, NFPROTO_IPV4 and NFPROTO_IPV6; NF_INET_FORWARD; NF_DROP.
        let is_ip = matches!(family, 1 | 2 | 10);
        if is_ip && hook == Some(2) && number(attrs, chain::POLICY) == Some(0) {
            found.push(format!(
                "{} of table {}",
                name(chain::NAME),
                name(chain::TABLE)
            ));
        }
    })?;
    Ok(found)
}

impl Nftables {
    pub fn new(config: &NetConfig) -> Result<Nftables> {
        let socket = Socket::open(libc::NETLINK_NETFILTER)
            .map_err(Error::kernel("opening a netfilter socket"))?;
        let families: BTreeSet<Family> = config
            .pod_cidrs
            .iter()
            .map(|n| Family::of(n.addr()))
            .collect();
        Ok(Nftables {
            config: config.clone(),
            socket,
            families: families.into_iter().collect(),
            classes: BTreeMap::new(),
            groups: BTreeMap::new(),
        })
    }

    /// The name of the stamp chain of our table, if the table exists; an empty name if it has none.
    fn stamp(&mut self, family: Family) -> Result<Option<String>> {
        let table = self.config.table.clone();
        let mut found = None;
        let mut question = batch::message(msg::GETTABLE, 0, family.nfproto());
        question.attr_str(table::NAME, &table);
        match self
            .socket
            .query(question, false, |_, _| found = Some(String::new()))
        {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other.map_err(Error::kernel(
                "looking for our nftables table (is CONFIG_NF_TABLES on?)",
            ))?,
        }
        let question = batch::message(msg::GETCHAIN, 0, family.nfproto());
        let each = |_: u16, payload: &[u8]| {
            let Some(attrs) = payload.get(4..) else {
                return;
            };
            let name = attribute(attrs, chain::NAME).map(text).unwrap_or("");
            if attribute(attrs, chain::TABLE).map(text) == Some(table.as_str())
                && name.starts_with("base_")
            {
                found = Some(name.to_owned());
            }
        };
        match self.socket.query(question, true, each) {
            // Another table changed meanwhile: what we saw of ours stands.
            Err(e) if e.raw_os_error() != Some(libc::EINTR) => {
                return Err(Error::kernel("listing nftables chains")(e));
            }
            _ => {}
        }
        Ok(found)
    }

    fn read(socket: &mut Socket, table: &str, family: Family, set: &str) -> io::Result<Vec<Told>> {
        for attempt in 0.. {
            let mut told = Vec::new();
            let mut question = batch::message(msg::GETSETELEM, 0, family.nfproto());
            question
                .attr_str(elem::LIST_TABLE, table)
                .attr_str(elem::LIST_SET, set);
            match socket.query(question, true, |_, payload| {
                elements::told(payload, &mut told)
            }) {
                // Somebody changed a table meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::EINTR) && attempt < 50 => continue,
                Err(e) => return Err(e),
                Ok(()) => return Ok(told),
            }
        }
        Ok(Vec::new())
    }

    fn read_family(
        &mut self,
        family: Family,
        found: &mut Found,
    ) -> io::Result<HashSet<(Lane, Class)>> {
        let mut classes = HashSet::new();
        let mut question = batch::message(msg::GETSET, 0, family.nfproto());
        question.attr_str(set::TABLE, &self.config.table);
        self.socket.query(question, true, |_, payload| {
            let name = payload
                .get(4..)
                .and_then(|p| attribute(p, set::NAME))
                .map(text);
            classes.extend(name.and_then(Class::parse));
        })?;
        let (socket, table) = (&mut self.socket, self.config.table.as_str());
        elements::decode(family, &classes, found, |set| {
            Self::read(socket, table, family, set)
        })?;
        Ok(classes)
    }

    /// Clients that were kept on an endpoint that is gone choose anew.
    fn forget_clients(&mut self, family: Family, transaction: &Transaction) -> io::Result<()> {
        let lost = |change: &Change| match change.old.as_deref() {
            Some(Frontend::Forward {
                endpoints,
                affinity: 1..,
                ..
            }) if Family::of(change.key.ip) == family => {
                let now = change.new.as_deref().map_or(&[][..], Frontend::endpoints);
                let lost: Vec<SocketAddr> = endpoints
                    .iter()
                    .filter(|e| !now.contains(e))
                    .copied()
                    .collect();
                (!lost.is_empty()).then_some((change.key, lost))
            }
            _ => None,
        };
        let lost: Vec<_> = transaction.changes.iter().filter_map(lost).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let told = Self::read(&mut self.socket, &self.config.table, family, CLIENTS)?;
        for key in elements::stale_clients(told, family, &lost) {
            // One by one, as each may expire meanwhile, which would undo a common transaction.
            let mut batch = Batch::new(family.nfproto(), &self.config.table);
            batch.delete_elements(CLIENTS, [(key.as_slice(), &Value::None)]);
            match batch.commit(&mut self.socket) {
                Err((_, e)) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the table of a family anew, with these frontends, in one transaction.
    fn rebuild(&mut self, family: Family, found: &Found) -> Result<()> {
        let mut batch = Batch::new(family.nfproto(), &self.config.table);
        batch.add_table();
        batch.delete_table();
        rules::base(&mut batch, &self.config, family);
        batch.add_chain(&rules::stamp(&self.config, family), None);
        let mut classes: HashSet<_> = LANES.into_iter().map(|lane| (lane, Class::Drop)).collect();
        let mut wanted = Elements::new();
        for (key, frontend) in found
            .frontends
            .iter()
            .filter(|(k, _)| Family::of(k.ip) == family)
        {
            add_class(&mut batch, &mut classes, family, key, frontend);
            elements::encode(key, frontend, &mut wanted);
        }
        for ip in found
            .hairpins
            .iter()
            .filter(|ip| Family::of(**ip) == family)
        {
            wanted
                .entry(HAIRPIN.into())
                .or_default()
                .insert(elements::hairpin(*ip), Value::None);
        }
        add_all(&mut batch, &wanted);
        batch.commit(&mut self.socket).map_err(refused)?;
        self.classes.insert(family, classes);
        self.groups.insert(family, Groups::new());
        Ok(())
    }
}

fn refused((step, source): (String, io::Error)) -> Error {
    Error::Kernel {
        doing: format!("nftables: {step}"),
        source,
    }
}

fn add_class(
    batch: &mut Batch,
    classes: &mut HashSet<(Lane, Class)>,
    family: Family,
    key: &Key,
    frontend: &Frontend,
) {
    let lane = Lane::of(key);
    let Some(class) = elements::class(frontend) else {
        return;
    };
    if classes.contains(&(lane, class)) {
        return;
    }
    let seconds = class.affinity();
    if seconds > 0
        && !classes
            .iter()
            .any(|(l, c)| l.by_address == lane.by_address && c.affinity() == seconds)
    {
        rules::affinity(batch, family, lane, seconds);
    }
    rules::class(batch, family, lane, class);
    classes.insert((lane, class));
}

fn add_all(batch: &mut Batch, elements: &Elements) {
    for (set, elements) in elements {
        batch.add_elements(set, elements.iter().map(|(k, v)| (k.as_slice(), v)));
    }
}

impl Firewall for Nftables {
    fn watch(&self) -> Result<Watch> {
        let table = self.config.table.clone();
        let watch = self.socket.port().and_then(|ourselves| {
            let matters =
                move |removal: &Removal<'_>| removal.by != ourselves && removal.table == table;
            Watch::open(Box::new(matters))
        });
        watch.map_err(Error::kernel("subscribing to changes of nftables"))
    }

    fn open(&mut self, anew: bool) -> Result<Found> {
        let mut all = Found::default();
        for family in self.families.clone() {
            let stamp = self.stamp(family)?;
            let mut found = Found::default();
            let layout = stamp.as_deref().and_then(schema::layout_of);
            let classes = if layout == Some(schema::LAYOUT) {
                self.read_family(family, &mut found).ok()
            } else {
                None
            };
            match classes {
                Some(classes) if !anew && stamp == Some(rules::stamp(&self.config, family)) => {
                    self.classes.insert(family, classes);
                    self.groups.remove(&family);
                }
                Some(_) => self.rebuild(family, &found)?,
                None => {
                    found = Found::default();
                    self.rebuild(family, &found)?;
                }
            }
            all.frontends.extend(found.frontends);
            all.hairpins.extend(found.hairpins);
        }
        Ok(all)
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<()> {
        for family in self.families.clone() {
            let mut batch = Batch::new(family.nfproto(), &self.config.table);
            let mut classes = self.classes.get(&family).cloned().unwrap_or_default();
            let (mut old, mut new) = (Elements::new(), Elements::new());
            for change in transaction
                .changes
                .iter()
                .filter(|c| Family::of(c.key.ip) == family)
            {
                if let Some(frontend) = &change.old {
                    elements::encode(&change.key, frontend, &mut old);
                }
                if let Some(frontend) = &change.new {
                    add_class(&mut batch, &mut classes, family, &change.key, frontend);
                    elements::encode(&change.key, frontend, &mut new);
                }
            }
            for (ips, side) in [
                (&transaction.remove_hairpins, &mut old),
                (&transaction.add_hairpins, &mut new),
            ] {
                for ip in ips.iter().filter(|ip| Family::of(**ip) == family) {
                    side.entry(HAIRPIN.into())
                        .or_default()
                        .insert(elements::hairpin(*ip), Value::None);
                }
            }
            let (gone, added) = elements::difference(old, new);
            for (set, elements) in &gone {
                batch.delete_elements(set, elements.iter().map(|(k, v)| (k.as_slice(), v)));
            }
            add_all(&mut batch, &added);
            batch.commit(&mut self.socket).map_err(refused)?;
            self.classes.insert(family, classes);
            self.forget_clients(family, transaction)
                .map_err(Error::kernel(
                    "forgetting clients of endpoints that are gone",
                ))?;
        }
        Ok(())
    }

    fn set_policies(&mut self, groups: &[PolicyGroup]) -> Result<()> {
        for family in self.families.clone() {
            self.set_groups(family, policies::compile(groups, family.v4))
                .map_err(refused)?;
        }
        Ok(())
    }

    fn set_tunnel(&mut self, tunnel: Option<&Tunnel>) -> Result<()> {
        self.write_tunnel(tunnel).map_err(refused)
    }

    fn remove(&mut self) -> Result<()> {
        self.write_tunnel(None).map_err(refused)?;
        for family in self.families.clone() {
            let mut batch = Batch::new(family.nfproto(), &self.config.table);
            batch.add_table();
            batch.delete_table();
            batch.commit(&mut self.socket).map_err(refused)?;
        }
        Ok(())
    }
}
