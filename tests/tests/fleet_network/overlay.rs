//! How packets travel between the boxes, by flag and by themselves.

use std::time::Duration;

use amphipod_tests::{EdgeBox, Lan, Ran, binary, eventually, peer};

use crate::recovery::run_in_pod;
use crate::talk;
use crate::world::{Fleet, World, ask_from, wrapped_fleet};

fn routes(of: &EdgeBox) -> String {
    of.run(&["ip", "route"]).ok()
}

/// Everything between two boxes.
#[track_caller]
pub fn all_is_well(fleet: &Fleet) {
    let w = World::new(fleet, "net", &["one-a", "two-b"]);
    for (from, to) in [("one-a", "two-b"), ("two-b", "one-a")] {
        talk(&w, from, to);
        let app = to.split('-').next().unwrap();
        let spec = w.service(
            app,
            &format!(
                "type: NodePort, selector: {{app: {app}}}, ports: [{{port: 80, targetPort: http}}]"
            ),
        );
        let service = format!("{}:80", spec["clusterIP"].as_str().unwrap());
        w.answered_by(from, &service, &[to]);
        w.answered_by(from, &format!("{app}.net.svc.cluster.local:80"), &[to]);
        let on = fleet.box_of(from);
        w.answers(on.name(), &[to], || {
            ask_from(on, std::slice::from_ref(&service))
        });
        let port = format!("{}:{}", on.address(), spec["ports"][0]["nodePort"]);
        w.answers(on.name(), &[to], || {
            ask_from(fleet.box_of(to), std::slice::from_ref(&port))
        });
    }
}

fn mtu(w: &World, pod: &str) -> String {
    let link = w
        .kubectl
        .run(&["exec", pod, "--", "cat", "/sys/class/net/eth0/mtu"]);
    link.ok().trim().to_owned()
}

#[test]
fn boxes_on_one_link_route_plainly_by_themselves() {
    let fleet = crate::world::fleet();
    for (on, other) in [(&fleet.server, &fleet.agent), (&fleet.agent, &fleet.server)] {
        let routes = routes(on);
        let via = format!("via {} dev eth0", other.address());
        assert!(routes.contains(&via), "{routes}");
        assert!(!routes.contains("amphi-vx"), "{routes}");
    }
}

#[test]
fn boxes_behind_a_router_wrap_packets_by_themselves() {
    let fleet = Fleet::routed(&[]);
    all_is_well(&fleet);
    for on in [&fleet.server, &fleet.agent] {
        let routes = routes(on);
        assert!(routes.contains("dev amphi-vx"), "{routes}");
    }
    // New pods know how much fits.
    let mut w = World::new(&fleet, "size", &["new-a"]);
    w.add(&["new-b"]);
    assert_eq!([mtu(&w, "new-a"), mtu(&w, "new-b")], ["1450", "1450"]);
}

#[test]
fn vxlan_is_used_between_neighbours_where_the_flag_says_so() {
    let fleet = wrapped_fleet();
    all_is_well(&fleet);
    for on in [&fleet.server, &fleet.agent] {
        let routes = routes(on);
        assert!(routes.contains("dev amphi-vx"), "{routes}");
    }
}

#[test]
fn an_overlay_that_this_kernel_lacks_is_refused_at_the_start_with_advice() {
    let lan = Lan::new();
    let on = EdgeBox::new(&lan);
    let program = binary();
    let start = |kind: &str| -> Ran {
        on.run(&[
            "timeout",
            "20",
            program.to_str().unwrap(),
            "server",
            "--overlay",
            kind,
        ])
    };
    let has = |kind| on.run(&["ip", "link", "add", "probe", "type", kind]).code == 0;
    assert!(has("veth"), "the probe itself works");
    on.run(&["ip", "link", "del", "probe"]).ok();
    if !has("wireguard") {
        let told = start("wireguard");
        assert_eq!(told.code, 1, "{told:?}");
        assert!(
            told.stderr
                .contains("needs a kernel with WireGuard (CONFIG_WIREGUARD, since Linux 5.6)"),
            "{told:?}"
        );
    }
    let told = start("pigeons");
    assert!(
        told.stderr.contains("want auto, none, vxlan or wireguard"),
        "{told:?}"
    );
}

/// Counts, on the switch (`bridge`) or the router (`ip`) between the boxes, what one says to the other: WireGuard's packets, those of the API and
/// the node API, and the rest.
const SPY: &str = "table FAMILY spy {
    counter wrapped {}
    counter api {}
    counter rest {}
    chain between {
        type filter hook forward priority 0;
        meta protocol ip udp dport 51820 counter name wrapped accept
        meta protocol ip tcp dport { 6443, 10250 } counter name api accept
        meta protocol ip tcp sport { 6443, 10250 } counter name api accept
        meta protocol ip counter name rest
    }
}";

