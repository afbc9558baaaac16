//! Disks that take no writes when the program starts: it ends and says what to do, what runs goes on, and the next start after the
//! disk was mended is as any other. Service managers start it again and again.

use amphipod_tests::{EdgeBox, Lan, Registry, eventually};

use crate::{
    DISK_MIB, SOON, fill, ids, joined_box, make_space, pods_go_on, probes_go_on, start_pods,
};

type Start = fn(&mut EdgeBox);

const ALL_IN_ONE: Start = |edge_box| edge_box.start(&[]);
const SERVER: Start = |edge_box| edge_box.start(&["--disable-agent"]);
const AGENT: Start = |edge_box| edge_box.start_agent(&[]);

/// The program ends, each time, and tells why and what to do.
#[track_caller]
fn ends_and_says_why(edge_box: &mut EdgeBox, start: Start, why: &str) {
    for _ in 0..2 {
        let before = edge_box.log().len();
        start(edge_box);
        assert_eq!(edge_box.wait_for_end(), 1);
        let log = edge_box.log().split_off(before);
        assert!(log.contains(why), "{log}");
        assert!(log.contains("free space on it"), "{log}");
    }
}

/// Makes the whole file system of a box's small disk read-only, or writable again. Nothing may run there.
#[track_caller]
fn remount(edge_box: &EdgeBox, how: &str) {
    let small = edge_box.small_disk();
    let how = format!("remount,{how}");
    edge_box
        .run(&["mount", "-o", &how, small.to_str().unwrap()])
        .ok();
}

/// The same while containers run, whose files are open: for what is opened anew.
#[track_caller]
fn cover_read_only(edge_box: &EdgeBox) {
    let source = edge_box.small_disk().join("lib");
    let args = ["mount", "-o", "bind,ro"];
    let places = [source.to_str().unwrap(), "/var/lib/amphipod"];
    edge_box.run(&[&args[..], &places].concat()).ok();
}

#[track_caller]
fn uncover(edge_box: &EdgeBox) {
    edge_box.run(&["umount", "/var/lib/amphipod"]).ok();
}

#[test]
fn the_first_start_on_a_disk_that_takes_no_writes_is_made_up_for_later() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
    for start in [SERVER, ALL_IN_ONE] {
        remount(&edge_box, "ro");
        ends_and_says_why(&mut edge_box, start, "Read-only file system");
        remount(&edge_box, "rw");
        fill(&edge_box);
        ends_and_says_why(&mut edge_box, start, "No space left on device");
        make_space(&edge_box);
    }
    edge_box.start(&[]);
    edge_box.wait_until_ready();
}

#[test]
fn a_box_that_starts_on_a_read_only_disk_loses_nothing_and_stops_no_container() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    start_pods(&kubectl, edge_box.name());
    kubectl.run(&["create", "configmap", "before"]).ok();
    let before = ids(&kubectl);

    edge_box.kill_program();
    cover_read_only(&edge_box);
    ends_and_says_why(&mut edge_box, ALL_IN_ONE, "refuses writes");
    uncover(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    pods_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);

    // As after a boot at which the disk could not be mended.
    drop(registry);
    edge_box.power_off();
    edge_box.power_on(&lan);
    remount(&edge_box, "ro");
    for start in [SERVER, ALL_IN_ONE] {
        ends_and_says_why(&mut edge_box, start, "refuses writes");
    }
    remount(&edge_box, "rw");
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    for pod in ["counts", "ends", "probed"] {
        kubectl.wait_for(&format!("pod/{pod}"), "condition=Ready", 60);
    }
    kubectl.run(&["get", "configmap", "before"]).ok();
    let log = edge_box.log();
    assert!(!log.contains("damaged"), "{log}");
}

#[test]
fn a_joined_box_that_starts_on_a_read_only_disk_loses_nothing_and_stops_no_container() {
    let (lan, server, mut agent, registry) = joined_box();
    let kubectl = server.kubectl();
    start_pods(&kubectl, agent.name());
    let before = ids(&kubectl);

    agent.kill_program();
    cover_read_only(&agent);
    ends_and_says_why(&mut agent, AGENT, "Read-only file system");
    uncover(&agent);
    agent.start_agent(&[]);
    pods_go_on(&kubectl);
    assert_eq!(ids(&kubectl), before);

    drop(registry);
    agent.power_off();
    agent.power_on(&lan);
    remount(&agent, "ro");
    ends_and_says_why(&mut agent, AGENT, "Read-only file system");
    remount(&agent, "rw");
    agent.start_agent(&[]);
    eventually("the pods to run again", 2 * SOON, || {
        match kubectl.exec("counts", &["cat", "/memory/count"]) {
            ran if ran.code == 0 => Ok(()),
            ran => Err(ran.stderr),
        }
    });
    pods_go_on(&kubectl);
    let log = agent.log();
    assert!(!log.contains("damaged"), "{log}");
}

#[test]
fn a_box_that_boots_with_a_full_disk_runs_its_pods() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::with_small_disk(&lan, DISK_MIB);
    let registry = Registry::start(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    start_pods(&edge_box.kubectl(), edge_box.name());
    drop(registry);

    fill(&edge_box);
    edge_box.power_off();
    edge_box.power_on(&lan);
    fill(&edge_box);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    eventually("the pods to run again", 2 * SOON, || {
        match kubectl.exec("counts", &["cat", "/memory/count"]) {
            ran if ran.code == 0 => Ok(()),
            ran => Err(ran.stderr),
        }
    });
    pods_go_on(&kubectl);
    probes_go_on(&kubectl);

    make_space(&edge_box);
    kubectl.wait_for_writes("afterwards");
    let log = edge_box.log();
    assert!(!log.contains("damaged"), "{log}");
}
