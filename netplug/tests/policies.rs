//! Policies: who may talk to whom, seen by real packets. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;

use amphipod_netplug::{Allow, Direction, FirewallKind, Overlay, PolicyGroup, Protocol, Traffic};
use common::fleet::Fleet;
use common::*;

fn group(direction: Direction, pods: &[&Pod], allow: Vec<Allow>) -> PolicyGroup {
    PolicyGroup {
        key: "default/policy".into(),
        direction,
        pods: pods.iter().flat_map(|p| p.net.ips.clone()).collect(),
        allow,
    }
}

fn allow(peer: &str, traffic: Traffic) -> Allow {
    Allow {
        peer: peer.parse().unwrap(),
        except: vec![],
        traffic,
    }
}

fn pod_ip(pod: &Pod) -> String {
    format!("{}/32", pod.ip())
}

fn ports(protocol: Protocol, first: u16, last: u16) -> Traffic {
    Traffic::Ports {
        protocol,
        first,
        last,
    }
}

const TCP: Traffic = Traffic::Ports {
    protocol: Protocol::Tcp,
    first: 8080,
    last: 8080,
};

/// Whether a connection opens. More than one attempt: what is sent in the moment a link comes up may be lost.
fn reaches(from: &Ns, to: &str) -> bool {
    (0..3).any(|_| from.tcp_within(to, SOON).is_ok())
}

fn reaches_udp(from: &Ns, to: &str) -> bool {
    let socket = from.udp_socket();
    socket.set_read_timeout(Some(SOON)).unwrap();
    (0..3).any(|_| ask_udp(&socket, to).is_ok())
}

