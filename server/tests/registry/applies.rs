//! Server-side apply through the verbs: creation, conflicts, subresources, and owners of what others write.

use amphipod_server::registry::{Context, PatchType};
use serde_json::{Value, json};

use crate::bench::{Bench, config, deployment};

impl Bench {
    fn applying(&self, resource: &str, manager: &str) -> Context {
        let mut cx = self.cx(resource);
        cx.field_manager = manager.into();
        cx
    }

    async fn apply(&self, cx: &Context, object: Value) -> Result<(Value, bool), String> {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let body = object.to_string();
        let patched = self
            .registry
            .patch(cx, &name, PatchType::Apply, body.as_bytes());
        match patched.await {
            Ok((object, created)) => Ok((object.value(), created)),
            Err(status) => Err(format!("{}: {}", status.http_code(), status.message)),
        }
    }
}

fn map(name: &str, data: Value) -> Value {
    let mut object = config(name, data);
    object["apiVersion"] = "v1".into();
    object["kind"] = "ConfigMap".into();
    object
}

fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned();
    let text = |entry: &Value| {
        let part = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{} {} {}",
            part("operation"),
            part("manager"),
            part("subresource")
        )
        .trim_end()
        .to_owned()
    };
    entries.unwrap_or_default().iter().map(text).collect()
}

