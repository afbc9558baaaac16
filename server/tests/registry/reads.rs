//! What is read: pages, the past, resource versions, watches.

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{FieldSelector, LabelSelector};
use amphipod_server::auth::UserInfo;
use amphipod_server::cache::EventType;
use amphipod_server::registry::{DeleteOptions, GetOptions, ListOptions, PatchType};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::{Bench, changes, config, from, start};

#[tokio::test]
async fn pages_of_a_list_are_of_one_moment() {
    let bench = Bench::new().await;
    for n in 0..10 {
        bench
            .create("configmaps", config(&format!("c{n}"), json!({})))
            .await
            .unwrap();
    }
    let cx = bench.cx("configmaps");
    let page = |token: &str| ListOptions {
        limit: 4,
        continue_token: token.to_owned(),
        ..ListOptions::default()
    };
    let first = bench.registry.list(&cx, &page("")).await.unwrap();
    assert_eq!((first.items.len(), first.remaining), (4, Some(6)));
    bench
        .registry
        .delete(&cx, "c5", &DeleteOptions::default())
        .await
        .unwrap();
    bench
        .create("configmaps", config("c45", json!({})))
        .await
        .unwrap();
    let second = bench
        .registry
        .list(&cx, &page(&first.continue_token))
        .await
        .unwrap();
    let third = bench
        .registry
        .list(&cx, &page(&second.continue_token))
        .await
        .unwrap();
    let names: Vec<String> = [&first, &second, &third]
        .iter()
        .flat_map(|page| page.items.iter().map(|object| object.meta.name.to_string()))
        .collect();
    assert_eq!(names, (0..10).map(|n| format!("c{n}")).collect::<Vec<_>>());
    assert_eq!(
        (
            second.revision,
            third.continue_token.as_str(),
            third.remaining
        ),
        (first.revision, "", None)
    );
    let document: Value = serde_json::from_slice(&first.chunks(&cx.descriptor).concat()).unwrap();
    assert_eq!(document["kind"], "ConfigMapList");
    assert_eq!(document["metadata"]["remainingItemCount"], 6);
    assert_eq!(document["items"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_token_of_the_past_is_gone_but_carries_on_inconsistently() {
    let bench = Bench::new().await;
    for name in ["a", "b", "c"] {
        bench
            .create("configmaps", config(name, json!({})))
            .await
            .unwrap();
    }
    let cx = bench.cx("configmaps");
    let page = |token: &str| ListOptions {
        limit: 1,
        continue_token: token.to_owned(),
        ..ListOptions::default()
    };
    let first = bench.registry.list(&cx, &page("")).await.unwrap();
    let large = "x".repeat(300_000);
    for n in 0..20 {
        bench
            .patch(
                "configmaps",
                "c",
                PatchType::Merge,
                json!({"data": {"n": format!("{n}{large}")}}),
            )
            .await
            .unwrap();
    }
    bench
        .patch("configmaps", "c", PatchType::Merge, json!({"data": null}))
        .await
        .unwrap();
    bench
        .patch(
            "configmaps",
            "c",
            PatchType::Merge,
            json!({"data": {"a": "b"}}),
        )
        .await
        .unwrap();
    let gone = bench
        .registry
        .list(&cx, &page(&first.continue_token))
        .await
        .unwrap_err();
    assert_eq!((gone.code, gone.reason.as_str()), (410, "Expired"));
    assert!(
        gone.message
            .starts_with("The provided continue parameter is too old")
    );
    let next = bench
        .registry
        .list(&cx, &page(&gone.metadata.continue_token))
        .await
        .unwrap();
    assert_eq!(&*next.items[0].meta.name, "b");
    let bad = bench
        .registry
        .list(&cx, &page("rubbish"))
        .await
        .unwrap_err();
    assert_eq!(bad.code, 400);
}

#[tokio::test]
async fn resource_versions_mean_what_upstream_says() {
    let bench = Bench::new().await;
    let a = bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap();
    let b = bench
        .create("configmaps", config("b", json!({})))
        .await
        .unwrap();
    let cx = bench.cx("configmaps");
    let list = |version: u64, matching: &str| ListOptions {
        resource_version_match: matching.to_owned(),
        ..from(version)
    };
    let exact = bench
        .registry
        .list(&cx, &list(a.meta.revision, "Exact"))
        .await
        .unwrap();
    assert_eq!((exact.items.len(), exact.revision), (1, a.meta.revision));
    let newer = bench
        .registry
        .list(&cx, &list(a.meta.revision, "NotOlderThan"))
        .await
        .unwrap();
    assert_eq!((newer.items.len(), newer.revision), (2, b.meta.revision));
    let future = bench
        .registry
        .get(
            &cx,
            "a",
            &GetOptions {
                resource_version: "999999".into(),
            },
        )
        .await
        .unwrap_err();
    assert_eq!(
        (future.code, future.message.as_str()),
        (
            504,
            format!(
                "Timeout: Too large resource version: 999999, current: {}",
                b.meta.revision
            )
            .as_str()
        )
    );
    assert_eq!(future.details.as_ref().unwrap().retry_after_seconds, 1);
    assert_eq!(
        bench
            .registry
            .get(
                &cx,
                "a",
                &GetOptions {
                    resource_version: "0".into()
                }
            )
            .await
            .unwrap()
            .meta
            .revision,
        a.meta.revision
    );
    let unknown = ListOptions {
        field_selector: FieldSelector::parse("spec.x=y").unwrap(),
        ..ListOptions::default()
    };
    assert_eq!(
        bench.registry.list(&cx, &unknown).await.unwrap_err().code,
        400
    );
}

#[tokio::test]
async fn a_watch_with_a_selector_sees_objects_come_and_go_as_they_start_and_stop_matching() {
    let bench = Bench::new().await;
    let options = ListOptions {
        label_selector: LabelSelector::parse("app=x").unwrap(),
        ..ListOptions::default()
    };
    let mut watch = bench.watch("configmaps", options).await;
    bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap();
    let label = |value: Value| {
        bench.patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"metadata": {"labels": {"app": value}}}),
        )
    };
    let on = label(json!("x")).await.unwrap().meta.revision;
    let changed = bench
        .patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"data": {"k": "v"}}),
        )
        .await
        .unwrap()
        .meta
        .revision;
    let off = label(json!("y")).await.unwrap().meta.revision;
    bench
        .patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"data": {"k": "w"}}),
        )
        .await
        .unwrap();
    let on_again = label(json!("x")).await.unwrap().meta.revision;
    let deleted = bench
        .registry
        .delete(&bench.cx("configmaps"), "a", &DeleteOptions::default())
        .await
        .unwrap();
    let expected = [
        (EventType::Added, "a".to_owned(), on),
        (EventType::Modified, "a".to_owned(), changed),
        (EventType::Deleted, "a".to_owned(), off),
        (EventType::Added, "a".to_owned(), on_again),
        (
            EventType::Deleted,
            "a".to_owned(),
            deleted.object.meta.revision,
        ),
    ];
    assert_eq!(changes(&mut watch, 5).await, expected);
}

