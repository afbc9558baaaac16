//! What connecting pods, and changes of services and policies, cost: prints figures (`-- --nocapture`), and judges none. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use amphipod_netplug::{
    Allow, Direction, Endpoint, HostPort, IpNet, PodAttach, PolicyGroup, Protocol, Service,
    ServicePort, Traffic,
};
use common::*;

fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

fn request(ns: &Ns, n: usize) -> PodAttach {
    let host_ports = vec![HostPort {
        host_ip: None,
        host_port: 9000 + n as u16,
        container_port: 80,
        protocol: Protocol::Tcp,
    }];
    PodAttach {
        id: format!("pod-{n}"),
        netns: ns.path(),
        ifname: "eth0".into(),
        host_ports,
    }
}

#[test]
fn fifty_pods_are_connected_and_disconnected_one_by_one_and_at_once() {
    let b = TestBox::new();
    let spaces: Vec<Ns> = (0..50).map(|_| Ns::new()).collect();
    let mut attach = Vec::new();
    let mut detach = Vec::new();
    for (n, ns) in spaces.iter().enumerate() {
        let start = Instant::now();
        b.net().attach(&request(ns, n)).unwrap();
        attach.push(start.elapsed());
    }
    for n in 0..50 {
        let start = Instant::now();
        b.net().detach(&format!("pod-{n}")).unwrap();
        detach.push(start.elapsed());
    }
    let (attach, detach) = (percentiles(attach), percentiles(detach));
    println!(
        "one by one: attach p50 {:?} p95 {:?}, detach p50 {:?} p95 {:?}",
        attach.0, attach.1, detach.0, detach.1
    );
    let net = b.net();
    let all = |work: &(dyn Fn(usize, &Ns) + Sync)| {
        let start = Instant::now();
        std::thread::scope(|s| {
            for (n, ns) in spaces.iter().enumerate() {
                s.spawn(move || work(n, ns));
            }
        });
        start.elapsed()
    };
    let up = all(&|n, ns| drop(net.attach(&request(ns, n)).unwrap()));
    let down = all(&|n, _| net.detach(&format!("pod-{n}")).unwrap());
    println!("50 at once: attach {up:?}, detach {down:?}");
    assert!(net.attached().is_empty());
}

#[test]
fn a_change_of_a_policy_among_thousands_of_peers() {
    let b = TestBox::new();
    let server = b.server("server");
    let plan = |peers: u32| {
        let peer = |i: u32| Allow {
            peer: IpNet::from(IpAddr::from([
                10,
                42,
                (100 + i / 250) as u8,
                (i % 250) as u8,
            ])),
            except: vec![],
            traffic: Traffic::Ports {
                protocol: Protocol::Tcp,
                first: 8080,
                last: 8080,
            },
        };
        vec![PolicyGroup {
            key: "default/policy".into(),
            direction: Direction::Ingress,
            pods: [server.ip()].into(),
            allow: (0..peers).map(peer).collect(),
        }]
    };
    b.net().set_policies(plan(5000)).unwrap();
    let mut best = Duration::MAX;
    for i in 1..6 {
        let start = Instant::now();
        b.net().set_policies(plan(5000 + i)).unwrap();
        best = best.min(start.elapsed());
    }
    println!("one more among 5,000 peers: {best:?}");
}

#[test]
fn a_change_of_a_service_among_ten_and_among_thousands() {
    for count in [10, 5000] {
        let b = TestBox::new();
        let endpoint = |n: u32| {
            Endpoint::ready(
                std::net::Ipv4Addr::from(0x0a2a_0100 + n).into(),
                8080,
                false,
            )
        };
        let make = |i: u32, endpoints: u32| Service {
            key: format!("default/s{i}"),
            cluster_ips: vec![std::net::Ipv4Addr::from(0x0a2b_0001 + i).into()],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                endpoints: (0..endpoints).map(|e| endpoint(i * 4 + e)).collect(),
            }],
            ..Service::default()
        };
        let start = Instant::now();
        b.net()
            .set_services((0..count).map(|i| make(i, 4)).collect())
            .unwrap();
        let all = start.elapsed();
        b.net().upsert_service(make(3, 3)).unwrap();
        let mut times: Vec<_> = (0..200)
            .map(|n| {
                let start = Instant::now();
                b.net().upsert_service(make(3, 3 + (n + 1) % 2)).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{count} services of 4 endpoints: all at once {all:?}; one change p50 {:?} p95 {:?}",
            times[100], times[190]
        );
    }
}
