//! Clients that are slow, stuck, many or greedy: the server's memory stays bounded, they are ended in order, and nobody else
//! notices.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant};

use amphipod_tests::client::{Connection, Dialer, h2};
use amphipod_tests::{EdgeBox, Kubectl, Lan, eventually};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A box whose server waits three seconds for a client, where it otherwise waits a minute.
#[track_caller]
fn impatient_box() -> (Lan, EdgeBox) {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    edge_box.start(&["--request-timeout", "3s"]);
    edge_box.wait_until_ready();
    (lan, edge_box)
}

/// `count` ConfigMaps of `size` bytes each, and the server's memory with them.
#[track_caller]
fn fill(edge_box: &EdgeBox, count: usize, size: usize) -> u64 {
    let value = "x".repeat(size);
    let map = |index| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: filler-{index}}}\ndata: {{it: {value}}}\n---\n"
        )
    };
    let yaml: String = (0..count).map(map).collect();
    edge_box
        .kubectl()
        .run_with(&["create", "-f", "-"], &yaml)
        .ok();
    edge_box.memory()
}

/// Somebody else is served.
#[track_caller]
fn others_are_served(kubectl: &Kubectl) {
    kubectl.run(&["get", "nodes", "--request-timeout=10s"]).ok();
    let name = format!("others-{}", std::process::id());
    let ran = kubectl.run(&["create", "configmap", &name, "--request-timeout=10s"]);
    ran.ok();
    kubectl
        .run(&["delete", "configmap", &name, "--request-timeout=10s"])
        .ok();
}

/// How many watches the server has open on ConfigMaps and others: all there are.
#[track_caller]
fn open_watches(kubectl: &Kubectl) -> u64 {
    let text = kubectl.run(&["get", "--raw", "/metrics"]).ok();
    let line = text
        .lines()
        .find(|line| line.starts_with("apiserver_longrunning_requests"));
    let line = line.expect("the metric of open watches");
    let number = line.rsplit(' ').next().unwrap();
    number.parse::<f64>().unwrap() as u64
}

/// Waits until memory is below `limit`, and prints what it was.
#[track_caller]
fn memory_comes_down(edge_box: &EdgeBox, limit: u64) {
    let seen = eventually("memory to be given back", Duration::from_secs(30), || {
        let now = edge_box.memory();
        if now <= limit {
            Ok(now)
        } else {
            Err(format!("{} KiB, not {} KiB", now >> 10, limit >> 10))
        }
    });
    println!("afterwards: {} KiB", seen >> 10);
}

#[test]
fn stuck_watchers_are_ended_and_their_memory_is_given_back() {
    let (_lan, edge_box) = impatient_box();
    let kubectl = edge_box.kubectl();
    let before = fill(&edge_box, 20, 100_000);
    let watches = open_watches(&kubectl);
    let dialer = Dialer::new(&edge_box);
    // Each asks for everything and for all that follows, and never reads.
    let mut stuck: Vec<Connection> = (0..40)
        .map(|_| {
            let mut connection = dialer.connect("http/1.1");
            connection.get(&format!("{MAPS}?watch=1"), "");
            connection
        })
        .collect();
    let mut frozen = dialer.connect("h2");
    frozen.send(h2::preface(65_535)).unwrap();
    for stream in 0..40 {
        let path = format!("{MAPS}?watch=1");
        frozen.send(h2::get(2 * stream + 1, &path, &[])).unwrap();
    }
    eventually("the watches to be open", Duration::from_secs(10), || {
        let open = open_watches(&kubectl);
        if open >= watches + 80 {
            Ok(())
        } else {
            Err(format!("{open} of {watches} and 80"))
        }
    });
    let mut most = 0;
    for round in 0..20 {
        for index in 0..5 {
            let name = format!("filler-{index}");
            let note = format!("round={round}");
            kubectl
                .run(&["annotate", "--overwrite", "configmap", &name, &note])
                .ok();
        }
        most = most.max(edge_box.memory());
    }
    println!(
        "80 stuck watchers of 2 MB: {} KiB before, {} KiB at most",
        before >> 10,
        most >> 10
    );
    assert!(most < before + 32 * MIB, "{} KiB", most >> 10);
    others_are_served(&kubectl);
    eventually(
        "the stuck watches to be ended",
        Duration::from_secs(30),
        || {
            let open = open_watches(&kubectl);
            if open <= watches {
                Ok(())
            } else {
                Err(format!("{open} are open, before there were {watches}"))
            }
        },
    );
    // The clients see it: their connections are cut, their streams are reset.
    for connection in &mut stuck {
        let (read, end) = connection.drain();
        assert!(!read.ends_with(b"0\r\n\r\n"), "a cut is no orderly end");
        println!("{} bytes, then {end:?}", read.len());
    }
    let mut reset = BTreeSet::new();
    let mut seen = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while reset.len() < 40 {
        match frozen.read(&mut buffer) {
            Ok(n) if n > 0 => seen.extend_from_slice(&buffer[..n]),
            // The whole connection may go, too.
            _ => break,
        }
        reset = h2::frames(&seen)
            .into_iter()
            .filter(|frame| frame.0 == 3)
            .map(|frame| frame.2)
            .collect();
    }
    drop((stuck, frozen));
    memory_comes_down(&edge_box, before + 12 * MIB);
}

