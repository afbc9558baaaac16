#![allow(clippy::unwrap_used)]
use super::*;
use serde_json::json;

/// A corner of the types of a Deployment.
#[derive(Clone, Copy)]
enum Schema {
    Any,
    Container,
}

impl PatchSchema for Schema {
    fn field(&self, name: &str) -> Field<Schema> {
        let keyed = |key: &'static str, schema| Field {
            merge: true,
            merge_key: Some(key.into()),
            schema: Some(schema),
            ..Field::default()
        };
        match name {
            "containers" => keyed("name", Schema::Container),
            "ports" => keyed("containerPort", Schema::Any),
            "env" => keyed("name", Schema::Any),
            "finalizers" => Field {
                merge: true,
                ..Field::default()
            },
            "strategy" => Field {
                schema: Some(Schema::Any),
                ..Field::default()
            },
            "selector" => Field {
                replace: true,
                schema: Some(Schema::Any),
                ..Field::default()
            },
            _ => Field {
                schema: Some(Schema::Any),
                ..Field::default()
            },
        }
    }
}

fn patched(mut document: Value, patch: Value) -> Result<Value, String> {
    apply_strategic_merge_patch(&mut document, &patch, &Schema::Any).map_err(|e| e.to_string())?;
    Ok(document)
}

#[track_caller]
fn check(document: Value, patch: Value, result: Value) {
    assert_eq!(patched(document, patch), Ok(result));
}

#[test]
fn objects_merge_and_null_deletes() {
    check(
        json!({"a": {"b": 1, "c": 2}, "x": 1}),
        json!({"a": {"b": 3, "d": 4}, "x": null, "never": null}),
        json!({"a": {"b": 3, "c": 2, "d": 4}}),
    );
    check(
        json!({"a": 1}),
        json!({"a": {"b": null, "c": 1}}),
        json!({"a": {"c": 1}}),
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    check(
        json!({"args": ["a", "b"]}),
        json!({"args": ["c"]}),
        json!({"args": ["c"]}),
    );
    check(
        json!({"items": [{"a": 1}]}),
        json!({"items": [{"b": 2}]}),
        json!({"items": [{"b": 2}]}),
    );
}

#[test]
fn keyed_lists_merge_element_by_element() {
    check(
        json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}),
        json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}]}),
    );
    // Deep: ports within containers have their own key.
    check(
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 81, "name": "x"}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81, "name": "x"}]}]}),
    );
}

#[test]
fn new_elements_come_before_those_only_the_server_has() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c"}]}),
        json!({"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}),
    );
}

#[test]
fn element_order_is_enforced() {
    // What kubectl apply sends for a new container in the middle.
    check(
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}, {"name": "injected"}]}),
        json!({
            "$setElementOrder/containers": [{"name": "a"}, {"name": "new"}, {"name": "b"}],
            "containers": [{"name": "new", "image": "1"}],
        }),
        json!({"containers": [
            {"name": "a", "image": "1"}, {"name": "new", "image": "1"}, {"name": "b", "image": "1"}, {"name": "injected"},
        ]}),
    );
    // Order alone, without changes.
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b"}, {"name": "a"}]}),
    );
    // A list that is not there yet.
    check(
        json!({}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b"}, {"name": "a"}]}),
    );
}

#[test]
fn changed_elements_must_follow_the_order_given() {
    let patch = json!({
        "$setElementOrder/containers": [{"name": "a"}],
        "containers": [{"name": "b"}],
    });
    let error = patched(json!({"containers": []}), patch).unwrap_err();
    assert!(error.starts_with("The order in patch list:\n"), "{error}");
}

#[test]
fn elements_are_deleted_by_directive() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({
            "$setElementOrder/containers": [{"name": "b"}],
            "containers": [{"name": "a", "$patch": "delete"}],
        }),
        json!({"containers": [{"name": "b"}]}),
    );
    check(
        json!({}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": []}),
    );
}

