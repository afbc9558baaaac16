//! Leases, by which programs elect leaders, and what a crash of the server may do to them.

#![allow(clippy::unwrap_used)]

use amphipod_tests::{EdgeBox, Lan};
use serde_json::Value;

#[test]
fn a_crash_gives_no_lease_back_to_its_former_holder() {
    let lan = Lan::new();
    let mut server = EdgeBox::ready(&lan);
    let kubectl = server.kubectl();
    let lease = |holder: &str, renewed: u32, version: &str| {
        format!(
            "apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {{name: leader, resourceVersion: {version:?}}}
spec: {{holderIdentity: {holder}, leaseDurationSeconds: 15, renewTime: \"2026-01-01T00:00:{renewed:02}.000000Z\"}}
"
        )
    };
    let replace = |lease: String| kubectl.run_with(&["replace", "-f", "-"], &lease);
    let version = |lease: &Value| -> String {
        let version = lease["metadata"]["resourceVersion"].as_str();
        version.unwrap().to_owned()
    };
    let number = |version: &str| -> u64 { version.parse().unwrap() };
    let get = || kubectl.get(&["lease", "leader"]);

    kubectl
        .run_with(&["create", "-f", "-"], &lease("old", 1, ""))
        .ok();
    let olds = version(&get());
    // On disk in any case, and so what a crash could bring back.
    server.kill_program();
    server.start(&[]);
    server.wait_until_ready();
    let found = get();
    assert_eq!(found["spec"]["holderIdentity"], "old");
    assert!(number(&version(&found)) >= number(&olds), "{found}");
    let olds = version(&found);
    replace(lease("new", 2, &olds)).ok();
    let mut last = get();
    for renewed in 3..6 {
        replace(lease("new", renewed, &version(&last))).ok();
        last = get();
    }
    server.kill_program();
    server.start(&[]);
    server.wait_until_ready();
    let found = get();
    assert_eq!(found["spec"]["holderIdentity"], "new", "{found}");
    assert!(
        number(&version(&found)) > number(&version(&last)) || found == last,
        "the Lease went back: {found}, after {last}"
    );
    // The former holder may still believe what it read before all this.
    for stale in [&olds, &version(&last)] {
        if *stale != version(&found) {
            let told = replace(lease("old", 9, stale)).refused();
            assert!(told.contains("Conflict"), "{told}");
        }
    }
    replace(lease("new", 10, &version(&found))).ok();
}
