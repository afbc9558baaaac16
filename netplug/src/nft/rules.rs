//! The sets, chains and rules of our table, as they are sent.

use std::net::IpAddr;

use ipnet::IpNet;

use super::batch::{Batch, Hook, SetSpec};
use super::expr::{EQ, NE, R0, Rule, Verdict};
use super::schema::{
    self, ALLOWED, CLIENTS, Class, Family, GUARDED, HAIRPIN, LANES, Lane, REJECT_ADDRESS,
    REJECT_LOCAL,
};
use super::uapi::{ct, meta, set, shown};
use crate::NetConfig;
use crate::link::octets;
use crate::services::Scope;

/// Mark on packets whose source is to be hidden, as kube-proxy uses it.
const HIDE_MARK: u32 = 0x4000;

pub fn concat(parts: &[u32]) -> u32 {
    parts.iter().fold(0, |all, part| (all << 6) | part)
}

/// The name of the stamp chain of a table that this build makes with this configuration: other rules, other name.
pub fn stamp(config: &NetConfig, family: Family) -> String {
    let mut batch = Batch::new(family.nfproto(), &config.table);
    base(&mut batch, config, family);
    for lane in LANES {
        class(
            &mut batch,
            family,
            lane,
            Class::Forward {
                endpoints: 1,
                affinity: 1,
                masquerade: true,
            },
        );
        affinity(&mut batch, family, lane, 1);
    }
    schema::stamp(batch.fingerprint())
}

/// Writes the whole table without frontends and stamp.
pub fn base(batch: &mut Batch, config: &NetConfig, family: Family) {
    batch.add_table();
    sets(batch, family);
    let net = |nets: &[IpNet]| {
        nets.iter()
            .find(|n| n.addr().is_ipv4() == family.v4)
            .copied()
    };
    let gateway = net(&config.pod_cidrs).map(|n| crate::config::gateway(&n));
    let writer = Writer {
        family,
        prefix: config.device_prefix(),
    };
    let hook = |kind, number, priority| {
        Some(Hook {
            kind,
            number,
            priority,
        })
    };

    batch.add_chain("external", None);
    batch.add_chain("services", None);
    for lane in LANES {
        batch.add_chain(&lane.find(), None);
        class(batch, family, lane, Class::Drop);
        batch.add_rule(
            if lane.scope == Scope::External {
                "external"
            } else {
                "services"
            },
            |r| {
                if !lane.by_address {
                    r.local(true, EQ, R0);
                }
                r.verdict(Verdict::Jump(&lane.find()));
            },
        );
    }

    batch.add_chain("guard", hook("filter", 0, -110));
    batch.add_rule("guard", |r| {
        let lane = Lane {
            scope: Scope::Everyone,
            by_address: true,
        };
        writer.frontend(r, lane, R0);
        r.is_in(GUARDED, R0, false);
        writer.source(r, R0 + lane.words(family));
        r.is_in(ALLOWED, R0, true).verdict(Verdict::Drop);
    });

    if family.v4 {
        // Pod links may route 127.0.0.0/8 so that host ports work on localhost; nobody may use that to reach the box's own localhost.
        batch.add_chain("loopback", hook("filter", 0, -300));
        batch.add_rule("loopback", |r| {
            r.meta(meta::IIF, R0).compare(NE, R0, &1u32.to_ne_bytes());
            r.network(family.destination_offset(), 4, R0)
                .compare(EQ, R0, &[127])
                .verdict(Verdict::Drop);
        });
    }

    batch.add_chain("prerouting", hook("nat", 0, -100));
    batch.add_rule("prerouting", |r| {
        if let Some(cluster) = net(&config.cluster_cidrs) {
            writer.source_net(r, cluster, NE);
        }
        r.verdict(Verdict::Jump("external"));
    });
    batch.add_rule("prerouting", |r| {
        r.verdict(Verdict::Jump("services"));
    });
    batch.add_chain("output", hook("nat", 3, -100));
    batch.add_rule("output", |r| {
        r.verdict(Verdict::Jump("services"));
    });

    batch.add_chain("refuse", None);
    batch.add_rule("refuse", |r| {
        writer.frontend(
            r,
            Lane {
                scope: Scope::Everyone,
                by_address: true,
            },
            R0,
        );
        r.is_in(REJECT_ADDRESS, R0, false).reject(family.v4);
    });
    batch.add_rule("refuse", |r| {
        r.local(true, EQ, R0);
        writer.frontend(
            r,
            Lane {
                scope: Scope::Everyone,
                by_address: false,
            },
            R0,
        );
        r.is_in(REJECT_LOCAL, R0, false).reject(family.v4);
    });
    if let Some(services) = net(&config.service_cidrs) {
        batch.add_rule("refuse", |r| {
            writer.destination_net(r, services, EQ);
            r.local(true, NE, R0).reject(family.v4);
        });
    }
    super::policy::base(batch, &writer);
    // The overlay takes some room in each packet: both ends of a connection through it learn so as it opens.
    batch.add_chain("clamp", hook("filter", 2, -150));
    batch.add_rule("clamp", |r| {
        r.meta(meta::OIFNAME, R0)
            .compare(EQ, R0, crate::peers::device(writer.prefix).as_bytes())
            .meta(meta::L4PROTO, R0)
            .compare(EQ, R0, &[6])
            .tcp_flags(R0)
            .bitwise(R0, &[0x06], &[0])
            .compare(EQ, R0, &[0x02])
            .clamp_mss(R0);
    });
    for (chain, number) in [("input", 1), ("forward", 2), ("local_output", 3)] {
        batch.add_chain(chain, hook("filter", number, 0));
        batch.add_rule(chain, |r| {
            r.ct(ct::STATE, R0)
                .any_bit(R0, ct::ESTABLISHED_RELATED)
                .verdict(Verdict::Accept);
        });
        batch.add_rule(chain, |r| {
            r.verdict(Verdict::Jump("refuse"));
        });
    }
    // Only there: between a pod and its own box nothing is forbidden.
    batch.add_rule("forward", |r| {
        r.verdict(Verdict::Jump("policies"));
    });

    // After the endpoint was chosen, before the client's address may be hidden.
    batch.add_chain("learn", hook("filter", 4, 90));
    batch.add_rule("learn", |r| {
        r.ct(ct::STATE, R0)
            .any_bit(R0, ct::ESTABLISHED_RELATED)
            .verdict(Verdict::Accept);
    });
    hide(batch, config, family, &writer, gateway);
}

