#![allow(clippy::unwrap_used)]
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::json;

use super::*;
use crate::resources::schema::{Builtin, Schema};

fn pod() -> Schema {
    Builtin::of::<Pod>().schema()
}

fn refused(schema: &Schema, body: &str) -> String {
    schema.decode_json(body.as_bytes()).unwrap_err().to_string()
}

#[test]
fn unknown_and_duplicate_fields_are_named_by_their_full_path() {
    let body = r#"{"kind":"Pod","spec":{"foo":1,"containers":[{"name":"a"},{"name":"b","imagee":"x","name":"c"}],
        "nodeName":"x","nodeName":"y"},"metadata":{"labels":{"a":"1","a":"2"}},"bar":{}}"#;
    let read = pod().decode_json(body.as_bytes()).unwrap();
    assert_eq!(
        read.strict,
        [
            r#"unknown field "spec.foo""#,
            r#"unknown field "spec.containers[1].imagee""#,
            r#"duplicate field "spec.containers[1].name""#,
            r#"duplicate field "spec.nodeName""#,
            r#"duplicate field "metadata.labels.a""#,
            r#"unknown field "bar""#,
        ]
    );
    assert_eq!(
        read.value["spec"]["containers"],
        json!([{"name": "a"}, {"name": "c"}])
    );
    assert!(read.value.get("bar").is_none());
    assert_eq!(
        strict_status("v1", "Pod", &read.strict[..1]).message,
        r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.foo""#
    );
}

#[test]
fn values_of_the_wrong_type_get_the_error_of_gos_decoder() {
    let deployment = Builtin::of::<Deployment>().schema();
    let error = deployment
        .decode_json(br#"{"spec":{"replicas":"3"}}"#)
        .unwrap_err();
    assert_eq!(
        error.status("apps/v1", "Deployment").message,
        r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#
    );
    let cases = [
        (
            r#"{"spec":{"containers":[{"env":[{"name":"a","value":1}]}]}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            r#"{"spec":[]}"#,
            "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            r#"{"spec":{"priority":99999999999}}"#,
            "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            r#"{"spec":{"priority":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            "[]",
            "json: cannot unmarshal array into Go value of type v1.Pod",
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"abc"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            r#"{"metadata":{"creationTimestamp":"soon"}}"#,
            r#"parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006""#,
        ),
    ];
    for (body, text) in cases {
        assert_eq!(refused(&pod(), body), text);
    }
    assert_eq!(
        refused(&Builtin::of::<Secret>().schema(), r#"{"data":{"a":"b*"}}"#),
        "illegal base64 data at input byte 1"
    );
}

#[test]
fn malformed_bodies_say_where() {
    let error = pod().decode_json(b"{\"spec\": nope}").unwrap_err();
    assert!(matches!(error, DecodeError::Syntax(_)), "{error}");
    assert!(matches!(
        pod().decode_json(b"{} {}"),
        Err(DecodeError::Syntax(_))
    ));
    assert!(matches!(
        pod().decode_yaml(b"a: [1"),
        Err(DecodeError::Syntax(_))
    ));
}

#[test]
fn nulls_and_empty_lists_are_dropped_and_empty_structs_kept() {
    let body = r#"{"metadata":{"name":"a","creationTimestamp":null,"labels":{},"annotations":{"a":null}},
        "spec":{"containers":[],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[]}}"#;
    let read = pod().decode_json(body.as_bytes()).unwrap();
    assert_eq!(
        read.value,
        json!({"metadata": {"name": "a", "annotations": {"a": ""}},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}})
    );
    assert!(read.strict.is_empty());
}

#[test]
fn quantities_and_times_get_their_canonical_form() {
    let body = r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]},
        "metadata":{"creationTimestamp":"2024-01-01T01:00:00.25+01:00"}}"#;
    let value = pod().decode_json(body.as_bytes()).unwrap().value;
    assert_eq!(
        value["spec"]["containers"][0]["resources"]["limits"],
        json!({"cpu": "500m", "memory": "1Gi"})
    );
    assert_eq!(
        value["metadata"]["creationTimestamp"],
        "2024-01-01T00:00:00Z"
    );
    let lease = Builtin::of::<Lease>().schema();
    let value = lease
        .decode_json(br#"{"spec":{"renewTime":"2024-01-01T00:00:00Z"}}"#)
        .unwrap()
        .value;
    assert_eq!(value["spec"]["renewTime"], "2024-01-01T00:00:00.000000Z");
}

#[test]
fn yaml_and_parsed_values_are_read_by_the_same_rules() {
    let yaml = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: x\n  b: |\n    lines\nfoo: 1\n";
    let schema = Builtin::of::<ConfigMap>().schema();
    let read = schema.decode_yaml(yaml.as_bytes()).unwrap();
    assert_eq!(
        read.value,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "x", "b": "lines\n"}})
    );
    assert_eq!(read.strict, [r#"unknown field "foo""#]);
    let wrong = schema.decode_yaml(b"data: {a: 1}").unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    let read = schema
        .decode_value(json!({"data": {"a": "b"}, "x": null}))
        .unwrap();
    assert_eq!(read.value, json!({"data": {"a": "b"}}));
}

#[test]
fn managed_fields_and_raw_extensions_are_kept_as_they_are() {
    let body = r#"{"metadata":{"managedFields":[{"fieldsV1":{"f:metadata":{"f:labels":{".":{},"k:{\"a\":1}":null}}}}]}}"#;
    let value = pod().decode_json(body.as_bytes()).unwrap().value;
    assert_eq!(
        value["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "k:{\"a\":1}": null}}})
    );
}
