//! Services and host ports, as clients see them. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use amphipod_netplug::{Affinity, FirewallKind, HostPort, IpNet, Protocol, Service};
use common::*;

/// Who answers, of many tries.
fn answers(ns: &Ns, address: &str, tries: usize) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    for _ in 0..tries {
        let said = ns.tcp(address).unwrap();
        *seen
            .entry(said.split(' ').next().unwrap().to_owned())
            .or_default() += 1;
    }
    seen
}

fn names(answers: &HashMap<String, usize>) -> BTreeSet<&str> {
    answers.keys().map(String::as_str).collect()
}

fn with_node_port(mut service: Service, port: u16) -> Service {
    service.ports[0].node_port = Some(port);
    service.ports[1].node_port = Some(port);
    service
}

#[test]
fn a_cluster_ip_spreads_over_its_endpoints_for_pods_and_for_the_box() {
    let b = TestBox::new();
    let (one, two, three, client) = (
        b.server("one"),
        b.server("two"),
        b.server("three"),
        b.pod("client"),
    );
    b.net()
        .set_services(vec![service("web", "10.43.0.7", &[&one, &two, &three])])
        .unwrap();
    for ns in [&client.ns, &b.ns] {
        let seen = answers(ns, "10.43.0.7:80", 60);
        assert_eq!(names(&seen), ["one", "two", "three"].into());
        assert!(seen.values().all(|n| *n > 5), "{seen:?}");
    }
    assert!(
        client
            .ns
            .tcp("10.43.0.7:80")
            .unwrap()
            .ends_with(&client.ip().to_string()),
        "pods are not masqueraded"
    );
    assert!(client.ns.udp("10.43.0.7:80").is_ok());
    assert!(b.ns.udp("10.43.0.7:80").is_ok());
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let b = TestBox::new();
    let pod = b.server("self");
    b.net()
        .set_services(vec![service("web", "10.43.0.7", &[&pod])])
        .unwrap();
    assert_eq!(pod.ns.tcp("10.43.0.7:80").unwrap(), "self saw 10.42.0.1");
    assert_eq!(pod.ns.udp("10.43.0.7:80").unwrap(), "self saw 10.42.0.1");
}

#[test]
fn nobody_behind_a_service_means_refused_at_once() {
    let b = TestBox::new();
    let client = b.pod("client");
    b.net()
        .set_services(vec![with_node_port(
            service("web", "10.43.0.7", &[]),
            30080,
        )])
        .unwrap();
    let outside = b.outsider();
    outside.sh("ip route add default via 192.0.2.1");
    let start = Instant::now();
    let all = [
        (&client.ns, "10.43.0.7:80"),
        (&client.ns, "10.43.9.9:1"),
        (&b.ns, "10.43.0.7:80"),
        (&b.ns, "10.43.9.9:1"),
        (&outside, "192.0.2.1:30080"),
        (&outside, "10.43.0.7:80"),
    ];
    for (ns, address) in all {
        assert_eq!(
            ns.tcp(address).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{address} by TCP"
        );
        // The kernel tells a local sender of datagrams that they were not permitted to leave.
        let told = ns.udp(address).unwrap_err().kind();
        assert!(
            [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied].contains(&told),
            "{address} by UDP: {told}"
        );
    }
    assert!(start.elapsed() < TIMEOUT);
}

#[test]
fn services_change_as_told() {
    let b = TestBox::new();
    let (one, two, client) = (b.server("one"), b.server("two"), b.pod("client"));
    b.net()
        .set_services(vec![
            service("a", "10.43.0.1", &[&one]),
            service("b", "10.43.0.2", &[&two]),
        ])
        .unwrap();
    assert_eq!(
        names(&answers(&client.ns, "10.43.0.1:80", 9)),
        ["one"].into()
    );
    b.net()
        .upsert_service(service("a", "10.43.0.1", &[&one, &two]))
        .unwrap();
    assert_eq!(
        names(&answers(&client.ns, "10.43.0.1:80", 40)),
        ["one", "two"].into()
    );
    b.net()
        .upsert_service(service("a", "10.43.0.1", &[&two]))
        .unwrap();
    assert_eq!(
        names(&answers(&client.ns, "10.43.0.1:80", 20)),
        ["two"].into()
    );
    b.net().remove_service("default/a").unwrap();
    b.net().remove_service("default/never").unwrap();
    assert!(client.ns.tcp("10.43.0.1:80").is_err());
    assert_eq!(
        names(&answers(&client.ns, "10.43.0.2:80", 3)),
        ["two"].into()
    );
    b.net().set_services(vec![]).unwrap();
    assert!(client.ns.tcp("10.43.0.2:80").is_err());
}

