//! Pods, services, names and policies across two boxes.

#![allow(clippy::unwrap_used)]

mod overlay;
mod policies;
mod recovery;
mod services;
mod world;

use world::{World, ask_from, fleet};

#[test]
fn pods_of_two_boxes_reach_each_other_with_their_own_addresses() {
    let fleet = fleet();
    let w = World::new(fleet, "pods", &["one-a", "two-b"]);
    for (from, to) in [("one-a", "two-b"), ("two-b", "one-a")] {
        talk(&w, from, to);
        // The box itself, too.
        let target = w.address(&format!("{to}:8080"));
        let said = ask_from(
            fleet.box_of(from),
            &[target.clone(), format!("udp:{target}")],
        );
        assert!(said.iter().all(|s| s.starts_with(to)), "{said:?}");
    }
}

/// All sizes by TCP and UDP; the other pod sees this one's address.
#[track_caller]
pub fn talk(w: &World, from: &str, to: &str) {
    let (client, target) = (w.ip(from), w.address(&format!("{to}:8080")));
    w.reaches(
        &format!("{from} to {to}"),
        &[from],
        &[&target, &format!("udp:{target}")],
        |_, _| true,
    );
    let said = w.ask(from, &[target.clone(), format!("udp:{target}")]);
    assert_eq!(said, vec![format!("{to} {client}"); 2]);
    let send = |how: &str, bytes: &str| {
        let said = w
            .kubectl
            .run(&["exec", from, "--", "peer", how, &target, bytes]);
        assert_eq!(said.ok().trim(), format!("{to} {client}"), "{how} {bytes}");
    };
    send("send", "2000000");
    // What fits a packet of Ethernet, of the overlay, and neither.
    for bytes in ["1", "1350", "1400", "1472", "20000"] {
        send("send-udp", bytes);
    }
}

#[test]
fn names_are_told_on_every_box() {
    let w = World::new(
        fleet(),
        "names",
        &["web-a", "web-b", "client-a", "client-b"],
    );
    w.service(
        "web",
        "selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    );
    w.service(
        "bare",
        "clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]",
    );
    for client in ["client-a", "client-b"] {
        for name in ["web:80", "web.names:80", "web.names.svc.cluster.local:80"] {
            w.answered_by(client, name, &["web-a", "web-b"]);
        }
        let found = amphipod_tests::eventually(
            "the headless service's pods",
            std::time::Duration::from_secs(10),
            || {
                let ran = w.kubectl.run(&[
                    "exec",
                    client,
                    "--",
                    "nslookup",
                    "bare.names.svc.cluster.local",
                ]);
                let all = ["web-a", "web-b"]
                    .iter()
                    .all(|pod| ran.stdout.contains(w.ip(pod)));
                all.then_some(ran.stdout.clone()).ok_or(ran.stdout)
            },
        );
        assert!(!found.contains(w.ip("client-a")), "{found}");
        w.reaches(
            "the headless service",
            &[client],
            &["bare:8080", "udp:bare:8080"],
            |_, _| true,
        );
    }
}
