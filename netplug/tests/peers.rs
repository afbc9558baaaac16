//! Pods of several boxes reach each other, over plain routes and through VXLAN. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::sync::Arc;

use amphipod_netplug::{Endpoint, Error, IpNet, Network, Overlay, Peer, Service};
use common::fleet::Fleet;
use common::*;

/// Every shape of fleet that pods must not notice.
fn shapes() -> Vec<(&'static str, Fleet)> {
    let mut shapes = vec![
        ("plain", Fleet::switched(2, Overlay::Auto)),
        ("vxlan by flag", Fleet::switched(2, Overlay::Vxlan)),
        ("vxlan by need", Fleet::routed(2, Overlay::Auto)),
    ];
    match Ns::new().run(|| Overlay::Wireguard.check()) {
        Ok(()) => shapes.extend([
            ("wireguard", Fleet::switched(2, Overlay::Wireguard)),
            ("wireguard, routed", Fleet::routed(2, Overlay::Wireguard)),
        ]),
        Err(why) => println!("skipped: {why}"),
    }
    shapes
}

#[test]
fn pods_of_different_boxes_see_each_others_real_addresses() {
    for (shape, f) in shapes() {
        let (one, two) = (f.boxes[0].server("one"), f.boxes[1].server("two"));
        assert_eq!(
            one.ns.tcp(&two.at(8080)).unwrap(),
            format!("two saw {}", one.ip()),
            "{shape}"
        );
        assert_eq!(
            two.ns.udp(&one.at(8080)).unwrap(),
            format!("one saw {}", two.ip()),
            "{shape}"
        );
    }
}

#[test]
fn a_box_reaches_the_pods_of_another() {
    for (shape, f) in shapes() {
        let two = f.boxes[1].server("two");
        assert_eq!(
            f.boxes[0].ns.tcp(&two.at(8080)).unwrap(),
            "two saw 10.42.0.1",
            "{shape}"
        );
    }
}

#[test]
fn the_way_is_chosen_by_what_lies_between() {
    let near = Fleet::switched(2, Overlay::Auto);
    assert!(
        near.boxes[0]
            .ns
            .sh("ip route")
            .contains("10.42.1.0/24 via 192.0.2.2 dev eth0")
    );
    assert!(!near.boxes[0].ns.sh("ip link").contains("vxlan"));
    assert!(!near.boxes[0].ns.sh("ip link").contains("amphi-vx"));
    let far = Fleet::routed(2, Overlay::Auto);
    assert!(
        far.boxes[0]
            .ns
            .sh("ip route")
            .contains("10.42.1.0/24 via 10.42.1.1 dev amphi-vx")
    );
    let plain = Fleet::routed(2, Overlay::None);
    assert!(!plain.boxes[0].ns.sh("ip route").contains("10.42.1.0/24"));
}

#[test]
fn encrypted_ways_follow_the_peers_and_go_with_the_flag() {
    if let Err(why) = Ns::new().run(|| Overlay::Wireguard.check()) {
        println!("skipped: {why}");
        return;
    }
    let mut f = Fleet::switched(3, Overlay::Wireguard);
    let state = |f: &Fleet| f.boxes[0].ns.sh("ip route; ip -o link");
    let there = state(&f);
    assert!(there.contains("10.42.1.0/24 dev amphi-wg"), "{there}");
    assert!(there.contains("10.42.2.0/24 dev amphi-wg"), "{there}");
    assert!(
        there
            .lines()
            .any(|l| l.contains("amphi-wg:") && l.contains("mtu 1440")),
        "{there}"
    );
    let (one, two) = (f.boxes[0].pod("one"), f.boxes[1].server("two"));
    assert!(one.ns.tcp(&two.at(8080)).is_ok());

    // Another key is another box: nothing gets through until it is told.
    let mut peers = f.peers(0);
    let right = peers.clone();
    peers[0].wireguard = Some([9; 32]);
    peers.pop();
    f.boxes[0].net().set_peers(peers).unwrap();
    assert!(!state(&f).contains("10.42.2.0/24"), "{}", state(&f));
    assert!(one.ns.tcp_within(&two.at(8080), SOON).is_err());
    f.boxes[0].net().set_peers(right).unwrap();
    assert!(one.ns.tcp(&two.at(8080)).is_ok());

    // A restart keeps the device and its sessions; without the flag it goes.
    f.open(0);
    assert!(state(&f).contains("amphi-wg"));
    assert!(one.ns.tcp(&two.at(8080)).is_ok());
    let mut config = f.config(0);
    config.overlay = Overlay::Auto;
    let b = &mut f.boxes[0];
    b.net = None;
    b.net = Some(b.ns.run(|| Network::open(config).unwrap()));
    f.boxes[0].net().set_peers(f.peers(0)).unwrap();
    assert!(!state(&f).contains("amphi-wg"), "{}", state(&f));
    assert!(state(&f).contains("10.42.1.0/24 via 192.0.2.2"));
}

