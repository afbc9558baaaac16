//! What is written: creates, updates, patches, scale, binding.

use std::sync::Arc;

use amphipod_api::FieldSelector;
use amphipod_server::registry::{
    Context, DeleteOptions, FieldValidation, GetOptions, Input, ListOptions, PatchType, WatchItem,
};
use bytes::Bytes;
use serde_json::json;

use crate::bench::{Bench, config, deployment, pod};

#[tokio::test]
async fn the_server_fills_in_what_is_its_own_and_ignores_what_the_client_says_of_it() {
    let bench = Bench::new().await;
    let mut object = config("a", json!({"k": "v"}));
    object["metadata"]["uid"] = "mine".into();
    object["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into();
    object["metadata"]["managedFields"] = json!([{}]);
    let made = bench.create("configmaps", object).await.unwrap().value();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_ne!(made["metadata"]["uid"], "mine");
    assert!(made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(
        made["metadata"]["resourceVersion"],
        bench.registry.cache().revision().to_string()
    );
    for field in ["deletionTimestamp", "managedFields", "selfLink"] {
        assert!(made["metadata"].get(field).is_none(), "{field}");
    }
    assert_eq!(bench.get("configmaps", "a").await.unwrap().value(), made);
}

#[tokio::test]
async fn refusals_are_in_the_words_that_users_know() {
    let bench = Bench::new().await;
    bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap();
    let mut versioned = config("b", json!({}));
    versioned["metadata"]["resourceVersion"] = "1".into();
    let mut elsewhere = config("b", json!({}));
    elsewhere["metadata"]["namespace"] = "other".into();
    let cases = [
        (
            config("a", json!({})),
            409,
            "configmaps \"a\" already exists",
        ),
        (
            versioned,
            500,
            "resourceVersion should not be set on objects to be created",
        ),
        (
            elsewhere,
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            json!({"kind": "ConfigMap", "metadata": {}}),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            json!({"apiVersion": "v2", "metadata": {"name": "b"}}),
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
    ];
    for (object, code, message) in cases {
        let status = bench.create("configmaps", object).await.unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (code, message));
    }
    let status = bench.get("configmaps", "zz").await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "configmaps \"zz\" not found")
    );
    let cx = bench.cx("configmaps");
    let status = bench
        .registry
        .update(&cx, "a", config("b", json!({})).into())
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "the name of the object (b) does not match the name on the URL (a)"
    );
    let status = bench
        .registry
        .update(&cx, "zz", config("zz", json!({})).into())
        .await
        .unwrap_err();
    assert_eq!(status.code, 404);
    let status = bench
        .registry
        .delete(&cx, "zz", &DeleteOptions::default())
        .await
        .unwrap_err();
    assert_eq!(status.message, "configmaps \"zz\" not found");
}

#[tokio::test]
async fn names_are_generated_and_differ() {
    let bench = Bench::new().await;
    let object = json!({"metadata": {"generateName": "job-"}});
    let a = bench.create("configmaps", object.clone()).await.unwrap();
    let b = bench.create("configmaps", object).await.unwrap();
    assert!(a.meta.name.starts_with("job-") && a.meta.name.len() == 9);
    assert_ne!(a.meta.name, b.meta.name);
}