#[test]
fn lists_and_objects_are_replaced_by_directive() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        json!({"a": {"x": 1}}),
        json!({"a": {"$patch": "replace", "y": 2}}),
        json!({"a": {"y": 2}}),
    );
    check(
        json!({"a": {"x": 1}}),
        json!({"a": {"$patch": "delete"}}),
        json!({"a": {}}),
    );
    check(
        json!({"selector": {"x": 1}}),
        json!({"selector": {"y": 2}}),
        json!({"selector": {"y": 2}}),
    );
}

#[test]
fn sets_of_scalars_merge_and_shrink() {
    check(
        json!({"finalizers": ["a", "b"]}),
        json!({"finalizers": ["c", "b"]}),
        json!({"finalizers": ["c", "a", "b"]}),
    );
    check(
        json!({"finalizers": ["a", "b", "c"]}),
        json!({"$deleteFromPrimitiveList/finalizers": ["b"]}),
        json!({"finalizers": ["a", "c"]}),
    );
    check(
        json!({"finalizers": ["a", "b"]}),
        json!({
            "$setElementOrder/finalizers": ["c", "a"],
            "$deleteFromPrimitiveList/finalizers": ["b"],
            "finalizers": ["c"],
        }),
        json!({"finalizers": ["c", "a"]}),
    );
}

#[test]
fn retained_keys_clear_the_others() {
    // A union: Recreate has no rollingUpdate.
    check(
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        json!({"strategy": {"type": "Recreate"}}),
    );
    let error = patched(
        json!({"strategy": {}}),
        json!({"strategy": {"$retainKeys": ["type"], "other": 1}}),
    );
    assert_eq!(error.unwrap_err(), "invalid patch format of retainKeys");
}

#[test]
fn directives_never_get_into_the_document() {
    check(
        json!({}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}, "a": {"$patch": "replace", "b": [{"$patch": "replace"}]}}),
        json!({"strategy": {"type": "Recreate"}, "a": {"b": []}}),
    );
    check(
        json!({"a": 1}),
        json!({"b": {"$patch": "delete"}}),
        json!({"a": 1}),
    );
}

#[test]
fn nonsense_is_refused() {
    for (document, patch) in [
        (json!({}), json!([])),
        (
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"image": "x"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": ["x"]}),
        ),
        (
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"$patch": "delete"}]}),
        ),
        (
            json!({"containers": [{"name": "a"}]}),
            json!({"containers": [{"$patch": "dance", "name": "a"}]}),
        ),
        (
            json!({"finalizers": [{"a": 1}]}),
            json!({"finalizers": [{"b": 1}]}),
        ),
        (json!({"a": {}}), json!({"a": {"$patch": 3}})),
        (json!({"a": {}}), json!({"a": {"$retainKeys": 3}})),
        (
            json!({"finalizers": ["a"]}),
            json!({"$setElementOrder/finalizers": "a"}),
        ),
        (
            json!({"finalizers": ["a"]}),
            json!({"$deleteFromPrimitiveList/finalizers": "a"}),
        ),
        (
            json!({"finalizers": "a"}),
            json!({"$setElementOrder/finalizers": ["a"]}),
        ),
    ] {
        assert!(patched(document, patch.clone()).is_err(), "{patch}");
    }
}

#[test]
fn long_lists_do_not_take_long() {
    let names = |prefix: &str| {
        (0..30_000)
            .map(|i| json!({"name": format!("{prefix}{i}")}))
            .collect::<Vec<_>>()
    };
    let scalars = |prefix: &str| {
        (0..30_000)
            .map(|i| json!(format!("{prefix}{i}")))
            .collect::<Vec<_>>()
    };
    let document = json!({"containers": names("a"), "finalizers": scalars("a")});
    let patch = json!({
        "$setElementOrder/containers": names("b"),
        "containers": names("b"),
        "finalizers": scalars("b"),
        "$deleteFromPrimitiveList/finalizers": scalars("a"),
    });
    let start = std::time::Instant::now();
    let result = patched(document, patch).unwrap();
    assert_eq!(result["containers"].as_array().unwrap().len(), 60_000);
    assert_eq!(result["finalizers"].as_array().unwrap().len(), 30_000);
    // Linear work takes a second unoptimised; quadratic work took minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(30));
}