#[test]
fn wireguard_needs_a_key_and_a_kernel() {
    let ns = Ns::new();
    if let Err(error) = ns.run(|| Overlay::Wireguard.check()) {
        assert!(
            matches!(&error, Error::Config(why) if why.contains("CONFIG_WIREGUARD") && why.contains("vxlan")),
            "{error}"
        );
    }
    assert!(!ns.sh("ip link").contains("wgcheck"));
    let f = Fleet::switched(1, Overlay::None);
    let mut config = f.config(0);
    config.overlay = Overlay::Wireguard;
    config.wireguard_key = None;
    let error = f.boxes[0].ns.run(|| Network::open(config).unwrap_err());
    assert!(
        matches!(&error, Error::Config(why) if why.contains("needs a key")),
        "{error}"
    );
}

/// A service on port 80 and node port 30080 for pods of the boxes, as box `i` sees it.
fn web(i: usize, pods: &[(usize, &Pod)]) -> Service {
    let mut service = service("web", "10.43.0.7", &[]);
    for port in &mut service.ports {
        port.node_port = Some(30080);
        port.endpoints = pods
            .iter()
            .map(|(at, p)| Endpoint::ready(p.ip(), 8080, *at == i))
            .collect();
    }
    service
}

#[test]
fn services_and_node_ports_of_every_box_lead_to_pods_of_every_box() {
    for (shape, f) in shapes() {
        let (one, two) = (f.boxes[0].server("one"), f.boxes[1].server("two"));
        let client = f.boxes[0].pod("client");
        for (pods, name) in [([(0, &one)], "one"), ([(1, &two)], "two")] {
            for i in 0..2 {
                f.boxes[i].net().set_services(vec![web(i, &pods)]).unwrap();
            }
            let said = format!("{name} saw {}", client.ip());
            assert_eq!(client.ns.tcp("10.43.0.7:80").unwrap(), said, "{shape}");
            assert_eq!(client.ns.udp("10.43.0.7:80").unwrap(), said, "{shape}");
            for i in 0..2 {
                let at = format!("{}:30080", f.ip(i));
                let from_box = f.boxes[i].ns.tcp("10.43.0.7:80").unwrap();
                assert!(from_box.starts_with(name), "{shape}: {from_box}");
                for ns in [&client.ns, &f.client, &f.boxes[0].ns, &f.boxes[1].ns] {
                    let said = ns.tcp(&at).unwrap();
                    assert!(said.starts_with(name), "{shape}: {at}: {said}");
                }
            }
        }
    }
}

#[test]
fn external_policy_cluster_hides_clients_and_local_shows_them() {
    for (shape, f) in shapes() {
        let two = f.boxes[1].server("two");
        let service = |local| {
            for i in 0..2 {
                let mut s = web(i, &[(1, &two)]);
                s.external_traffic_local = local;
                f.boxes[i].net().set_services(vec![s]).unwrap();
            }
        };
        service(false);
        for i in 0..2 {
            let said = f.client.tcp(&format!("{}:30080", f.ip(i))).unwrap();
            assert!(!said.ends_with(&f.ip(9)), "{shape}: {said}");
        }
        service(true);
        let at = |i: usize| format!("{}:30080", f.ip(i));
        assert_eq!(
            f.client.tcp(&at(1)).unwrap(),
            format!("two saw {}", f.ip(9)),
            "{shape}"
        );
        assert!(
            f.client.tcp_within(&at(0), SOON).is_err(),
            "{shape}: no endpoint there"
        );
    }
}