#[test]
fn a_watcher_that_was_too_slow_is_told_to_list_again() {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let kubectl = edge_box.kubectl();
    fill(&edge_box, 1, 700_000);
    let from = kubectl.get(&["configmap", "filler-0"])["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut slow = Dialer::new(&edge_box).connect("http/1.1");
    slow.get(&format!("{MAPS}?watch=1&resourceVersion={from}"), "");
    slow.read_until(b"\r\n\r\n");
    for round in 0..25 {
        let note = format!("round={round}");
        kubectl
            .run(&["annotate", "--overwrite", "configmap", "filler-0", &note])
            .ok();
    }
    // It reads on, and the stream ends in order.
    let read = slow.read_until(b"\r\n0\r\n\r\n");
    let text = String::from_utf8_lossy(&read);
    let last = text
        .lines()
        .rev()
        .find(|line| line.starts_with("{\"type\""))
        .expect("an event");
    let event: Value = serde_json::from_str(last).unwrap();
    assert_eq!(event["type"], "ERROR", "{last}");
    assert_eq!(event["object"]["code"], 410);
    assert_eq!(event["object"]["reason"], "Expired");
}

#[test]
fn five_hundred_idle_connections_are_cheap_and_are_let_go() {
    let (_lan, edge_box) = impatient_box();
    let kubectl = edge_box.kubectl();
    let dialer = Dialer::new(&edge_box);
    let before = edge_box.memory();
    let mut idle = Vec::new();
    let mut quiet = Vec::new();
    let mut most = 0;
    for index in 0..500 {
        match index % 4 {
            // Before TLS, and after it.
            0 => quiet.push(dialer.silent()),
            1 => {
                let mut connection = dialer.connect("h2");
                connection.send(h2::preface(65_535)).unwrap();
                idle.push(connection);
            }
            2 => idle.push(dialer.connect("h2")),
            _ => idle.push(dialer.connect("http/1.1")),
        }
        if index % 50 == 49 {
            most = most.max(edge_box.memory());
        }
    }
    println!(
        "500 idle connections: {} KiB before, {} KiB at most",
        before >> 10,
        most >> 10
    );
    assert!(most < before + 40 * MIB, "{} KiB", most >> 10);
    others_are_served(&kubectl);
    // The server lets go of each: its end comes, sooner or later.
    for connection in &mut idle {
        let _ = connection.drain();
    }
    for mut tcp in quiet {
        let _ = tcp.read_to_end(&mut Vec::new());
    }
    others_are_served(&kubectl);
    memory_comes_down(&edge_box, before + 12 * MIB);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let lan = Lan::new();
    let edge_box = EdgeBox::ready(&lan);
    let kubectl = edge_box.kubectl();
    let dialer = Dialer::new(&edge_box);
    let before = edge_box.memory();

    let mut declared = dialer.connect("http/1.1");
    declared
        .send(format!(
            "POST {MAPS} HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\nContent-Length: 10485760\r\n\r\n"
        ))
        .unwrap();
    let started = Instant::now();
    let answer = declared.read_until(b"}\n");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert!(
        text.contains("\"reason\":\"RequestEntityTooLarge\""),
        "{text}"
    );
    assert!(
        text.contains("Request entity too large: limit is 3145728"),
        "{text}"
    );
    println!("refused after {:?}", started.elapsed());

    // Without a length it is known when it is seen.
    let mut chunked = dialer.connect("http/1.1");
    chunked
        .send(format!(
            "POST {MAPS} HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        ))
        .unwrap();
    for _ in 0..10 {
        let mut chunk = b"100000\r\n".to_vec();
        chunk.resize(chunk.len() + (1 << 20), b' ');
        chunk.extend_from_slice(b"\r\n");
        if chunked.send(chunk).is_err() {
            break;
        }
    }
    assert_eq!(chunked.head().code, 413);

    // And kubectl says it well.
    let value = "x".repeat(10 << 20);
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{it: {value}}}\n"
    );
    let refused = kubectl.run_with(&["create", "-f", "-"], &map).refused();
    assert!(
        refused.contains("Request entity too large: limit is 3145728"),
        "{refused}"
    );
    let after = edge_box.memory();
    println!(
        "bodies of 10 MB: {} KiB before, {} KiB after",
        before >> 10,
        after >> 10
    );
    assert!(after < before + 16 * MIB);
    others_are_served(&kubectl);
}

#[test]
fn a_hundred_slow_uploads_are_bounded_and_time_out() {
    let (_lan, edge_box) = impatient_box();
    let kubectl = edge_box.kubectl();
    let dialer = Dialer::new(&edge_box);
    let before = edge_box.memory();
    let (mut slow, mut refused, mut timed_out) = (Vec::new(), 0, 0);
    let part = vec![b' '; 2_500_000];
    let mut most = 0;
    for index in 0..100 {
        let mut connection = dialer.connect("http/1.1");
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n"
        );
        connection.send(head).unwrap();
        // A refusal may come, and the connection's end with it, while this is sent.
        let _ = connection.send(&part);
        slow.push(connection);
        if index % 25 == 24 {
            most = most.max(edge_box.memory());
            others_are_served(&kubectl);
        }
    }
    println!(
        "100 uploads that stop: {} KiB before, {} KiB at most",
        before >> 10,
        most >> 10
    );
    assert!(most < before + 96 * MIB, "{} KiB", most >> 10);
    for connection in &mut slow {
        let (read, _) = connection.drain();
        let text = String::from_utf8_lossy(&read);
        if text.starts_with("HTTP/1.1 429 ") {
            assert!(text.to_lowercase().contains("retry-after: 1"), "{text}");
            refused += 1;
        } else if text.starts_with("HTTP/1.1 504 ") {
            timed_out += 1;
        } else {
            assert!(text.is_empty(), "{text}");
        }
    }
    println!("{refused} were refused, {timed_out} timed out");
    assert!(timed_out > 0);
    memory_comes_down(&edge_box, before + 12 * MIB);
}

