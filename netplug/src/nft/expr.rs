//! Expressions: the instructions of the nftables machine. Registers are 16 words of 4 bytes; a rule ends at the first expression that does not match.

use super::uapi::{data, expr, verdict};
use crate::netlink::Message;

/// The first 4-byte register (`NFT_REG32_00`).
pub const R0: u32 = 8;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
pub const EQ: u32 = 0;
pub const NE: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANDOM_FULLY: u32 = 1 << 4;
/// `RTN_LOCAL`
const LOCAL: u32 = 2;

/// A rule being written.
pub struct Rule<'a>(pub(super) &'a mut Message);

/// Where a packet goes on.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    Accept,
    Drop,
    Jump(&'a str),
    Goto(&'a str),
    /// Back to where the last jump came from.
    Return,
}

/// Writes a verdict as the value of a data attribute.
pub fn write_verdict(m: &mut Message, kind: u16, to: Verdict<'_>) {
    let (code, chain) = match to {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Jump(c) => (verdict::JUMP, Some(c)),
        Verdict::Goto(c) => (verdict::GOTO, Some(c)),
        Verdict::Return => (verdict::RETURN, None),
    };
    m.nest(kind, |m| {
        m.nest(data::VERDICT, |m| {
            m.attr_be32(data::VERDICT_CODE, code as u32);
            if let Some(chain) = chain {
                m.attr_str(data::VERDICT_CHAIN, chain);
            }
        });
    });
}

/// Writes bytes as the value of a data attribute.
pub fn write_value(m: &mut Message, kind: u16, value: &[u8]) {
    m.nest(kind, |m| {
        m.attr(data::VALUE, value);
    });
}

impl Rule<'_> {
    fn push(&mut self, name: &str, inside: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(expr::ELEM, |m| {
            m.attr_str(expr::NAME, name).nest(expr::DATA, inside);
        });
        self
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32, to: u32) -> &mut Self {
        self.push("payload", |m| {
            m.attr_be32(1, to)
                .attr_be32(2, base)
                .attr_be32(3, offset)
                .attr_be32(4, len);
        })
    }

    /// Loads from the IP header.
    pub fn network(&mut self, offset: u32, len: u32, to: u32) -> &mut Self {
        self.payload(NETWORK, offset, len, to)
    }

    /// Loads the destination port.
    pub fn dport(&mut self, to: u32) -> &mut Self {
        self.payload(TRANSPORT, 2, 2, to)
    }

    /// Loads the network identifier from a VXLAN header (RFC 7348).
    pub fn vxlan_network(&mut self, to: u32) -> &mut Self {
        self.payload(TRANSPORT, 12, 3, to)
    }

    /// Loads the flags of the TCP header.
    pub fn tcp_flags(&mut self, to: u32) -> &mut Self {
        self.payload(TRANSPORT, 13, 1, to)
    }

    /// Lowers the maximum segment size of a TCP handshake to what fits the route.
    pub fn clamp_mss(&mut self, scratch: u32) -> &mut Self {
        self.push("rt", |m| {
            m.attr_be32(1, scratch).attr_be32(2, 3);
        })
        .push("byteorder", |m| {
            // To network order.
            m.attr_be32(1, scratch)
                .attr_be32(2, scratch)
                .attr_be32(3, 1)
                .attr_be32(4, 2)
                .attr_be32(5, 2);
        })
        .push("exthdr", |m| {
            // Option 2 of the TCP header, its value of two bytes.
            m.attr(2, &[2])
                .attr_be32(3, 2)
                .attr_be32(4, 2)
                .attr_be32(6, 1)
                .attr_be32(7, scratch);
        })
    }

    pub fn meta(&mut self, key: u32, to: u32) -> &mut Self {
        self.push("meta", |m| {
            m.attr_be32(1, to).attr_be32(2, key);
        })
    }

    pub fn set_meta(&mut self, key: u32, from: u32) -> &mut Self {
        self.push("meta", |m| {
            m.attr_be32(2, key).attr_be32(3, from);
        })
    }

    pub fn ct(&mut self, key: u32, to: u32) -> &mut Self {
        self.push("ct", |m| {
            m.attr_be32(1, to).attr_be32(2, key);
        })
    }

    /// Loads from the first packet's side of the connection.
    pub fn ct_original(&mut self, key: u32, to: u32) -> &mut Self {
        self.push("ct", |m| {
            m.attr_be32(1, to).attr_be32(2, key).attr(3, &[0]);
        })
    }

    pub fn compare(&mut self, op: u32, register: u32, value: &[u8]) -> &mut Self {
        self.push("cmp", |m| {
            m.attr_be32(1, register).attr_be32(2, op);
            write_value(m, 3, value);
        })
    }

    /// `register = (register & mask) ^ xor`
    pub fn bitwise(&mut self, register: u32, mask: &[u8], xor: &[u8]) -> &mut Self {
        self.push("bitwise", |m| {
            m.attr_be32(1, register)
                .attr_be32(2, register)
                .attr_be32(3, mask.len() as u32);
            write_value(m, 4, mask);
            write_value(m, 5, xor);
        })
    }

    /// Matches if any of these bits is set.
    pub fn any_bit(&mut self, register: u32, bits: u32) -> &mut Self {
        self.bitwise(register, &bits.to_ne_bytes(), &[0; 4])
            .compare(NE, register, &[0; 4])
    }

    /// Matches if the set has the key that starts in this register (or, inverted, has it not).
    pub fn is_in(&mut self, set: &str, key: u32, inverted: bool) -> &mut Self {
        self.push("lookup", |m| {
            m.attr_str(1, set).attr_be32(2, key);
            if inverted {
                m.attr_be32(5, 1);
            }
        })
    }

    /// Loads what a map has for a key; register 0 takes verdicts.
    pub fn map(&mut self, set: &str, key: u32, to: u32) -> &mut Self {
        self.push("lookup", |m| {
            m.attr_str(1, set).attr_be32(2, key).attr_be32(3, to);
        })
    }

    /// Matches if the destination (`false`: the source) is an address of this box, or, inverted, if it is not.
    pub fn local(&mut self, destination: bool, op: u32, scratch: u32) -> &mut Self {
        self.push("fib", |m| {
            m.attr_be32(1, scratch)
                .attr_be32(2, 3)
                .attr_be32(3, if destination { 2 } else { 1 });
        })
        .compare(op, scratch, &LOCAL.to_ne_bytes())
    }

    /// A random number below `modulus`.
    pub fn random(&mut self, modulus: u32, to: u32) -> &mut Self {
        self.push("numgen", |m| {
            m.attr_be32(1, to)
                .attr_be32(2, modulus)
                .attr_be32(3, 1)
                .attr_be32(4, 0);
        })
    }

    /// Adds to a map from the packet path, or makes an entry live longer.
    pub fn remember(&mut self, set: &str, key: u32, value: u32, seconds: u32) -> &mut Self {
        self.push("dynset", |m| {
            m.attr_str(1, set)
                .attr_be32(3, 1)
                .attr_be32(4, key)
                .attr_be32(5, value)
                .attr_be64(6, u64::from(seconds) * 1000);
        })
    }

    pub fn load(&mut self, value: &[u8], to: u32) -> &mut Self {
        self.push("immediate", |m| {
            m.attr_be32(1, to);
            write_value(m, 2, value);
        })
    }

    pub fn verdict(&mut self, to: Verdict<'_>) -> &mut Self {
        self.push("immediate", |m| {
            m.attr_be32(1, 0);
            write_verdict(m, 2, to);
        })
    }

    /// Destination address and port from registers.
    pub fn dnat(&mut self, nfproto: u8, address: u32, port: u32) -> &mut Self {
        self.push("nat", |m| {
            m.attr_be32(1, 1)
                .attr_be32(2, u32::from(nfproto))
                .attr_be32(3, address)
                .attr_be32(4, address)
                .attr_be32(5, port)
                .attr_be32(6, port);
        })
    }

    /// Source address from a register, any free port.
    pub fn snat(&mut self, nfproto: u8, address: u32) -> &mut Self {
        self.push("nat", |m| {
            m.attr_be32(1, 0)
                .attr_be32(2, u32::from(nfproto))
                .attr_be32(3, address)
                .attr_be32(4, address)
                .attr_be32(7, RANDOM_FULLY);
        })
    }

    pub fn masquerade(&mut self) -> &mut Self {
        self.push("masq", |m| {
            m.attr_be32(1, RANDOM_FULLY);
        })
    }

    /// Answers with "port unreachable", which every protocol takes for a refused connection.
    pub fn reject(&mut self, v4: bool) -> &mut Self {
        self.push("reject", |m| {
            m.attr_be32(1, 0).attr(2, &[if v4 { 3 } else { 4 }]);
        })
    }
}
