//! Both IP families at once. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;

use amphipod_netplug::{Affinity, Endpoint, HostPort, Network, PodAttach, Protocol};
use common::*;

fn boxed() -> TestBox {
    let mut b = TestBox::new();
    let mut config = b.config();
    config.pod_cidrs.push("fd42::/64".parse().unwrap());
    config.cluster_cidrs.push("fd42::/56".parse().unwrap());
    config.service_cidrs.push("fd43::/108".parse().unwrap());
    config.state_dir = b.dir.path().join("dual");
    b.net = None;
    b.net = Some(b.ns.run(|| Network::open(config).unwrap()));
    b
}

fn server(b: &TestBox, id: &str) -> Pod {
    let pod = b.pod(id);
    pod.ns.serve_tcp("[::]:8080", id);
    pod.ns.serve_udp("[::]:8080", id);
    pod
}

#[test]
fn pods_have_an_address_of_each_family_and_use_both() {
    let b = boxed();
    let (one, two) = (server(&b, "one"), server(&b, "two"));
    assert_eq!(one.net.ips.len(), 2);
    assert_eq!(
        one.ns.tcp(&two.at6(8080)).unwrap(),
        format!("two saw {}", one.ip6())
    );
    assert!(
        one.ns
            .tcp(&two.at(8080))
            .unwrap()
            .contains(&one.ip().to_string())
    );
    assert_eq!(b.ns.tcp(&two.at6(8080)).unwrap(), "two saw fd42::1");
    let outside = Ns::new();
    b.ns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    outside.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    b.ns.cable("uplink", "2001:db8::1/64", &outside, "2001:db8::2/64");
    outside.serve_tcp("[::]:80", "world");
    // A new cable may lose the first packets, until both ends have a carrier.
    let patient = std::time::Duration::from_secs(10);
    assert_eq!(
        one.ns.tcp_within("[2001:db8::2]:80", patient).unwrap(),
        "world saw 2001:db8::1"
    );
}

#[test]
fn services_work_in_both_families() {
    let b = boxed();
    let (one, two) = (server(&b, "one"), server(&b, "two"));
    let mut svc = service("web", "10.43.0.7", &[&one]);
    svc.cluster_ips.push("fd43::7".parse().unwrap());
    svc.affinity = Affinity::ClientIp { seconds: 100 };
    for port in &mut svc.ports {
        port.node_port = Some(30080);
        port.endpoints.push(Endpoint::ready(one.ip6(), 8080, true));
    }
    b.net().set_services(vec![svc.clone()]).unwrap();
    for ns in [&two.ns, &b.ns] {
        for address in [
            "10.43.0.7:80",
            "[fd43::7]:80",
            "10.42.0.1:30080",
            "[fd42::1]:30080",
        ] {
            assert!(ns.tcp(address).unwrap().starts_with("one"), "{address}");
            assert!(ns.udp(address).unwrap().starts_with("one"), "{address}");
        }
    }
    assert_eq!(
        one.ns.tcp("[fd43::7]:80").unwrap(),
        "one saw fd42::1",
        "hairpin"
    );
    assert_eq!(
        two.ns.tcp("[fd43::8]:80").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    for port in &mut svc.ports {
        port.endpoints.pop();
    }
    b.net().upsert_service(svc).unwrap();
    assert_eq!(
        two.ns.tcp("[fd43::7]:80").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert!(two.ns.tcp("10.43.0.7:80").is_ok());
}

#[test]
fn host_ports_and_teardown_in_both_families() {
    let b = boxed();
    let host_ports = vec![HostPort {
        host_ip: None,
        host_port: 8081,
        container_port: 8080,
        protocol: Protocol::Tcp,
    }];
    let ns = Ns::new();
    let net = b
        .net()
        .attach(&PodAttach {
            id: "p".into(),
            netns: ns.path(),
            ifname: "eth0".into(),
            host_ports,
        })
        .unwrap();
    ns.serve_tcp("[::]:8080", "p");
    assert_eq!(net.gateways.len(), 2);
    assert!(b.ns.tcp("[fd42::1]:8081").is_ok());
    assert!(b.ns.tcp("10.42.0.1:8081").is_ok());
    b.net().teardown().unwrap();
    let left = b.ns.sh("ip -o addr; ip route; ip -6 route") + &b.ns.rules();
    assert!(
        !left.contains("amphi") && !left.contains("fd42") && !left.contains("10.42"),
        "{left}"
    );
}
