//! The harness itself: a test that cannot trust its box proves nothing.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use amphipod_tests::{EdgeBox, Lan, Registry, eventually};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

#[test]
fn a_box_has_its_own_network_disk_and_processes() {
    let lan = Lan::new();
    let edge_box = EdgeBox::new(&lan);
    assert_eq!(edge_box.run(&["hostname"]).ok().trim(), edge_box.name());
    let links = edge_box.run(&["ip", "-o", "link"]).ok();
    assert_eq!(links.lines().count(), 2, "only lo and eth0: {links}");
    edge_box
        .run(&["busybox", "ping", "-c1", "-W2", "10.99.0.254"])
        .ok();
    edge_box.run(&["touch", "/var/lib/amphipod/here"]).ok();
    assert!(edge_box.disk().join("lib/here").exists());
    assert!(!std::path::Path::new("/var/lib/amphipod/here").exists());
}

#[test]
fn a_power_cut_kills_everything_in_a_box_and_keeps_its_disk() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let marker = format!("86400.{}", std::process::id());
    let mut sleeper = edge_box
        .command("setsid")
        .args(["sleep", &marker])
        .spawn()
        .unwrap();
    let running = |marker: &str| {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|process| {
                std::fs::read(process.path().join("cmdline")).is_ok_and(|line| {
                    line.starts_with(b"sleep\0") && String::from_utf8_lossy(&line).contains(marker)
                })
            })
    };
    eventually("the sleeper to run", Duration::from_secs(5), || {
        if running(&marker) {
            Ok(())
        } else {
            Err("not there".to_owned())
        }
    });
    edge_box.run(&["touch", "/var/lib/amphipod/kept"]).ok();
    edge_box.power_off();
    assert!(!running(&marker), "a process outlived its box");
    let _ = sleeper.wait();
    edge_box.power_on(&lan);
    edge_box.run(&["test", "-e", "/var/lib/amphipod/kept"]).ok();
    edge_box
        .run(&["busybox", "ping", "-c1", "-W2", "10.99.0.254"])
        .ok();
}

#[test]
fn a_box_that_ends_with_mounts_on_its_disk_leaves_no_disk_behind() {
    let lan = Lan::new();
    let edge_box = EdgeBox::new(&lan);
    let disk = edge_box.disk().to_owned();
    edge_box.run(&["mkdir", "/var/lib/amphipod/volume"]).ok();
    edge_box
        .run(&["mount", "-t", "tmpfs", "tmpfs", "/var/lib/amphipod/volume"])
        .ok();
    // Nobody else removes the disk, as when a test's process was killed: what is left then is for the power supply.
    edge_box.unplug_and_forget();
    eventually("the disk to be gone", Duration::from_secs(5), || {
        if disk.exists() {
            Err(format!("{} is there", disk.display()))
        } else {
            Ok(())
        }
    });
}

#[test]
#[ignore = "started by the test below"]
fn a_box_that_stands_there() {
    let lan = Lan::new();
    let edge_box = EdgeBox::new(&lan);
    println!("disk: {}", edge_box.disk().display());
    std::thread::sleep(Duration::MAX);
}

/// As `timeout` sends one, and Ctrl-C.
#[test]
fn a_signal_to_a_test_and_all_that_it_started_leaves_no_box_behind() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_box_that_stands_there", "--ignored"])
        .arg("--nocapture")
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(test.stdout.take().unwrap()).lines();
    let disk = said.find_map(|line| Some(PathBuf::from(line.unwrap().strip_prefix("disk: ")?)));
    let disk = disk.expect("a disk");
    assert!(disk.exists());
    killpg(Pid::from_raw(test.id() as i32), Signal::SIGTERM).unwrap();
    assert!(!test.wait().unwrap().success());
    eventually("the box to be gone", Duration::from_secs(5), || {
        let name = format!("amphitest-box-{}-", test.id());
        let programs = std::fs::read_dir("/proc").unwrap().flatten();
        let left = programs
            .filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok())
            .find(|line| line.contains(&name));
        match left {
            Some(line) => Err(line),
            None if disk.exists() => Err(format!("{} is there", disk.display())),
            None => Ok(()),
        }
    });
}

#[test]
fn the_registry_of_a_box_serves_images() {
    let lan = Lan::new();
    let edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    let url = "http://127.0.0.1:5000/v2/busybox/manifests/1";
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let manifest = edge_box.run(&["curl", "-sSf", "-H", accept, url]).ok();
    assert!(
        manifest.contains("application/vnd.oci.image.layer.v1.tar+gzip"),
        "{manifest}"
    );
}