/// Whether an echo request is answered (RFC 792).
fn pings(from: &Ns, to: &Pod) -> bool {
    use std::os::fd::FromRawFd;
    // SAFETY: makes a descriptor, which the socket then owns.
    let socket = from.run(|| unsafe {
        UdpSocket::from_raw_fd(libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW,
            libc::IPPROTO_ICMP,
        ))
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    (0..3).any(|_| {
        socket.send_to(&request, (to.ip(), 0)).unwrap();
        let mut answer = [0; 100];
        matches!(socket.recv(&mut answer), Ok(28) if answer[20] == 0)
    })
}

#[test]
fn an_isolated_pod_is_reached_by_whom_its_policy_names_only() {
    let b = TestBox::new();
    let (server, free) = (b.server("server"), b.server("free"));
    let (friend, stranger) = (b.pod("friend"), b.pod("stranger"));
    let at = server.at(8080);
    assert!(reaches(&stranger.ns, &at) && reaches_udp(&stranger.ns, &at));
    let rule = allow(&pod_ip(&friend), TCP);
    b.net()
        .set_policies(vec![group(Direction::Ingress, &[&server], vec![rule])])
        .unwrap();
    assert!(reaches(&friend.ns, &at), "named");
    assert!(!reaches_udp(&friend.ns, &at), "another protocol");
    assert!(!reaches(&stranger.ns, &at), "not named");
    assert!(reaches(&stranger.ns, &free.at(8080)), "not isolated");
    assert!(
        reaches(&server.ns, &free.at(8080)),
        "the other direction is free, and answers come back"
    );
    b.net().set_policies(vec![]).unwrap();
    assert!(reaches(&stranger.ns, &at));
}

#[test]
fn an_isolated_pod_reaches_what_its_policy_names_only() {
    let b = TestBox::new();
    let outside = b.outsider();
    outside.serve_tcp("192.0.2.2:8080", "world");
    let (client, other) = (b.server("client"), b.pod("other"));
    let (good, bad) = (b.server("good"), b.server("bad"));
    let rules = vec![allow(&pod_ip(&good), TCP)];
    b.net()
        .set_policies(vec![group(Direction::Egress, &[&client], rules)])
        .unwrap();
    assert!(reaches(&client.ns, &good.at(8080)));
    assert!(!reaches(&client.ns, &bad.at(8080)));
    assert!(!reaches(&client.ns, "192.0.2.2:8080"), "the world");
    assert!(reaches(&other.ns, "192.0.2.2:8080"));
    assert!(
        reaches(&other.ns, &client.at(8080)),
        "its answers are not forbidden"
    );
}

#[test]
fn both_ends_must_agree() {
    let b = TestBox::new();
    let (one, two) = (b.pod("one"), b.server("two"));
    let out = |allowed| group(Direction::Egress, &[&one], allowed);
    let into = |allowed| group(Direction::Ingress, &[&two], allowed);
    let yes = || vec![allow("10.42.0.0/16", Traffic::All)];
    for (egress, ingress, expected) in [
        (vec![], yes(), false),
        (yes(), vec![], false),
        (yes(), yes(), true),
    ] {
        b.net()
            .set_policies(vec![out(egress), into(ingress)])
            .unwrap();
        assert_eq!(reaches(&one.ns, &two.at(8080)), expected);
    }
}

#[test]
fn blocks_have_exceptions_and_ports_have_ranges() {
    let b = TestBox::new();
    let server = b.server("server");
    let pods: Vec<Pod> = (0..4).map(|i| b.pod(&format!("p{i}"))).collect();
    let block = Allow {
        peer: "10.42.0.0/24".parse().unwrap(),
        except: vec![
            pod_ip(&pods[1]).parse().unwrap(),
            pod_ip(&pods[2]).parse().unwrap(),
        ],
        traffic: ports(Protocol::Tcp, 8000, 8080),
    };
    let udp = allow(&pod_ip(&pods[2]), ports(Protocol::Udp, 1, 65535));
    server.ns.serve_tcp("0.0.0.0:8081", "beyond");
    server.ns.serve_tcp("0.0.0.0:8000", "first");
    b.net()
        .set_policies(vec![group(
            Direction::Ingress,
            &[&server],
            vec![block, udp],
        )])
        .unwrap();
    let reached: Vec<bool> = pods
        .iter()
        .map(|p| reaches(&p.ns, &server.at(8080)))
        .collect();
    assert_eq!(reached, [true, false, false, true]);
    assert!(reaches(&pods[0].ns, &server.at(8000)));
    assert!(!reaches(&pods[0].ns, &server.at(8081)));
    assert!(reaches_udp(&pods[2].ns, &server.at(8080)));
    assert!(!reaches_udp(&pods[3].ns, &server.at(8080)));
}

#[test]
fn without_ports_every_protocol_is_allowed() {
    let b = TestBox::new();
    let (one, two) = (b.pod("one"), b.server("two"));
    let set = |traffic| {
        let rule = allow(&pod_ip(&one), traffic);
        b.net()
            .set_policies(vec![group(Direction::Ingress, &[&two], vec![rule])])
            .unwrap();
    };
    set(TCP);
    assert!(!pings(&one.ns, &two));
    set(Traffic::All);
    assert!(pings(&one.ns, &two));
    assert!(reaches_udp(&one.ns, &two.at(8080)));
}

#[test]
fn the_box_always_reaches_its_pods_and_they_reach_it_and_themselves() {
    let b = TestBox::new();
    let server = b.server("server");
    b.ns.serve_tcp("10.42.0.1:53", "box");
    b.net()
        .set_services(vec![service("self", "10.43.0.7", &[&server])])
        .unwrap();
    b.net()
        .set_policies(vec![
            group(Direction::Ingress, &[&server], vec![]),
            group(Direction::Egress, &[&server], vec![]),
        ])
        .unwrap();
    assert!(reaches(&b.ns, &server.at(8080)), "probes");
    assert!(reaches(&b.ns, "10.43.0.7:80"), "and by service");
    assert!(reaches(&server.ns, "10.42.0.1:53"), "DNS");
    assert!(reaches(&server.ns, "10.43.0.7:80"), "itself by service");
    let other = b.pod("other");
    assert!(!reaches(&other.ns, "10.43.0.7:80"));
}

#[test]
fn services_are_judged_by_the_pods_behind_them() {
    let b = TestBox::new();
    let (good, bad) = (b.server("good"), b.server("bad"));
    let client = b.pod("client");
    b.net()
        .set_services(vec![
            service("good", "10.43.0.7", &[&good]),
            service("bad", "10.43.0.8", &[&bad]),
        ])
        .unwrap();
    b.net()
        .set_policies(vec![
            group(
                Direction::Egress,
                &[&client],
                vec![allow(&pod_ip(&good), TCP)],
            ),
            group(
                Direction::Ingress,
                &[&good],
                vec![allow(&pod_ip(&client), TCP)],
            ),
        ])
        .unwrap();
    assert_eq!(
        client.ns.tcp("10.43.0.7:80").unwrap(),
        format!("good saw {}", client.ip())
    );
    assert!(!reaches(&client.ns, "10.43.0.8:80"));
}

#[test]
fn clients_from_outside_are_known_by_their_own_address() {
    let b = TestBox::new();
    let outside = b.outsider();
    let server = b.server("server");
    let mut s = service("web", "10.43.0.7", &[&server]);
    s.ports[0].node_port = Some(30080);
    b.net().set_services(vec![s]).unwrap();
    let set = |peer: &str| {
        let rules = vec![allow(peer, TCP)];
        b.net()
            .set_policies(vec![group(Direction::Ingress, &[&server], rules)])
            .unwrap();
    };
    set("192.0.2.2/32");
    assert!(reaches(&outside, "192.0.2.1:30080"));
    set("192.0.2.3/32");
    assert!(!reaches(&outside, "192.0.2.1:30080"));
}

#[test]
fn policies_hold_between_boxes() {
    for f in [
        Fleet::switched(2, Overlay::Auto),
        Fleet::routed(2, Overlay::Auto),
    ] {
        let server = f.boxes[1].server("server");
        let (friend, stranger) = (f.boxes[0].pod("friend"), f.boxes[0].pod("stranger"));
        let rules = vec![allow(&pod_ip(&friend), TCP)];
        f.boxes[1]
            .net()
            .set_policies(vec![group(Direction::Ingress, &[&server], rules)])
            .unwrap();
        assert!(reaches(&friend.ns, &server.at(8080)));
        assert!(!reaches(&stranger.ns, &server.at(8080)));
        f.boxes[1].net().set_policies(vec![]).unwrap();
        f.boxes[0]
            .net()
            .set_policies(vec![group(Direction::Egress, &[&friend], vec![])])
            .unwrap();
        assert!(!reaches(&friend.ns, &server.at(8080)));
        assert!(reaches(&stranger.ns, &server.at(8080)));
    }
}

#[test]
fn a_change_touches_only_what_differs_and_leaves_nothing_behind() {
    let b = TestBox::new();
    let (server, one, two) = (b.server("server"), b.pod("one"), b.pod("two"));
    let rules = || b.ns.rules();
    let before = rules();
    let with = |pods: &[&Pod]| {
        let rules = pods.iter().map(|p| allow(&pod_ip(p), TCP)).collect();
        vec![group(Direction::Ingress, &[&server], rules)]
    };
    b.net().set_policies(with(&[&one])).unwrap();
    assert!(reaches(&one.ns, &server.at(8080)) && !reaches(&two.ns, &server.at(8080)));
    let handles = || match firewall() {
        FirewallKind::Nftables => b.ns.sh("nft -a list chain ip amphipod ingress"),
        FirewallKind::Iptables => b.ns.sh("iptables -S amphi-ingress"),
    };
    let first = handles();
    b.net().set_policies(with(&[&two])).unwrap();
    assert!(!reaches(&one.ns, &server.at(8080)) && reaches(&two.ns, &server.at(8080)));
    assert_eq!(handles(), first, "no rule moved");
    let mut more = with(&[&one, &two]);
    more.push(PolicyGroup {
        key: "default/other".into(),
        ..group(Direction::Ingress, &[&one], vec![])
    });
    b.net().set_policies(more).unwrap();
    assert!(reaches(&one.ns, &server.at(8080)) && reaches(&two.ns, &server.at(8080)));
    b.net().set_policies(vec![]).unwrap();
    assert_eq!(rules(), before);
}

#[test]
fn policies_outlive_a_restart_and_come_back_after_a_flush() {
    let mut b = TestBox::new();
    let (server, friend, stranger) = (b.server("server"), b.pod("friend"), b.pod("stranger"));
    let at = server.at(8080);
    let plan = || {
        let rules = vec![allow(&pod_ip(&friend), TCP)];
        vec![group(Direction::Ingress, &[&server], rules)]
    };
    b.net().set_policies(plan()).unwrap();
    b.open();
    assert!(!reaches(&stranger.ns, &at), "nobody said that it ended");
    b.net().set_policies(plan()).unwrap();
    assert!(reaches(&friend.ns, &at) && !reaches(&stranger.ns, &at));
    b.ns.sh("nft flush ruleset");
    assert!(reaches(&stranger.ns, &at));
    b.net().repair().unwrap();
    assert!(reaches(&friend.ns, &at) && !reaches(&stranger.ns, &at));
    b.ns.sh(match firewall() {
        FirewallKind::Nftables => "nft flush chain ip amphipod ingress",
        FirewallKind::Iptables => "iptables -F amphi-ingress",
    });
    b.open();
    b.net().set_policies(vec![]).unwrap();
    assert!(reaches(&stranger.ns, &at));
}