#[test]
fn internal_policy_local_never_leaves_the_box() {
    for (shape, f) in shapes() {
        let (one, two) = (f.boxes[0].server("one"), f.boxes[1].server("two"));
        for i in 0..2 {
            let mut s = web(i, &[(0, &one), (1, &two)]);
            s.internal_traffic_local = true;
            f.boxes[i].net().set_services(vec![s]).unwrap();
        }
        for (i, name) in ["one", "two"].into_iter().enumerate() {
            let client = f.boxes[i].pod("client");
            for _ in 0..8 {
                let said = client.ns.tcp("10.43.0.7:80").unwrap();
                assert!(said.starts_with(name), "{shape}: {said}");
            }
        }
    }
}

/// What a pod must be able to send: payloads around the size of a packet, and large streams both ways.
#[test]
fn packets_of_every_size_arrive() {
    for (shape, f) in shapes() {
        let (one, two) = (f.boxes[0].pod("one"), f.boxes[1].pod("two"));
        assert_eq!(bulk(&one, &two), BULK, "{shape}");
        assert_eq!(bulk(&two, &one), BULK, "{shape}");
        let socket = two
            .ns
            .run(|| std::net::UdpSocket::bind("0.0.0.0:9000").unwrap());
        let echo = std::thread::spawn(move || {
            let mut buffer = vec![0; 9000];
            while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                if n == 1 {
                    return;
                }
                socket.send_to(&buffer[..n], peer).unwrap();
            }
        });
        let socket = one
            .ns
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(two.at(9000)).unwrap();
        let mut buffer = vec![0; 9000];
        for size in [1372, 1400, 1421, 1422, 1423, 1472, 1473, 4000, 8000] {
            socket.send(&vec![7; size]).unwrap();
            let n = socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("{shape}, {size} bytes: {e}"));
            assert_eq!(n, size);
        }
        socket.send(&[0]).unwrap();
        echo.join().unwrap();
    }
}

const BULK: u64 = 4 << 20;

/// Sends much from one pod to another; what arrived.
fn bulk(from: &Pod, to: &Pod) -> u64 {
    let listener = to
        .ns
        .run(|| std::net::TcpListener::bind("0.0.0.0:9001").unwrap());
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let at = to.at(9001);
    from.ns.run(|| {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        for _ in 0..64 {
            stream.write_all(&vec![1; (BULK / 64) as usize]).unwrap();
        }
    });
    sink.join().unwrap()
}

#[test]
fn pods_older_than_the_overlay_send_large_streams_through_it() {
    let f = Fleet::routed(2, Overlay::Auto);
    f.boxes
        .iter()
        .for_each(|b| b.net().set_peers(vec![]).unwrap());
    let (one, two) = (f.boxes[0].pod("one"), f.boxes[1].pod("two"));
    assert!(one.ns.sh("ip link show eth0").contains("mtu 1500"));
    f.introduce();
    let young = f.boxes[0].pod("young");
    assert!(young.ns.sh("ip link show eth0").contains("mtu 1450"));
    assert_eq!(bulk(&one, &two), BULK);
    assert_eq!(bulk(&two, &young), BULK);
    // Nobody needed to be told by ICMP: the handshake said it.
    let known = one.ns.sh("ip route show cache");
    assert!(!known.contains("mtu"), "{known}");
}

#[test]
fn a_box_that_is_gone_loses_its_routes_and_one_that_moves_is_followed() {
    for (overlay, routed) in [(Overlay::Auto, false), (Overlay::Auto, true)] {
        let f = if routed {
            Fleet::routed(3, overlay)
        } else {
            Fleet::switched(3, overlay)
        };
        let b = &f.boxes[0];
        let mut peers = f.peers(0);
        let gone = peers.pop().unwrap();
        b.net().set_peers(peers.clone()).unwrap();
        let state = || b.ns.sh("ip route; ip neigh show nud permanent; bridge fdb");
        assert!(!state().contains("10.42.2."), "{}", state());
        assert!(!state().contains("0e:a3:0a:2a:02:00"), "{}", state());
        // Box 2 takes over the range of box 1, say after a new installation.
        peers[0].ips = gone.ips.clone();
        b.net().set_peers(peers).unwrap();
        let via = if routed {
            "dst 198.51.2.2"
        } else {
            "10.42.1.0/24 via 192.0.2.3"
        };
        assert!(state().contains(via), "{}", state());
        b.net().set_peers(vec![]).unwrap();
        assert!(!state().contains("10.42.1."), "{}", state());
        assert!(!b.ns.sh("ip link").contains("amphi-vx"));
    }
}