/// The packets that a counter of [`SPY`] saw.
fn counted(lan: &Lan, family: &str, counter: &str) -> u64 {
    let told = lan
        .run(&["nft", "list", "counter", family, "spy", counter])
        .ok();
    let mut words = told.split_whitespace().skip_while(|w| *w != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn with_wireguard_nothing_of_what_pods_say_is_seen_between_the_boxes() {
    let lan = Lan::new();
    let probe = lan.run(&["ip", "link", "add", "probe", "type", "wireguard"]);
    if probe.code != 0 {
        println!("skipped: this kernel has no WireGuard (tests/vm/run.sh has one)");
        return;
    }
    drop(lan);
    for family in ["bridge", "ip"] {
        let args = ["--overlay", "wireguard"];
        let fleet = match family {
            "bridge" => Fleet::start(&args),
            _ => Fleet::routed(&args),
        };
        all_is_well(&fleet);
        for on in [&fleet.server, &fleet.agent] {
            let routes = routes(on);
            assert!(routes.contains("dev amphi-wg"), "{routes}");
        }
        let w = World::new(&fleet, "secret", &["one-a", "two-b"]);
        let spec = w.service(
            "two",
            "type: NodePort, selector: {app: two}, ports: [{port: 80, targetPort: http}]",
        );
        let service = format!("{}:80", spec["clusterIP"].as_str().unwrap());
        w.answered_by("one-a", &service, &["two-b"]);
        let spy = SPY.replace("FAMILY", family);
        fleet.lan.run(&["nft", &spy]).ok();
        talk(&w, "one-a", "two-b");
        talk(&w, "two-b", "one-a");
        w.answered_by("one-a", &service, &["two-b"]);
        assert_eq!(counted(&fleet.lan, family, "rest"), 0);
        // Two megabytes each way.
        assert!(counted(&fleet.lan, family, "wrapped") > 2_000);
        // The spy sees what is not wrapped: what a box itself asks of the other.
        let port = format!("{}:{}", fleet.agent.address(), spec["ports"][0]["nodePort"]);
        w.answers(fleet.server.name(), &["two-b"], || {
            ask_from(&fleet.server, std::slice::from_ref(&port))
        });
        assert!(counted(&fleet.lan, family, "rest") > 0);
    }
}

/// Sends a datagram of VXLAN to a box from the LAN, in which a pod seems to send a UDP packet to a pod of that box.
fn forge(fleet: &Fleet, to: &EdgeBox, from: &str, pod: &str) {
    let bytes = |ip: &str| -> Vec<u8> { ip.split('.').map(|byte| byte.parse().unwrap()).collect() };
    let (from, pod) = (bytes(from), bytes(pod));
    let mut ip = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(from);
    ip.extend(&pod);
    let words = ip.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    let ethernet = [0x0e, 0xa3, 10, 42, pod[2], 0, 2, 0, 0, 0, 0, 1, 8, 0];
    let udp = [0x10, 0, 0, 7, 0, 9, 0, 0, b'!'];
    let all = [&vxlan[..], &ethernet, &ip, &udp].concat();
    let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
    let (program, to) = (peer(), format!("{}:8472", to.address()));
    let send = [program.to_str().unwrap(), "send-hex", &to, &hex];
    fleet.lan.run(&send).ok();
}

#[test]
fn wrapped_packets_of_strangers_are_dropped() {
    let mut fleet = wrapped_fleet();
    let w = World::new(&fleet, "strangers", &["one-a", "victim-b"]);
    let to = w.address("udp:victim-b:9000");
    let [from, pod] = ["one-a", "victim-b"].map(|pod| w.ip(pod).to_owned());
    w.reaches("a peer's pods are heard", &["one-a"], &[&to], |_, _| true);
    // UDP packets to ports where nobody listens (RFC 4113), which is where the forged ones go.
    let heard = |fleet: &Fleet| {
        let stats = run_in_pod(&fleet.agent, "victim-b", &["cat", "/proc/net/snmp"]).unwrap();
        let counts = stats.lines().filter(|line| line.starts_with("Udp:")).nth(1);
        let count = counts.unwrap().split(' ').nth(2);
        count.unwrap().parse::<u32>().unwrap()
    };
    let before = heard(&fleet);
    for _ in 0..3 {
        forge(&fleet, &fleet.agent, &from, &pod);
    }
    // What comes later on the same way is there.
    w.reaches("a peer's pods are heard", &["one-a"], &[&to], |_, _| true);
    assert_eq!(heard(&fleet), before);
    drop(w);
    // The packets were good: without rules, and without the agent that would put them back, they get through.
    fleet.agent.kill_program();
    fleet.agent.run(&["nft", "flush", "ruleset"]).ok();
    eventually(
        "a forged packet to get through",
        Duration::from_secs(5),
        || {
            forge(&fleet, &fleet.agent, &from, &pod);
            (heard(&fleet) > before)
                .then_some(())
                .ok_or_else(|| "none did".to_owned())
        },
    );
    fleet.restart_agent();
    fleet.wait_for_agent();
}
