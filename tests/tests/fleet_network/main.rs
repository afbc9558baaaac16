//! Pods, services, names and policies across two boxes.

#![allow(clippy::unwrap_used)]

mod overlay;
mod policies;
mod recovery;
mod services;
mod world;

use std::time::Duration;

use amphipod_tests::eventually;
use world::{World, ask_from, fleet};

#[test]
fn pods_of_two_boxes_reach_each_other_with_their_own_addresses() {
    let fleet = fleet();
    let w = World::new(fleet, "pods", &["one-a", "two-b"]);
    for (from, to) in [("one-a", "two-b"), ("two-b", "one-a")] {
        talk(&w, from, to);
        // The box itself, too.
        let target = w.address(&format!("{to}:8080"));
        for target in [target.clone(), format!("udp:{target}")] {
            let on = fleet.box_of(from);
            w.answers(on.name(), &[to], || {
                ask_from(on, std::slice::from_ref(&target))
            });
        }
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
    let seen = format!("{to} {client}");
    said(&seen, || {
        w.ask(from, &[target.clone(), format!("udp:{target}")])
    });
    let send = |how: &str, bytes: &str| {
        said(&seen, || {
            let args = ["exec", from, "--", "peer", how, &target, bytes];
            let ran = w.kubectl.run(&args);
            vec![format!("{}{}", ran.stdout.trim(), ran.stderr)]
        });
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
        let found = eventually(
            "the headless service's pods",
            Duration::from_secs(30),
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

/// Waits until all that is said is this: on a busy machine a datagram may come too late.
#[track_caller]
pub fn said(expected: &str, ask: impl Fn() -> Vec<String>) {
    eventually(expected, Duration::from_secs(30), || {
        let said = ask();
        let all = said.iter().all(|one| one == expected);
        all.then_some(()).ok_or_else(|| format!("{said:?}"))
    });
}