#[tokio::test]
async fn an_update_of_an_old_version_is_a_conflict_and_changes_nothing() {
    let bench = Bench::new().await;
    let cx = bench.cx("configmaps");
    let first = bench
        .create("configmaps", config("a", json!({"n": "1"})))
        .await
        .unwrap()
        .value();
    let mut second = first.clone();
    second["data"]["n"] = "2".into();
    bench
        .registry
        .update(&cx, "a", second.clone().into())
        .await
        .unwrap();
    let status = bench
        .registry
        .update(&cx, "a", first.clone().into())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            409,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        )
    );
    assert_eq!(
        bench.get("configmaps", "a").await.unwrap().value()["data"]["n"],
        "2"
    );
    // Without a version it overwrites, but never an object of another uid.
    let mut any = first;
    any["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    any["data"]["n"] = "3".into();
    bench
        .registry
        .update(&cx, "a", any.clone().into())
        .await
        .unwrap();
    any["metadata"]["uid"] = "another".into();
    let status = bench
        .registry
        .update(&cx, "a", any.into())
        .await
        .unwrap_err();
    assert_eq!(status.code, 409);
    assert!(
        status
            .message
            .contains("Precondition failed: UID in precondition: another, UID in object meta: ")
    );
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing() {
    let bench = Bench::new().await;
    let first = bench
        .create("configmaps", config("a", json!({"n": "1"})))
        .await
        .unwrap();
    let (again, created) = bench
        .registry
        .update(&bench.cx("configmaps"), "a", first.value().into())
        .await
        .unwrap();
    assert_eq!((again.meta.revision, created), (first.meta.revision, false));
    let patched = bench
        .patch(
            "configmaps",
            "a",
            PatchType::Merge,
            json!({"data": {"n": "1"}}),
        )
        .await
        .unwrap();
    assert_eq!(patched.meta.revision, first.meta.revision);
}

#[tokio::test]
async fn a_dry_run_answers_as_if_and_leaves_no_trace() {
    let bench = Bench::new().await;
    let dry = |resource| Context {
        dry_run: true,
        ..bench.cx(resource)
    };
    let made = bench
        .registry
        .create(&dry("configmaps"), config("a", json!({})).into())
        .await
        .unwrap()
        .value();
    assert!(made["metadata"]["uid"].is_string());
    assert!(made["metadata"].get("resourceVersion").is_none());
    assert_eq!(bench.get("configmaps", "a").await.unwrap_err().code, 404);
    let stored = bench
        .create("configmaps", config("a", json!({"n": "1"})))
        .await
        .unwrap();
    let status = bench
        .registry
        .create(&dry("configmaps"), config("a", json!({})).into())
        .await
        .unwrap_err();
    assert_eq!(status.code, 409);
    let patch = br#"{"data":{"n":"2"}}"#;
    let (patched, _) = bench
        .registry
        .patch(&dry("configmaps"), "a", PatchType::Merge, patch)
        .await
        .unwrap();
    assert_eq!(patched.value()["data"]["n"], "2");
    let deleted = bench
        .registry
        .delete(&dry("configmaps"), "a", &DeleteOptions::default())
        .await
        .unwrap();
    assert!(deleted.gone);
    assert_eq!(
        bench.get("configmaps", "a").await.unwrap().meta.revision,
        stored.meta.revision
    );
}

#[tokio::test]
async fn patches_of_every_kind_apply_and_bad_ones_are_refused() {
    let bench = Bench::new().await;
    bench
        .create("deployments.apps", deployment("d"))
        .await
        .unwrap();
    let patch = |kind, patch| bench.patch("deployments.apps", "d", kind, patch);
    let containers = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}, {"name": "e", "image": "k"}]}}}});
    let object = patch(PatchType::StrategicMerge, containers)
        .await
        .unwrap()
        .value();
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let object = patch(
        PatchType::StrategicMerge,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "e", "image": "z"}]}}}}),
    )
    .await
    .unwrap()
    .value();
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let object = patch(
        PatchType::Merge,
        json!({"metadata": {"labels": {"x": "y"}}, "spec": {"replicas": 5}}),
    )
    .await
    .unwrap()
    .value();
    assert_eq!(
        (
            &object["spec"]["replicas"],
            &object["metadata"]["labels"]["x"]
        ),
        (&json!(5), &json!("y"))
    );
    let object = patch(
        PatchType::Json,
        json!([{"op": "replace", "path": "/spec/replicas", "value": 1}]),
    )
    .await
    .unwrap()
    .value();
    assert_eq!(object["spec"]["replicas"], 1);
    let cases = [
        (
            PatchType::Json,
            json!([{"op": "remove", "path": "/spec/nothing"}]),
            422,
        ),
        (PatchType::Merge, json!([]), 400),
        (PatchType::Merge, json!({"spec": {"replicas": "many"}}), 422),
        (
            PatchType::Merge,
            json!({"metadata": {"name": "other"}}),
            400,
        ),
        (
            PatchType::Merge,
            json!({"metadata": {"resourceVersion": "1"}}),
            409,
        ),
        (
            PatchType::Merge,
            json!({"metadata": {"labels": {"a b": "c"}}}),
            422,
        ),
    ];
    for (kind, body, code) in cases {
        assert_eq!(
            patch(kind, body.clone()).await.unwrap_err().code,
            code,
            "{body}"
        );
    }
    let unreadable = patch(
        PatchType::StrategicMerge,
        json!({"spec": {"replicas": "many"}}),
    )
    .await
    .unwrap_err();
    assert_eq!(
        unreadable.message,
        " \"\" is invalid: patch: Invalid value: \"map[spec:map[replicas:many]]\": json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
}

