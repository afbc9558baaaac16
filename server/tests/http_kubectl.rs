//! Real kubectl against the API alone.
#![allow(clippy::unwrap_used)]

mod http_support;

use http_support::{As, World};
use serde_json::Value;

/// What of an object its author wrote.
fn content(mut object: Value) -> Value {
    let fields = object.as_object_mut().unwrap();
    fields.remove("status");
    let metadata = &object["metadata"];
    let kept =
        serde_json::json!({"labels": metadata["labels"], "annotations": metadata["annotations"]});
    object["metadata"] = kept;
    // Allocated by chance.
    for field in ["clusterIP", "clusterIPs"] {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove(field);
        }
    }
    object
}

/// kubectl sends built-in kinds as protobuf when it makes them itself, and as JSON when it reads them from a file.
#[tokio::test]
async fn what_kubectl_sends_as_protobuf_is_stored_as_what_it_sends_as_json() {
    let world = World::start().await;
    world
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default}\n")
        .await;
    let commands: &[(&str, &[&str])] = &[
        (
            "configmap/x",
            &[
                "create",
                "configmap",
                "x",
                "--from-literal=a=b",
                "--from-literal=empty=",
            ],
        ),
        (
            "secret/x",
            &["create", "secret", "generic", "x", "--from-literal=a=b"],
        ),
        (
            "secret/reg",
            &[
                "create",
                "secret",
                "docker-registry",
                "reg",
                "--docker-username=u",
                "--docker-password=p",
                "--docker-server=r.example",
            ],
        ),
        ("namespace/x", &["create", "namespace", "x"]),
        ("serviceaccount/x", &["create", "serviceaccount", "x"]),
        (
            "deployment/x",
            &[
                "create",
                "deployment",
                "x",
                "--image=a/b:1",
                "--replicas=0",
                "--port=80",
                "--",
                "sh",
                "-c",
                "true",
            ],
        ),
        (
            "service/x",
            &[
                "create",
                "service",
                "nodeport",
                "x",
                "--tcp=80:http",
                "--node-port=30123",
            ],
        ),
        (
            "service/head",
            &[
                "create",
                "service",
                "clusterip",
                "head",
                "--clusterip=None",
                "--tcp=5:6",
            ],
        ),
        (
            "service/ext",
            &[
                "create",
                "service",
                "externalname",
                "ext",
                "--external-name=a.example",
            ],
        ),
        (
            "role/x",
            &[
                "create",
                "role",
                "x",
                "--verb=get,list",
                "--resource=pods,deployments.apps/scale",
                "--resource-name=a",
            ],
        ),
        (
            "clusterrole/x",
            &[
                "create",
                "clusterrole",
                "x",
                "--verb=get",
                "--non-resource-url=/a/*",
            ],
        ),
        (
            "rolebinding/x",
            &[
                "create",
                "rolebinding",
                "x",
                "--role=x",
                "--user=u",
                "--group=g",
                "--serviceaccount=default:x",
            ],
        ),
        (
            "clusterrolebinding/x",
            &[
                "create",
                "clusterrolebinding",
                "x",
                "--clusterrole=x",
                "--user=u",
            ],
        ),
        (
            "priorityclass/x",
            &[
                "create",
                "priorityclass",
                "x",
                "--value=7",
                "--description=d",
            ],
        ),
    ];
    for (name, create) in commands {
        let mut dry: Vec<&str> = create.iter().copied().take_while(|a| *a != "--").collect();
        dry.extend(["--dry-run=client", "-o", "json"]);
        dry.extend(create.iter().copied().skip_while(|a| *a != "--"));
        let json = world.kubectl(&dry).await;
        world.kubectl(create).await;
        let read = || async {
            let text = world.kubectl(&["get", name, "-o", "json"]).await;
            content(serde_json::from_str(&text).unwrap())
        };
        let by_protobuf = read().await;
        if *name == "namespace/x" {
            // It goes only when a controller has emptied it; its name is free for no second one here.
            continue;
        }
        world.kubectl(&["delete", name]).await;
        let (ok, _, error) = world.kubectl_raw(&["create", "-f", "-"], &json).await;
        assert!(ok, "{name}: {error}");
        assert_eq!(by_protobuf, read().await, "{name}");
    }
}

