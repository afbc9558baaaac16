//! Promises of the watch cache.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use amphipod_server::cache::{Cache, EventType, Object, Table, TableSpec, encode};
use amphipod_server::resources::SelectableField;
use amphipod_server::store::{Key, Record};
use bytes::Bytes;
use serde_json::{Value, json};

fn pods() -> (Arc<Cache>, Arc<Table>) {
    let cache = Cache::empty();
    let table = cache.define(TableSpec {
        resource: "pods".into(),
        fields: vec![SelectableField::new("spec.nodeName")],
        indexed: vec!["spec.nodeName".into()],
        label: Some("app"),
        lazy: false,
    });
    (cache, table)
}

fn pod(name: &str, extra: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {}});
    for (key, value) in extra.as_object().unwrap() {
        pod[key] = value.clone();
        if key == "metadata" {
            pod[key]["name"] = name.into();
            pod[key]["namespace"] = "default".into();
        }
    }
    pod
}

fn put(revision: u64, name: &str, extra: Value) -> Record {
    let value = Some(encode(&mut pod(name, extra)));
    Record {
        revision,
        key: Key::new("pods", "default", name),
        value,
    }
}

fn deleted(revision: u64, name: &str) -> Record {
    Record {
        revision,
        key: Key::new("pods", "default", name),
        value: None,
    }
}

fn names(objects: &[Arc<Object>]) -> Vec<&str> {
    objects.iter().map(|object| &*object.meta.name).collect()
}

#[test]
fn objects_carry_their_revision_and_their_event_line_shares_their_bytes() {
    let (cache, table) = pods();
    cache.apply(&[put(7, "a", json!({"spec": {"nodeName": "n"}}))]);
    let object = table.get("default", "a").unwrap();
    assert_eq!(object.value()["metadata"]["resourceVersion"], "7");
    assert_eq!(object.value()["spec"]["nodeName"], "n");
    let line = object.event_line(EventType::Added);
    let event: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]),
        (&json!("ADDED"), &object.value())
    );
    assert!(line.ends_with(b"}\n"));
    let inside = line.as_ptr_range();
    assert!(inside.contains(&object.bytes.as_ptr()));
    cache.apply(&[deleted(9, "a")]);
    let gone = object.restamped(9, EventType::Deleted);
    assert_eq!(gone.value()["metadata"]["resourceVersion"], "9");
    assert_eq!(gone.value()["spec"], object.value()["spec"]);
}

