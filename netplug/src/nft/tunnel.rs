//! Who may send to the overlay: a table of its own for both IP families, as peers may have addresses of another family than pods.

use std::io;

use super::Nftables;
use super::batch::{Batch, Hook, SetSpec, Value};
use super::expr::{EQ, R0, Rule, Verdict};
use super::schema::Family;
use super::uapi::meta;
use crate::firewall::Tunnel;
use crate::link::octets;

/// `NFPROTO_INET`
const INET: u8 = 1;
const CHAIN: &str = "tunnel";

fn senders(family: Family) -> &'static str {
    if family.v4 { "senders4" } else { "senders6" }
}

/// Matches what is meant for the overlay.
fn wrapped<'a, 'b>(r: &'a mut Rule<'b>, tunnel: &Tunnel) -> &'a mut Rule<'b> {
    let network = tunnel.network.to_be_bytes();
    r.meta(meta::L4PROTO, R0)
        .compare(EQ, R0, &[17])
        .dport(R0)
        .compare(EQ, R0, &tunnel.port.to_be_bytes())
        .vxlan_network(R0)
        .compare(EQ, R0, &network[1..])
}

/// Writes the table, in place of one that is there.
fn write(batch: &mut Batch, tunnel: Option<&Tunnel>) {
    batch.add_table();
    batch.delete_table();
    let Some(tunnel) = tunnel else { return };
    batch.add_table();
    // Before the kernel's VXLAN gets to see it.
    let hook = Hook {
        kind: "filter",
        number: 1,
        priority: -10,
    };
    batch.add_chain(CHAIN, Some(hook));
    for family in [true, false].map(|v4| Family { v4 }) {
        let set = senders(family);
        let spec = SetSpec {
            key_type: family.shown(),
            key_len: family.address_len(),
            ..SetSpec::default()
        };
        batch.add_set(set, &spec);
        let of_family = tunnel
            .senders
            .iter()
            .filter(|ip| Family::of(**ip) == family);
        let elements: Vec<Vec<u8>> = of_family.map(|ip| octets(*ip)).collect();
        batch.add_elements(set, elements.iter().map(|ip| (ip.as_slice(), &Value::None)));
        batch.add_rule(CHAIN, |r| {
            r.meta(meta::NFPROTO, R0)
                .compare(EQ, R0, &[family.nfproto()]);
            wrapped(r, tunnel)
                .network(family.source_offset(), family.address_len(), R0)
                .is_in(set, R0, true)
                .verdict(Verdict::Drop);
        });
    }
}

impl Nftables {
    pub(super) fn write_tunnel(
        &mut self,
        tunnel: Option<&Tunnel>,
    ) -> Result<(), (String, io::Error)> {
        let mut batch = Batch::new(INET, &self.config.table);
        write(&mut batch, tunnel);
        batch.commit(&mut self.socket)
    }
}
