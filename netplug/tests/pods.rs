//! Pods have a network: they reach each other, the box, and the world behind it. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use amphipod_netplug::{Network, PodAttach};
use common::*;

#[test]
fn pods_reach_each_other_and_see_real_addresses() {
    let b = TestBox::new();
    let (one, two) = (b.server("one"), b.server("two"));
    assert_eq!(
        one.ns.tcp(&two.at(8080)).unwrap(),
        format!("two saw {}", one.ip())
    );
    assert_eq!(
        two.ns.udp(&one.at(8080)).unwrap(),
        format!("one saw {}", two.ip())
    );
}

#[test]
fn the_box_reaches_pods_and_pods_reach_the_box() {
    let b = TestBox::new();
    let pod = b.server("pod");
    b.ns.serve_tcp("10.42.0.1:53", "box");
    assert_eq!(b.ns.tcp(&pod.at(8080)).unwrap(), "pod saw 10.42.0.1");
    assert_eq!(
        pod.ns.tcp("10.42.0.1:53").unwrap(),
        format!("box saw {}", pod.ip())
    );
    assert_eq!(pod.ns.tcp("127.0.0.1:8080").unwrap(), "pod saw 127.0.0.1");
}

#[test]
fn the_world_sees_the_box_instead_of_the_pod() {
    let b = TestBox::new();
    let outside = b.outsider();
    outside.serve_tcp("192.0.2.2:80", "world");
    let pod = b.pod("pod");
    assert_eq!(pod.ns.tcp("192.0.2.2:80").unwrap(), "world saw 192.0.2.1");
}

#[test]
fn addresses_without_a_pod_are_refused_at_once() {
    let b = TestBox::new();
    let pod = b.pod("pod");
    let error = pod.ns.tcp("10.42.0.77:80").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
}

#[test]
fn attaching_again_changes_nothing_and_a_new_namespace_gets_the_same_address() {
    let b = TestBox::new();
    let pod = b.server("pod");
    let other = b.pod("other");
    let before = b.ns.sh("ip -o link | cut -d' ' -f1,2; ip route");
    let again = |ns: &Ns| {
        b.net().attach(&PodAttach {
            id: "pod".into(),
            netns: ns.path(),
            ifname: "eth0".into(),
            host_ports: vec![],
        })
    };
    assert_eq!(again(&pod.ns).unwrap(), pod.net);
    assert_eq!(b.ns.sh("ip -o link | cut -d' ' -f1,2; ip route"), before);
    let fresh = Ns::new();
    assert_eq!(again(&fresh).unwrap(), pod.net);
    fresh.serve_tcp("0.0.0.0:8080", "fresh");
    assert_eq!(
        other.ns.tcp(&pod.at(8080)).unwrap(),
        format!("fresh saw {}", other.ip())
    );
}

#[test]
fn a_restart_keeps_pods_and_retain_drops_the_rest() {
    let mut b = TestBox::new();
    let (one, two) = (b.server("one"), b.server("two"));
    let links = "ip -o link | cut -d' ' -f1,2";
    let before = b.ns.sh(links);
    b.open();
    assert_eq!(b.ns.sh(links), before);
    assert_eq!(b.net().attached().len(), 2);
    assert!(one.ns.tcp(&two.at(8080)).is_ok());
    b.ns.sh("ip link add amphi99 type veth peer name stray");
    b.net().retain(&["one"]).unwrap();
    assert_eq!(b.net().attached(), std::slice::from_ref(&one.net));
    let links = b.ns.sh("ip -o link");
    assert!(
        !links.contains("amphi99")
            && !links.contains(&two.net.host_ifname)
            && links.contains(&one.net.host_ifname),
        "{links}"
    );
}

#[test]
fn detaching_is_idempotent_and_survives_a_namespace_that_is_gone() {
    let b = TestBox::new();
    let pod = b.pod("pod");
    drop(pod);
    b.net().detach("pod").unwrap();
    b.net().detach("pod").unwrap();
    b.net().detach("never").unwrap();
    assert!(b.net().attached().is_empty());
    assert!(!b.ns.sh("ip -o link").contains("amphi2"));
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let b = TestBox::new();
    let attach = |id: &str, netns: &str, ifname: &str| {
        let request = PodAttach {
            id: id.into(),
            netns: netns.into(),
            ifname: ifname.into(),
            host_ports: vec![],
        };
        b.net().attach(&request).unwrap_err().to_string()
    };
    let here = Ns::new().path().display().to_string();
    assert!(attach("a", "/nowhere", "eth0").contains("opening network namespace /nowhere"));
    assert!(attach("a", "/etc/passwd", "eth0").contains("entering network namespace"));
    assert!(attach("", &here, "eth0").contains("pod id"));
    assert!(attach("a", &here, "lo").contains("cannot be the name"));
    assert!(attach("a", &here, "a-name-that-is-too-long").contains("cannot be the name"));
}

#[test]
fn teardown_leaves_nothing() {
    let b = TestBox::new();
    let before = || {
        b.ns.sh("ip -o link show | cut -d: -f2; ip -o addr; ip route show table all | grep -v '^local\\|^broadcast'; true") + &b.ns.rules()
    };
    b.ns.sh("nft add table ip mine");
    let pod = b.pod("pod");
    b.net()
        .set_services(vec![service("web", "10.43.0.7", &[&pod])])
        .unwrap();
    let full = before();
    assert!(
        full.contains("amphi2") && b.ns.rules().contains("10.43.0.7"),
        "{full}"
    );
    b.net().teardown().unwrap();
    let after = before();
    assert!(
        !after.contains("amphi") && !after.contains("10.4"),
        "{after}"
    );
    assert!(b.ns.sh("nft list tables").contains("table ip mine"));
    assert!(!b.dir.path().join("net").exists());
}

#[test]
fn forwarding_that_was_off_is_off_again_and_what_was_on_stays_on() {
    let mut b = TestBox::new();
    let forwarding = |b: &TestBox| b.ns.sh("cat /proc/sys/net/ipv4/ip_forward");
    b.net().teardown().unwrap();
    for (before, opened) in [("0", 1), ("0", 2), ("1", 1)] {
        b.ns.sh(&format!("echo {before} > /proc/sys/net/ipv4/ip_forward"));
        // Twice is as after a restart of the agent.
        for _ in 0..opened {
            b.open();
        }
        assert_eq!(forwarding(&b).trim(), "1");
        b.net().teardown().unwrap();
        assert_eq!(forwarding(&b).trim(), before);
        assert_eq!(std::fs::read_dir(b.dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn probe_tells_what_the_kernel_can_and_who_stands_in_the_way() {
    let ns = Ns::new();
    let probed = ns.run(Network::probe);
    assert!(probed.nftables && probed.forward_drops.is_empty());
    ns.sh("nft add table ip x; nft 'add chain ip x f { type filter hook forward priority 0; policy drop; }'");
    assert_eq!(ns.run(Network::probe).forward_drops, ["f of table x"]);
}