#[test]
fn a_head_that_comes_byte_by_byte_does_not_hold_the_server_for_ever() {
    let (_lan, edge_box) = impatient_box();
    let dialer = Dialer::new(&edge_box);
    let mut lorises: Vec<Connection> = (0..20).map(|_| dialer.connect("http/1.1")).collect();
    eventually(
        "the connections to be ended",
        Duration::from_secs(30),
        || {
            let alive = lorises.iter_mut().filter_map(|loris| loris.send("G").ok());
            match alive.count() {
                0 => Ok(()),
                alive => Err(format!("{alive} of 20 live")),
            }
        },
    );
    others_are_served(&edge_box.kubectl());
}

#[test]
fn lists_that_nobody_reads_pin_no_memory_without_bound() {
    let (_lan, edge_box) = impatient_box();
    let kubectl = edge_box.kubectl();
    let before = fill(&edge_box, 40, 100_000);
    let dialer = Dialer::new(&edge_box);
    let mut most = 0;
    let mut greedy = Vec::new();
    // 4 MB each, rendered for each anew: pretty, and over both protocols.
    for index in 0..60 {
        let mut connection = dialer.connect("http/1.1");
        connection.get(&format!("{MAPS}?pretty=true"), "");
        greedy.push(connection);
        if index % 10 == 9 {
            most = most.max(edge_box.memory());
        }
    }
    let mut streams = dialer.connect("h2");
    streams.send(h2::preface(65_535)).unwrap();
    for stream in 0..100 {
        let path = format!("{MAPS}?pretty=true");
        streams.send(h2::get(2 * stream + 1, &path, &[])).unwrap();
    }
    for _ in 0..5 {
        most = most.max(edge_box.memory());
        std::thread::sleep(Duration::from_millis(200));
        others_are_served(&kubectl);
    }
    println!(
        "160 lists of 4 MB that nobody reads: {} KiB before, {} KiB at most",
        before >> 10,
        most >> 10
    );
    assert!(most < before + 128 * MIB, "{} KiB", most >> 10);
    // The next honest client gets such a list, at the latest when the stuck ones were ended.
    eventually("a whole list", Duration::from_secs(30), || {
        let ran = kubectl.run(&["get", "--raw", &format!("{MAPS}?pretty=true")]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    for connection in &mut greedy {
        let _ = connection.drain();
    }
    memory_comes_down(&edge_box, before + 24 * MIB);
    drop(streams);
}
