//! DNS packets: questions to the box's server, answers of the servers it asks, and the files that name those. The first byte says how
//! the rest is read: an odd number for TCP.
#![no_main]

use std::sync::OnceLock;

use amphipod_netplug::dns::answer::{Outcome, Responder, UDP_ROOM, ask, failure};
use amphipod_netplug::dns::forward::{answers, nameservers};
use amphipod_netplug::dns::zone::Zone;
use amphipod_netplug::{DnsEndpoint, DnsPort, Protocol, RecordKind, ServiceRecords};
use amphipod_runtime::image::dns::{Config, in_hosts};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use libfuzzer_sys::fuzz_target;

fn zone() -> Zone {
    let mut zone = Zone::new(
        "cluster.local",
        vec!["10.43.0.10".parse().expect("an address")],
    );
    let ports = vec![DnsPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
    }];
    let endpoints = (2..=200).map(|n| DnsEndpoint {
        ip: std::net::Ipv4Addr::new(10, 42, 0, n).into(),
        hostname: (n == 2).then(|| "web-0".into()),
        ports: vec![],
    });
    let kinds = [
        (
            "web",
            RecordKind::Cluster {
                ips: vec!["10.43.0.7".parse().expect("an address")],
                ports: ports.clone(),
            },
        ),
        (
            "many",
            RecordKind::Headless {
                endpoints: endpoints.collect(),
                ports,
            },
        ),
        (
            "inner",
            RecordKind::External {
                name: "web.ns.svc.cluster.local".into(),
            },
        ),
        (
            "outer",
            RecordKind::External {
                name: "example.org".into(),
            },
        ),
        (
            "circle",
            RecordKind::External {
                name: "circle.ns.svc.cluster.local".into(),
            },
        ),
        ("odd", RecordKind::External { name: "..".into() }),
    ];
    for (name, kind) in kinds {
        zone.upsert(ServiceRecords {
            namespace: "ns".into(),
            name: name.into(),
            kind,
        });
    }
    zone
}

fuzz_target!(|data: &[u8]| {
    static SETUP: OnceLock<(Zone, Responder)> = OnceLock::new();
    let (zone, responder) = SETUP.get_or_init(|| {
        let ours = "10.42.0.0/15".parse().expect("a range");
        (zone(), Responder::new(30, vec![ours]))
    });
    let Some((mode, packet)) = data.split_first() else {
        return;
    };
    let tcp = mode & 1 == 1;
    let room = if tcp {
        usize::from(u16::MAX)
    } else {
        usize::from(UDP_ROOM)
    };
    match responder.respond(zone, packet, tcp) {
        Outcome::Ignore => {}
        Outcome::Answer(answer) => check(packet, &answer, room, true),
        Outcome::Forward => {
            let refusal = failure(packet, ResponseCode::ServFail);
            check(packet, &refusal, usize::from(UDP_ROOM), true);
        }
        Outcome::Chase(pending) => {
            let question = ask(&pending.question).expect("a question that was asked can be asked");
            assert!(Message::from_vec(&question).is_ok());
            check(packet, &pending.finish(None), room, true);
        }
    }

    // The same bytes as the answer of another server, to a question that is certain.
    let question = b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05outer\x02ns\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
    let _ = answers(question, [7, 7], packet);
    if let Outcome::Chase(pending) = responder.respond(zone, question, tcp) {
        check(question, &pending.finish(Some(packet)), room, false);
    }

    if let Ok(text) = std::str::from_utf8(packet) {
        let _ = nameservers(text);
        let _ = in_hosts(text, "registry.lan");
        assert!(
            Config::parse(text)
                .candidates("registry.lan")
                .iter()
                .all(|name| name.ends_with('.'))
        );
    }
});

/// An answer is one, to this question, fits, and can be read.
fn check(question: &[u8], answer: &[u8], room: usize, whole: bool) {
    assert!(answer.len() >= 12, "an answer of {} bytes", answer.len());
    assert!(
        answer.len() <= room,
        "{} bytes where {room} are allowed",
        answer.len()
    );
    assert_eq!(question[..2], answer[..2], "the answer to another question");
    let read = Message::from_vec(answer);
    assert!(
        !whole || read.is_ok(),
        "an answer that cannot be read: {read:?}"
    );
    assert!(
        read.is_err() || read.is_ok_and(|read| read.metadata.message_type == MessageType::Response)
    );
}
