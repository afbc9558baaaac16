//! Promises of the verbs.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{FieldSelector, LabelSelector, Status};
use amphipod_server::auth::UserInfo;
use amphipod_server::cache::{Cache, EventType, Object};
use amphipod_server::registry::{
    Context, DeleteOptions, FieldValidation, GetOptions, Input, ListOptions, Open, PatchType,
    Propagation, Registry, WatchItem, WatchStream,
};
use amphipod_server::resources::{Catalog, ClusterConfig, Privileges};
use amphipod_server::store::{Options, SqliteStore, Store};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

struct All;

impl Privileges for All {
    fn may(&self, _: &UserInfo, _: &str, _: &str, _: &str, _: &str, _: &str) -> bool {
        true
    }
    fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
        Ok(())
    }
}

struct Bench {
    registry: Arc<Registry>,
    user: Arc<UserInfo>,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Bench {
        let dir = TempDir::new().unwrap();
        let registry = start(dir.path()).await;
        Bench {
            registry: Arc::new(registry),
            user: Arc::new(UserInfo::apiserver()),
            _dir: dir,
        }
    }

    fn cx(&self, resource: &str) -> Context {
        let cluster = matches!(resource, "namespaces" | "nodes");
        self.registry
            .context(&self.user, resource, if cluster { "" } else { "default" })
            .unwrap()
    }

    async fn create(&self, resource: &str, object: Value) -> Result<Arc<Object>, Status> {
        self.registry
            .create(&self.cx(resource), object.into())
            .await
    }

    async fn get(&self, resource: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.registry
            .get(&self.cx(resource), name, &GetOptions::default())
            .await
    }

    async fn watch(&self, resource: &str, options: ListOptions) -> WatchStream {
        self.registry
            .watch(&self.cx(resource), options)
            .await
            .unwrap()
    }

    async fn patch(
        &self,
        resource: &str,
        name: &str,
        kind: PatchType,
        patch: Value,
    ) -> Result<Arc<Object>, Status> {
        let body = serde_json::to_vec(&patch).unwrap();
        Ok(self
            .registry
            .patch(&self.cx(resource), name, kind, &body)
            .await?
            .0)
    }
}

async fn start(dir: &std::path::Path) -> Registry {
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.join("state.db"), Options::default()).unwrap());
    let catalog = Arc::new(Catalog::builtin());
    let cache = Cache::start(&*store, Registry::tables(&catalog))
        .await
        .unwrap();
    Registry::new(
        store,
        cache,
        catalog,
        Arc::new(Open),
        Arc::new(All),
        ClusterConfig::default(),
    )
}

fn config(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

fn from(revision: u64) -> ListOptions {
    ListOptions {
        resource_version: revision.to_string(),
        ..ListOptions::default()
    }
}

async fn changes(stream: &mut WatchStream, count: usize) -> Vec<(EventType, String, u64)> {
    let mut found = Vec::new();
    while found.len() < count {
        let items = tokio::time::timeout(Duration::from_secs(10), stream.next())
            .await
            .unwrap()
            .unwrap();
        for item in items {
            if let WatchItem::Change { kind, object } = item {
                found.push((kind, object.meta.name.to_string(), object.meta.revision));
            }
        }
    }
    found
}

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
