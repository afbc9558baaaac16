//! A transaction: messages that the kernel takes all or none.

use std::io;

use super::expr::{Rule, write_value};
use super::uapi::{BATCH_BEGIN, BATCH_END, SUBSYS, chain, elem, msg, rule, set, table};
use crate::netlink::message::{ACK, APPEND, CREATE, EXCL};
use crate::netlink::{Message, Socket};

/// Room for elements in one message: attributes are limited to 64 KiB.
const MESSAGE_ROOM: usize = 48 * 1024;

/// `struct nfgenmsg`
pub fn header(family: u8, resource: u16) -> [u8; 4] {
    let [a, b] = resource.to_be_bytes();
    [family, 0, a, b]
}

/// A message of the nftables subsystem.
pub fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYS << 8 | kind, flags, &header(family, 0))
}

/// A hook of a base chain.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A set has keys only.
    None,
    Bytes(Vec<u8>),
    /// The key is the start of an interval that ends, inclusively, here.
    UpTo(Vec<u8>),
}

/// What a set holds.
#[derive(Clone, Debug, Default)]
pub struct SetSpec {
    pub flags: u32,
    pub key_type: u32,
    pub key_len: u32,
    /// `None`: a plain set.
    pub data: Option<(u32, u32)>,
    /// Length of each part of the key, for intervals of concatenations.
    pub fields: Vec<u32>,
    /// Upper bound for sets that the packet path fills.
    pub size: Option<u32>,
}

/// A transaction for one table.
pub struct Batch {
    family: u8,
    table: String,
    messages: Vec<(String, Message)>,
    sets: u32,
}

impl Batch {
    pub fn new(family: u8, table: &str) -> Self {
        Batch {
            family,
            table: table.to_owned(),
            messages: Vec::new(),
            sets: 0,
        }
    }

    fn push(&mut self, what: impl Into<String>, message: Message) {
        self.messages.push((what.into(), message));
    }

    pub fn add_table(&mut self) {
        let mut m = message(msg::NEWTABLE, CREATE, self.family);
        m.attr_str(table::NAME, &self.table);
        self.push("adding the table", m);
    }