#[test]
fn a_restart_keeps_ways_until_it_is_told_otherwise() {
    for routed in [false, true] {
        let mut f = if routed {
            Fleet::routed(2, Overlay::Auto)
        } else {
            Fleet::switched(2, Overlay::Auto)
        };
        let (one, two) = (f.boxes[0].server("one"), f.boxes[1].server("two"));
        let before = f.boxes[0].ns.sh("ip -o link; ip route; bridge fdb");
        f.open(0);
        assert!(one.ns.tcp(&two.at(8080)).is_ok());
        f.introduce();
        assert_eq!(f.boxes[0].ns.sh("ip -o link; ip route; bridge fdb"), before);
    }
}

#[test]
fn ways_come_back_with_the_link() {
    for routed in [false, true] {
        let f = if routed {
            Fleet::routed(2, Overlay::Auto)
        } else {
            Fleet::switched(2, Overlay::Auto)
        };
        let (one, two) = (f.boxes[0].server("one"), f.boxes[1].server("two"));
        let Fleet {
            mut boxes, middle, ..
        } = f;
        let net = Arc::new(boxes[0].net.take().unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.spawn(net.clone().guard());
        let b = &boxes[0].ns;
        b.sh("ip link set eth0 down; ip link set eth0 up");
        if routed {
            b.sh("ip route replace default via 198.51.0.1");
        }
        eventually("the pods to meet again", || {
            one.ns.tcp_within(&two.at(8080), SOON).ok()
        });
        // The box moves to another network: its peer is no neighbour any more.
        if !routed {
            middle.sh("ip addr add 198.51.100.1/24 dev sw; ip addr add 192.0.2.100/24 dev sw; echo 1 > /proc/sys/net/ipv4/ip_forward");
            b.sh("ip addr flush dev eth0; ip addr add 198.51.100.2/24 dev eth0; ip route add default via 198.51.100.1");
            eventually("the way to change", || {
                b.sh("ip route").contains("dev amphi-vx").then_some(())
            });
        }
        guard.abort();
    }
}

/// A datagram of VXLAN (RFC 7348) to box 0 with a UDP packet for a pod of it inside.
fn wrapped(pod: &Pod, port: u16) -> Vec<u8> {
    let destination = match pod.ip() {
        std::net::IpAddr::V4(ip) => ip.octets(),
        other => panic!("{other}"),
    };
    let mut ip = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0, 10, 42, 1, 77];
    ip.extend(destination);
    let sum: u32 = ip
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let [a, b] = port.to_be_bytes();
    let udp = [0x10, 0, a, b, 0, 9, 0, 0, b'!'];
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    let ethernet = [0x0e, 0xa3, 10, 42, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0];
    [&vxlan[..], &ethernet, &ip, &udp].concat()
}

#[test]
fn only_peers_may_send_wrapped_packets() {
    let mut f = Fleet::switched(2, Overlay::Vxlan);
    let pod = f.boxes[0].pod("pod");
    let socket = pod.ns.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    socket.set_read_timeout(Some(SOON)).unwrap();
    let packet = wrapped(&pod, 7000);
    let to = format!("{}:8472", f.ip(0));
    let heard = |from: &Ns| {
        (0..3).any(|_| {
            let sender = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            sender.send_to(&packet, &to).unwrap();
            socket.recv(&mut [0; 10]).is_ok()
        })
    };
    assert!(heard(&f.boxes[1].ns), "a peer");
    assert!(!heard(&f.client), "a stranger");
    f.boxes[0].ns.sh("nft flush ruleset");
    assert!(heard(&f.client), "without rules it would get through");
    f.boxes[0].net().repair().unwrap();
    assert!(!heard(&f.client), "and is kept out again");
    f.open(0);
    assert!(!heard(&f.client), "a restart lets nobody in");
    f.introduce();
    assert!(heard(&f.boxes[1].ns) && !heard(&f.client));
    f.boxes[0].net().set_peers(vec![]).unwrap();
    assert!(!heard(&f.boxes[1].ns), "a peer no more");
}