/// Which connections get an address of the box as their source.
fn hide(
    batch: &mut Batch,
    config: &NetConfig,
    family: Family,
    writer: &Writer<'_>,
    gateway: Option<IpAddr>,
) {
    let net = |nets: &[IpNet]| {
        nets.iter()
            .find(|n| n.addr().is_ipv4() == family.v4)
            .copied()
    };
    let (pods, cluster, services) = (
        net(&config.pod_cidrs),
        net(&config.cluster_cidrs),
        net(&config.service_cidrs),
    );
    batch.add_chain("hide", None);
    if let Some(gateway) = gateway {
        // Pods see the gateway, always the same, as pod links have no address of their own.
        batch.add_rule("hide", |r| {
            writer.to_pod(r, EQ);
            r.load(&octets(gateway), R0).snat(family.nfproto(), R0);
        });
    }
    batch.add_rule("hide", |r| {
        r.masquerade();
    });

    batch.add_chain("hide_marked", None);
    batch.add_rule("hide_marked", |r| {
        r.meta(meta::MARK, R0)
            .bitwise(R0, &(!HIDE_MARK).to_ne_bytes(), &[0; 4])
            .set_meta(meta::MARK, R0);
    });
    batch.add_rule("hide_marked", |r| {
        r.verdict(Verdict::Goto("hide"));
    });

    batch.add_chain(
        "postrouting",
        Some(Hook {
            kind: "nat",
            number: 4,
            priority: 100,
        }),
    );
    batch.add_rule("postrouting", |r| {
        r.meta(meta::MARK, R0)
            .any_bit(R0, HIDE_MARK)
            .verdict(Verdict::Goto("hide_marked"));
    });
    batch.add_rule("postrouting", |r| {
        writer.source(r, R0);
        writer.destination(r, R0 + family.words());
        r.is_in(HAIRPIN, R0, false).verdict(Verdict::Goto("hide"));
    });
    if family.v4 {
        batch.add_rule("postrouting", |r| {
            writer.source(r, R0);
            r.compare(EQ, R0, &[127])
                .ct(ct::STATUS, R0)
                .any_bit(R0, ct::DST_NAT)
                .verdict(Verdict::Goto("hide"));
        });
    }
    if let (Some(cluster), Some(services)) = (cluster, services) {
        // Somebody outside the cluster uses a ClusterIP through this box: the answer must come back the same way.
        batch.add_rule("postrouting", |r| {
            r.ct(ct::STATUS, R0).any_bit(R0, ct::DST_NAT);
            writer.source_net(r, cluster, NE);
            r.local(false, NE, R0);
            r.ct_original(if family.v4 { ct::DST_IP } else { ct::DST_IP6 }, R0);
            within(r, R0, services, EQ);
            r.verdict(Verdict::Goto("hide"));
        });
    }
    if let (true, Some(pods)) = (config.masquerade, pods) {
        batch.add_rule("postrouting", |r| {
            writer.source_net(r, pods, EQ);
            writer.destination_net(r, cluster.unwrap_or(pods), NE);
            writer.to_pod(r, NE);
            writer.destination(r, R0);
            if family.v4 {
                r.bitwise(R0, &[0xf0, 0, 0, 0], &[0; 4])
                    .compare(NE, R0, &[0xe0, 0, 0, 0]);
            } else {
                r.compare(NE, R0, &[0xff]);
            }
            r.masquerade();
        });
    }
}