#[test]
fn lists_are_ordered_and_indices_follow_changes() {
    let (cache, table) = pods();
    let owned = json!({"uid": "u", "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "owner", "controller": true}]});
    let labelled = json!({"uid": "c", "labels": {"app": "web"}});
    let node = json!({"nodeName": "n1"});
    cache.apply(&[
        put(1, "c", json!({"spec": node, "metadata": labelled})),
        put(2, "a", json!({"metadata": owned})),
        put(3, "b", json!({"spec": {"nodeName": "n1"}})),
    ]);
    assert_eq!(names(&table.list(None).items), ["a", "b", "c"]);
    assert_eq!(table.list(Some("other")).items.len(), 0);
    assert_eq!(names(&table.by_field("spec.nodeName", "n1")), ["b", "c"]);
    assert_eq!(names(&table.by_owner("owner")), ["a"]);
    assert_eq!(names(&table.by_label("default", "web")), ["c"]);
    assert_eq!(table.by_label("other", "web").len(), 0);
    cache.apply(&[
        put(4, "c", json!({"spec": {"nodeName": "n2"}})),
        deleted(5, "b"),
        put(6, "a", json!({})),
    ]);
    assert_eq!(
        names(&table.by_field("spec.nodeName", "n1")),
        Vec::<&str>::new()
    );
    assert_eq!(names(&table.by_field("spec.nodeName", "n2")), ["c"]);
    assert_eq!(names(&table.by_owner("owner")), Vec::<&str>::new());
    assert_eq!(table.by_label("default", "web").len(), 0);
    assert_eq!((table.len(), table.revision()), (2, 6));
}

#[test]
fn the_past_can_be_listed_as_it_was() {
    let (cache, table) = pods();
    cache.apply(&[
        put(1, "a", json!({"spec": {"nodeName": "n1"}})),
        put(2, "b", json!({})),
    ]);
    cache.apply(&[
        put(3, "a", json!({"spec": {"nodeName": "n2"}})),
        deleted(4, "b"),
        put(5, "c", json!({})),
        put(6, "b", json!({"spec": {"nodeName": "new"}})),
    ]);
    let then = table.list_at(None, 2).unwrap();
    assert_eq!(names(&then.items), ["a", "b"]);
    assert_eq!(then.items[0].value()["spec"]["nodeName"], "n1");
    assert_eq!(then.items[1].value()["spec"], json!({}));
    assert_eq!(names(&table.list_at(None, 4).unwrap().items), ["a"]);
    assert_eq!(
        names(&table.list_at(None, 6).unwrap().items),
        ["a", "b", "c"]
    );
}

#[tokio::test]
async fn a_watch_resumes_after_any_revision_in_the_ring_and_is_told_if_it_is_gone() {
    let (cache, table) = pods();
    for revision in 1..=10 {
        cache.apply(&[put(revision, "a", json!({}))]);
    }
    let mut watch = table.subscribe(4).unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!(
        events
            .iter()
            .map(|event| event.revision)
            .collect::<Vec<_>>(),
        [5, 6, 7, 8, 9, 10]
    );
    assert_eq!(events[0].prev.as_ref().unwrap().meta.revision, 4);
    for revision in 11..=20_000 {
        cache.apply(&[put(revision, "a", json!({}))]);
    }
    assert!(
        watch.next().await.is_err(),
        "a watch that fell off the ring must not go on"
    );
    let gone = table.subscribe(10).err().unwrap();
    assert!(gone.oldest > 10 && gone.oldest < 20_000);
    assert!(table.subscribe(gone.oldest).is_ok());
}

#[test]
fn the_ring_is_bounded_by_bytes() {
    let (cache, table) = pods();
    let large = "x".repeat(100_000);
    for revision in 1..=200 {
        cache.apply(&[put(revision, "a", json!({"spec": {"large": large}}))]);
    }
    let oldest = table.subscribe(0).err().unwrap().oldest;
    assert!(oldest > 180, "{} events of 100 kB are kept", 200 - oldest);
}

#[test]
fn bookmarks_never_run_ahead_of_events() {
    let (cache, table) = pods();
    let mut watch = table.subscribe(0).unwrap();
    let other = Record {
        revision: 1,
        key: Key::new("nodes", "", "n"),
        value: Some(Bytes::from_static(br#"{"metadata":{"name":"n"}}"#)),
    };
    cache.apply(&[other]);
    assert_eq!(watch.idle_revision(), Some(1));
    cache.apply(&[put(2, "a", json!({}))]);
    assert_eq!(watch.idle_revision(), None);
    assert_eq!(watch.try_next().unwrap().len(), 1);
    assert_eq!(watch.idle_revision(), Some(2));
}

#[tokio::test]
async fn a_revision_can_be_waited_for() {
    let (cache, _) = pods();
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.reach(2, std::time::Duration::from_secs(30)).await }
    });
    tokio::task::yield_now().await;
    cache.apply(&[put(1, "a", json!({}))]);
    cache.apply(&[put(2, "a", json!({}))]);
    assert!(waiting.await.unwrap());
    assert!(!cache.reach(3, std::time::Duration::from_millis(10)).await);
}

/// Writers, watchers and listers at the same time: every watcher sees every revision after its list, once and in order,
/// and list plus events is the truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn list_and_watch_lose_and_repeat_nothing_under_load() {
    let (cache, table) = pods();
    const LAST: u64 = 3000;
    let done = Arc::new(AtomicBool::new(false));
    // How far each watch has come.
    let come: Arc<[AtomicU64; 4]> = Arc::default();
    let writer = std::thread::spawn({
        let (cache, done, come) = (cache.clone(), done.clone(), come.clone());
        move || {
            for revision in 1..=LAST {
                let name = format!("p{}", revision % 7);
                let record = if revision % 5 == 0 {
                    deleted(revision, &name)
                } else {
                    put(revision, &name, json!({}))
                };
                cache.apply(&[record]);
                // Watches that fall off the ring are another test.
                let behind = |at: &AtomicU64| at.load(Ordering::Acquire) + 256 < revision;
                while come.iter().any(behind) {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Release);
        }
    });
    let mut watchers = Vec::new();
    for watcher in 0..come.len() {
        let (table, done, come) = (table.clone(), done.clone(), come.clone());
        watchers.push(tokio::spawn(async move {
            let (snapshot, mut watch) = table.list_and_watch(None);
            let mut state: std::collections::BTreeMap<String, u64> = snapshot
                .items
                .iter()
                .map(|object| (object.meta.name.to_string(), object.meta.revision))
                .collect();
            let mut last = snapshot.revision;
            loop {
                let finished = done.load(Ordering::Acquire);
                let events = watch.try_next().unwrap();
                for event in &events {
                    assert!(event.revision > last, "{} after {last}", event.revision);
                    last = event.revision;
                    let name = event.object.meta.name.to_string();
                    assert_eq!(
                        event.prev.as_ref().map(|prev| prev.meta.revision),
                        state.get(&name).copied()
                    );
                    match event.kind {
                        EventType::Deleted => drop(state.remove(&name)),
                        _ => drop(state.insert(name, event.revision)),
                    }
                }
                come[watcher].store(last, Ordering::Release);
                if finished && events.is_empty() {
                    return state;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    writer.join().unwrap();
    let truth: std::collections::BTreeMap<String, u64> = table
        .list(None)
        .items
        .iter()
        .map(|object| (object.meta.name.to_string(), object.meta.revision))
        .collect();
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), truth);
    }
}
