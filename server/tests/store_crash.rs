//! `kill -9` of a process that writes, at random moments: what it was told is written is there afterwards.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use amphipod_server::store::{
    Change, Durability, Expect, Key, Options, Record, SqliteStore, Store, Write,
};
use bytes::Bytes;

const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const FIRST: &str = "STORE_CRASH_FIRST";
const ROUNDS: u32 = 12;
const LAZY: &str = "leases.coordination.k8s.io";

/// The process that is killed: not a test of its own.
#[test]
#[ignore = "started by the test below"]
fn victim() {
    let Some(dir) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = Options {
            keep_rows: 100,
            lazy_delay: Duration::from_millis(30),
            lazy_resources: vec![LAZY.to_owned()],
            ..Options::default()
        };
        let path = Path::new(&dir).join("state.db");
        let store = Arc::new(SqliteStore::open(&path, options).unwrap());
        let live = live(&store).await;
        let first = std::env::var(FIRST).unwrap().parse().unwrap();
        let mut tasks = Vec::new();
        for task in 0..4 {
            let store = store.clone();
            let mut revision = live
                .get(&format!("key-{task}"))
                .map(|(revision, _)| *revision);
            tasks.push(tokio::spawn(async move {
                for n in first..u64::MAX {
                    let delete = n % 7 == 6 && revision.is_some();
                    let value = format!("{n}-{}", "x".repeat((n % 50) as usize * 100));
                    let write = Write {
                        key: Key::new(
                            if task < 2 { "configmaps" } else { LAZY },
                            "default",
                            &format!("key-{task}"),
                        ),
                        expect: revision.map_or(Expect::Absent, Expect::Revision),
                        change: if delete {
                            Change::Delete
                        } else {
                            Change::Put(Bytes::from(value))
                        },
                        // The last one is a heartbeat: it may be lost, but its revisions may not come again. The one before changes
                        // between both: what was told to be on disk may not be covered by something older.
                        durability: match task {
                            3 => Durability::Lazy,
                            2 if !delete && n % 3 != 0 => Durability::Lazy,
                            _ => Durability::Immediate,
                        },
                        frees: delete,
                    };
                    let done = store.commit(write).await.unwrap();
                    revision = (!delete).then_some(done);
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\nACK key-{task} {done} {n}").unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Of each key its revision and the number in its value.
async fn live(store: &SqliteStore) -> BTreeMap<String, (u64, u64)> {
    let found = Arc::new(Mutex::new(BTreeMap::new()));
    let sink = found.clone();
    let visit = Box::new(move |record: Record| {
        let name = record.key.name().to_owned();
        let mut found = sink.lock().unwrap();
        match record.value {
            Some(value) => {
                let text = String::from_utf8(value.to_vec()).unwrap();
                let n = text.split('-').next().unwrap().parse().unwrap();
                found.insert(name, (record.revision, n));
            }
            None => drop(found.remove(&name)),
        }
    });
    let at = store.position().revision;
    store.load("", at, visit).await.unwrap();
    let found = found.lock().unwrap();
    found.clone()
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_and_no_revision_comes_twice_however_the_server_is_killed() {
    let dir = tempfile::TempDir::new().unwrap();
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut seed = u64::from(since.subsec_nanos());
    println!("seed {seed}");
    let mut highest = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .env(FIRST, (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let lines = 1 + (seed >> 33) % 400;
        let mut acknowledged: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let mut mixed_on_disk = None;
        let before = highest;
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = 0;
        for line in output.split(b'\n') {
            // What came before the kill counts, also what is still in the pipe.
            let line = String::from_utf8(line.unwrap()).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ACK", name, revision, n] = words[..]
                && let Ok(n) = n.parse()
            {
                let revision: u64 = revision.parse().unwrap();
                assert!(
                    revision > before,
                    "revision {revision} was given out before, in round {round}"
                );
                highest = highest.max(revision);
                acknowledged.insert(name.to_owned(), (revision, n));
                if name == "key-2" && n % 3 == 0 && n % 7 != 6 {
                    mixed_on_disk = Some(n);
                }
                seen += 1;
                if seen == lines {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(
            seen >= lines,
            "the victim ended by itself after {seen} of {lines}"
        );
        let options = Options {
            lazy_resources: vec![LAZY.to_owned()],
            ..Options::default()
        };
        let store = SqliteStore::open(&dir.path().join("state.db"), options).unwrap();
        assert!(store.position().revision >= highest);
        let live = live(&store).await;
        for name in ["key-2", "key-3"] {
            let have = live.get(name).map(|(revision, _)| *revision);
            assert!(
                have.is_none_or(|have| have > highest),
                "{name} is at {have:?}: a client may have seen newer states of it"
            );
        }
        if let Some(told) = mixed_on_disk {
            let last = acknowledged["key-2"].1;
            let deleting = (told..=last + 1).any(|n| n % 7 == 6);
            match live.get("key-2") {
                Some((_, have)) => assert!(*have >= told, "key-2 has {have}, told {told}"),
                None => assert!(deleting, "key-2, told {told}, is lost"),
            }
        }
        for (name, (revision, n)) in acknowledged
            .iter()
            .filter(|(name, _)| name.as_str() < "key-2")
        {
            // Every seventh deletes; one more than was told may have been under way.
            let (deleted, deleting) = (n % 7 == 6, (n + 1) % 7 == 6);
            match live.get(name) {
                Some((have, _)) if deleted => assert!(have > revision, "{name} came back"),
                Some((have, _)) => {
                    assert!(have >= revision, "{name} is at {have}, told {revision}")
                }
                None => assert!(deleted || deleting, "{name}, told {revision}, is lost"),
            }
        }
        store.close().await.unwrap();
    }
}
