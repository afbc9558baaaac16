//! Promises of the revision log on SQLite.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amphipod_server::store::{
    Change, Durability, Expect, Key, Options, Record, SqliteStore, Store, StoreError, Write,
};
use bytes::Bytes;
use tempfile::TempDir;

fn put(name: &str, expect: Expect, value: &str) -> Write {
    Write {
        key: Key::new("configmaps", "default", name),
        expect,
        change: Change::Put(Bytes::from(value.to_owned())),
        durability: Durability::Immediate,
        frees: false,
    }
}

fn lazily(write: Write) -> Write {
    Write {
        durability: Durability::Lazy,
        ..write
    }
}

fn delete(name: &str, revision: u64) -> Write {
    Write {
        change: Change::Delete,
        frees: true,
        ..put(name, Expect::Revision(revision), "")
    }
}

fn open(dir: &Path, options: Options) -> SqliteStore {
    SqliteStore::open(&dir.join("state.db"), options).unwrap()
}

/// What a crash leaves: the files as they are on disk while the store is open.
fn crash(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

async fn live(store: &SqliteStore) -> Vec<(String, u64, String)> {
    let found = Arc::new(Mutex::new(BTreeMap::new()));
    let sink = found.clone();
    let visit = Box::new(move |record: Record| {
        let name = record.key.name().to_owned();
        let text = record
            .value
            .map(|value| String::from_utf8(value.to_vec()).unwrap());
        match text {
            Some(text) => drop(sink.lock().unwrap().insert(name, (record.revision, text))),
            None => drop(sink.lock().unwrap().remove(&name)),
        }
    });
    store
        .load("", store.position().revision, visit)
        .await
        .unwrap();
    let found = found.lock().unwrap();
    found
        .iter()
        .map(|(name, (revision, value))| (name.clone(), *revision, value.clone()))
        .collect()
}

async fn told(store: &SqliteStore, after: u64) -> Result<Arc<Mutex<Vec<Record>>>, StoreError> {
    let records = Arc::new(Mutex::new(Vec::new()));
    let sink = records.clone();
    store
        .watch(
            after,
            Box::new(move |batch| sink.lock().unwrap().extend_from_slice(batch)),
        )
        .await?;
    Ok(records)
}

fn rows(dir: &Path) -> i64 {
    let copy = crash(dir);
    let db = rusqlite::Connection::open(copy.path().join("state.db")).unwrap();
    db.query_row("SELECT count(*) FROM log", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let a = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let a = store
        .commit(put("a", Expect::Revision(a), "2"))
        .await
        .unwrap();
    let b = store.commit(put("b", Expect::Absent, "1")).await.unwrap();
    store.commit(delete("b", b)).await.unwrap();
    let after = crash(dir.path());
    let store = open(after.path(), Options::default());
    assert_eq!(live(&store).await, [("a".to_owned(), a, "2".to_owned())]);
    assert!(store.commit(put("b", Expect::Absent, "2")).await.unwrap() > b);
}

#[tokio::test]
async fn a_change_happens_only_if_its_expectation_holds() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let first = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let again = store.commit(put("a", Expect::Absent, "1")).await;
    assert!(matches!(again, Err(StoreError::Conflict { current: Some(now) }) if now == first));
    let second = store
        .commit(put("a", Expect::Revision(first), "2"))
        .await
        .unwrap();
    let stale = store.commit(put("a", Expect::Revision(first), "3")).await;
    assert!(matches!(stale, Err(StoreError::Conflict { current: Some(now) }) if now == second));
    let missing = store.commit(delete("b", 1)).await;
    assert!(matches!(
        missing,
        Err(StoreError::Conflict { current: None })
    ));
    store.commit(delete("a", second)).await.unwrap();
    store.commit(put("a", Expect::Absent, "4")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_are_told_every_change_once_and_in_order_before_its_author() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(open(dir.path(), Options::default()));
    store
        .commit(put("early", Expect::Absent, "1"))
        .await
        .unwrap();
    let records = told(&store, 0).await.unwrap();
    let mut tasks = Vec::new();
    for task in 0..16 {
        let (store, records) = (store.clone(), records.clone());
        tasks.push(tokio::spawn(async move {
            for n in 0..20 {
                let write = put(&format!("{task}-{n}"), Expect::Absent, "x");
                let write = if n % 3 == 0 { lazily(write) } else { write };
                let revision = store.commit(write).await.unwrap();
                assert!(
                    records
                        .lock()
                        .unwrap()
                        .iter()
                        .any(|record| record.revision == revision)
                );
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let records = records.lock().unwrap();
    assert_eq!(records.len(), 16 * 20 + 1);
    assert!(
        records
            .windows(2)
            .all(|pair| pair[0].revision < pair[1].revision)
    );
}

#[tokio::test]
async fn revisions_are_never_given_out_twice_even_when_lazy_writes_are_lost() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let mut last = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    for n in 0..5000 {
        last = store
            .commit(lazily(put(&format!("lazy-{n}"), Expect::Absent, "x")))
            .await
            .unwrap();
    }
    let after = crash(dir.path());
    let store = open(after.path(), Options::default());
    assert!(store.position().revision >= last);
    assert!(store.commit(put("b", Expect::Absent, "1")).await.unwrap() > last);
    // What lazy watchers saw may be gone: they must not resume across the crash.
    assert!(store.position().lazy_horizon >= last);
}

#[tokio::test]
async fn a_write_on_disk_is_not_covered_by_a_heartbeat_that_came_before_it() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let a = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let beat = lazily(put("a", Expect::Revision(a), "2"));
    let a = store.commit(beat).await.unwrap();
    let a = store
        .commit(put("a", Expect::Revision(a), "3"))
        .await
        .unwrap();
    // Reading writes what waits; compacting removes what is obsolete.
    let now = [("a".to_owned(), a, "3".to_owned())];
    assert_eq!(live(&store).await, now);
    store.compact(a).await.unwrap();
    let after = crash(dir.path());
    let store = open(after.path(), Options::default());
    assert_eq!(live(&store).await, now);
}

#[tokio::test]
async fn what_a_crash_took_back_comes_as_a_change_that_is_new_and_a_stop_takes_nothing_back() {
    let options = || Options {
        lazy_resources: vec!["configmaps".to_owned()],
        ..Options::default()
    };
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), options());
    let old = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let beat = lazily(put("a", Expect::Revision(old), "2"));
    let seen = store.commit(beat).await.unwrap();
    let after = crash(dir.path());
    let crashed = open(after.path(), options());
    let found = live(&crashed).await;
    assert_eq!((found.len(), found[0].2.as_str()), (1, "1"));
    assert!(found[0].1 > seen, "{found:?}, and a client saw {seen}");
    let stale = crashed.commit(put("a", Expect::Revision(old), "3")).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    store.close().await.unwrap();
    let stopped = open(dir.path(), options());
    assert_eq!(
        live(&stopped).await,
        [("a".to_owned(), seen, "2".to_owned())]
    );
}

#[tokio::test]
async fn an_orderly_stop_loses_nothing_and_wastes_no_revision() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let last = store
        .commit(lazily(put("lazy", Expect::Absent, "x")))
        .await
        .unwrap();
    store.close().await.unwrap();
    assert!(matches!(
        store.commit(put("b", Expect::Absent, "1")).await,
        Err(StoreError::Closed)
    ));
    let store = open(dir.path(), Options::default());
    assert_eq!(store.position().revision, last);
    assert_eq!(live(&store).await.len(), 2);
}

#[tokio::test]
async fn a_heartbeat_is_written_once_however_often_it_beats() {
    let dir = TempDir::new().unwrap();
    let options = Options {
        lazy_delay: Duration::from_millis(20),
        lazy_rewrite_delay: Duration::from_secs(600),
        ..Options::default()
    };
    let store = open(dir.path(), options);
    let mut revision = store
        .commit(lazily(put("lease", Expect::Absent, "0")))
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while rows(dir.path()) == 0 && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    for n in 1..200 {
        let write = lazily(put("lease", Expect::Revision(revision), &n.to_string()));
        revision = store.commit(write).await.unwrap();
    }
    assert_eq!(rows(dir.path()), 1);
    store.close().await.unwrap();
    let store = open(dir.path(), Options::default());
    assert_eq!(
        live(&store).await,
        [("lease".to_owned(), revision, "199".to_owned())]
    );
}

#[tokio::test]
async fn an_event_that_comes_and_goes_in_between_is_never_written() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let revision = store
        .commit(lazily(put("event", Expect::Absent, "x")))
        .await
        .unwrap();
    store
        .commit(lazily(delete("event", revision)))
        .await
        .unwrap();
    store.close().await.unwrap();
    assert_eq!(rows(dir.path()), 0);
    let store = open(dir.path(), Options::default());
    assert_eq!(live(&store).await, []);
}

#[tokio::test]
async fn history_is_bounded_and_says_where_it_begins() {
    let dir = TempDir::new().unwrap();
    let store = open(
        dir.path(),
        Options {
            keep_rows: 50,
            ..Options::default()
        },
    );
    let mut revision = store.commit(put("a", Expect::Absent, "0")).await.unwrap();
    for n in 0..1000 {
        revision = store
            .commit(put("a", Expect::Revision(revision), &n.to_string()))
            .await
            .unwrap();
    }
    assert!(rows(dir.path()) < 400);
    let horizon = store.position().horizon;
    assert!(horizon > 500 && horizon < revision);
    assert!(matches!(
        told(&store, horizon - 1).await,
        Err(StoreError::Compacted { .. })
    ));
    let records = told(&store, horizon).await.unwrap();
    let revisions: Vec<u64> = records
        .lock()
        .unwrap()
        .iter()
        .map(|record| record.revision)
        .collect();
    assert_eq!(revisions, (horizon + 1..=revision).collect::<Vec<_>>());
    let after = crash(dir.path());
    let store = open(after.path(), Options::default());
    assert_eq!(store.position().horizon, horizon);
    assert_eq!(
        told(&store, horizon).await.unwrap().lock().unwrap().len(),
        revisions.len()
    );
}

#[tokio::test]
async fn compaction_forgets_what_is_obsolete_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), Options::default());
    let a = store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    let b = store.commit(put("b", Expect::Absent, "1")).await.unwrap();
    let a = store
        .commit(put("a", Expect::Revision(a), "2"))
        .await
        .unwrap();
    let gone = store.commit(delete("b", b)).await.unwrap();
    assert_eq!(rows(dir.path()), 4);
    store.compact(gone).await.unwrap();
    assert_eq!(rows(dir.path()), 1);
    assert_eq!(live(&store).await, [("a".to_owned(), a, "2".to_owned())]);
    assert!(
        matches!(told(&store, a).await, Err(StoreError::Compacted { horizon }) if horizon == gone)
    );
}

