//! What goes: finalizers, grace, preconditions, propagation, namespaces.

use amphipod_api::LabelSelector;
use amphipod_server::cache::EventType;
use amphipod_server::registry::{DeleteOptions, ListOptions, PatchType, Propagation};
use serde_json::json;

use crate::bench::{Bench, changes, config, deployment, from, pod};

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let bench = Bench::new().await;
    let cx = bench.cx("configmaps");
    let mut object = config("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    bench.create("configmaps", object).await.unwrap();
    let deleted = bench
        .registry
        .delete(&cx, "a", &DeleteOptions::default())
        .await
        .unwrap();
    assert!(!deleted.gone);
    let held = bench.get("configmaps", "a").await.unwrap();
    assert!(held.meta.is_deleting());
    assert_eq!(held.meta.deletion_grace_period_seconds, Some(0));
    let again = bench
        .registry
        .delete(&cx, "a", &DeleteOptions::default())
        .await
        .unwrap();
    assert_eq!(
        (again.gone, again.object.meta.revision),
        (false, held.meta.revision)
    );
    let taken = bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap_err();
    assert_eq!(
        taken.message,
        "object is being deleted: configmaps \"a\" already exists"
    );
    let added = bench
        .patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"metadata": {"finalizers": ["example.com/hold", "b/c"]}}),
        )
        .await;
    assert!(
        added
            .unwrap_err()
            .message
            .contains("no new finalizers can be added if the object is being deleted")
    );
    let mut watch = bench.watch("configmaps", from(held.meta.revision)).await;
    bench
        .patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"metadata": {"finalizers": null}}),
        )
        .await
        .unwrap();
    assert_eq!(bench.get("configmaps", "a").await.unwrap_err().code, 404);
    assert_eq!(changes(&mut watch, 1).await[0].0, EventType::Deleted);
}

#[tokio::test]
async fn pods_go_gracefully_and_grace_only_gets_shorter() {
    let bench = Bench::new().await;
    let cx = bench.cx("pods");
    let delete = |grace: Option<i64>| {
        let options = DeleteOptions {
            grace_period_seconds: grace,
            ..DeleteOptions::default()
        };
        let cx = &cx;
        let registry = &bench.registry;
        async move { registry.delete(cx, "a", &options).await }
    };
    bench.create("pods", pod("a", "node-1")).await.unwrap();
    let first = delete(None).await.unwrap();
    assert!(!first.gone && first.answer_object);
    assert_eq!(first.object.meta.deletion_grace_period_seconds, Some(30));
    let longer = delete(Some(60)).await.unwrap();
    assert_eq!(longer.object.meta.revision, first.object.meta.revision);
    let shorter = delete(Some(5)).await.unwrap();
    assert_eq!(shorter.object.meta.deletion_grace_period_seconds, Some(5));
    assert!(shorter.object.meta.deletion_timestamp < first.object.meta.deletion_timestamp);
    // The agent's last word.
    assert!(delete(Some(0)).await.unwrap().gone);
    assert_eq!(bench.get("pods", "a").await.unwrap_err().code, 404);
    // A pod that no node runs goes at once.
    bench.create("pods", pod("a", "")).await.unwrap();
    assert!(delete(None).await.unwrap().gone);
}

#[tokio::test]
async fn preconditions_and_propagation_are_honoured() {
    let bench = Bench::new().await;
    let cx = bench.cx("deployments.apps");
    let made = bench
        .create("deployments.apps", deployment("d"))
        .await
        .unwrap();
    let wrong = DeleteOptions {
        uid: Some("x".into()),
        ..DeleteOptions::default()
    };
    let status = bench.registry.delete(&cx, "d", &wrong).await.unwrap_err();
    assert_eq!(
        status.message,
        format!(
            "Operation cannot be fulfilled on deployments.apps \"d\": Precondition failed: UID in precondition: x, UID in object meta: {}",
            made.meta.uid
        )
    );
    let stale = DeleteOptions {
        resource_version: Some("99".into()),
        ..DeleteOptions::default()
    };
    assert_eq!(
        bench
            .registry
            .delete(&cx, "d", &stale)
            .await
            .unwrap_err()
            .code,
        409
    );
    let foreground = DeleteOptions {
        propagation: Some(Propagation::Foreground),
        ..DeleteOptions::default()
    };
    let deleted = bench.registry.delete(&cx, "d", &foreground).await.unwrap();
    assert_eq!(
        (deleted.gone, &deleted.object.meta.finalizers[..]),
        (false, &["foregroundDeletion".to_owned()][..])
    );
    assert_eq!(deleted.object.meta.generation, made.meta.generation + 1);
    let both = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
    assert_eq!(DeleteOptions::from_value(&both).unwrap_err().code, 422);
    assert_eq!(
        DeleteOptions::from_value(&json!({"propagationPolicy": "Never"}))
            .unwrap_err()
            .code,
        422
    );
    assert_eq!(
        DeleteOptions::from_value(&json!({"gracePeriodSeconds": "x"}))
            .unwrap_err()
            .code,
        400
    );
}

#[tokio::test]
async fn a_namespace_is_terminating_until_it_is_finalized() {
    let bench = Bench::new().await;
    let cx = bench.cx("namespaces");
    let made = bench
        .create("namespaces", json!({"metadata": {"name": "n"}}))
        .await
        .unwrap()
        .value();
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let deleted = bench
        .registry
        .delete(&cx, "n", &DeleteOptions::default())
        .await
        .unwrap();
    assert!(!deleted.gone);
    assert_eq!(deleted.object.value()["status"]["phase"], "Terminating");
    let mut finalized = deleted.object.value();
    finalized["spec"]["finalizers"] = json!([]);
    let finalize = bench.cx("namespaces").with_subresource("finalize");
    bench
        .registry
        .update(&finalize, "n", finalized.into())
        .await
        .unwrap();
    assert_eq!(bench.get("namespaces", "n").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn deletecollection_deletes_what_the_selector_selects() {
    let bench = Bench::new().await;
    for name in ["a", "b", "c"] {
        let mut object = config(name, json!({}));
        object["metadata"]["labels"] = json!({"keep": (name == "b").to_string()});
        bench.create("configmaps", object).await.unwrap();
    }
    let list = ListOptions {
        label_selector: LabelSelector::parse("keep=false").unwrap(),
        ..ListOptions::default()
    };
    let listed = bench
        .registry
        .delete_collection(&bench.cx("configmaps"), &DeleteOptions::default(), &list)
        .await
        .unwrap();
    assert_eq!(listed.items.len(), 2);
    let left = bench
        .registry
        .list(&bench.cx("configmaps"), &ListOptions::default())
        .await
        .unwrap();
    assert_eq!(
        left.items
            .iter()
            .map(|object| &*object.meta.name)
            .collect::<Vec<_>>(),
        ["b"]
    );
}
