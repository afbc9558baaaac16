//! Promises of owning and applying, on deployments and services.

#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use serde_json::{Value, json};

use super::typed::{At, compare, merge, set_of};
use super::*;
use crate::resources::schema::{Builtin, Schema};

fn manager(name: &str, operation: Operation) -> Manager {
    Manager {
        operation,
        name: name.into(),
        api_version: "v1".into(),
        subresource: String::new(),
    }
}

/// An object with its owners, as the tests change it.
struct Subject {
    schema: Schema,
    object: Value,
    managed: Managed,
}

impl Subject {
    fn new(schema: Schema) -> Subject {
        Subject {
            schema,
            object: json!({"metadata": {"name": "a"}}),
            managed: Managed::default(),
        }
    }

    fn try_apply(&mut self, who: &str, config: Value, force: bool) -> Result<(), Vec<Conflict>> {
        let how = Applying {
            manager: &manager(who, Operation::Apply),
            force,
            now: Timestamp::UNIX_EPOCH,
        };
        let (root, all) = (&self.schema.root, |set| set);
        match apply(&self.object, &config, root, &self.managed, &how, all).unwrap() {
            Applied::Conflicts(conflicts) => return Err(conflicts),
            Applied::Done { object, managed } => (self.object, self.managed) = (object, managed),
        }
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, who: &str, config: Value) {
        self.try_apply(who, config, false).unwrap();
    }

    fn update(&mut self, who: &str, change: impl FnOnce(&mut Value)) {
        let mut new = self.object.clone();
        change(&mut new);
        let manager = manager(who, Operation::Update);
        let (root, now) = (&self.schema.root, Timestamp::UNIX_EPOCH);
        self.managed = note_update(&self.object, &new, root, &self.managed, &manager, now);
        self.object = new;
    }

    fn owned(&self, who: &str, operation: Operation) -> Value {
        self.managed
            .get(&manager(who, operation))
            .map(FieldSet::to_v1)
            .unwrap_or_default()
    }
}

fn config_map() -> Subject {
    Subject::new(Builtin::of::<ConfigMap>().schema())
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image})
}

