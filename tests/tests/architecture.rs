//! The sentences of docs/ARCHITECTURE.md that say what each crate does not know, checked against what cargo resolves.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The words between backticks in `text`.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `(crate, crates that it does not know)` for each invariant of the page.
fn invariants(page: &str) -> Vec<(String, Vec<String>)> {
    page.lines()
        .filter_map(|line| line.split_once("**Architecture invariant:**"))
        .filter_map(|(_, sentence)| sentence.split_once(" does not know "))
        .map(|(subject, rest)| {
            let list = rest.split(". ").next().unwrap();
            let subject = quoted(subject)
                .pop()
                .expect("a crate's name in backticks")
                .to_owned();
            (
                subject,
                quoted(list).into_iter().map(str::to_owned).collect(),
            )
        })
        .collect()
}

/// Every package that each package of the workspace reaches through normal and build dependencies.
fn reachable() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let to = node["deps"].as_array().unwrap().iter().filter(|dep| {
            dep["dep_kinds"]
                .as_array()
                .unwrap()
                .iter()
                .any(|kind| kind["kind"].as_str() != Some("dev"))
        });
        edges.insert(
            node["id"].as_str().unwrap(),
            to.map(|dep| dep["pkg"].as_str().unwrap()).collect(),
        );
    }
    let members = metadata["workspace_members"].as_array().unwrap();
    members
        .iter()
        .map(|member| {
            let member = member.as_str().unwrap();
            let (mut seen, mut open) = (BTreeSet::new(), vec![member]);
            while let Some(id) = open.pop() {
                for next in &edges[id] {
                    if seen.insert(name_of[next].to_owned()) {
                        open.push(next);
                    }
                }
            }
            (name_of[member].to_owned(), seen)
        })
        .collect()
}

#[test]
fn each_crate_knows_only_what_the_architecture_page_allows() {
    let page = std::fs::read_to_string(project().join("docs/ARCHITECTURE.md")).unwrap();
    let invariants = invariants(&page);
    let reachable = reachable();
    for name in reachable.keys().filter(|name| *name != "amphipod") {
        assert!(
            invariants.iter().any(|(subject, _)| subject == name),
            "the page has no invariant for {name}"
        );
    }
    for (subject, unknown) in invariants {
        let known = reachable
            .get(&subject)
            .unwrap_or_else(|| panic!("{subject} is not in the workspace"));
        assert!(
            !unknown.is_empty(),
            "the invariant of {subject} names no crate"
        );
        for name in unknown {
            assert!(
                !known.contains(&name),
                "{subject} must not know {name}, but depends on it"
            );
        }
    }
}

#[test]
fn an_invariant_sentence_is_read_as_written() {
    let page =
        "* **Architecture invariant:** `a` does not know `b`, `c`. It knows `d`.\nOther `text`.";
    assert_eq!(
        invariants(page),
        [("a".to_owned(), vec!["b".to_owned(), "c".to_owned()])]
    );
}