#[tokio::test]
async fn initial_events_end_with_their_bookmark() {
    let bench = Bench::new().await;
    bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap();
    let b = bench
        .create("configmaps", config("b", json!({})))
        .await
        .unwrap();
    let options = ListOptions {
        send_initial_events: Some(true),
        allow_watch_bookmarks: true,
        resource_version_match: "NotOlderThan".into(),
        ..ListOptions::default()
    };
    let mut watch = bench.watch("configmaps", options).await;
    let items = watch.next().await.unwrap();
    let descriptor = bench.cx("configmaps").descriptor;
    let lines: Vec<Value> = items
        .iter()
        .map(|item| serde_json::from_slice(&item.line(&descriptor)).unwrap())
        .collect();
    assert_eq!(
        lines
            .iter()
            .map(|line| line["type"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["ADDED", "ADDED", "BOOKMARK"]
    );
    assert_eq!(
        lines[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        lines[2]["object"]["metadata"]["resourceVersion"],
        b.meta.revision.to_string()
    );
    assert_eq!(lines[2]["object"]["kind"], "ConfigMap");
    // Without a version a watch begins with what there is, and with one after it.
    let mut plain = bench.watch("configmaps", ListOptions::default()).await;
    assert_eq!(changes(&mut plain, 2).await.len(), 2);
    let mut later = bench.watch("configmaps", from(b.meta.revision)).await;
    bench
        .create("configmaps", config("c", json!({})))
        .await
        .unwrap();
    assert_eq!(changes(&mut later, 1).await[0].1, "c");
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout() {
    let bench = Bench::new().await;
    let options = ListOptions {
        timeout: Some(Duration::from_millis(30)),
        ..ListOptions::default()
    };
    let mut watch = bench.watch("configmaps", options).await;
    assert!(
        tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_watch_resumes_across_a_restart_without_gap_or_repeat() {
    let dir = TempDir::new().unwrap();
    let user = Arc::new(UserInfo::apiserver());
    let mut registry = start(dir.path()).await;
    let mut revisions = Vec::new();
    for n in 0..5 {
        let cx = registry.context(&user, "configmaps", "default").unwrap();
        revisions.push(
            registry
                .create(&cx, config(&format!("c{n}"), json!({})).into())
                .await
                .unwrap()
                .meta
                .revision,
        );
        if n == 2 {
            let copy = TempDir::new().unwrap();
            for file in std::fs::read_dir(dir.path()).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
            drop(registry);
            registry = start(&copy.keep()).await;
        }
    }
    let cx = registry.context(&user, "configmaps", "default").unwrap();
    let mut watch = registry.watch(&cx, from(revisions[0])).await.unwrap();
    let told: Vec<u64> = changes(&mut watch, 4)
        .await
        .into_iter()
        .map(|(_, _, revision)| revision)
        .collect();
    assert_eq!(told, revisions[1..]);
}