#[tokio::test]
async fn an_apply_creates_changes_and_takes_back_what_it_left_out() {
    let bench = Bench::new().await;
    let cx = bench.applying("configmaps", "one");
    let (made, created) = bench
        .apply(&cx, map("a", json!({"x": "1", "y": "2"})))
        .await
        .unwrap();
    assert!(created);
    assert_eq!(managers(&made), ["Apply one"]);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(entry["fieldsV1"], json!({"f:data": {"f:x": {}, "f:y": {}}}));
    assert_eq!(
        (&entry["apiVersion"], &entry["fieldsType"]),
        (&"v1".into(), &"FieldsV1".into())
    );
    assert!(entry["time"].is_string());

    let (same, created) = bench
        .apply(&cx, map("a", json!({"x": "1", "y": "2"})))
        .await
        .unwrap();
    assert!(!created);
    assert_eq!(same, made, "nothing was written");

    let (less, _) = bench.apply(&cx, map("a", json!({"x": "1"}))).await.unwrap();
    assert_eq!(less["data"], json!({"x": "1"}));
    assert_eq!(less["metadata"]["uid"], made["metadata"]["uid"]);
    assert_ne!(
        less["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn what_others_own_is_a_conflict_that_names_them_and_force_takes_it() {
    let bench = Bench::new().await;
    let one = bench.applying("configmaps", "one");
    bench
        .apply(&one, map("a", json!({"x": "1"})))
        .await
        .unwrap();
    let mut two = bench.applying("configmaps", "two");
    assert_eq!(
        bench
            .apply(&two, map("a", json!({"x": "2"})))
            .await
            .unwrap_err(),
        "409: Apply failed with 1 conflict: conflict with \"one\": .data.x"
    );
    two.force = true;
    let (taken, _) = bench
        .apply(&two, map("a", json!({"x": "2"})))
        .await
        .unwrap();
    assert_eq!(
        (&taken["data"]["x"], managers(&taken)),
        (&"2".into(), vec!["Apply two".to_owned()])
    );

    // Another kind of write takes what it changes.
    let mut editor = bench.applying("configmaps", "editor");
    editor.field_manager = "editor".into();
    let patch = br#"{"data":{"x":"3","z":"4"}}"#;
    let (edited, _) = bench
        .registry
        .patch(&editor, "a", PatchType::Merge, patch)
        .await
        .unwrap();
    let edited = edited.value();
    assert_eq!(managers(&edited), ["Update editor"]);
    // One who speaks of nothing keeps nothing.
    let (_, created) = bench.apply(&two, map("a", json!({}))).await.unwrap();
    assert!(!created);
}

#[tokio::test]
async fn objects_that_nobody_applied_have_no_owners_and_the_first_apply_says_whose_they_were() {
    let bench = Bench::new().await;
    let made = bench
        .create("configmaps", config("a", json!({"x": "1"})))
        .await
        .unwrap();
    assert!(made.value()["metadata"].get("managedFields").is_none());
    let cx = bench.applying("configmaps", "one");
    let (applied, _) = bench.apply(&cx, map("a", json!({"y": "2"}))).await.unwrap();
    assert_eq!(
        managers(&applied),
        ["Apply one", "Update before-first-apply"]
    );
    let refused = bench
        .apply(&cx, map("a", json!({"x": "2"})))
        .await
        .unwrap_err();
    assert!(
        refused.contains("\"before-first-apply\" using v1 at "),
        "{refused}"
    );

    // A client may rewrite the owners, and have all forgotten.
    let mut plain = applied.clone();
    plain["metadata"]["managedFields"] = json!([{}]);
    plain["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    let (forgotten, _) = bench.registry.update(&cx, "a", plain.into()).await.unwrap();
    assert!(forgotten.value()["metadata"].get("managedFields").is_none());
}

#[tokio::test]
async fn a_deployments_defaults_status_and_scale_have_owners_of_their_own() {
    let bench = Bench::new().await;
    let cx = bench.applying("deployments.apps", "one");
    let mut object = deployment("d");
    object["apiVersion"] = "apps/v1".into();
    object["kind"] = "Deployment".into();
    object["spec"].as_object_mut().unwrap().remove("replicas");
    let (made, _) = bench.apply(&cx, object.clone()).await.unwrap();
    assert_eq!(made["spec"]["replicas"], 1, "defaulted");
    assert!(
        !made["metadata"]["managedFields"]
            .to_string()
            .contains("replicas")
    );

    let status = bench
        .applying("deployments.apps", "controller")
        .with_subresource("status");
    let patch = br#"{"status":{"replicas":1}}"#;
    bench
        .registry
        .patch(&status, "d", PatchType::Merge, patch)
        .await
        .unwrap();
    let scale = bench
        .applying("deployments.apps", "kubectl")
        .with_subresource("scale");
    let patch = br#"{"spec":{"replicas":3}}"#;
    bench
        .registry
        .patch(&scale, "d", PatchType::Merge, patch)
        .await
        .unwrap();
    let now = bench.get("deployments.apps", "d").await.unwrap().value();
    assert_eq!(
        managers(&now),
        [
            "Apply one",
            "Update controller status",
            "Update kubectl scale"
        ]
    );
    // The applier never spoke of replicas, so they stay, as does the status.
    let (again, _) = bench.apply(&cx, object.clone()).await.unwrap();
    assert_eq!(
        (&again["spec"]["replicas"], &again["status"]["replicas"]),
        (&json!(3), &json!(1))
    );
    object["spec"]["replicas"] = 2.into();
    let refused = bench.apply(&cx, object).await.unwrap_err();
    assert!(
        refused.contains("conflict with \"kubectl\" with subresource \"scale\" using apps/v1 at "),
        "{refused}"
    );
}

#[tokio::test]
async fn an_apply_that_cannot_be_is_refused_with_its_reason() {
    let bench = Bench::new().await;
    let cx = bench.applying("configmaps", "one");
    let mut managed = map("a", json!({}));
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(
        bench.apply(&cx, managed).await.unwrap_err(),
        "400: metadata.managedFields must be nil"
    );
    let mut other = map("a", json!({}));
    other["metadata"]["uid"] = "1-2-3".into();
    assert_eq!(
        bench.apply(&cx, other).await.unwrap_err(),
        "409: Operation cannot be fulfilled on configmaps \"a\": uid mismatch: the provided object specified uid 1-2-3, \
         and no existing object was found"
    );
    let mut versioned = map("a", json!({}));
    bench.apply(&cx, versioned.clone()).await.unwrap();
    versioned["metadata"]["resourceVersion"] = "999999".into();
    let refused = bench.apply(&cx, versioned).await.unwrap_err();
    assert!(refused.starts_with("409: "), "{refused}");
    let bad = bench
        .registry
        .patch(
            &cx,
            "a",
            PatchType::Apply,
            b"kind: Secret\napiVersion: v1\nmetadata: {name: a}\n",
        )
        .await
        .unwrap_err();
    assert_eq!(bad.http_code(), 400, "{}", bad.message);
    let mut unknown = map("a", json!({}));
    unknown["dta"] = json!({});
    let mut strict = bench.applying("configmaps", "one");
    strict.field_validation = amphipod_server::registry::FieldValidation::Strict;
    let refused = bench.apply(&strict, unknown).await.unwrap_err();
    assert!(refused.contains("unknown field \"dta\""), "{refused}");
}

#[tokio::test]
async fn two_who_apply_at_once_both_land() {
    let bench = std::sync::Arc::new(Bench::new().await);
    let tasks: Vec<_> = (0..20)
        .map(|index| {
            let bench = bench.clone();
            tokio::spawn(async move {
                let cx = bench.applying("configmaps", &format!("client-{index}"));
                let data = json!({format!("k{index}"): "v"});
                bench.apply(&cx, map("shared", data)).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let now = bench.get("configmaps", "shared").await.unwrap().value();
    assert_eq!(now["data"].as_object().unwrap().len(), 20);
    assert_eq!(managers(&now).len(), 20);
}
