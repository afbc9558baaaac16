//! Bad input gets the error that Kubernetes users know, on the right object, and nothing is half-applied.

#![allow(clippy::unwrap_used)]

use amphipod_tests::{Kubectl, Ran, namespace};

#[track_caller]
fn refused(kubectl: &Kubectl, yaml: &str, expected: &[&str]) {
    let error = kubectl.run_with(&["create", "-f", "-"], yaml).refused();
    for text in expected {
        assert!(error.contains(text), "no {text:?} in: {error}");
    }
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: it}\nspec:\n  containers: [{name: main, image: x}]\n";

#[test]
fn unknown_and_duplicate_fields_are_named() {
    let kubectl = namespace("fields");
    refused(
        &kubectl,
        &POD.replace("image: x", "image: x, imagine: y"),
        &[
            "strict decoding error",
            "unknown field \"spec.containers[0].imagine\"",
        ],
    );
    let duplicate = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"it"},"data":{"a":"1"},"data":{"a":"2"}}"#;
    let raw = kubectl.run_with(
        &[
            "create",
            "--raw=/api/v1/namespaces/fields/configmaps?fieldValidation=Strict",
            "-f",
            "-",
        ],
        duplicate,
    );
    assert!(raw.refused().contains("duplicate field \"data\""));
    kubectl
        .run_with(
            &["create", "--validate=ignore", "-f", "-"],
            &POD.replace("image: x", "image: x, imagine: y"),
        )
        .ok();
    let warned = kubectl.run_with(
        &["apply", "--validate=warn", "-f", "-"],
        &POD.replace("name: it", "name: two")
            .replace("image: x", "image: x, imagine: y"),
    );
    assert!(
        warned
            .stderr
            .contains("Warning: unknown field \"spec.containers[0].imagine\""),
        "{warned:?}"
    );
}

#[test]
fn invalid_names_and_values_are_explained_by_field() {
    let kubectl = namespace("values");
    refused(
        &kubectl,
        &POD.replace("name: it", "name: Not_Valid"),
        &[
            "The Pod \"Not_Valid\" is invalid",
            "metadata.name",
            "a lowercase RFC 1123 subdomain must consist of",
        ],
    );
    refused(
        &kubectl,
        &POD.replace("containers: [{name: main, image: x}]", "containers: []"),
        &["spec.containers: Required value"],
    );
    refused(
        &kubectl,
        &POD.replace("image: x", "image: x, resources: {limits: {memory: lots}}"),
        &["quantities must match the regular expression"],
    );
    refused(
        &kubectl,
        &POD.replace(
            "image: x",
            "image: x, resources: {requests: {cpu: 2}, limits: {cpu: 1}}",
        ),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    refused(
        &kubectl,
        &POD.replace("image: x", "image: x, imagePullPolicy: Sometimes"),
        &[
            "Unsupported value: \"Sometimes\"",
            "\"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    refused(
        &kubectl,
        &POD.replace("image: x", "image: x, ports: [{containerPort: 70000}]"),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
    refused(
        &kubectl,
        &POD.replace("spec:", "spec:\n  restartPolicy: 3"),
        &["json: cannot unmarshal number into Go struct field"],
    );
    refused(
        &kubectl,
        "apiVersion: v1\nkind: Service\nmetadata: {name: it}\nspec: {}\n",
        &["The Service \"it\" is invalid: spec.ports: Required value"],
    );
    refused(
        &kubectl,
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: it}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: m, image: x}]}}}\n",
        &["`selector` does not match template `labels`"],
    );
    refused(
        &kubectl,
        "apiVersion: v9\nkind: Nonsense\nmetadata: {name: it}\n",
        &["no matches for kind \"Nonsense\" in version \"v9\""],
    );
    assert_eq!(kubectl.get(&["pods"])["items"], serde_json::json!([]));
}

#[test]
fn immutable_fields_stay_and_conflicts_are_told() {
    let kubectl = namespace("immutable");
    kubectl.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: it}\nspec: {ports: [{port: 80}]}\n",
    );
    let error = kubectl
        .run(&[
            "patch",
            "service",
            "it",
            "-p",
            r#"{"spec":{"clusterIP":"10.43.9.9"}}"#,
        ])
        .refused();
    assert!(
        error.contains("spec.clusterIPs[0]: Invalid value")
            && error.contains("may not change once set"),
        "{error}"
    );
    kubectl
        .run(&["create", "configmap", "it", "--from-literal=a=b"])
        .ok();
    assert!(
        kubectl
            .run(&["create", "configmap", "it"])
            .refused()
            .contains("configmaps \"it\" already exists")
    );
    let stale = r#"{"metadata":{"resourceVersion":"1"},"data":{"a":"c"}}"#;
    let error = kubectl
        .run(&["patch", "configmap", "it", "--type=merge", "-p", stale])
        .refused();
    assert!(error.contains("the object has been modified; please apply your changes to the latest version and try again"), "{error}");
    assert_eq!(kubectl.get(&["configmap", "it"])["data"]["a"], "b");
    kubectl
        .run(&[
            "patch",
            "configmap",
            "it",
            "--type=merge",
            "-p",
            r#"{"immutable":true}"#,
        ])
        .ok();
    let error = kubectl
        .run(&[
            "patch",
            "configmap",
            "it",
            "--type=merge",
            "-p",
            r#"{"data":{"a":"c"}}"#,
        ])
        .refused();
    assert!(
        error.contains("field is immutable when `immutable` is set"),
        "{error}"
    );
}

#[test]
fn malformed_and_oversized_bodies_are_refused_whole() {
    let kubectl = namespace("bodies");
    let raw = |body: &str| {
        kubectl.run_with(
            &[
                "create",
                "--raw=/api/v1/namespaces/bodies/configmaps",
                "-f",
                "-",
            ],
            body,
        )
    };
    assert!(
        raw("{\"apiVersion\":")
            .refused()
            .contains("unexpected end of JSON input")
            || raw("{\"apiVersion\":").stderr.contains("BadRequest")
    );
    assert!(raw("[]").code != 0);
    let deep = "[".repeat(200_000);
    assert!(raw(&deep).code != 0);
    let large = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#,
        "x".repeat(4 << 20)
    );
    let error = raw(&large).refused();
    assert!(
        error.contains("Request entity too large")
            || error.contains("RequestEntityTooLarge")
            || error.contains("limit is 3145728"),
        "{error}"
    );
    let over_limit = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#,
        "x".repeat(2 << 20)
    );
    assert!(raw(&over_limit).refused().contains("Too long"));
    assert!(
        kubectl
            .run(&["get", "configmap", "big"])
            .refused()
            .contains("NotFound")
    );
    assert!(
        kubectl
            .run(&["get", "--raw", "/no/such/path"])
            .refused()
            .contains("the server could not find the requested resource")
    );
    let selector: Ran = kubectl.run(&["get", "pods", "-l", "a in b"]);
    assert!(selector.refused().contains("unable to parse requirement"));
    assert!(
        kubectl
            .run(&["get", "pods", "--field-selector", "spec.nothing=1"])
            .refused()
            .contains("field label not supported")
    );
}