fn sets(batch: &mut Batch, family: Family) {
    let ip = family.shown();
    let endpoint = (concat(&[ip, shown::PORT]), family.address_len() + 4);
    for lane in LANES {
        let frontend = lane.shown(family);
        let len = lane.words(family) * 4;
        let with = |before: &[u32], after: &[u32]| concat(&[before, &frontend, after].concat());
        let spec = SetSpec {
            key_type: with(&[], &[shown::MARK]),
            key_len: len + 4,
            data: Some(endpoint),
            ..SetSpec::default()
        };
        batch.add_set(&lane.endpoints(), &spec);
    }
    let clients = SetSpec {
        key_type: concat(&[ip, ip, shown::PROTO, shown::PORT]),
        key_len: 2 * family.address_len() + 8,
        data: Some(endpoint),
        ..SetSpec::default()
    };
    batch.add_set(
        CLIENTS,
        &SetSpec {
            flags: set::F_TIMEOUT | set::F_EVAL,
            size: Some(65536),
            ..clients
        },
    );
    let by_address = concat(&[ip, shown::PROTO, shown::PORT]);
    let plain = |key_type, key_len| SetSpec {
        key_type,
        key_len,
        ..SetSpec::default()
    };
    batch.add_set(REJECT_ADDRESS, &plain(by_address, family.address_len() + 8));
    batch.add_set(
        REJECT_LOCAL,
        &plain(concat(&[shown::PROTO, shown::PORT]), 8),
    );
    batch.add_set(HAIRPIN, &plain(concat(&[ip, ip]), 2 * family.address_len()));
    batch.add_set(GUARDED, &plain(by_address, family.address_len() + 8));
    let allowed = plain(
        concat(&[ip, shown::PROTO, shown::PORT, ip]),
        2 * family.address_len() + 8,
    );
    let fields = vec![family.address_len(), 1, 2, family.address_len()];
    batch.add_set(
        ALLOWED,
        &SetSpec {
            flags: set::F_INTERVAL | set::F_CONCAT,
            fields,
            ..allowed
        },
    );
}

