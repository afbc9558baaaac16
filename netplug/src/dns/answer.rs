//! From the bytes of a question to the bytes of an answer. Pure, but for what has to be asked elsewhere.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{Fact, Meaning, Zone, reverse_address};

/// What we accept and send by UDP: fits any path without fragments (DNS flag day 2020).
pub const UDP_ROOM: u16 = 1232;
const PLAIN_UDP_ROOM: u16 = 512;
/// Records that a question may carry.
const MAX_RECORDS: usize = 4;
/// How many aliases are followed.
const MAX_ALIASES: usize = 8;

/// What becomes of a question.
#[derive(Debug)]
pub enum Outcome {
    /// Not a question; answering could make two servers talk to each other for ever.
    Ignore,
    Answer(Vec<u8>),
    /// The name is not ours: the question goes elsewhere as it came.
    Forward,
    /// The name is an alias of one that is not ours: the answer waits for its addresses.
    Chase(Box<Pending>),
}

/// An answer that lacks the addresses of an alias.
#[derive(Debug)]
pub struct Pending {
    message: Message,
    room: usize,
    /// The question that has to be asked elsewhere.
    pub question: Query,
}

/// How answers are made.
#[derive(Debug)]
pub struct Responder {
    pub ttl: u32,
    /// Addresses within these are ours to name: what has no name is told so, and never asked elsewhere.
    pub reverse: Vec<ipnet::IpNet>,
    /// Turns the order of addresses with every answer.
    turn: AtomicUsize,
}

impl Responder {
    pub fn new(ttl: u32, reverse: Vec<ipnet::IpNet>) -> Responder {
        Responder {
            ttl,
            reverse,
            turn: AtomicUsize::new(0),
        }
    }

