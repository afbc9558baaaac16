//! How packets travel between the boxes, by flag and by themselves.

use amphipod_tests::{EdgeBox, Lan, Ran, binary};

use crate::talk;
use crate::world::{Fleet, World, ask_from};

fn routes(of: &EdgeBox) -> String {
    of.run(&["ip", "route"]).ok()
}

/// Everything between two boxes.
#[track_caller]
fn all_is_well(fleet: &Fleet) {
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
    let fleet = Fleet::start(&["--overlay", "vxlan"]);
    all_is_well(&fleet);
    for on in [&fleet.server, &fleet.agent] {
        let routes = routes(on);
        assert!(routes.contains("dev amphi-vx"), "{routes}");
    }
}

#[test]
fn an_overlay_that_this_build_lacks_is_refused_at_the_start_with_advice() {
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
    let told = start("wireguard");
    assert_eq!(told.code, 1, "{told:?}");
    assert!(
        told.stderr
            .contains("the overlay wireguard is not supported: use auto, none or vxlan"),
        "{told:?}"
    );
    let told = start("pigeons");
    assert!(
        told.stderr.contains("want auto, none, vxlan or wireguard"),
        "{told:?}"
    );
}