#[test]
fn a_node_port_answers_on_every_address_of_the_box_with_or_without_the_clients_address() {
    let b = TestBox::new();
    let (pod, outside) = (b.server("pod"), b.outsider());
    let mut svc = with_node_port(service("web", "10.43.0.7", &[&pod]), 30080);
    b.net().set_services(vec![svc.clone()]).unwrap();
    assert_eq!(outside.tcp("192.0.2.1:30080").unwrap(), "pod saw 10.42.0.1");
    assert_eq!(outside.udp("192.0.2.1:30080").unwrap(), "pod saw 10.42.0.1");
    for ns in [&b.ns, &pod.ns] {
        assert!(ns.tcp("192.0.2.1:30080").is_ok());
        assert!(ns.tcp("10.42.0.1:30080").is_ok());
    }
    assert!(b.ns.tcp("127.0.0.1:30080").is_ok());
    svc.external_traffic_local = true;
    b.net().upsert_service(svc).unwrap();
    assert_eq!(outside.tcp("192.0.2.1:30080").unwrap(), "pod saw 192.0.2.2");
}

#[test]
fn external_traffic_with_policy_local_is_dropped_without_local_endpoints_but_pods_get_through() {
    let b = TestBox::new();
    let (pod, client, outside) = (b.server("pod"), b.pod("client"), b.outsider());
    let mut svc = with_node_port(service("web", "10.43.0.7", &[&pod]), 30080);
    svc.external_traffic_local = true;
    for port in &mut svc.ports {
        port.endpoints[0].local = false;
    }
    b.net().set_services(vec![svc]).unwrap();
    assert_eq!(
        outside
            .tcp_within("192.0.2.1:30080", SOON)
            .unwrap_err()
            .kind(),
        ErrorKind::TimedOut
    );
    assert!(client.ns.tcp("192.0.2.1:30080").is_ok());
}

#[test]
fn external_and_load_balancer_addresses_lead_to_the_service_within_their_source_ranges() {
    let b = TestBox::new();
    let (pod, outside) = (b.server("pod"), b.outsider());
    outside.sh("ip route add 198.51.100.0/24 via 192.0.2.1");
    let mut svc = service("web", "10.43.0.7", &[&pod]);
    svc.external_ips = vec!["198.51.100.1".parse().unwrap()];
    svc.load_balancer_ips = vec!["198.51.100.2".parse().unwrap()];
    b.net().set_services(vec![svc.clone()]).unwrap();
    assert!(outside.tcp("198.51.100.1:80").is_ok());
    assert!(outside.tcp("198.51.100.2:80").is_ok());
    svc.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    b.net().upsert_service(svc.clone()).unwrap();
    assert!(outside.tcp("198.51.100.1:80").is_ok());
    assert_eq!(
        outside
            .tcp_within("198.51.100.2:80", SOON)
            .unwrap_err()
            .kind(),
        ErrorKind::TimedOut
    );
    svc.source_ranges.push("192.0.2.0/30".parse().unwrap());
    b.net().upsert_service(svc.clone()).unwrap();
    assert!(outside.tcp("198.51.100.2:80").is_ok());
    svc.source_ranges.clear();
    b.net().upsert_service(svc).unwrap();
    assert!(outside.tcp("198.51.100.2:80").is_ok());
}