fn pods(containers: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

#[test]
fn what_an_apply_leaves_out_next_time_goes_unless_somebody_else_owns_it() {
    let mut map = config_map();
    map.apply("one", json!({"data": {"a": "1", "b": "2", "c": "3"}}));
    map.apply("two", json!({"data": {"b": "2"}}));
    map.update("three", |map| map["data"]["d"] = "4".into());
    assert_eq!(
        map.owned("one", Operation::Apply),
        json!({"f:data": {"f:a": {}, "f:b": {}, "f:c": {}}})
    );
    assert_eq!(
        map.owned("three", Operation::Update),
        json!({"f:data": {"f:d": {}}})
    );
    map.apply("one", json!({"data": {"a": "1"}}));
    assert_eq!(map.object["data"], json!({"a": "1", "b": "2", "d": "4"}));
    map.apply("one", json!({"metadata": {"labels": {"x": "y"}}}));
    assert_eq!(map.object["data"], json!({"b": "2", "d": "4"}));
    map.apply("two", json!({}));
    map.apply("one", json!({}));
    assert_eq!(
        map.object,
        json!({"metadata": {"name": "a"}, "data": {"d": "4"}})
    );
    assert!(map.owned("one", Operation::Apply).is_null());
}

#[test]
fn changing_what_somebody_else_owns_is_a_conflict_until_it_is_forced() {
    let mut map = config_map();
    map.apply("one", json!({"data": {"a": "1", "b": "2"}}));
    map.apply("two", json!({"data": {"a": "1"}})); // the same value: both own it
    let conflicts = map
        .try_apply("two", json!({"data": {"a": "9", "b": "9"}}), false)
        .unwrap_err();
    assert_eq!(
        conflict_message(&conflicts),
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.a\n- .data.b"
    );
    map.try_apply("two", json!({"data": {"a": "9"}}), true)
        .unwrap();
    assert_eq!(map.object["data"], json!({"a": "9", "b": "2"}));
    assert_eq!(
        map.owned("one", Operation::Apply),
        json!({"f:data": {"f:b": {}}})
    );
    // An update asks nobody.
    map.update("three", |map| map["data"]["a"] = "7".into());
    assert!(map.owned("two", Operation::Apply).is_null());
    let conflicts = map
        .try_apply("two", json!({"data": {"a": "9"}}), false)
        .unwrap_err();
    assert_eq!(
        conflict_message(&conflicts),
        "Apply failed with 1 conflict: conflict with \"three\" using v1 at 1970-01-01T00:00:00Z: .data.a"
    );
    // What an update takes away is nobody's.
    map.update("three", |map| map["data"] = json!({"a": "7"}));
    assert!(map.owned("one", Operation::Apply).is_null());
}

#[test]
fn items_of_lists_are_owned_by_their_keys() {
    let mut deployment = Subject::new(Builtin::of::<Deployment>().schema());
    deployment.apply(
        "one",
        pods(json!([container("a", "1"), container("b", "1")])),
    );
    // Defaults, which nobody owns.
    deployment.object["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] =
        "Always".into();
    deployment.update("injector", |d| {
        let containers = d["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .unwrap();
        containers.insert(0, container("sidecar", "1"));
    });
    deployment.apply(
        "one",
        pods(json!([container("c", "1"), container("b", "2")])),
    );
    let containers = &deployment.object["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        containers,
        &json!([
            container("sidecar", "1"),
            container("c", "1"),
            container("b", "2")
        ])
    );
    let key = "k:{\"name\":\"b\"}";
    assert_eq!(
        deployment.owned("one", Operation::Apply)["f:spec"]["f:template"]["f:spec"]["f:containers"]
            [key],
        json!({".": {}, "f:name": {}, "f:image": {}})
    );
    // Somebody owns a field of an item: it stays when its maker leaves.
    deployment.apply("two", pods(json!([{"name": "b", "tty": true}])));
    deployment.apply("one", pods(json!([container("c", "1")])));
    let containers = &deployment.object["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        containers[2],
        json!({"name": "b", "tty": true}),
        "{containers}"
    );
}

#[test]
fn ports_have_a_protocol_also_when_nobody_says_so() {
    let mut service = Subject::new(Builtin::of::<Service>().schema());
    service.apply(
        "one",
        json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}}),
    );
    // As the server fills it in.
    service.object["spec"]["ports"][0]["protocol"] = "TCP".into();
    service.apply(
        "one",
        json!({"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 53, "protocol": "UDP"}]}}),
    );
    assert_eq!(
        service.object["spec"]["ports"],
        json!([{"port": 80, "protocol": "TCP", "name": "web"}, {"port": 53, "protocol": "UDP"}])
    );
}

#[test]
fn some_objects_and_most_lists_are_owned_as_a_whole() {
    let mut pod = Subject::new(Builtin::of::<Pod>().schema());
    pod.apply(
        "one",
        json!({"spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "c", "args": ["x"],
        "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}}),
    );
    let owned = pod.owned("one", Operation::Apply);
    assert_eq!(owned["f:spec"]["f:nodeSelector"], json!({}));
    let container = &owned["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert_eq!(container["f:args"], json!({}));
    let variable = &container["f:env"]["k:{\"name\":\"E\"}"];
    assert_eq!(variable["f:valueFrom"], json!({"f:secretKeyRef": {}}));
    pod.apply("one", json!({"spec": {"nodeSelector": {"c": "d"}}}));
    assert_eq!(pod.object["spec"], json!({"nodeSelector": {"c": "d"}}));
}

#[test]
fn finalizers_are_a_set() {
    let mut map = config_map();
    map.apply("one", json!({"metadata": {"finalizers": ["x/a", "x/b"]}}));
    map.apply("two", json!({"metadata": {"finalizers": ["x/c", "x/a"]}}));
    assert_eq!(
        map.object["metadata"]["finalizers"],
        json!(["x/c", "x/a", "x/b"])
    );
    map.apply("one", json!({}));
    assert_eq!(map.object["metadata"]["finalizers"], json!(["x/c", "x/a"]));
}

#[test]
fn applying_the_same_again_changes_nothing_not_even_the_time() {
    let mut map = config_map();
    map.apply("one", json!({"data": {"a": "1"}}));
    let before = (map.object.clone(), map.managed.clone());
    let how = Applying {
        manager: &manager("one", Operation::Apply),
        force: false,
        now: Timestamp::now(),
    };
    let config = json!({"data": {"a": "1"}});
    let again = apply(
        &map.object,
        &config,
        &map.schema.root,
        &map.managed,
        &how,
        |set| set,
    );
    let Ok(Applied::Done { object, managed }) = again else {
        panic!("{again:?}");
    };
    assert_eq!((object, managed), before);
}

#[test]
fn ambiguous_lists_are_refused_with_their_place() {
    let schema = Builtin::of::<Deployment>().schema();
    let twice = pods(json!([container("a", "1"), container("a", "2")]));
    assert_eq!(
        set_of(&twice, At::root(&schema.root))
            .unwrap_err()
            .to_string(),
        ".spec.template.spec.containers: two items have the key {\"name\":\"a\"}"
    );
    let nameless = pods(json!([{"image": "1"}]));
    let why = set_of(&nameless, At::root(&schema.root))
        .unwrap_err()
        .to_string();
    assert!(
        why.starts_with(".spec.template.spec.containers: an item lacks a field of its key"),
        "{why}"
    );
}

#[test]
fn what_was_there_before_the_first_apply_belongs_to_who_wrote_it_as_far_as_we_know() {
    let schema = Builtin::of::<ConfigMap>().schema();
    let last = json!({"metadata": {"name": "a"}, "data": {"a": "1"}}).to_string();
    let live = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "2"},
        "metadata": {"name": "a", "uid": "u", "annotations": {LAST_APPLIED: last}}});
    let before = Managed::before_first_apply(&live, &schema.root, "v1");
    let mut map = Subject {
        schema,
        object: live,
        managed: before,
    };
    assert_eq!(
        map.owned("kubectl-client-side-apply", Operation::Update),
        json!({"f:data": {"f:a": {}}, "f:metadata": {"f:annotations": {format!("f:{LAST_APPLIED}"): {}}}})
    );
    assert_eq!(
        map.owned("before-first-apply", Operation::Update)["f:data"],
        json!({"f:b": {}})
    );
    // kubectl may change what it once applied, another may not, and nobody what is somebody else's.
    assert!(
        map.try_apply("flux", json!({"data": {"a": "2"}}), false)
            .is_err()
    );
    assert!(
        map.try_apply("kubectl", json!({"data": {"b": "3"}}), false)
            .is_err()
    );
    map.apply("kubectl", json!({"data": {"a": "2"}}));
    assert_eq!(map.object["data"], json!({"a": "2", "b": "2"}));
}

#[test]
fn entries_are_bounded() {
    let mut map = config_map();
    map.object["data"] = json!({});
    for index in 0..30 {
        map.update(&format!("client-{index}"), |map| {
            map["data"][format!("k{index}")] = "v".into();
        });
    }
    let entries = map.managed.write();
    assert!(entries.as_array().unwrap().len() <= 11, "{entries}");
    assert!(entries.to_string().contains("ancient-changes"));
    assert_eq!(Managed::read(&entries).unwrap(), map.managed);
}

#[test]
fn rubbish_in_managed_fields_is_said_to_be_that() {
    for rubbish in [
        json!([{"operation": "Guess"}]),
        json!([{"operation": "Apply", "fieldsV1": {"x": {}}}]),
        json!([3]),
    ] {
        assert!(Managed::read(&rubbish).is_err(), "{rubbish}");
    }
}

#[test]
fn merging_with_itself_and_comparing_with_itself_finds_nothing() {
    let schema = Builtin::of::<Deployment>().schema();
    let at = At::root(&schema.root);
    let odd = json!({"metadata": {"labels": {}, "annotations": null}, "spec": {"template": {"spec": {"containers":
        [container("a", "1"), {"image": "no name"}, container("a", "2")]}}}});
    let changes = compare(&odd, &odd, at);
    assert!(changes.added.is_empty() && changes.modified.is_empty() && changes.removed.is_empty());
    let fine = pods(json!([container("a", "1"), container("b", "1")]));
    assert_eq!(merge(&fine, &fine, at), fine);
}