#[tokio::test]
async fn concurrent_patches_without_a_version_all_land() {
    let bench = Arc::new(Bench::new().await);
    bench
        .create("configmaps", config("a", json!({})))
        .await
        .unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let bench = bench.clone();
            tokio::spawn(async move {
                bench
                    .patch(
                        "configmaps",
                        "a",
                        PatchType::Merge,
                        json!({"data": {format!("k{n}"): "v"}}),
                    )
                    .await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let object = bench.get("configmaps", "a").await.unwrap().value();
    assert_eq!(object["data"].as_object().unwrap().len(), 16);
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped_as_asked() {
    let bench = Bench::new().await;
    let body = |name: &str| {
        Input::Json(Bytes::from(format!(
            r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}"}},"dta":{{"a":"b"}}}}"#
        )))
    };
    let cx = |field_validation| Context {
        field_validation,
        ..bench.cx("configmaps")
    };
    let status = bench
        .registry
        .create(&cx(FieldValidation::Strict), body("a"))
        .await
        .unwrap_err();
    assert_eq!(status.code, 400);
    assert!(
        status
            .message
            .contains("strict decoding error: unknown field \"dta\""),
        "{}",
        status.message
    );
    let warn = cx(FieldValidation::Warn);
    bench.registry.create(&warn, body("b")).await.unwrap();
    assert_eq!(warn.take_warnings(), ["unknown field \"dta\""]);
    let ignore = cx(FieldValidation::Ignore);
    let made = bench
        .registry
        .create(&ignore, body("c"))
        .await
        .unwrap()
        .value();
    assert!(made.get("dta").is_none() && ignore.take_warnings().is_empty());
}

#[tokio::test]
async fn events_have_two_shapes_and_one_store() {
    let bench = Bench::new().await;
    let core = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Because", "message": "text", "type": "Normal", "reportingComponent": "example.com/me", "reportingInstance": "me-1",
        "action": "Try", "eventTime": "2026-01-01T00:00:00.000000Z"});
    let mut watch = bench
        .watch("events.events.k8s.io", ListOptions::default())
        .await;
    let made = bench.create("events", core).await.unwrap();
    let shown = bench
        .get("events.events.k8s.io", "e")
        .await
        .unwrap()
        .value();
    assert_eq!(
        (&shown["apiVersion"], &shown["note"]),
        (&json!("events.k8s.io/v1"), &json!("text"))
    );
    assert_eq!(shown["metadata"], made.value()["metadata"]);
    let listed = bench
        .registry
        .list(&bench.cx("events.events.k8s.io"), &ListOptions::default())
        .await
        .unwrap();
    assert_eq!(listed.items[0].value(), shown);
    let items = watch.next().await.unwrap();
    assert!(matches!(&items[0], WatchItem::Change { object, .. } if object.value() == shown));
    let patched = bench
        .patch(
            "events.events.k8s.io",
            "e",
            PatchType::Merge,
            json!({"metadata": {"labels": {"a": "b"}}}),
        )
        .await
        .unwrap();
    assert_eq!(patched.value()["apiVersion"], "events.k8s.io/v1");
    let stored = bench.get("events", "e").await.unwrap().value();
    assert_eq!(
        (&stored["apiVersion"], &stored["message"]),
        (&json!("v1"), &json!("text"))
    );
    assert!(stored.get("note").is_none());
}

#[tokio::test]
async fn scale_reads_and_writes_replicas_alone() {
    let bench = Bench::new().await;
    let made = bench
        .create("deployments.apps", deployment("d"))
        .await
        .unwrap();
    let cx = bench.cx("deployments.apps").with_subresource("scale");
    let mut scale = bench
        .registry
        .get(&cx, "d", &GetOptions::default())
        .await
        .unwrap()
        .value();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(2))
    );
    assert_eq!(scale["status"]["selector"], "app=d");
    assert_eq!(
        scale["metadata"]["resourceVersion"],
        made.meta.revision.to_string()
    );
    scale["spec"]["replicas"] = 7.into();
    let (answer, _) = bench
        .registry
        .update(&cx, "d", scale.clone().into())
        .await
        .unwrap();
    assert_eq!(answer.value()["spec"]["replicas"], 7);
    assert_eq!(
        bench
            .registry
            .update(&cx, "d", scale.clone().into())
            .await
            .unwrap_err()
            .code,
        409
    );
    scale["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    scale["spec"]["replicas"] = json!(-1);
    let status = bench
        .registry
        .update(&cx, "d", scale.into())
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    let (patched, _) = bench
        .registry
        .patch(&cx, "d", PatchType::Merge, br#"{"spec":{"replicas":3}}"#)
        .await
        .unwrap();
    assert_eq!(patched.value()["kind"], "Scale");
    let object = bench.get("deployments.apps", "d").await.unwrap();
    assert_eq!(object.value()["spec"]["replicas"], 3);
    assert_eq!(object.meta.generation, 3);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let bench = Bench::new().await;
    bench.create("pods", pod("a", "")).await.unwrap();
    let cx = bench.cx("pods").with_subresource("binding");
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    assert_eq!(
        bench.registry.bind(&cx, "a", &binding).await.unwrap().code,
        201
    );
    let bound = bench.get("pods", "a").await.unwrap().value();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let again = bench.registry.bind(&cx, "a", &binding).await.unwrap_err();
    assert_eq!(
        (again.code, again.message.as_str()),
        (
            409,
            "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\""
        )
    );
    assert_eq!(
        bench
            .registry
            .bind(&cx, "a", &json!({}))
            .await
            .unwrap_err()
            .code,
        422
    );
    let by_node = ListOptions {
        field_selector: FieldSelector::parse("spec.nodeName=n1").unwrap(),
        ..ListOptions::default()
    };
    assert_eq!(
        bench
            .registry
            .list(&bench.cx("pods"), &by_node)
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}
