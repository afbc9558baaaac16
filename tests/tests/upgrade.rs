//! Another build of the program takes the place of the one that runs, and back: nobody notices but the version.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use amphipod_tests::{EdgeBox, Kubectl, Lan, Registry, binary, eventually, pod};
use serde_json::{Value, json};

/// The program with another version in all places where it names its own: another file, and another word, of the same length.
fn another_build() -> Vec<u8> {
    let mut program = std::fs::read(binary()).unwrap();
    let (old, new) = (b".0+amphipod", b".0+amphinew");
    let places: Vec<usize> = (0..program.len() - old.len())
        .filter(|at| program[*at] == old[0] && program[*at..].starts_with(old))
        .collect();
    assert!(places.len() >= 2, "the version stands in {places:?}");
    for place in places {
        program[place..place + new.len()].copy_from_slice(new);
    }
    program
}

fn versions(kubectl: &Kubectl, edge_box: &EdgeBox) -> (String, String) {
    let server: Value =
        serde_json::from_str(&kubectl.run(&["get", "--raw", "/version"]).ok()).unwrap();
    let node = kubectl.get(&["node", edge_box.name()]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&server["gitVersion"]),
        text(&node["status"]["nodeInfo"]["kubeletVersion"]),
    )
}

/// The file that a process runs.
#[track_caller]
fn program_of(edge_box: &EdgeBox, pattern: &str) -> String {
    let script = format!("readlink /proc/$(pgrep -o -f '{pattern}')/exe");
    edge_box.run(&["sh", "-c", &script]).ok().trim().to_owned()
}

fn container(kubectl: &Kubectl, pod: &str) -> (String, u64) {
    let status = kubectl.get(&["pod", pod])["status"]["containerStatuses"][0].clone();
    let id = status["containerID"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (id, status["restartCount"].as_u64().unwrap_or(99))
}

#[test]
fn another_build_takes_over_and_nobody_notices_but_the_version() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = Registry::start(&edge_box);
    let (old, new) = (std::fs::read(binary()).unwrap(), another_build());
    edge_box.install(&old);
    edge_box.start(&[]);
    edge_box.wait_until_ready();
    let kubectl = edge_box.kubectl();
    let counts = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    let ends = pod::until_end("ends", "echo last words; exit 23");
    pod::ready(&kubectl, "counter", &pod::pod("counter", counts, json!({})));
    pod::ready(&kubectl, "ends", &ends);
    let before = container(&kubectl, "counter");
    kubectl.run(&["create", "configmap", "it"]).ok();
    let version = |object: &Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut from = version(&kubectl.get(&["configmap", "it"]));
    let mut seen = Vec::new();
    let keeper = "^[^ ]*amphipod keeper";
    let keeper_pid = edge_box.run(&["pgrep", "-o", "-f", keeper]).ok();

    // There and back, once in order and once by force; and what ends meanwhile is told afterwards.
    for (round, (build, word, by_force)) in [
        (&new, "amphinew", false),
        (&old, "amphipod", false),
        (&new, "amphinew", true),
        (&old, "amphipod", true),
    ]
    .into_iter()
    .enumerate()
    {
        // Under the running program.
        edge_box.install(build);
        let note = format!("round={round}");
        kubectl
            .run(&["annotate", "--overwrite", "configmap", "it", &note])
            .ok();
        if by_force {
            edge_box.kill_program();
        } else {
            edge_box.stop_program();
        }
        if round == 2 {
            pod::end(&edge_box, "ends");
        }
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        eventually("the new version", Duration::from_secs(30), || {
            let (server, node) = versions(&kubectl, &edge_box);
            if server.ends_with(word) && node.ends_with(word) {
                Ok(())
            } else {
                Err(format!("{server} and {node} instead of {word}"))
            }
        });
        // The keeper is the new program, in the same process.
        eventually(
            "the keeper to be the new program",
            Duration::from_secs(20),
            || {
                let file = program_of(&edge_box, keeper);
                if file.ends_with("/amphipod") {
                    Ok(())
                } else {
                    Err(file)
                }
            },
        );
        assert_eq!(
            edge_box.run(&["pgrep", "-o", "-f", keeper]).ok(),
            keeper_pid
        );
        assert_eq!(container(&kubectl, "counter"), before, "round {round}");
        assert_eq!(
            kubectl
                .run(&["exec", "counter", "--", "echo", "reached"])
                .ok(),
            "reached\n"
        );
        // A watch goes on where it was.
        let path = format!(
            "/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dit&resourceVersion={from}&timeoutSeconds=2"
        );
        for line in kubectl.run(&["get", "--raw", &path]).ok().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["type"], "MODIFIED", "{event}");
            from = version(&event["object"]);
            seen.push(event["object"]["metadata"]["annotations"]["round"].clone());
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3"]);
    let end = pod::failed_with(&kubectl, "ends");
    assert_eq!(end["exitCode"], 23, "{end}");
    assert_eq!(kubectl.run(&["logs", "ends"]).ok(), "last words\n");
    let log = kubectl.run(&["logs", "counter"]).ok();
    let lines: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    let broken = lines.iter().zip(1..).find(|(line, want)| **line != *want);
    assert_eq!(
        broken, None,
        "lines are missing or repeated (line, expected)"
    );
    assert_eq!(container(&kubectl, "counter"), before);
}

/// Writes the number of a layout into a database, where SQLite keeps it (sqlite.org/fileformat.html, "user version").
fn set_layout(path: &std::path::Path, layout: u32) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&layout.to_be_bytes(), 60).unwrap();
}

#[test]
fn a_database_of_a_newer_program_is_refused_and_left_as_it_is() {
    let lan = Lan::new();
    let mut edge_box = EdgeBox::ready(&lan);
    let kubectl = edge_box.kubectl();
    kubectl.run(&["create", "configmap", "kept"]).ok();
    for (file, layout) in [("server/state.db", 1), ("agent/agent.db", 1)] {
        edge_box.stop_program();
        let path = edge_box.disk().join("lib").join(file);
        let wal = path.with_extension("db-wal");
        assert!(
            std::fs::metadata(&wal).map_or(0, |wal| wal.len()) == 0,
            "{file} was not closed in order"
        );
        set_layout(&path, 99);
        let before = std::fs::read(&path).unwrap();
        let program = binary();
        let group = format!("/{}", edge_box.name());
        let ran = edge_box.run(&[
            "timeout",
            "20",
            program.to_str().unwrap(),
            "server",
            "--cgroup-root",
            &group,
        ]);
        let said = ran.refused();
        assert!(
            said.contains(file) && said.contains("layout 99") && said.contains("newer"),
            "{said}"
        );
        assert!(said.contains("run the newer one again"), "{said}");
        assert!(
            std::fs::read(&path).unwrap() == before,
            "{file} was changed"
        );
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap();
        let aside = names
            .filter(|name| {
                name.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains("damaged")
            })
            .count();
        assert_eq!(aside, 0, "a newer database is not a damaged one");
        set_layout(&path, layout);
        edge_box.start(&[]);
        edge_box.wait_until_ready();
        kubectl.run(&["get", "configmap", "kept"]).ok();
    }
}
