//! Disks that stop taking writes while the program runs.

use std::collections::BTreeSet;

use amphipod_tests::{EdgeBox, Kubectl, Lan, Registry, eventually};

use crate::{
    DISK_MIB, SOON, Watch, counter_goes_on, end_one, ids, joined_box, pods_go_on, probes_go_on,
    start_pods,
};

/// How long a node may be silent; it renews its Lease each second.
const GRACE_SECONDS: usize = 5;

/// Returns when the node was heard of for that long, and a little longer.
#[track_caller]
fn longer_than_a_node_may_be_silent(kubectl: &Kubectl, node: &str) {
    let mut renewals = BTreeSet::new();
    eventually("the node's Lease to be renewed", SOON, || {
        let lease = kubectl.get(&["lease", "-n", "kube-node-lease", node]);
        renewals.insert(lease["spec"]["renewTime"].to_string());
        if renewals.len() > GRACE_SECONDS + 2 {
            Ok(())
        } else {
            Err(format!("{renewals:?}"))
        }
    });
}

/// The kernel finds an error and makes the file system read-only, under files that are open.
#[track_caller]
fn fail(edge_box: &EdgeBox) {
    let script = format!(
        "echo fail > /sys/fs/ext4/$(basename $(findmnt -n -o SOURCE {}))/trigger_fs_error",
        edge_box.small_disk().display()
    );
    edge_box.run(&["sh", "-c", &script]).ok();
}

#[test]
fn a_disk_that_failed_takes_no_writes_loses_none_and_stops_no_pod() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[
        &format!("--node-monitor-grace-period={GRACE_SECONDS}s"),
        "--node-lease-duration-seconds=4",
    ]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    kubectl.run(&["create", "configmap", "before"]).ok();
    let watch = Watch::start(&kubectl);
    let before = ids(&kubectl);

    fail(&edge_box);
    for verb in [["create", "configmap"], ["delete", "configmap"]] {
        let name = if verb[0] == "create" {
            "after"
        } else {
            "before"
        };
        let refusal = kubectl.run(&[verb[0], verb[1], name]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
    }
    assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
    kubectl.run(&["get", "configmap", "before"]).ok();
    counter_goes_on(&kubectl);
    longer_than_a_node_may_be_silent(&kubectl, edge_box.name());
    assert_eq!(ids(&kubectl), before);
    kubectl.wait_for(&format!("node/{}", edge_box.name()), "condition=Ready", 5);
    let log = edge_box.log();
    assert_eq!(log.matches("changes are refused").count(), 1, "{log}");
    drop(watch);

    // The box is switched off and on again, which checks the disk.
    drop(registry);
    edge_box.power_off();
    edge_box.power_on(&lan);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    kubectl_is_as_before(&edge_box);
}

/// What was acknowledged is there, what was refused is not, and the pods run again.
#[track_caller]
fn kubectl_is_as_before(edge_box: &EdgeBox) {
    let kubectl = edge_box.kubectl();
    kubectl.run(&["get", "configmap", "before"]).ok();
    assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
    for pod in ["counts", "ends", "probed"] {
        kubectl.wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
    }
    kubectl.run(&["create", "configmap", "afterwards"]).ok();
}

#[test]
fn a_disk_that_takes_writes_again_gets_them_without_a_restart() {
    let (_lan, edge_box, _registry) = {
        let lan = Lan::new();
        let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
        let registry = Registry::start(&edge_box);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        (lan, edge_box, registry)
    };
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    kubectl.run(&["create", "configmap", "before"]).ok();
    let before = ids(&kubectl);
    let databases = "/var/lib/amphipod/server/state.db* /var/lib/amphipod/agent/agent.db*";
    for round in 1..=2 {
        edge_box.refuse_writes(databases, true);
        let refusal = kubectl.run(&["create", "configmap", "after"]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
        let refusal = kubectl.run(&["delete", "configmap", "before"]).refused();
        assert!(refusal.contains("refuses writes"), "{refusal}");
        kubectl.run(&["get", "configmap", "before"]).ok();
        // A container that ends now is restarted, though nobody can be told yet.
        end_one(&kubectl);
        eventually("the container to be restarted", SOON, || {
            let path = "jsonpath={.metadata.name}";
            kubectl.run(&["get", "pod", "ends", "-o", path]).ok();
            match kubectl.run(&["logs", "ends"]) {
                ran if ran.stdout == "began\n" => Ok(()),
                ran => Err(format!("{ran:?}")),
            }
        });
        edge_box.refuse_writes(databases, false);
        kubectl.wait_for_writes(&format!("afterwards-{round}"));
        assert_ne!(kubectl.run(&["get", "configmap", "after"]).code, 0);
        eventually("the restart to be told", SOON, || {
            let status = kubectl.get(&["pod", "ends"])["status"]["containerStatuses"][0].clone();
            if status["restartCount"] == round && status["state"]["running"].is_object() {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
        // Nothing more happens to that pod, and still it is on disk what did: a power cut now would not lose it.
        let script = format!(
            "grep -a '\"attempts\":{}' /var/lib/amphipod/agent/agent.db*",
            round + 1
        );
        eventually("the restart to be stored", SOON, || {
            match edge_box.run(&["sh", "-c", &script]) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(format!("{ran:?}")),
            }
        });
        let log = edge_box.log();
        assert_eq!(log.matches("changes are refused").count(), round, "{log}");
    }
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);
}

#[test]
fn a_joined_box_whose_disk_failed_keeps_its_pods_and_tells_how_they_are() {
    let (lan, server, mut agent, registry) = joined_box();
    let kubectl = server.kubectl();
    start_pods(&kubectl, agent.name());
    let before = ids(&kubectl);

    fail(&agent);
    counter_goes_on(&kubectl);
    probes_go_on(&kubectl);
    let node = format!("node/{}", agent.name());
    kubectl.wait_for(&node, "condition=Ready", 5);
    assert_eq!(ids(&kubectl), before);
    // One that is deleted ends.
    kubectl
        .run(&["delete", "pod", "probed", "--timeout=30s"])
        .ok();
    // A container that ends cannot be made anew: that is told.
    end_one(&kubectl);
    eventually("the failure to be told", SOON, || {
        let told = kubectl.run(&["describe", "pod", "ends"]).stdout;
        let wanted = ["Exit Code:    3", "Read-only file system"];
        match wanted.iter().all(|text| told.contains(text)) {
            true => Ok(()),
            false => Err(told),
        }
    });

    // The box is switched off and on again, which checks the disk.
    drop(registry);
    agent.power_off();
    agent.power_on(&lan);
    agent.start_agent(&[]);
    for pod in ["counts", "ends"] {
        eventually("the pods to run again", 2 * SOON, || {
            match kubectl.exec(pod, &["true"]) {
                ran if ran.code == 0 => Ok(()),
                ran => Err(ran.stderr),
            }
        });
    }
    pods_go_on(&kubectl);
    eventually("only what is wanted to be there", SOON, || {
        let found = agent.run(&["ls", "/var/lib/amphipod/agent/pods"]).ok();
        match found.lines().count() {
            2 => Ok(()),
            _ => Err(found),
        }
    });
    let log = agent.log();
    assert!(!log.contains("damaged"), "{log}");
}