/// Adds a class: its set, its chain, and the rule that leads from one to the other.
pub fn class(batch: &mut Batch, family: Family, lane: Lane, class: Class) {
    let writer = Writer { family, prefix: "" };
    let name = class.name(lane);
    batch.add_set(
        &name,
        &SetSpec {
            key_type: concat(&lane.shown(family)),
            key_len: lane.words(family) * 4,
            ..SetSpec::default()
        },
    );
    let lead = |batch: &mut Batch, to| {
        batch.add_rule(&lane.find(), |r| {
            writer.frontend(r, lane, R0);
            r.is_in(&name, R0, false).verdict(to);
        });
    };
    let Class::Forward {
        endpoints,
        affinity,
        masquerade,
    } = class
    else {
        return lead(batch, Verdict::Drop);
    };
    batch.add_chain(&name, None);
    if masquerade {
        batch.add_rule(&name, |r| {
            r.meta(meta::MARK, R0)
                .bitwise(R0, &(!HIDE_MARK).to_ne_bytes(), &HIDE_MARK.to_ne_bytes())
                .set_meta(meta::MARK, R0);
        });
    }
    if affinity > 0 {
        batch.add_rule(&name, |r| {
            writer.source(r, R0);
            writer.frontend(
                r,
                Lane {
                    by_address: true,
                    ..lane
                },
                R0 + family.words(),
            );
            r.map(CLIENTS, R0, R0)
                .dnat(family.nfproto(), R0, R0 + family.words());
        });
    }
    batch.add_rule(&name, |r| {
        writer.frontend(r, lane, R0);
        r.random(endpoints, R0 + lane.words(family))
            .map(&lane.endpoints(), R0, R0);
        r.dnat(family.nfproto(), R0, R0 + family.words());
    });
    lead(batch, Verdict::Goto(&name));
}

/// Adds what remembers clients of frontends with this affinity.
pub fn affinity(batch: &mut Batch, family: Family, lane: Lane, seconds: u32) {
    let writer = Writer { family, prefix: "" };
    let sticky = lane.sticky(seconds);
    batch.add_set(
        &sticky,
        &SetSpec {
            key_type: concat(&lane.shown(family)),
            key_len: lane.words(family) * 4,
            ..SetSpec::default()
        },
    );
    let original = if family.v4 { ct::DST_IP } else { ct::DST_IP6 };
    batch.add_rule("learn", |r| {
        r.ct(ct::STATUS, R0).any_bit(R0, ct::DST_NAT);
        let mut at = R0;
        if lane.by_address {
            r.ct_original(original, at);
            at += family.words();
        }
        r.meta(meta::L4PROTO, at)
            .ct_original(ct::PROTO_DST, at + 1)
            .is_in(&sticky, R0, false);
        writer.source(r, R0);
        let at = R0 + family.words();
        r.ct_original(original, at)
            .meta(meta::L4PROTO, at + family.words())
            .ct_original(ct::PROTO_DST, at + family.words() + 1);
        let endpoint = at + family.words() + 2;
        writer.destination(r, endpoint);
        r.dport(endpoint + family.words())
            .remember(CLIENTS, R0, endpoint, seconds);
    });
}

/// Matches if the address in a register is (or is not) in a network.
fn within(r: &mut Rule<'_>, register: u32, net: IpNet, op: u32) {
    r.bitwise(
        register,
        &octets(net.netmask()),
        &vec![0; octets(net.addr()).len()],
    )
    .compare(op, register, &octets(net.network()));
}

/// Loads the parts of a packet.
pub struct Writer<'a> {
    pub family: Family,
    pub prefix: &'a str,
}

impl Writer<'_> {
    pub fn source(&self, r: &mut Rule<'_>, to: u32) {
        r.network(self.family.source_offset(), self.family.address_len(), to);
    }

    pub fn destination(&self, r: &mut Rule<'_>, to: u32) {
        r.network(
            self.family.destination_offset(),
            self.family.address_len(),
            to,
        );
    }

    fn frontend(&self, r: &mut Rule<'_>, lane: Lane, to: u32) {
        let mut at = to;
        if lane.by_address {
            self.destination(r, at);
            at += self.family.words();
        }
        r.meta(meta::L4PROTO, at).dport(at + 1);
    }

    fn source_net(&self, r: &mut Rule<'_>, net: IpNet, op: u32) {
        self.source(r, R0);
        within(r, R0, net, op);
    }

    fn destination_net(&self, r: &mut Rule<'_>, net: IpNet, op: u32) {
        self.destination(r, R0);
        within(r, R0, net, op);
    }

    /// Matches packets that leave by a pod's link.
    fn to_pod(&self, r: &mut Rule<'_>, op: u32) {
        r.meta(meta::OIFNAME, R0)
            .compare(op, R0, self.prefix.as_bytes());
    }
}
