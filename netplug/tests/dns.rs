//! The DNS server of a box, asked by real `dig` (Debian's `bind9-dnsutils`) from pods. Needs root; everything happens in network namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::Instant;

use amphipod_netplug::{
    DnsConfig, DnsEndpoint, DnsPort, DnsServer, Protocol, RecordKind, ServiceRecords, Upstreams,
};
use common::*;

/// A server in a namespace, with the thread that runs it.
struct Running {
    server: DnsServer,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

fn start(ns: &Ns, config: DnsConfig) -> Running {
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    ns.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tell.send(DnsServer::start(config).await.unwrap()).unwrap();
            let _ = stopped.await;
        });
    });
    Running {
        server: told.recv().unwrap(),
        stop: Some(stop),
    }
}

fn port(name: &str, port: u16) -> DnsPort {
    DnsPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
    }
}

fn records(name: &str, kind: RecordKind) -> ServiceRecords {
    ServiceRecords {
        namespace: "default".into(),
        name: name.into(),
        kind,
    }
}

fn cluster(name: &str, ip: &str) -> ServiceRecords {
    records(
        name,
        RecordKind::Cluster {
            ips: vec![ip.parse().unwrap()],
            ports: vec![port("http", 80)],
        },
    )
}

fn headless(name: &str, count: u8) -> ServiceRecords {
    let endpoint = |n| DnsEndpoint {
        ip: IpAddr::from([10, 42, 0, n]),
        hostname: (n == 1).then(|| "db-0".into()),
        ports: vec![],
    };
    records(
        name,
        RecordKind::Headless {
            endpoints: (1..=count).map(endpoint).collect(),
            ports: vec![port("sql", 5432)],
        },
    )
}

fn config(listen: &str) -> DnsConfig {
    DnsConfig {
        upstreams: Upstreams::None,
        reverse: vec!["10.43.0.0/16".parse().unwrap()],
        ..DnsConfig::new(vec![listen.parse().unwrap()])
    }
}

/// A box with DNS on the gateway, a pod in it.
fn boxed(change: impl FnOnce(&mut DnsConfig)) -> (TestBox, Running, Pod) {
    let b = TestBox::new();
    let mut config = config("10.42.0.1:53");
    change(&mut config);
    let dns = start(&b.ns, config);
    dns.server.set_zone(vec![
        cluster("web", "10.43.0.7"),
        headless("db", 2),
        headless("many", 200),
        records(
            "ext",
            RecordKind::External {
                name: "web.default.svc.example".into(),
            },
        ),
    ]);
    let pod = b.pod("pod");
    (b, dns, pod)
}

fn dig(pod: &Pod, question: &str) -> String {
    pod.ns.sh(&format!("dig @10.42.0.1 +tries=1 +time=4 +noall +answer +authority {question} | sed 's/[\\t ]\\+/ /g'"))
}

