//! Policies in our table. Each group is a set of pods, a set of what they may do, and a chain.
//!
//! ```text
//! forward ─ policies ┬ egress:  from a pod of out_x? ─ out_x: allowed? back, else drop
//!                    └ ingress: to a pod of in_y?    ─ in_y:  allowed? back, else drop
//! ```
//!
//! Only connections that open come here, after services were resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::Nftables;
use super::batch::{self, Batch, SetSpec, Value};
use super::expr::{R0, Verdict};
use super::rules::{Writer, concat};
use super::schema::{Family, HAIRPIN};
use super::uapi::{chain, meta, msg, set, shown};
use crate::link::octets;
use crate::netlink::message::{attribute, text};
use crate::policies::{Cell, Group, Groups, PREFIXES, direction_of};
use crate::policy::Direction;

/// Set of the pods of a group.
fn pods(group: &str) -> String {
    format!("{group}_pods")
}

/// Set of what they may do.
fn allowed(group: &str) -> String {
    format!("{group}_may")
}

fn chain_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// Adds the chains that groups hang on.
pub fn base(batch: &mut Batch, writer: &Writer<'_>) {
    for (direction, _) in PREFIXES {
        batch.add_chain(chain_of(direction), None);
    }
    batch.add_chain("policies", None);
    batch.add_rule("policies", |r| {
        // Nobody can be kept from talking to itself.
        writer.source(r, R0);
        writer.destination(r, R0 + writer.family.words());
        r.is_in(HAIRPIN, R0, false).verdict(Verdict::Return);
    });
    for direction in [Direction::Egress, Direction::Ingress] {
        batch.add_rule("policies", |r| {
            r.verdict(Verdict::Jump(chain_of(direction)));
        });
    }
}

fn pod_elements(group: &Group) -> BTreeMap<Vec<u8>, Value> {
    let element = |ip: &IpAddr| (octets(*ip), Value::None);
    group.pods.iter().map(element).collect()
}

fn cell_elements<'a>(cells: impl Iterator<Item = &'a Cell>) -> BTreeMap<Vec<u8>, Value> {
    let key = |ip: IpAddr, protocol: u8, port: u16| {
        let [a, b] = port.to_be_bytes();
        [octets(ip), vec![protocol, 0, 0, 0, a, b, 0, 0]].concat()
    };
    cells
        .map(|c| {
            (
                key(c.peers.0, c.protocols.0, c.ports.0),
                Value::UpTo(key(c.peers.1, c.protocols.1, c.ports.1)),
            )
        })
        .collect()
}

fn add(batch: &mut Batch, set: &str, elements: &BTreeMap<Vec<u8>, Value>) {
    batch.add_elements(set, elements.iter().map(|(k, v)| (k.as_slice(), v)));
}

fn delete(batch: &mut Batch, set: &str, elements: &BTreeMap<Vec<u8>, Value>) {
    batch.delete_elements(set, elements.iter().map(|(k, v)| (k.as_slice(), v)));
}

fn add_group(batch: &mut Batch, family: Family, name: &str, group: &Group) {
    let writer = Writer { family, prefix: "" };
    let address = family.address_len();
    batch.add_set(
        &pods(name),
        &SetSpec {
            key_type: family.shown(),
            key_len: address,
            ..SetSpec::default()
        },
    );
    batch.add_set(
        &allowed(name),
        &SetSpec {
            flags: set::F_INTERVAL | set::F_CONCAT,
            key_type: concat(&[family.shown(), shown::PROTO, shown::PORT]),
            key_len: address + 8,
            fields: vec![address, 1, 2],
            ..SetSpec::default()
        },
    );
    batch.add_chain(name, None);
    batch.add_rule(name, |r| {
        match direction_of(name) {
            Some(Direction::Egress) => writer.destination(r, R0),
            _ => writer.source(r, R0),
        }
        let at = R0 + family.words();
        r.meta(meta::L4PROTO, at)
            .dport(at + 1)
            .is_in(&allowed(name), R0, false)
            .verdict(Verdict::Return);
    });
    batch.add_rule(name, |r| {
        r.verdict(Verdict::Drop);
    });
    add(batch, &pods(name), &pod_elements(group));
    add(batch, &allowed(name), &cell_elements(group.cells.iter()));
}