    /// Decides on one packet. `tcp` lifts the limit on the answer's size.
    pub fn respond(&self, zone: &Zone, packet: &[u8], tcp: bool) -> Outcome {
        let is_question = packet.len() >= 12 && packet[2] & 0x80 == 0;
        if !is_question {
            return Outcome::Ignore;
        }
        // A question comes alone (RFC 9619), with EDNS and a signature at most; a packet of thousands of records is not even read.
        let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let readable = number(4) == 1 && number(6) + number(8) + number(10) <= MAX_RECORDS;
        let request = readable.then(|| Message::from_vec(packet));
        let Some(Ok(request)) = request else {
            let id = u16::from_be_bytes([packet[0], packet[1]]);
            return Outcome::Answer(encode(
                &Message::error_msg(id, OpCode::Query, ResponseCode::FormErr),
                usize::MAX,
            ));
        };
        let client_room = request.edns.as_ref().map_or(PLAIN_UDP_ROOM, |e| {
            e.max_payload().clamp(PLAIN_UDP_ROOM, UDP_ROOM)
        });
        let room = if tcp {
            usize::from(u16::MAX)
        } else {
            usize::from(client_room)
        };
        let mut response = Message::new(
            request.metadata.id,
            MessageType::Response,
            request.metadata.op_code,
        );
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if let Some(edns) = &request.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_ROOM);
            response.set_edns(ours);
            if edns.version() > 0 {
                return refuse(response, ResponseCode::BADVERS, room);
            }
        }
        if request.metadata.op_code != OpCode::Query {
            return refuse(response, ResponseCode::NotImp, room);
        }
        let [query] = request.queries.as_slice() else {
            return refuse(response, ResponseCode::FormErr, room);
        };
        let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
        if transfer || query.query_class != DNSClass::IN {
            return refuse(response, ResponseCode::Refused, room);
        }
        self.answer(zone, query, response, room)
    }

    fn answer(&self, zone: &Zone, query: &Query, mut response: Message, room: usize) -> Outcome {
        let wanted = query.query_type;
        let mut owner = query.name.clone();
        for aliases in 0..MAX_ALIASES {
            let facts = match self.meaning(zone, &owner) {
                Meaning::Has(facts) => facts,
                Meaning::Nothing => {
                    response.metadata.authoritative = true;
                    if aliases == 0 {
                        response.metadata.response_code = ResponseCode::NXDomain;
                    }
                    response.add_authority(self.authority(zone));
                    return Outcome::Answer(encode(&response, room));
                }
                Meaning::Foreign if aliases == 0 => return Outcome::Forward,
                Meaning::Foreign => {
                    let question = Query::query(owner, wanted);
                    return Outcome::Chase(Box::new(Pending {
                        message: response,
                        room,
                        question,
                    }));
                }
            };
            response.metadata.authoritative = true;
            let alias = facts.iter().find_map(|f| {
                if let Fact::Alias(target) = f {
                    Some(target.clone())
                } else {
                    None
                }
            });
            match alias.map(Name::from_ascii) {
                Some(Ok(target)) => {
                    response.add_answer(self.record(owner, RData::CNAME(CNAME(target.clone()))));
                    if matches!(wanted, RecordType::CNAME | RecordType::ANY) {
                        return Outcome::Answer(encode(&response, room));
                    }
                    owner = target;
                }
                Some(Err(_)) => return refuse(response, ResponseCode::ServFail, room),
                None => {
                    self.facts(zone, &owner, wanted, &facts, &mut response);
                    return Outcome::Answer(encode(&response, room));
                }
            }
        }
        // Aliases in a circle.
        refuse(response, ResponseCode::ServFail, room)
    }

    /// What a name means, also for addresses of ours that have no name.
    fn meaning(&self, zone: &Zone, name: &Name) -> Meaning {
        let labels: Option<Vec<String>> = name
            .iter()
            .map(|l| {
                std::str::from_utf8(l)
                    .ok()
                    .filter(|l| !l.contains('.'))
                    .map(str::to_ascii_lowercase)
            })
            .collect();
        // Bytes that are no text occur in no name of ours, but may be somebody else's.
        let text = labels.map_or_else(|| name.to_lowercase().to_ascii(), |l| l.join("."));
        match zone.look_up(&text) {
            Meaning::Foreign
                if reverse_address(&text)
                    .is_some_and(|ip| self.reverse.iter().any(|net| net.contains(&ip))) =>
            {
                Meaning::Nothing
            }
            meaning => meaning,
        }
    }

    /// Adds those facts that were asked for; if there are none, says for how long.
    fn facts(
        &self,
        zone: &Zone,
        owner: &Name,
        wanted: RecordType,
        facts: &[Fact],
        response: &mut Message,
    ) {
        let mut records: Vec<Record> = facts
            .iter()
            .filter_map(|fact| self.data(zone, fact))
            .filter(|data| wanted == RecordType::ANY || data.record_type() == wanted)
            .map(|data| self.record(owner.clone(), data))
            .collect();
        if records.is_empty() {
            response.add_authority(self.authority(zone));
            return;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
        records.rotate_left(turn);
        for record in &records {
            if let RData::SRV(server) = &record.data
                && let Meaning::Has(facts) = self.meaning(zone, &server.target)
            {
                let known = response.additionals.iter().any(|r| r.name == server.target);
                for fact in facts
                    .iter()
                    .filter(|f| !known && matches!(f, Fact::Address(_)))
                {
                    if let Some(data) = self.data(zone, fact) {
                        response.add_additional(self.record(server.target.clone(), data));
                    }
                }
            }
        }
        response.add_answers(records);
    }

    fn data(&self, zone: &Zone, fact: &Fact) -> Option<RData> {
        let name = |text: &str| Name::from_ascii(text).ok().map(absolute);
        Some(match fact {
            Fact::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
            Fact::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
            Fact::Alias(target) => RData::CNAME(CNAME(name(target)?)),
            Fact::Server { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
            Fact::Pointer(target) => RData::PTR(PTR(name(target)?)),
            Fact::NameServer(target) => RData::NS(NS(name(target)?)),
            Fact::Text(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
            Fact::Authority => self.authority(zone).data,
        })
    }

    fn record(&self, owner: Name, data: RData) -> Record {
        Record::from_rdata(absolute(owner), self.ttl, data)
    }

    /// The zone's SOA record: its last field says for how long "there is none" may be believed (RFC 2308).
    fn authority(&self, zone: &Zone) -> Record {
        let name = |prefix: &str| {
            Name::from_ascii(format!("{prefix}{}", zone.domain()))
                .map(absolute)
                .unwrap_or_default()
        };
        let soa = SOA::new(
            name("ns.dns."),
            name("hostmaster."),
            zone.serial(),
            7200,
            1800,
            86400,
            self.ttl,
        );
        self.record(name(""), RData::SOA(soa))
    }
}

impl Pending {
    /// Adds what was found elsewhere, if anything; an alias alone is an answer, too.
    pub fn finish(mut self, found: Option<&[u8]>) -> Vec<u8> {
        if let Some(found) = found.and_then(|bytes| Message::from_vec(bytes).ok()) {
            self.message.add_answers(found.answers);
            self.message.metadata.response_code = found.metadata.response_code;
            self.message.metadata.truncation = found.metadata.truncation;
        }
        encode(&self.message, self.room)
    }
}

/// A packet that asks one question.
pub fn ask(question: &Query) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_ROOM);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// The answer when nobody could be asked.
pub fn failure(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let Ok(request) = Message::from_vec(packet) else {
        return Vec::new();
    };
    let mut response = Message::new(
        request.metadata.id,
        MessageType::Response,
        request.metadata.op_code,
    );
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(request.queries);
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_ROOM);
        response.set_edns(edns);
    }
    encode(&response, usize::from(UDP_ROOM))
}

fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

fn refuse(mut response: Message, code: ResponseCode, room: usize) -> Outcome {
    response.metadata.response_code = code;
    Outcome::Answer(encode(&response, room))
}

/// Encodes within the room there is: first the extras go, then answers, and the client is told to ask by TCP.
fn encode(message: &Message, room: usize) -> Vec<u8> {
    let bytes = message.to_vec().unwrap_or_default();
    if bytes.len() <= room {
        return bytes;
    }
    let mut cut = message.clone();
    cut.additionals.clear();
    cut.authorities.clear();
    loop {
        let bytes = cut.to_vec().unwrap_or_default();
        if bytes.len() <= room || cut.answers.is_empty() {
            return bytes;
        }
        // Some answers are better than none for clients that cannot do TCP.
        cut.metadata.truncation = true;
        let fit = cut.answers.len() * room / bytes.len();
        cut.answers.truncate(fit.min(cut.answers.len() - 1));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dns::records::{DnsEndpoint, DnsPort, RecordKind, ServiceRecords};
    use crate::service::Protocol;

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local", vec!["10.43.0.10".parse().unwrap()]);
        let mut add = |name: &str, kind| {
            zone.upsert(ServiceRecords {
                namespace: "ns".into(),
                name: name.into(),
                kind,
            })
        };
        let ports = vec![DnsPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }];
        add(
            "web",
            RecordKind::Cluster {
                ips: vec!["10.43.0.7".parse().unwrap()],
                ports: ports.clone(),
            },
        );
        let endpoints = (2..=200)
            .map(|n| DnsEndpoint {
                ip: format!("10.42.0.{n}").parse().unwrap(),
                hostname: None,
                ports: vec![],
            })
            .collect();
        add("many", RecordKind::Headless { endpoints, ports });
        add(
            "inner",
            RecordKind::External {
                name: "web.ns.svc.cluster.local".into(),
            },
        );
        add(
            "outer",
            RecordKind::External {
                name: "example.org".into(),
            },
        );
        add(
            "circle",
            RecordKind::External {
                name: "circle.ns.svc.cluster.local".into(),
            },
        );
        zone
    }

    fn responder() -> Responder {
        Responder::new(30, vec!["10.43.0.0/16".parse().unwrap()])
    }

    fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(room) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(room);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn answer(packet: &[u8], tcp: bool) -> Message {
        match responder().respond(&zone(), packet, tcp) {
            Outcome::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn resolve(name: &str, kind: RecordType) -> Message {
        answer(&question(name, kind, None), false)
    }

    #[test]
    fn the_case_of_the_question_is_kept() {
        let message = resolve("wEb.NS.svc.Cluster.LOCAL.", RecordType::A);
        assert_eq!(message.metadata.id, 77);
        assert!(
            message.metadata.authoritative
                && message.metadata.recursion_available
                && message.metadata.recursion_desired
        );
        assert_eq!(
            message.queries[0].name.to_string(),
            "wEb.NS.svc.Cluster.LOCAL."
        );
        assert_eq!(
            message.answers[0].name.to_string(),
            "wEb.NS.svc.Cluster.LOCAL."
        );
        assert_eq!(message.answers[0].ttl, 30);
        assert_eq!(
            message.answers[0].data,
            RData::A(A("10.43.0.7".parse().unwrap()))
        );
    }

    #[test]
    fn missing_names_and_missing_types_differ_and_both_say_for_how_long() {
        for (name, kind, code) in [
            (
                "nope.ns.svc.cluster.local.",
                RecordType::A,
                ResponseCode::NXDomain,
            ),
            (
                "web.ns.svc.cluster.local.",
                RecordType::AAAA,
                ResponseCode::NoError,
            ),
            ("svc.cluster.local.", RecordType::A, ResponseCode::NoError),
            (
                "example.org.ns.svc.cluster.local.",
                RecordType::A,
                ResponseCode::NXDomain,
            ),
            (
                "9.9.43.10.in-addr.arpa.",
                RecordType::PTR,
                ResponseCode::NXDomain,
            ),
        ] {
            let message = resolve(name, kind);
            assert_eq!(message.metadata.response_code, code, "{name}");
            assert!(message.answers.is_empty());
            assert!(
                matches!(&message.authorities[0].data, RData::SOA(soa) if soa.minimum == 30),
                "{name}"
            );
        }
    }

    #[test]
    fn servers_come_with_their_addresses() {
        let message = resolve("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV);
        assert!(
            matches!(&message.answers[0].data, RData::SRV(s) if s.port == 80 && s.target.to_string() == "web.ns.svc.cluster.local.")
        );
        assert_eq!(
            message.additionals[0].data,
            RData::A(A("10.43.0.7".parse().unwrap()))
        );
    }

    #[test]
    fn aliases_are_followed_inside_and_chased_outside_and_circles_end() {
        let message = resolve("inner.ns.svc.cluster.local.", RecordType::A);
        assert_eq!(message.answers.len(), 2);
        assert_eq!(
            resolve("outer.ns.svc.cluster.local.", RecordType::CNAME)
                .answers
                .len(),
            1
        );
        assert_eq!(
            resolve("circle.ns.svc.cluster.local.", RecordType::A)
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
        let Outcome::Chase(pending) = responder().respond(
            &zone(),
            &question("outer.ns.svc.cluster.local.", RecordType::A, None),
            false,
        ) else {
            panic!()
        };
        assert_eq!(pending.question.name.to_string(), "example.org");
        let alone = Message::from_vec(&pending.finish(None)).unwrap();
        assert_eq!(
            (alone.answers.len(), alone.metadata.response_code),
            (1, ResponseCode::NoError)
        );
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so_and_tcp_has_it_all() {
        let name = "many.ns.svc.cluster.local.";
        let plain = question(name, RecordType::A, None);
        let Outcome::Answer(bytes) = responder().respond(&zone(), &plain, false) else {
            panic!()
        };
        assert!(bytes.len() <= 512);
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(cut.metadata.truncation && !cut.answers.is_empty());
        let wide = answer(&question(name, RecordType::A, Some(4096)), false);
        assert!(
            wide.metadata.truncation
                && wide.answers.len() > cut.answers.len()
                && wide.edns.is_some()
        );
        let all = answer(&plain, true);
        assert!(!all.metadata.truncation && all.answers.len() == 199);
    }

    #[test]
    fn the_order_of_addresses_turns() {
        let (responder, zone) = (responder(), zone());
        let first = || match responder.respond(
            &zone,
            &question("many.ns.svc.cluster.local.", RecordType::A, None),
            true,
        ) {
            Outcome::Answer(bytes) => Message::from_vec(&bytes).unwrap().answers[0].data.clone(),
            other => panic!("{other:?}"),
        };
        assert_ne!(first(), first());
    }

    #[test]
    fn odd_questions_get_the_right_refusal() {
        let code = |packet: &[u8]| answer(packet, false).metadata.response_code;
        let mut message =
            Message::from_vec(&question("web.ns.svc.cluster.local.", RecordType::A, None)).unwrap();
        message.queries[0].query_class = DNSClass::CH;
        assert_eq!(code(&message.to_vec().unwrap()), ResponseCode::Refused);
        assert_eq!(
            code(&question("cluster.local.", RecordType::AXFR, None)),
            ResponseCode::Refused
        );
        message.queries.clear();
        assert_eq!(code(&message.to_vec().unwrap()), ResponseCode::FormErr);
        let mut update = Message::new(1, MessageType::Query, OpCode::Update);
        update.add_query(Query::query(Name::root(), RecordType::SOA));
        assert_eq!(code(&update.to_vec().unwrap()), ResponseCode::NotImp);
        let mut versioned = Message::from_vec(&question(
            "web.ns.svc.cluster.local.",
            RecordType::A,
            Some(1232),
        ))
        .unwrap();
        versioned.edns.as_mut().unwrap().set_version(1);
        assert_eq!(u16::from(code(&versioned.to_vec().unwrap())), 16, "BADVERS");
    }

    /// Their answer, which repeats them, might not fit into any packet.
    #[test]
    fn more_questions_than_one_are_refused_unread() {
        let mut packet = question("web.ns.svc.cluster.local", RecordType::A, None);
        let count = 9000u16;
        packet[4..6].copy_from_slice(&count.to_be_bytes());
        for _ in 1..count {
            packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        }
        let refusal = answer(&packet, true);
        assert_eq!(refusal.metadata.response_code, ResponseCode::FormErr);
        assert!(refusal.queries.is_empty());
    }

    #[test]
    fn broken_packets_are_refused_or_ignored_and_never_panic() {
        let (responder, zone) = (responder(), zone());
        let good = question(
            "_http._tcp.many.ns.svc.cluster.local.",
            RecordType::SRV,
            Some(1232),
        );
        for len in 0..good.len() {
            let outcome = responder.respond(&zone, &good[..len], false);
            assert!(
                matches!(outcome, Outcome::Ignore | Outcome::Answer(_)),
                "{len}"
            );
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..5_000 {
            let mut packet = good.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state as usize % packet.len();
                packet[at] = (state >> 32) as u8;
            }
            let _ = responder.respond(&zone, &packet, state & 1 == 0);
        }
        let mut reply = good;
        reply[2] |= 0x80;
        assert!(matches!(
            responder.respond(&zone, &reply, false),
            Outcome::Ignore
        ));
    }

    #[test]
    fn other_names_go_elsewhere() {
        for name in ["example.org.", ".", "1.0.0.127.in-addr.arpa."] {
            assert!(
                matches!(
                    responder().respond(&zone(), &question(name, RecordType::A, None), false),
                    Outcome::Forward
                ),
                "{name}"
            );
        }
    }
}