#[test]
fn a_client_outside_the_cluster_may_use_a_cluster_ip() {
    let b = TestBox::new();
    let (pod, outside) = (b.server("pod"), b.outsider());
    outside.sh("ip route add 10.43.0.0/16 via 192.0.2.1");
    b.net()
        .set_services(vec![service("web", "10.43.0.7", &[&pod])])
        .unwrap();
    assert_eq!(outside.tcp("10.43.0.7:80").unwrap(), "pod saw 10.42.0.1");
}

#[test]
fn host_ports_answer_outside_on_the_box_and_on_localhost() {
    let b = TestBox::new();
    let outside = b.outsider();
    let port = |host_ip: Option<&str>, host_port, protocol| HostPort {
        host_ip: host_ip.map(|s| s.parse().unwrap()),
        host_port,
        container_port: 8080,
        protocol,
    };
    let ports = vec![
        port(None, 8081, Protocol::Tcp),
        port(None, 8081, Protocol::Udp),
        port(Some("127.0.0.1"), 8082, Protocol::Tcp),
    ];
    let pod = b.pod_with("pod", ports);
    pod.ns.serve_tcp("0.0.0.0:8080", "pod");
    pod.ns.serve_udp("0.0.0.0:8080", "pod");
    assert_eq!(outside.tcp("192.0.2.1:8081").unwrap(), "pod saw 192.0.2.2");
    assert_eq!(outside.udp("192.0.2.1:8081").unwrap(), "pod saw 192.0.2.2");
    assert!(b.ns.tcp("192.0.2.1:8081").is_ok());
    assert!(b.ns.tcp("127.0.0.1:8081").is_ok());
    assert!(b.ns.tcp("127.0.0.1:8082").is_ok());
    assert!(pod.ns.tcp("192.0.2.1:8081").is_ok(), "hairpin");
    assert_eq!(
        outside.tcp("192.0.2.1:8082").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    b.net().detach("pod").unwrap();
    assert_eq!(
        outside.tcp("192.0.2.1:8081").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn pods_cannot_reach_the_boxs_own_localhost() {
    let b = TestBox::new();
    let pod = b.pod("pod");
    b.ns.serve_tcp("127.0.0.1:9999", "secret");
    // A pod with its own privileges can send to 127.0.0.1 by its link.
    pod.ns
        .sh("ip addr flush dev lo; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet");
    assert!(pod.ns.tcp_within("127.0.0.1:9999", SOON).is_err());
}

#[test]
fn a_client_keeps_its_endpoint_until_the_endpoint_goes() {
    let b = TestBox::new();
    let pods: Vec<Pod> = ["one", "two", "three", "four"]
        .iter()
        .map(|n| b.server(n))
        .collect();
    let client = b.pod("client");
    let sticky = |pods: &[&Pod]| {
        let mut svc = with_node_port(service("web", "10.43.0.7", pods), 30080);
        svc.affinity = Affinity::ClientIp { seconds: 100 };
        svc
    };
    let all: Vec<&Pod> = pods.iter().collect();
    b.net().set_services(vec![sticky(&all)]).unwrap();
    let outside = b.outsider();
    for (ns, address) in [
        (&client.ns, "10.43.0.7:80"),
        (&b.ns, "10.43.0.7:80"),
        (&outside, "192.0.2.1:30080"),
    ] {
        assert_eq!(answers(ns, address, 20).len(), 1, "{address}");
    }
    let kept = answers(&client.ns, "10.43.0.7:80", 1)
        .into_keys()
        .next()
        .unwrap();
    let left: Vec<&Pod> = pods.iter().filter(|p| p.net.id != kept).collect();
    b.net().upsert_service(sticky(&left)).unwrap();
    let seen = answers(&client.ns, "10.43.0.7:80", 20);
    assert!(
        seen.len() == 1 && !seen.contains_key(&kept),
        "{seen:?}, had {kept}"
    );
}

#[test]
fn affinity_ends_after_its_time_without_connections() {
    let b = TestBox::new();
    let pods: Vec<Pod> = ["one", "two", "three", "four"]
        .iter()
        .map(|n| b.server(n))
        .collect();
    let mut svc = service("web", "10.43.0.7", &pods.iter().collect::<Vec<_>>());
    svc.affinity = Affinity::ClientIp { seconds: 1 };
    b.net().set_services(vec![svc]).unwrap();
    let first = answers(&b.ns, "10.43.0.7:80", 1);
    // Each further try waits out the time; one in four would meet the same endpoint by chance.
    let other = (0..20).find(|_| {
        match firewall() {
            FirewallKind::Nftables => {
                let entries = || {
                    b.ns.sh("nft list map ip amphipod clients")
                        .contains("expires")
                };
                eventually("the entry to expire", || (!entries()).then_some(()));
            }
            // Nobody tells when an entry of xt_recent is too old.
            FirewallKind::Iptables => std::thread::sleep(Duration::from_millis(1100)),
        }
        answers(&b.ns, "10.43.0.7:80", 1) != first
    });
    assert!(other.is_some());
}

#[test]
fn udp_flows_leave_an_endpoint_that_is_gone() {
    let b = TestBox::new();
    let (one, two, client) = (b.server("one"), b.server("two"), b.pod("client"));
    b.net()
        .set_services(vec![service("dns", "10.43.0.10", &[&one])])
        .unwrap();
    let socket = client.ns.udp_socket();
    assert!(
        ask_udp(&socket, "10.43.0.10:80")
            .unwrap()
            .starts_with("one")
    );
    b.net()
        .upsert_service(service("dns", "10.43.0.10", &[&two]))
        .unwrap();
    assert!(
        ask_udp(&socket, "10.43.0.10:80")
            .unwrap()
            .starts_with("two"),
        "the same socket, so the same flow"
    );
}

#[test]
fn local_internal_policy_never_leaves_the_box() {
    let b = TestBox::new();
    let (one, two, client) = (b.server("one"), b.server("two"), b.pod("client"));
    let mut svc = service("web", "10.43.0.7", &[&one, &two]);
    svc.internal_traffic_local = true;
    svc.ports[0].endpoints[1].local = false;
    b.net().set_services(vec![svc.clone()]).unwrap();
    assert_eq!(
        names(&answers(&client.ns, "10.43.0.7:80", 20)),
        ["one"].into()
    );
    svc.ports[0].endpoints[0].local = false;
    b.net().upsert_service(svc).unwrap();
    assert_eq!(
        client
            .ns
            .tcp_within("10.43.0.7:80", SOON)
            .unwrap_err()
            .kind(),
        ErrorKind::TimedOut
    );
}

#[test]
fn a_restart_interrupts_nothing_and_adopts_everything() {
    let mut b = TestBox::new();
    let (one, two, client) = (b.server("one"), b.server("two"), b.pod("client"));
    let mut svc = with_node_port(service("web", "10.43.0.7", &[&one, &two]), 30080);
    svc.affinity = Affinity::ClientIp { seconds: 1000 };
    svc.load_balancer_ips = vec!["198.51.100.2".parse().unwrap()];
    svc.source_ranges = vec!["203.0.113.0/24".parse::<IpNet>().unwrap()];
    let all = vec![
        svc,
        service("old", "10.43.0.8", &[&one]),
        service("none", "10.43.0.9", &[]),
    ];
    b.net().set_services(all.clone()).unwrap();
    let kept = answers(&client.ns, "10.43.0.7:80", 1);
    let generation = |b: &TestBox| b.ns.rules();
    let before = generation(&b);
    b.open();
    assert_eq!(generation(&b), before);
    assert_eq!(
        answers(&client.ns, "10.43.0.7:80", 1),
        kept,
        "before anybody said anything"
    );
    b.net().set_services(all.clone()).unwrap();
    assert_eq!(generation(&b), before, "the same services change nothing");
    assert_eq!(answers(&client.ns, "10.43.0.7:80", 1), kept);
    b.net().set_services(all[..1].to_vec()).unwrap();
    assert!(
        client.ns.tcp("10.43.0.8:80").is_err(),
        "what is no more wanted goes"
    );
}

#[test]
fn other_base_rules_replace_the_old_ones_without_losing_services() {
    let mut b = TestBox::new();
    let (one, client) = (b.server("one"), b.pod("client"));
    b.net()
        .set_services(vec![service("web", "10.43.0.7", &[&one])])
        .unwrap();
    let mut config = b.config();
    config.masquerade = false;
    b.net = None;
    b.net = Some(b.ns.run(|| amphipod_netplug::Network::open(config).unwrap()));
    assert!(client.ns.tcp("10.43.0.7:80").is_ok());
    assert!(
        !b.ns.rules().contains("!= 10.42.0.0/16 oifname")
            && !b.ns.rules().contains("! -d 10.42.0.0/16 ! -o")
    );
}

#[test]
fn a_flushed_ruleset_is_repaired_with_the_next_change() {
    let b = TestBox::new();
    let (one, two, client) = (b.server("one"), b.server("two"), b.pod("client"));
    b.net()
        .set_services(vec![service("a", "10.43.0.1", &[&one])])
        .unwrap();
    b.ns.sh("nft flush ruleset");
    assert!(client.ns.tcp_within("10.43.0.1:80", SOON).is_err());
    b.net()
        .upsert_service(service("b", "10.43.0.2", &[&two]))
        .unwrap();
    assert!(client.ns.tcp("10.43.0.1:80").is_ok());
    assert!(client.ns.tcp("10.43.0.2:80").is_ok());
    b.ns.sh("nft flush ruleset; ip link del amphi0");
    b.net().repair().unwrap();
    assert!(client.ns.tcp("10.43.0.1:80").is_ok() && b.ns.tcp("10.43.0.2:80").is_ok());
}

#[test]
fn the_guard_restores_removed_rules_by_itself_until_teardown() {
    let mut b = TestBox::new();
    let net = std::sync::Arc::new(b.net.take().unwrap());
    let guard = net.clone();
    b.ns.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(guard.guard());
    });
    let (pod, client) = (Ns::new(), Ns::new());
    let attach = |ns: &Ns, id: &str| {
        let request = amphipod_netplug::PodAttach {
            id: id.into(),
            netns: ns.path(),
            ifname: "eth0".into(),
            host_ports: vec![],
        };
        Pod {
            ns: Ns::new(),
            net: net.attach(&request).unwrap(),
        }
    };
    let server = attach(&pod, "server");
    attach(&client, "client");
    pod.serve_tcp("0.0.0.0:8080", "server");
    net.set_services(vec![service("a", "10.43.0.1", &[&server])])
        .unwrap();
    let removals = match firewall() {
        FirewallKind::Nftables => [
            "nft flush ruleset",
            "nft delete table ip amphipod",
            "nft flush chain ip amphipod prerouting",
        ],
        FirewallKind::Iptables => [
            "nft flush ruleset",
            "iptables -t nat -F",
            "iptables -F; iptables -t nat -F; iptables -t mangle -F; iptables -t nat -X; iptables -X; true",
        ],
    };
    for removal in removals {
        b.ns.sh(removal);
        eventually(removal, || client.tcp_within("10.43.0.1:80", SOON).ok());
    }
    if firewall() == FirewallKind::Nftables {
        let handle =
            b.ns.sh("nft -a list table ip amphipod | head -1 | sed 's/.*handle //'");
        assert!(
            handle.trim().parse::<u32>().unwrap() < 20,
            "repairs cause no repairs: {handle}"
        );
    }
    net.teardown().unwrap();
    assert_eq!(b.ns.rules(), "");
}

#[test]
fn other_peoples_rules_are_left_alone() {
    let b = TestBox::new();
    b.ns.sh("nft add table ip other; nft add chain ip other c; nft add rule ip other c tcp dport 1 drop");
    let mine = "nft list table ip other";
    let before = b.ns.sh(mine);
    let pod = b.server("pod");
    b.net()
        .set_services(vec![service("a", "10.43.0.1", &[&pod])])
        .unwrap();
    b.net().repair().unwrap();
    assert_eq!(b.ns.sh(mine), before);
}