#[test]
fn teardown_leaves_no_way_behind() {
    let f = Fleet::routed(2, Overlay::Auto);
    f.boxes[0].net().teardown().unwrap();
    let left = f.boxes[0].ns.sh("ip -o link; ip route");
    assert!(
        !left.contains("amphi") && !left.contains("10.42."),
        "{left}"
    );
}

/// Two boxes on one cable with both IP families; each knows the other by the addresses that `knows` keeps.
fn dual(overlay: Overlay, knows: fn(&str) -> bool) -> (Vec<TestBox>, Vec<Pod>) {
    let boxes: Vec<Ns> = (0..2).map(|_| Ns::new()).collect();
    for ns in &boxes {
        ns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    }
    boxes[0].cable("eth1", "192.0.2.1/24", &boxes[1], "192.0.2.2/24");
    boxes[0].sh("ip addr add 2001:db8::1/64 dev eth1");
    boxes[1].sh("ip addr add 2001:db8::2/64 dev eth0");
    let ranges = |i: usize| -> Vec<IpNet> {
        let texts = [format!("10.42.{i}.0/24"), format!("fd42:0:0:{i}::/64")];
        texts.iter().map(|t| t.parse().unwrap()).collect()
    };
    let open = |(i, ns): (usize, Ns)| {
        let dir = tempfile::tempdir().unwrap();
        let mut b = TestBox { ns, net: None, dir };
        let mut config = b.config();
        config.pod_cidrs = ranges(i);
        config.cluster_cidrs.push("fd42::/56".parse().unwrap());
        config.service_cidrs.push("fd43::/108".parse().unwrap());
        config.overlay = overlay;
        let net = b.ns.run(|| Network::open(config).unwrap());
        let other = 2 - i;
        let ips = [format!("192.0.2.{other}"), format!("2001:db8::{other}")];
        net.set_peers(vec![Peer {
            node: "other".into(),
            ips: ips
                .iter()
                .filter(|ip| knows(ip))
                .map(|ip| ip.parse().unwrap())
                .collect(),
            pod_cidrs: ranges(1 - i),
            wireguard: None,
        }])
        .unwrap();
        b.net = Some(net);
        b
    };
    let boxes: Vec<TestBox> = boxes.into_iter().enumerate().map(open).collect();
    let pods = boxes.iter().enumerate().map(|(i, b)| {
        let pod = b.pod(&format!("pod{i}"));
        pod.ns.serve_tcp("[::]:8080", &format!("pod{i}"));
        pod
    });
    let pods = pods.collect();
    (boxes, pods)
}

#[test]
fn both_families_travel_over_routes_and_inside_either_family() {
    for (shape, overlay, knows) in [
        ("plain", Overlay::Auto, (|_| true) as fn(&str) -> bool),
        ("inside IPv4", Overlay::Vxlan, |ip| !ip.contains(':')),
        ("inside IPv6", Overlay::Vxlan, |ip| ip.contains(':')),
        ("half plain, half inside", Overlay::Auto, |ip| {
            !ip.contains(':')
        }),
    ] {
        let (boxes, pods) = dual(overlay, knows);
        let mtu = pods[0].ns.sh("ip link show eth0");
        let expected = match shape {
            "plain" => "mtu 1500 ",
            "inside IPv6" => "mtu 1430 ",
            _ => "mtu 1450 ",
        };
        assert!(mtu.contains(expected), "{shape}: {mtu}");
        let patient = std::time::Duration::from_secs(10);
        for (from, to, name) in [(0, 1, "pod1"), (1, 0, "pod0")] {
            let said = pods[from].ns.tcp_within(&pods[to].at(8080), patient);
            // A socket of both families writes an IPv4 client as a mapped address.
            let seen = format!("{name} saw ::ffff:{}", pods[from].ip());
            assert_eq!(said.unwrap(), seen, "{shape}");
            let said = pods[from].ns.tcp_within(&pods[to].at6(8080), patient);
            let seen = format!("{name} saw {}", pods[from].ip6());
            assert_eq!(said.unwrap(), seen, "{shape}");
        }
        boxes[0].net().set_peers(vec![]).unwrap();
        let left = boxes[0].ns.sh("ip route; ip -6 route; ip -o link");
        assert!(
            !left.contains("10.42.1.") && !left.contains("fd42:0:0:1:") && !left.contains("vx"),
            "{shape}: {left}"
        );
    }
}
