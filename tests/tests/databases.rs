//! Databases that are damaged on disk: put aside, told, and made again from what is known elsewhere.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;

use amphipod_tests::{EdgeBox, Kubectl, Lan, Registry, counters, eventually, pod};

/// A box with a registry and counters.
fn at_work() -> (Lan, EdgeBox, Registry) {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let registry = Registry::start(&edge_box);
    counters::start(&edge_box.kubectl(), 2);
    (lan, edge_box, registry)
}

/// Overwrites a database beyond its first bytes, as a worn-out card might.
fn corrupt(edge_box: &EdgeBox, folder: &str, name: &str) {
    let path = edge_box.disk().join(folder).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(format!("{name}{end}")));
    }
}

/// The damaged file stands beside its successor, and the log says so. An agent opens its database after the server is there, whose
/// node is Ready as before.
#[track_caller]
fn check_put_aside(edge_box: &EdgeBox, folder: &str) {
    let what = "the damaged database to be put aside";
    eventually(what, Duration::from_secs(10), || {
        let entries = std::fs::read_dir(edge_box.disk().join(folder)).unwrap();
        let names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        if names.iter().any(|name| name.contains("damaged")) {
            Ok(())
        } else {
            Err(format!("{folder}: {names:?}"))
        }
    });
    let log = edge_box.log();
    assert!(log.contains("damaged"), "nothing was said: {log}");
}

#[test]
fn a_corrupted_agent_database_is_put_aside_and_no_container_notices() {
    let (_lan, mut edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    let before = counters::instances(&kubectl);
    edge_box.kill_program();
    corrupt(&edge_box, "lib/agent", "agent.db");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/agent");
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
}

#[test]
fn a_corrupted_server_database_is_put_aside_and_told() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::ready(&lan);
    edge_box.kill_program();
    corrupt(&edge_box, "lib/server", "state.db");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/server");
}

fn version(kubectl: &Kubectl) -> u64 {
    let list = kubectl.run(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
    let list: serde_json::Value = serde_json::from_str(&list.ok()).unwrap();
    let text = list["metadata"]["resourceVersion"].as_str();
    text.unwrap().parse().unwrap()
}

/// Copies the server's database in the place of its backup, which is such a copy: the program makes one a day.
#[track_caller]
fn back_up(edge_box: &mut EdgeBox) {
    edge_box.stop_program();
    let server = edge_box.disk().join("lib/server");
    std::fs::copy(server.join("state.db"), server.join("state.backup.db")).unwrap();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
}

#[test]
fn a_corrupted_server_database_is_restored_from_its_backup_and_no_container_notices() {
    let (_lan, mut edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    kubectl.run(&["create", "configmap", "kept"]).ok();
    back_up(&mut edge_box);
    let before = counters::instances(&kubectl);
    kubectl.run(&["create", "configmap", "newer"]).ok();
    pod::ready(&kubectl, "newer", &pod::pod("newer", pod::SLEEP, json!({})));
    let last = version(&kubectl);
    edge_box.kill_program();
    corrupt(&edge_box, "lib/server", "state.db");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/server");
    let log = edge_box.log();
    assert!(log.contains("restored from its last backup"), "{log}");
    kubectl.run(&["get", "configmap", "kept"]).ok();
    let newer = kubectl.run(&["get", "configmap", "newer"]).refused();
    assert!(newer.contains("not found"), "{newer}");
    // A pod that nobody knows any more does not end in silence.
    eventually(
        "the end of the pod to be told",
        Duration::from_secs(10),
        || {
            let log = edge_box.log();
            let told = |line: &str| line.contains("ends here") && line.contains("name=\"newer\"");
            if log.lines().any(told) {
                Ok(())
            } else {
                Err(log)
            }
        },
    );
    // No version is given out twice: whoever holds one of the lost ones is told.
    assert!(version(&kubectl) > last);
    counters::are_as_before(&kubectl, &before);
    counters::check_logs(&kubectl, before.keys());
}

/// All that somebody would miss, by name.
#[track_caller]
fn everything(kubectl: &Kubectl) -> String {
    let kinds = "namespaces,nodes,pods,configmaps,secrets,services,serviceaccounts,clusterroles,clusterrolebindings,leases";
    kubectl.run(&["get", kinds, "-A", "-o", "name"]).ok()
}

#[test]
fn a_server_database_that_is_damaged_in_part_loses_nothing_that_it_or_its_backup_can_tell() {
    let (_lan, mut edge_box, _registry) = at_work();
    let kubectl = edge_box.kubectl();
    kubectl.run(&["create", "configmap", "older"]).ok();
    kubectl.run(&["create", "configmap", "kept"]).ok();
    back_up(&mut edge_box);
    kubectl.run(&["delete", "configmap", "older"]).ok();
    kubectl.run(&["create", "configmap", "newer"]).ok();
    pod::ready(&kubectl, "newer", &pod::pod("newer", pod::SLEEP, json!({})));
    let (counting, all) = (counters::instances(&kubectl), everything(&kubectl));
    let container = |kubectl: &Kubectl| {
        kubectl.get(&["pod", "newer"])["status"]["containerStatuses"][0]["containerID"].clone()
    };
    let newer = container(&kubectl);
    edge_box.stop_program();
    // Eight pages that were written long before the backup.
    let path = edge_box.disk().join("lib/server/state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let third = bytes.len() / 3 / 4096 * 4096;
    bytes[third..third + 8 * 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    check_put_aside(&edge_box, "lib/server");
    let log = edge_box.log();
    assert!(log.contains("restored from what can be read"), "{log}");
    assert_eq!(everything(&kubectl), all);
    counters::are_as_before(&kubectl, &counting);
    counters::check_logs(&kubectl, counting.keys());
    assert_eq!(container(&kubectl), newer);
}
