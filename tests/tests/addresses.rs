//! A box may start before it has its address, and get another one while it runs.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{EdgeBox, Kubectl, Lan, eventually};

const SOON: Duration = Duration::from_secs(30);

/// The addresses of the API as pods are told: of the slice, and of the Endpoints.
fn told(kubectl: &Kubectl) -> [String; 2] {
    [
        (
            "endpointslice",
            "jsonpath={.addressType} {.endpoints[*].addresses[*]}",
        ),
        ("endpoints", "jsonpath={.subsets[*].addresses[*].ip}"),
    ]
    .map(|(kind, path)| kubectl.run(&["get", kind, "kubernetes", "-o", path]).stdout)
}

/// Waits until the API is said to be at `address`, and is.
#[track_caller]
fn reached_at(kubectl: &Kubectl, family: &str, address: &str) {
    let wanted = [format!("{family} {address}"), address.to_owned()];
    eventually("the API's address", SOON, || match told(kubectl) {
        told if told == wanted => Ok(()),
        told => Err(told.join("; ")),
    });
    let host = if family == "IPv6" {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let server = format!("--server=https://{host}:6443");
    // The certificate names the address, or kubectl would refuse it.
    kubectl.run(&[&server, "get", "--raw", "/readyz"]).ok();
}

fn sh(edge_box: &EdgeBox, line: &str) -> String {
    edge_box.run(&["sh", "-c", line]).ok()
}

/// Routers may announce IPv6 before anybody has answered to DHCP.
fn take_ipv4(edge_box: &EdgeBox) {
    sh(
        edge_box,
        "ip -4 addr flush dev eth0; ip addr add fd00:9::5/64 dev eth0 nodad; ip route add default via fd00:9::1",
    );
}

/// Somebody answers to DHCP after all. The address.
fn give_ipv4(edge_box: &EdgeBox) -> String {
    let address = edge_box.address().to_owned();
    let (network, _) = address.rsplit_once('.').unwrap();
    let lease =
        format!("ip addr add {address}/24 dev eth0; ip route replace default via {network}.254");
    sh(edge_box, &lease);
    address
}

#[track_caller]
fn wait_for_the_api(kubectl: &Kubectl) {
    eventually("the API", SOON, || {
        let ran = kubectl.run(&["get", "--raw", "/readyz"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
}

#[test]
fn the_api_is_where_the_box_is_also_when_that_changes() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    take_ipv4(&edge_box);
    edge_box.start(&[]);
    let kubectl = edge_box.kubectl();
    wait_for_the_api(&kubectl);
    // It listens on IPv4 only, so it is not said to be at the other address.
    assert_eq!(told(&kubectl), ["", ""]);

    let address = give_ipv4(&edge_box);
    reached_at(&kubectl, "IPv4", &address);
    edge_box.wait_until_ready();

    // A new lease.
    let (network, _) = address.rsplit_once('.').unwrap();
    let other = format!("{network}.77");
    sh(
        &edge_box,
        &format!(
            "ip addr del {address}/24 dev eth0; ip addr add {other}/24 dev eth0; ip route replace default via {network}.254"
        ),
    );
    reached_at(&kubectl, "IPv4", &other);
    let node = ["get", "node", edge_box.name(), "-o"];
    let node = [
        &node[..],
        &["jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}"],
    ]
    .concat();
    eventually("the node's address", Duration::from_secs(60), || {
        let told = kubectl.run(&node).stdout;
        if told == other { Ok(()) } else { Err(told) }
    });
}

#[test]
fn an_api_of_both_families_is_told_of_at_ipv4_when_there_is_one() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    take_ipv4(&edge_box);
    edge_box.start(&["--listen", "[::]:6443"]);
    let kubectl = edge_box.kubectl();
    reached_at(&kubectl, "IPv6", "fd00:9::5");
    reached_at(&kubectl, "IPv4", &give_ipv4(&edge_box));
}

#[test]
fn an_address_that_came_while_the_disk_took_no_writes_is_told_when_it_does() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, 96);
    take_ipv4(&edge_box);
    edge_box.start(&[]);
    let kubectl = edge_box.kubectl();
    wait_for_the_api(&kubectl);
    let state = "/var/lib/amphipod/server/state.db*";
    edge_box.refuse_writes(state, true);
    let address = give_ipv4(&edge_box);
    eventually("the refusal to be logged", SOON, || match edge_box.log() {
        log if log.contains("of which nobody is told") => Ok(()),
        log => Err(log),
    });
    assert_eq!(told(&kubectl), ["", ""]);
    edge_box.refuse_writes(state, false);
    reached_at(&kubectl, "IPv4", &address);
    let log = edge_box.log();
    assert_eq!(log.matches("of which nobody is told").count(), 1, "{log}");
}