#[tokio::test]
async fn kubectl_changes_objects_in_every_way_it_knows() {
    let world = World::start().await;
    world
        .kubectl(&["create", "deployment", "web", "--image=a"])
        .await;
    world
        .kubectl(&["scale", "deployment/web", "--replicas=3"])
        .await;
    world
        .kubectl(&["set", "image", "deployment/web", "a=b:2"])
        .await;
    world
        .kubectl(&["set", "env", "deployment/web", "A=B"])
        .await;
    world
        .kubectl(&["label", "deployment/web", "tier=front"])
        .await;
    world
        .kubectl(&["annotate", "deployment/web", "note=one"])
        .await;
    world
        .kubectl(&[
            "patch",
            "deployment/web",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/labels/j","value":"1"}]"#,
        ])
        .await;
    world
        .kubectl(&[
            "patch",
            "deployment/web",
            "--type=merge",
            "-p",
            r#"{"metadata":{"labels":{"m":"1"}}}"#,
        ])
        .await;
    world
        .kubectl(&[
            "patch",
            "deployment/web",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"a","tty":true}]}}}}"#,
        ])
        .await;
    world
        .kubectl(&["rollout", "restart", "deployment/web"])
        .await;
    let web: Value = serde_json::from_str(
        &world
            .kubectl(&["get", "deployment/web", "-o", "json"])
            .await,
    )
    .unwrap();
    assert_eq!(web["spec"]["replicas"], 3);
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["tty"]),
        (&"b:2".into(), &true.into())
    );
    assert_eq!(container["env"][0]["value"], "B");
    assert_eq!(web["metadata"]["labels"]["j"], "1");
    assert_eq!(web["metadata"]["labels"]["m"], "1");
    let restarted =
        &web["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"];
    assert!(restarted.is_string());

    let table = world
        .kubectl(&["get", "deployments", "-l", "tier=front"])
        .await;
    assert!(
        table.starts_with("NAME   READY   UP-TO-DATE   AVAILABLE   AGE\nweb "),
        "{table}"
    );
    assert_eq!(
        world
            .kubectl(&[
                "get",
                "deployment/web",
                "-o",
                "jsonpath={.metadata.annotations.note}"
            ])
            .await,
        "one"
    );
    assert_eq!(
        world
            .kubectl(&["get", "deployments", "-l", "tier=back", "-o", "name"])
            .await,
        ""
    );
    world.kubectl(&["delete", "deployment", "--all"]).await;
    assert!(
        world
            .kubectl_fails(&["get", "deployment/web"])
            .await
            .contains("deployments.apps \"web\" not found")
    );
}

#[tokio::test]
async fn kubectl_apply_diff_and_wait_work() {
    let world = World::start().await;
    let yaml = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{x: \"{value}\"}}\n"
        )
    };
    assert_eq!(world.apply(&yaml("1")).await.trim(), "configmap/c created");
    assert_eq!(
        world.apply(&yaml("1")).await.trim(),
        "configmap/c unchanged"
    );
    let (_, diff, _) = world.kubectl_raw(&["diff", "-f", "-"], &yaml("2")).await;
    assert!(
        diff.contains("-  x: \"1\"") && diff.contains("+  x: \"2\""),
        "{diff}"
    );
    assert_eq!(
        world.apply(&yaml("2")).await.trim(),
        "configmap/c configured"
    );
    let waited = world
        .kubectl(&[
            "wait",
            "--for=jsonpath={.data.x}=2",
            "configmap/c",
            "--timeout=5s",
        ])
        .await;
    assert!(waited.contains("condition met"), "{waited}");
    let explained = world.kubectl(&["explain", "configmap.immutable"]).await;
    assert!(
        explained.contains("FIELD: immutable <boolean>"),
        "{explained}"
    );
    let (ok, _, error) = world
        .kubectl_raw(
            &["apply", "-f", "-"],
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\ndtaa: {}\n",
        )
        .await;
    assert!(!ok);
    assert!(
        error.contains("strict decoding error: unknown field \"dtaa\""),
        "{error}"
    );
}

#[tokio::test]
async fn http_2_and_many_connections_are_served() {
    let world = World::start().await;
    // kubectl speaks HTTP/2; these speak HTTP/1.1, all at once.
    let mut all = Vec::new();
    for _ in 0..50 {
        all.push(world.client(As::Admin).await);
    }
    let answers = all
        .iter_mut()
        .map(|wire| wire.get("/api/v1/namespaces/default"));
    for got in futures_util::future::join_all(answers).await {
        assert_eq!(got.code, 200);
    }
    let names = world.kubectl(&["get", "ns", "-o", "name"]).await;
    assert_eq!(names.lines().count(), 4, "{names}");
}