/// A closed store of 200 objects of 2 KB with a backup, "late" that is newer than the backup, and without "7", which was deleted and
/// compacted since. The last revision.
async fn two_hundred(dir: &Path, backup: &Path) -> u64 {
    let store = open(dir, Options::default());
    let value = format!("{:?}", "x".repeat(2000));
    let mut seventh = 0;
    for n in 0..200 {
        let made = store.commit(put(&n.to_string(), Expect::Absent, &value));
        let made = made.await.unwrap();
        if n == 7 {
            seventh = made;
        }
    }
    store.backup(backup).await.unwrap();
    let gone = store.commit(delete("7", seventh)).await.unwrap();
    store.compact(gone).await.unwrap();
    let late = put("late", Expect::Absent, "1");
    let last = store.commit(late).await.unwrap();
    store.close().await.unwrap();
    last
}

/// Overwrites bytes of the file, which must then be found damaged.
fn damage(path: &Path, range: impl FnOnce(usize) -> std::ops::Range<usize>) {
    let mut bytes = std::fs::read(path).unwrap();
    let range = range(bytes.len());
    bytes[range].fill(0x5a);
    std::fs::write(path, bytes).unwrap();
    assert!(matches!(
        SqliteStore::open(path, Options::default()),
        Err(StoreError::Corrupt(_))
    ));
}