fn short(pod: &Pod, question: &str) -> Vec<String> {
    let mut lines: Vec<String> = pod
        .ns
        .sh(&format!(
            "dig @10.42.0.1 +tries=1 +time=4 +short {question}"
        ))
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

fn status(pod: &Pod, question: &str) -> String {
    let all = pod
        .ns
        .sh(&format!("dig @10.42.0.1 +tries=1 +time=6 {question}"));
    let line = all
        .lines()
        .find(|l| l.contains("status:"))
        .unwrap_or_else(|| panic!("{all}"));
    line.split("status: ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn pods_find_services_by_every_kind_of_record() {
    let (_b, _dns, pod) = boxed(|_| {});
    assert_eq!(short(&pod, "web.default.svc.cluster.local"), ["10.43.0.7"]);
    assert_eq!(
        short(&pod, "db.default.svc.cluster.local"),
        ["10.42.0.1", "10.42.0.2"]
    );
    assert_eq!(
        short(&pod, "db-0.db.default.svc.cluster.local"),
        ["10.42.0.1"]
    );
    assert_eq!(
        short(&pod, "_http._tcp.web.default.svc.cluster.local SRV"),
        ["0 100 80 web.default.svc.cluster.local."]
    );
    assert_eq!(
        short(&pod, "_sql._tcp.db.default.svc.cluster.local SRV"),
        [
            "0 100 5432 10-42-0-2.db.default.svc.cluster.local.",
            "0 100 5432 db-0.db.default.svc.cluster.local."
        ]
    );
    assert_eq!(
        short(&pod, "-x 10.43.0.7"),
        ["web.default.svc.cluster.local."]
    );
    assert_eq!(
        short(&pod, "-x 10.42.0.1"),
        [
            "db-0.db.default.svc.cluster.local.",
            "db-0.many.default.svc.cluster.local."
        ]
    );
    assert_eq!(
        short(&pod, "10-42-0-9.default.pod.cluster.local"),
        ["10.42.0.9"]
    );
    assert_eq!(short(&pod, "dns-version.cluster.local TXT"), ["\"1.1.0\""]);
    assert_eq!(
        short(&pod, "+tcp web.default.svc.cluster.local"),
        ["10.43.0.7"]
    );
    assert_eq!(
        short(&pod, "ext.default.svc.cluster.local CNAME"),
        ["web.default.svc.example."]
    );
}

#[test]
fn search_paths_work_and_missing_names_and_types_say_for_how_long() {
    let (_b, _dns, pod) = boxed(|_| {});
    assert_eq!(
        short(
            &pod,
            "+search +ndots=5 +domain=default.svc.cluster.local web"
        ),
        ["10.43.0.7"]
    );
    let soa = "cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local.";
    assert_eq!(status(&pod, "nope.default.svc.cluster.local"), "NXDOMAIN");
    assert!(dig(&pod, "nope.default.svc.cluster.local").contains(soa));
    assert_eq!(
        status(&pod, "web.default.svc.cluster.local AAAA"),
        "NOERROR"
    );
    assert!(dig(&pod, "web.default.svc.cluster.local AAAA").contains(soa));
    assert_eq!(status(&pod, "-x 10.43.9.9"), "NXDOMAIN");
}

#[test]
fn letters_keep_their_case() {
    let (_b, _dns, pod) = boxed(|_| {});
    assert_eq!(
        dig(&pod, "WeB.default.SVC.cluster.Local").trim(),
        "WeB.default.SVC.cluster.Local. 30 IN A 10.43.0.7"
    );
}

#[test]
fn long_answers_come_by_tcp() {
    let (_b, _dns, pod) = boxed(|_| {});
    assert_eq!(
        short(&pod, "many.default.svc.cluster.local").len(),
        200,
        "dig falls back to TCP by itself"
    );
    let cut = pod
        .ns
        .sh("dig @10.42.0.1 +ignore +noedns many.default.svc.cluster.local");
    assert!(cut.contains("flags: qr aa tc rd ra"), "{cut}");
    let lines = cut.lines().filter(|l| l.starts_with("many")).count();
    assert!((10..31).contains(&lines), "{lines} fit into 512 bytes");
}

#[test]
fn changes_are_seen_at_once() {
    let (_b, dns, pod) = boxed(|_| {});
    dns.server.upsert(cluster("web", "10.43.0.8"));
    assert_eq!(short(&pod, "web.default.svc.cluster.local"), ["10.43.0.8"]);
    dns.server.remove("default", "web");
    assert_eq!(status(&pod, "web.default.svc.cluster.local"), "NXDOMAIN");
    dns.server.set_zone(vec![]);
    assert_eq!(status(&pod, "db.default.svc.cluster.local"), "NXDOMAIN");
}

#[test]
fn other_names_are_asked_elsewhere_and_aliases_are_completed() {
    let upstream: SocketAddr = "192.0.2.2:53".parse().unwrap();
    let (b, _dns, pod) = boxed(|c| c.upstreams = Upstreams::Fixed(vec![upstream]));
    let outside = b.outsider();
    let other = start(
        &outside,
        DnsConfig {
            cluster_domain: "example".into(),
            ..config("192.0.2.2:53")
        },
    );
    other
        .server
        .set_zone(vec![cluster("web", "203.0.113.9"), headless("many", 200)]);
    assert_eq!(short(&pod, "web.default.svc.example"), ["203.0.113.9"]);
    assert_eq!(short(&pod, "+tcp web.default.svc.example"), ["203.0.113.9"]);
    assert_eq!(short(&pod, "many.default.svc.example").len(), 200);
    assert_eq!(status(&pod, "nope.default.svc.example"), "NXDOMAIN");
    assert_eq!(
        short(&pod, "ext.default.svc.cluster.local"),
        ["203.0.113.9", "web.default.svc.example."]
    );
}

#[test]
fn offline_cluster_names_work_and_other_names_fail_in_time() {
    // One server that nobody has a route to, one that refuses, one that is silent.
    for upstream in ["198.51.100.1:53", "10.42.0.1:5353", "192.0.2.2:53"] {
        let (b, _dns, pod) =
            boxed(|c| c.upstreams = Upstreams::Fixed(vec![upstream.parse().unwrap()]));
        let outside = b.outsider();
        outside.sh("nft add table ip x; nft 'add chain ip x i { type filter hook input priority 0; policy drop; }'");
        let start = Instant::now();
        assert_eq!(status(&pod, "example.org"), "SERVFAIL", "{upstream}");
        assert!(
            start.elapsed().as_secs() < 5,
            "{upstream}: clients give up after 5 s"
        );
        assert_eq!(short(&pod, "web.default.svc.cluster.local"), ["10.43.0.7"]);
    }
}

#[test]
fn a_dead_upstream_is_skipped() {
    let upstreams = ["192.0.2.9:53", "192.0.2.2:53"]
        .map(|a| a.parse().unwrap())
        .to_vec();
    let (b, _dns, pod) = boxed(|c| c.upstreams = Upstreams::Fixed(upstreams));
    let outside = b.outsider();
    let other = start(
        &outside,
        DnsConfig {
            cluster_domain: "example".into(),
            ..config("192.0.2.2:53")
        },
    );
    other.server.set_zone(vec![cluster("web", "203.0.113.9")]);
    assert_eq!(short(&pod, "web.default.svc.example"), ["203.0.113.9"]);
    let start = Instant::now();
    assert_eq!(short(&pod, "web.default.svc.example"), ["203.0.113.9"]);
    assert!(
        start.elapsed().as_millis() < 1000,
        "the second time the dead one is not asked first"
    );
}

#[test]
fn a_loop_back_to_ourselves_is_not_entered() {
    let (_b, _dns, pod) =
        boxed(|c| c.upstreams = Upstreams::Fixed(vec!["10.42.0.1:53".parse().unwrap()]));
    assert_eq!(status(&pod, "example.org"), "SERVFAIL");
}

#[test]
fn strangers_get_cluster_names_only() {
    let (b, _dns, pod) = boxed(|c| c.clients = vec!["10.99.0.0/16".parse().unwrap()]);
    assert_eq!(status(&pod, "example.org"), "REFUSED");
    assert_eq!(short(&pod, "web.default.svc.cluster.local"), ["10.43.0.7"]);
    let own = b.ns.sh("dig @10.42.0.1 example.org");
    assert!(
        own.contains("SERVFAIL"),
        "the box itself may ask, but there is nobody to be asked: {own}"
    );
}

#[test]
fn the_service_address_of_dns_leads_to_the_server() {
    let (b, _dns, pod) = boxed(|_| {});
    let endpoint = amphipod_netplug::Endpoint::ready("10.42.0.1".parse().unwrap(), 53, true);
    let mut svc = service("kube-dns", "10.43.0.10", &[]);
    for port in &mut svc.ports {
        port.port = 53;
        port.endpoints = vec![endpoint.clone()];
    }
    b.net().set_services(vec![svc]).unwrap();
    for how in ["", "+tcp"] {
        assert_eq!(
            pod.ns
                .sh(&format!(
                    "dig @10.43.0.10 {how} +short web.default.svc.cluster.local"
                ))
                .trim(),
            "10.43.0.7"
        );
    }
}

#[test]
fn a_dns_address_of_the_box_itself_needs_no_service() {
    let mut b = TestBox::new();
    let mut config_of_box = b.config();
    config_of_box.local_ips = vec!["10.43.0.10".parse().unwrap()];
    b.net = None;
    b.net = Some(b.ns.run(|| amphipod_netplug::Network::open(config_of_box).unwrap()));
    let dns = start(&b.ns, config("10.43.0.10:53"));
    dns.server.upsert(cluster("web", "10.43.0.7"));
    let pod = b.pod("pod");
    for ns in [&pod.ns, &b.ns] {
        assert_eq!(
            ns.sh("dig @10.43.0.10 +short web.default.svc.cluster.local")
                .trim(),
            "10.43.0.7"
        );
    }
}