    pub fn delete_table(&mut self) {
        let mut m = message(msg::DELTABLE, 0, self.family);
        m.attr_str(table::NAME, &self.table);
        self.push("deleting the table", m);
    }

    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let mut m = message(msg::NEWCHAIN, CREATE, self.family);
        m.attr_str(chain::TABLE, &self.table)
            .attr_str(chain::NAME, name);
        if let Some(hook) = hook {
            m.nest(chain::HOOK, |m| {
                m.attr_be32(chain::HOOK_NUM, hook.number)
                    .attr_be32(chain::HOOK_PRIORITY, hook.priority as u32);
            });
            m.attr_be32(chain::POLICY, 1)
                .attr_str(chain::TYPE, hook.kind);
        }
        self.push(format!("adding chain {name}"), m);
    }

    pub fn add_rule(&mut self, chain: &str, write: impl FnOnce(&mut Rule<'_>)) {
        let mut m = message(msg::NEWRULE, CREATE | APPEND, self.family);
        m.attr_str(rule::TABLE, &self.table)
            .attr_str(rule::CHAIN, chain);
        m.nest(rule::EXPRESSIONS, |m| write(&mut Rule(m)));
        self.push(format!("adding a rule to chain {chain}"), m);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        let mut m = message(msg::DELRULE, 0, self.family);
        m.attr_str(rule::TABLE, &self.table)
            .attr_str(rule::CHAIN, name);
        self.push(format!("emptying chain {name}"), m);
    }

    pub fn delete_chain(&mut self, name: &str) {
        let mut m = message(msg::DELCHAIN, 0, self.family);
        m.attr_str(chain::TABLE, &self.table)
            .attr_str(chain::NAME, name);
        self.push(format!("deleting chain {name}"), m);
    }

    pub fn delete_set(&mut self, name: &str) {
        let mut m = message(msg::DELSET, 0, self.family);
        m.attr_str(set::TABLE, &self.table)
            .attr_str(set::NAME, name);
        self.push(format!("deleting set {name}"), m);
    }

    pub fn add_set(&mut self, name: &str, spec: &SetSpec) {
        self.sets += 1;
        let mut m = message(msg::NEWSET, CREATE, self.family);
        m.attr_str(set::TABLE, &self.table)
            .attr_str(set::NAME, name)
            .attr_be32(set::ID, self.sets);
        let map = if spec.data.is_some() { set::F_MAP } else { 0 };
        m.attr_be32(set::FLAGS, spec.flags | map)
            .attr_be32(set::KEY_TYPE, spec.key_type)
            .attr_be32(set::KEY_LEN, spec.key_len);
        if let Some((kind, len)) = spec.data {
            m.attr_be32(set::DATA_TYPE, kind)
                .attr_be32(set::DATA_LEN, len);
        }
        if spec.flags & set::F_TIMEOUT != 0 {
            // Expired entries are ignored at once; sweeping them out may wait.
            m.attr_be32(set::GC_INTERVAL, 300_000);
        }
        if spec.size.is_some() || !spec.fields.is_empty() {
            m.nest(set::DESC, |m| {
                if let Some(size) = spec.size {
                    m.attr_be32(set::DESC_SIZE, size);
                }
                if !spec.fields.is_empty() {
                    m.nest(set::DESC_CONCAT, |m| {
                        for len in &spec.fields {
                            m.nest(elem::ELEM, |m| {
                                m.attr_be32(set::FIELD_LEN, *len);
                            });
                        }
                    });
                }
            });
        }
        self.push(format!("adding set {name}"), m);
    }

    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = (&'a [u8], &'a Value)>,
    ) {
        self.elements(
            msg::NEWSETELEM,
            CREATE | EXCL,
            "adding to set",
            set,
            elements,
        );
    }

    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = (&'a [u8], &'a Value)>,
    ) {
        self.elements(msg::DELSETELEM, 0, "deleting from set", set, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        what: &str,
        set: &str,
        elements: impl IntoIterator<Item = (&'a [u8], &'a Value)>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut m = message(kind, flags, self.family);
            m.attr_str(elem::LIST_TABLE, &self.table)
                .attr_str(elem::LIST_SET, set);
            m.nest(elem::LIST_ELEMENTS, |m| {
                while m.len() < MESSAGE_ROOM {
                    let Some((key, value)) = elements.next() else {
                        break;
                    };
                    m.nest(elem::ELEM, |m| {
                        write_value(m, elem::KEY, key);
                        match value {
                            Value::None => {}
                            Value::Bytes(bytes) => write_value(m, elem::DATA, bytes),
                            Value::UpTo(end) => write_value(m, elem::KEY_END, end),
                        }
                    });
                }
            });
            self.push(format!("{what} {set}"), m);
        }
    }

    /// A number that tells this transaction from others (FNV-1a: no secret).
    pub fn fingerprint(&self) -> u64 {
        let bytes = self.messages.iter().flat_map(|(_, m)| m.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Sends it all as one transaction. The error says which step was refused.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), (String, io::Error)> {
        let Some((_, last)) = self.messages.last_mut() else {
            return Ok(());
        };
        last.flag(ACK);
        let mut bytes =
            Vec::with_capacity(self.messages.iter().map(|(_, m)| m.len()).sum::<usize>() + 64);
        let first = socket.next();
        bytes.extend_from_slice(Message::new(BATCH_BEGIN, 0, &header(0, SUBSYS)).finish(first));
        for (_, m) in &mut self.messages {
            bytes.extend_from_slice(m.finish(socket.next()));
        }
        let last = first + self.messages.len() as u32;
        bytes.extend_from_slice(
            Message::new(BATCH_END, 0, &header(0, SUBSYS)).finish(socket.next()),
        );
        let failed = |e| ("talking to nftables".to_owned(), e);
        socket.send(&bytes).map_err(failed)?;
        let result = socket.acknowledged(first, last).map_err(failed)?;
        result.map_err(|(sequence, e)| {
            let step = sequence.wrapping_sub(first + 1) as usize;
            (
                self.messages
                    .get(step)
                    .map_or("starting the transaction", |(what, _)| what)
                    .to_owned(),
                e,
            )
        })
    }
}