/// Leads pods to the chains of their groups, anew.
fn lead(batch: &mut Batch, family: Family, groups: &Groups) {
    let writer = Writer { family, prefix: "" };
    for (direction, _) in PREFIXES {
        batch.flush_chain(chain_of(direction));
        for name in groups.keys().filter(|n| direction_of(n) == Some(direction)) {
            batch.add_rule(chain_of(direction), |r| {
                match direction {
                    Direction::Egress => writer.source(r, R0),
                    Direction::Ingress => writer.destination(r, R0),
                }
                r.is_in(&pods(name), R0, false).verdict(Verdict::Goto(name));
            });
        }
    }
}

/// Writes the way from one state to another.
pub fn change(batch: &mut Batch, family: Family, old: &Groups, new: &Groups) {
    let names = |g: &Groups| g.keys().cloned().collect::<BTreeSet<_>>();
    let (before, after) = (names(old), names(new));
    for name in before.intersection(&after) {
        let (Some(old), Some(new)) = (old.get(name), new.get(name)) else {
            continue;
        };
        let without = |a: BTreeMap<Vec<u8>, Value>, b: &BTreeMap<Vec<u8>, Value>| {
            let kept = |(k, v): &(Vec<u8>, Value)| b.get(k) != Some(v);
            a.into_iter().filter(kept).collect::<BTreeMap<_, _>>()
        };
        let (was, is) = (pod_elements(old), pod_elements(new));
        delete(batch, &pods(name), &without(was.clone(), &is));
        add(batch, &pods(name), &without(is, &was));
        let gone = cell_elements(old.cells.difference(&new.cells));
        delete(batch, &allowed(name), &gone);
        let come = cell_elements(new.cells.difference(&old.cells));
        add(batch, &allowed(name), &come);
    }
    if before == after {
        return;
    }
    for name in after.difference(&before) {
        if let Some(group) = new.get(name) {
            add_group(batch, family, name, group);
        }
    }
    lead(batch, family, new);
    for name in before.difference(&after) {
        drop_group(batch, name);
    }
}

fn drop_group(batch: &mut Batch, name: &str) {
    batch.flush_chain(name);
    batch.delete_chain(name);
    batch.delete_set(&pods(name));
    batch.delete_set(&allowed(name));
}

impl Nftables {
    /// The names of the groups that the kernel has.
    fn group_names(&mut self, family: Family) -> io::Result<BTreeSet<String>> {
        let table = self.config.table.clone();
        let mut names = BTreeSet::new();
        let question = batch::message(msg::GETCHAIN, 0, family.nfproto());
        let each = |_: u16, payload: &[u8]| {
            let Some(attrs) = payload.get(4..) else {
                return;
            };
            let name = attribute(attrs, chain::NAME).map(text).unwrap_or("");
            if attribute(attrs, chain::TABLE).map(text) == Some(table.as_str())
                && direction_of(name).is_some()
            {
                names.insert(name.to_owned());
            }
        };
        match self.socket.query(question, true, each) {
            // Another table changed meanwhile: what we saw of ours stands.
            Err(e) if e.raw_os_error() != Some(libc::EINTR) => Err(e),
            _ => Ok(names),
        }
    }

    /// Makes exactly these groups exist in a family.
    pub(super) fn set_groups(
        &mut self,
        family: Family,
        groups: Groups,
    ) -> Result<(), (String, io::Error)> {
        let mut batch = Batch::new(family.nfproto(), &self.config.table);
        match self.groups.get(&family) {
            Some(old) => change(&mut batch, family, old, &groups),
            None => {
                // An earlier run left them: what they hold is not asked, they are replaced, all in one transaction.
                let names = self
                    .group_names(family)
                    .map_err(|e| ("listing policies".to_owned(), e))?;
                lead(&mut batch, family, &Groups::new());
                for name in &names {
                    drop_group(&mut batch, name);
                }
                change(&mut batch, family, &Groups::new(), &groups);
            }
        }
        // Unknown until the kernel says yes.
        self.groups.remove(&family);
        batch.commit(&mut self.socket)?;
        self.groups.insert(family, groups);
        Ok(())
    }
}