async fn names(store: &SqliteStore) -> Vec<String> {
    let live = live(store).await;
    live.into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_what_it_cannot_tell_comes_from_the_backup() {
    let dir = TempDir::new().unwrap();
    let (path, backup) = (dir.path().join("state.db"), dir.path().join("backup.db"));
    let last = two_hundred(dir.path(), &backup).await;
    damage(&path, |size| size / 2..size / 2 + 20_000);
    let before = std::fs::read(&path).unwrap();
    let options = Options {
        backup: Some(backup),
        ..Options::default()
    };
    let opened = SqliteStore::open_or_quarantine(&path, options).unwrap();
    let aside = opened.quarantined.unwrap();
    assert!(std::fs::read(aside).unwrap() == before, "kept as it was");
    let names = names(&opened.store).await;
    assert_eq!(names.len(), 200);
    // What is newer than the backup is there, and what was deleted since stays deleted.
    assert!(names.contains(&"late".to_owned()) && !names.contains(&"7".to_owned()));
    // No version is given out twice.
    assert!(opened.store.position().revision > last);
    assert!(opened.store.position().horizon > last);
}

#[tokio::test]
async fn a_file_that_can_tell_nothing_is_replaced_by_the_backup() {
    let dir = TempDir::new().unwrap();
    let (path, backup) = (dir.path().join("state.db"), dir.path().join("backup.db"));
    let last = two_hundred(dir.path(), &backup).await;
    damage(&path, |size| 100..size);
    let options = Options {
        backup: Some(backup),
        ..Options::default()
    };
    let opened = SqliteStore::open_or_quarantine(&path, options).unwrap();
    let names = names(&opened.store).await;
    assert_eq!(names.len(), 200);
    assert!(!names.contains(&"late".to_owned()));
    assert!(opened.store.position().horizon > last);
}

#[tokio::test]
async fn without_a_backup_all_but_the_damaged_part_is_kept() {
    let dir = TempDir::new().unwrap();
    let (path, backup) = (dir.path().join("state.db"), dir.path().join("backup.db"));
    two_hundred(dir.path(), &backup).await;
    damage(&path, |size| size / 2..size / 2 + 20_000);
    let opened = SqliteStore::open_or_quarantine(&path, Options::default()).unwrap();
    let kept = names(&opened.store).await;
    // Two objects on a page of 4 KiB.
    assert!((185..200).contains(&kept.len()), "{}", kept.len());
    assert!(kept.contains(&"0".to_owned()) && kept.contains(&"late".to_owned()));
    drop(opened);
    let empty = TempDir::new().unwrap();
    let path = empty.path().join("state.db");
    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    let opened = SqliteStore::open_or_quarantine(&path, Options::default()).unwrap();
    assert!(names(&opened.store).await.is_empty());
}

#[tokio::test]
async fn backups_are_made_by_themselves_and_only_when_something_changed() {
    let dir = TempDir::new().unwrap();
    let backup = dir.path().join("backup.db");
    let options = Options {
        backup: Some(backup.clone()),
        backup_every: Duration::ZERO,
        ..Options::default()
    };
    let store = open(dir.path(), options);
    store
        .commit(lazily(put("lease", Expect::Absent, "1")))
        .await
        .unwrap();
    store.compact(0).await.unwrap();
    assert!(!backup.exists());
    store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    // Commands are served in order: when this one is answered, what came before it is done.
    store.compact(0).await.unwrap();
    let copy = TempDir::new().unwrap();
    std::fs::copy(&backup, copy.path().join("state.db")).unwrap();
    assert_eq!(live(&open(copy.path(), Options::default())).await.len(), 1);
}

#[tokio::test]
async fn a_backup_that_failed_is_made_when_it_can_be() {
    let dir = TempDir::new().unwrap();
    let backup = dir.path().join("backups/backup.db");
    let options = Options {
        backup: Some(backup.clone()),
        backup_every: Duration::ZERO,
        ..Options::default()
    };
    let store = open(dir.path(), options);
    store.commit(put("a", Expect::Absent, "1")).await.unwrap();
    store.compact(0).await.unwrap();
    assert!(!backup.exists());
    std::fs::create_dir(dir.path().join("backups")).unwrap();
    // Nothing new but a heartbeat.
    store
        .commit(lazily(put("lease", Expect::Absent, "1")))
        .await
        .unwrap();
    store.compact(0).await.unwrap();
    assert!(backup.exists());
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let _store = open(dir.path(), Options::default());
    let second = SqliteStore::open(&dir.path().join("state.db"), Options::default());
    assert!(matches!(second, Err(StoreError::Failed(text)) if text.contains("another server")));
}

/// Runs `test` on a file system of 16 MiB, in a mount namespace of this thread and those it starts.
fn on_a_small_disk<F: Future<Output = ()>>(
    test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static,
) {
    let dir = TempDir::new().unwrap();
    let place = dir.path().to_owned();
    let test = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
            eprintln!("skipped: no right to make a mount namespace");
            return;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(
            Some("tmpfs"),
            &place,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=16m"),
        )
        .unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test(place));
    });
    test.join().unwrap();
}

