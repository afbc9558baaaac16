//! What connecting pods costs. Prints figures; the limits are wide, as machines differ. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use amphipod_netplug::{HostPort, PodAttach, Protocol};
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
fn fifty_pods_are_connected_and_disconnected_quickly_one_by_one_and_at_once() {
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
    assert!(
        attach.0 < Duration::from_millis(50)
            && up < Duration::from_secs(3)
            && down < Duration::from_secs(3)
    );
    assert!(net.attached().is_empty());
}