#[test]
fn a_full_disk_refuses_writes_clearly_lets_deletions_pass_and_recovers() {
    on_a_small_disk(|place| async move { fill_and_recover(&place).await });
}

/// Takes what is left on the disk, to the last block.
fn take_all(dir: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("taken"))
        .unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn deletions_and_small_changes_pass_while_something_takes_every_block_that_comes_free() {
    on_a_small_disk(|dir| async move {
        let options = || Options {
            full_retry: Duration::ZERO,
            ..Options::default()
        };
        let mut store = open(&dir, options());
        let value = "x".repeat(10_000);
        let mut revisions = Vec::new();
        for n in 0..100 {
            let write = put(&format!("n{n}"), Expect::Absent, &value);
            revisions.push(store.commit(write).await.unwrap());
        }
        for round in 0..2 {
            let (mut refused, mut number) = (0, 0);
            while refused < 3 {
                take_all(&dir);
                number += 1;
                let name = format!("more-{round}-{number}");
                match store.commit(put(&name, Expect::Absent, &value)).await {
                    Ok(_) => refused = 0,
                    Err(StoreError::Full(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            for (n, revision) in revisions.iter().enumerate().skip(round * 50).take(50) {
                take_all(&dir);
                let changed = value.replacen('x', "y", 100);
                let name = format!("n{n}");
                let write = put(&name, Expect::Revision(*revision), &changed);
                let revision = store.commit(write).await.unwrap();
                take_all(&dir);
                store.commit(delete(&name, revision)).await.unwrap();
            }
            // In order, and anew: the next one has no more space than this one had.
            take_all(&dir);
            store.close().await.unwrap();
            store = open(&dir, options());
        }
        assert!(
            !live(&store)
                .await
                .iter()
                .any(|(name, ..)| name.starts_with('n'))
        );
        std::fs::remove_file(dir.join("taken")).unwrap();
        store
            .commit(put("after", Expect::Absent, &value))
            .await
            .unwrap();
    });
}

async fn fill_and_recover(dir: &Path) {
    let store = open(
        dir,
        Options {
            full_retry: Duration::ZERO,
            ..Options::default()
        },
    );
    let value = "x".repeat(10_000);
    let mut revisions = Vec::new();
    let mut refusals: Vec<StoreError> = Vec::new();
    // Making room after the first refusal may find some: full is what stays full.
    while refusals.len() < 5 {
        match store
            .commit(put(
                &format!("n{}", revisions.len()),
                Expect::Absent,
                &value,
            ))
            .await
        {
            Ok(revision) => {
                revisions.push(revision);
                refusals.clear();
            }
            Err(error) => refusals.push(error),
        }
        assert!(revisions.len() < 2000);
    }
    let refusal = refusals.swap_remove(0);
    assert!(matches!(&refusal, StoreError::Full(_)), "{refusal}");
    assert!(refusal.to_string().contains("full"));
    assert_eq!(live(&store).await.len(), revisions.len());
    for (n, revision) in revisions.iter().enumerate() {
        store
            .commit(delete(&format!("n{n}"), *revision))
            .await
            .unwrap();
    }
    assert_eq!(live(&store).await.len(), 0);
    let revision = store
        .commit(put("again", Expect::Absent, &value))
        .await
        .unwrap();
    assert!(revision > *revisions.last().unwrap());
    store.close().await.unwrap();
    assert_eq!(live(&open(dir, Options::default())).await.len(), 1);
}
