//! What a pod may ask for, and gets.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use amphipod_tests::pod::{SLEEP, pod, ready, sh, wait_phase};
use amphipod_tests::{BUSYBOX, eventually, namespace, shared};
use serde_json::json;

#[test]
fn init_containers_run_in_order_and_sidecars_beside() {
    let kubectl = namespace("inits");
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let init = |name: &str, script: &str| json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", script], "volumeMounts": mount});
    let mut sidecar = init(
        "side",
        "echo side >> /work/order; trap 'exit 0' TERM; sleep 3600 & wait",
    );
    sidecar["restartPolicy"] = json!("Always");
    let more = json!({"spec": {
        "volumes": [{"name": "work", "emptyDir": {}}],
        "initContainers": [init("a", "echo a >> /work/order"), sidecar, init("b", "while ! grep -q side /work/order; do sleep 0.05; done; echo b >> /work/order")],
        "containers": [{"volumeMounts": mount}],
    }});
    ready(
        &kubectl,
        "it",
        &pod("it", &format!("echo main >> /work/order; {SLEEP}"), more),
    );
    assert_eq!(sh(&kubectl, "it", "cat /work/order"), "a\nside\nb\nmain\n");
    let status = kubectl.get(&["pod", "it"])["status"].clone();
    assert_eq!(
        status["initContainerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(status["initContainerStatuses"][1]["ready"], true);
    assert!(kubectl.run(&["get", "pod", "it"]).ok().contains("2/2"));
}

#[test]
fn a_crashing_container_is_restarted_with_growing_pauses() {
    let kubectl = namespace("crash");
    kubectl.apply(&pod("it", "exit 7", json!({})));
    eventually("CrashLoopBackOff", Duration::from_secs(40), || {
        let status = kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
        if status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status["lastState"]["terminated"]["exitCode"] == 7
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert!(
        kubectl
            .run(&["get", "pod", "it"])
            .ok()
            .contains("CrashLoopBackOff")
    );
    assert!(
        kubectl
            .run(&["describe", "pod", "it"])
            .ok()
            .contains("Back-off restarting failed container")
    );
}

#[test]
fn restart_policies_decide_what_an_end_means() {
    let kubectl = namespace("endings");
    kubectl.apply(&pod(
        "good",
        "exit 0",
        json!({"spec": {"restartPolicy": "Never"}}),
    ));
    kubectl.apply(&pod(
        "bad",
        "echo because > /dev/termination-log; exit 9",
        json!({"spec": {"restartPolicy": "Never"}}),
    ));
    kubectl.apply(&pod(
        "done",
        "exit 0",
        json!({"spec": {"restartPolicy": "OnFailure"}}),
    ));
    wait_phase(&kubectl, "good", "Succeeded");
    wait_phase(&kubectl, "done", "Succeeded");
    wait_phase(&kubectl, "bad", "Failed");
    let terminated =
        kubectl.get(&["pod", "bad"])["status"]["containerStatuses"][0]["state"]["terminated"]
            .clone();
    assert_eq!(
        (&terminated["exitCode"], &terminated["reason"]),
        (&json!(9), &json!("Error"))
    );
    assert_eq!(terminated["message"], "because\n");

    // Without a message, the log may stand for it, letter by letter: no newline is added.
    let silent = json!({"spec": {"restartPolicy": "Never", "containers": [{"terminationMessagePolicy": "FallbackToLogsOnError"}]}});
    kubectl.apply(&pod("silent", "printf 'why\nnot'; exit 1", silent));
    wait_phase(&kubectl, "silent", "Failed");
    let state = &kubectl.get(&["pod", "silent"])["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["message"], "why\nnot");
    assert_eq!(kubectl.run(&["logs", "silent"]).ok(), "why\nnot");
    let table = kubectl.run(&["get", "pods"]).ok();
    assert!(
        table.contains("Completed") && table.contains("Error"),
        "{table}"
    );
}

#[test]
fn probes_restart_the_sick_and_hide_the_unready() {
    let kubectl = namespace("probes");
    let exec = |file: &str| json!({"exec": {"command": ["test", "-e", file]}, "periodSeconds": 1, "failureThreshold": 1});
    let more = json!({"spec": {"containers": [{
        "startupProbe": {"httpGet": {"path": "/passwd", "port": "web"}, "periodSeconds": 1, "failureThreshold": 30},
        "readinessProbe": exec("/tmp/ready"), "livenessProbe": exec("/tmp/alive"),
        "ports": [{"name": "web", "containerPort": 80}],
    }]}});
    kubectl.apply(&pod(
        "it",
        "touch /tmp/alive; exec httpd -f -p 80 -h /etc",
        more,
    ));
    eventually("the container to start", Duration::from_secs(30), || {
        let status = kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0].clone();
        if status["started"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert_eq!(
        kubectl.get(&["pod", "it"])["status"]["containerStatuses"][0]["ready"],
        false
    );
    sh(&kubectl, "it", "touch /tmp/ready");
    kubectl.wait_for("pod/it", "condition=Ready", 10);
    sh(&kubectl, "it", "rm /tmp/ready");
    kubectl.wait_for("pod/it", "condition=Ready=False", 10);
    sh(&kubectl, "it", "rm /tmp/alive");
    kubectl.wait_for(
        "pod/it",
        "jsonpath={.status.containerStatuses[0].restartCount}=1",
        20,
    );
    let described = kubectl.run(&["describe", "pod", "it"]).ok();
    assert!(
        described.contains("Liveness probe failed") && described.contains("Readiness probe failed"),
        "{described}"
    );
}

#[test]
fn grpc_probes_ask_for_the_service_they_name() {
    let kubectl = namespace("grpc");
    let asking = |name: &str, service: &str| {
        let probe = json!({"grpc": {"port": 9000, "service": service}, "periodSeconds": 1});
        pod(
            name,
            "exec peer grpc-health 9000 known",
            json!({"spec": {"containers": [{"readinessProbe": probe}]}}),
        )
    };
    kubectl.apply(&asking("well", "known"));
    kubectl.apply(&asking("ill", "unknown"));
    kubectl.wait_for("pod/well", "condition=Ready", 30);
    eventually("the reason", Duration::from_secs(30), || {
        let events = kubectl.run(&["events", "--for", "pod/ill"]).ok();
        if events.contains("service unhealthy (responded with \"SERVICE_UNKNOWN\")") {
            Ok(())
        } else {
            Err(events)
        }
    });
    assert_eq!(
        kubectl.get(&["pod", "ill"])["status"]["containerStatuses"][0]["ready"],
        false
    );
}

#[test]
fn hooks_run_and_termination_is_graceful() {
    let kubectl = namespace("hooks");
    let host = format!("/var/lib/amphipod/{}", "hooks-test");
    let more = json!({"spec": {
        "terminationGracePeriodSeconds": 20,
        "volumes": [{"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}}],
        "containers": [{
            "volumeMounts": [{"name": "host", "mountPath": "/host"}],
            "lifecycle": {
                "postStart": {"exec": {"command": ["sh", "-c", "echo postStart >> /host/log"]}},
                "preStop": {"exec": {"command": ["sh", "-c", "echo preStop >> /host/log"]}},
            },
        }],
    }});
    ready(
        &kubectl,
        "it",
        &pod(
            "it",
            "trap 'echo term >> /host/log; exit 0' TERM; sleep 3600 & wait",
            more,
        ),
    );
    let start = Instant::now();
    kubectl.run(&["delete", "pod", "it", "--timeout=30s"]).ok();
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "a pod that stops at SIGTERM must not wait for its grace period"
    );
    let log = std::fs::read_to_string(shared().edge_box.disk().join("lib/hooks-test/log")).unwrap();
    assert_eq!(log, "postStart\npreStop\nterm\n");
    kubectl.apply(&pod(
        "deaf",
        "trap '' TERM; while :; do sleep 1; done",
        json!({}),
    ));
    kubectl.wait_for("pod/deaf", "condition=Ready", 30);
    kubectl
        .run(&["delete", "pod", "deaf", "--timeout=20s"])
        .ok();
}

#[test]
fn environment_comes_from_literals_config_secrets_and_the_pod_itself() {
    let kubectl = namespace("environment");
    kubectl
        .run(&[
            "create",
            "configmap",
            "conf",
            "--from-literal=COLOR=red",
            "--from-literal=one=1",
        ])
        .ok();
    kubectl
        .run(&[
            "create",
            "secret",
            "generic",
            "sec",
            "--from-literal=PASSWORD=hush",
        ])
        .ok();
    let more = json!({"spec": {"containers": [{
        "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}},
        "envFrom": [{"configMapRef": {"name": "conf"}}, {"secretRef": {"name": "sec"}, "prefix": "S_"}],
        "env": [
            {"name": "LITERAL", "value": "x"}, {"name": "EXPANDED", "value": "$(LITERAL)-$(COLOR)-$$(no)"},
            {"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "one"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        ],
    }]}});
    ready(&kubectl, "it", &pod("it", SLEEP, more));
    let ip = kubectl.get(&["pod", "it"])["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let got = sh(
        &kubectl,
        "it",
        "echo $COLOR $S_PASSWORD $LITERAL \"$EXPANDED\" $ONE $NAME $IP $APP $MEM $FROM_IMAGE $KUBERNETES_SERVICE_HOST",
    );
    assert_eq!(
        got.trim(),
        format!("red hush x x-red-$(no) 1 it {ip} it 64 yes 10.43.0.1")
    );
    kubectl.apply(&pod(
        "lost",
        SLEEP,
        json!({"spec": {"containers": [{"envFrom": [{"configMapRef": {"name": "no-such"}}]}]}}),
    ));
    eventually(
        "the missing ConfigMap to be told",
        Duration::from_secs(20),
        || {
            let status =
                kubectl.get(&["pod", "lost"])["status"]["containerStatuses"][0]["state"]["waiting"]
                    .clone();
            let right = status["reason"] == "CreateContainerConfigError"
                && status["message"] == "configmap \"no-such\" not found";
            if right {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    );
}

#[test]
fn volumes_hold_config_secrets_tokens_and_scratch_space() {
    let kubectl = namespace("volumes");
    kubectl
        .run(&["create", "configmap", "conf", "--from-literal=file=v1"])
        .ok();
    kubectl
        .run(&[
            "create",
            "secret",
            "generic",
            "sec",
            "--from-literal=key=hush",
        ])
        .ok();
    let more = json!({"spec": {
        "volumes": [
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "all", "projected": {"sources": [
                {"configMap": {"name": "conf", "items": [{"key": "file", "path": "deep/er"}]}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": "someone"}},
            ]}},
        ],
        "containers": [{"volumeMounts": [
            {"name": "conf", "mountPath": "/conf"}, {"name": "sec", "mountPath": "/sec", "readOnly": true},
            {"name": "mem", "mountPath": "/mem"}, {"name": "all", "mountPath": "/all"},
            {"name": "conf", "mountPath": "/single", "subPath": "file"},
        ]}],
    }});
    ready(&kubectl, "it", &pod("it", SLEEP, more));
    assert_eq!(
        sh(
            &kubectl,
            "it",
            "cat /conf/file /sec/key /single /all/deep/er"
        ),
        "v1hushv1v1"
    );
    assert_eq!(sh(&kubectl, "it", "stat -Lc %a /sec/key").trim(), "400");
    assert!(
        sh(&kubectl, "it", "mount")
            .lines()
            .any(|line| line.starts_with("tmpfs on /mem "))
    );
    assert!(sh(&kubectl, "it", "cat /all/labels").contains("app=\"it\""));
    assert_eq!(sh(&kubectl, "it", "cat /all/token").split('.').count(), 3);
    assert_ne!(
        kubectl.run(&["exec", "it", "--", "touch", "/sec/new"]).code,
        0
    );
    assert_eq!(
        sh(
            &kubectl,
            "it",
            "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"
        ),
        "volumes"
    );
    kubectl
        .run(&[
            "patch",
            "configmap",
            "conf",
            "-p",
            r#"{"data":{"file":"v2"}}"#,
        ])
        .ok();
    eventually(
        "the volume to follow its ConfigMap",
        Duration::from_secs(70),
        || {
            let now = sh(&kubectl, "it", "cat /conf/file");
            if now == "v2" { Ok(()) } else { Err(now) }
        },
    );
}

#[test]
fn security_context_is_obeyed() {
    let kubectl = namespace("security");
    let more = json!({"spec": {
        "securityContext": {"runAsUser": 1234, "runAsGroup": 2345, "supplementalGroups": [4567], "fsGroup": 5678},
        "volumes": [{"name": "work", "emptyDir": {}}],
        "containers": [{
            "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "seccompProfile": {"type": "RuntimeDefault"}},
        }],
    }});
    ready(&kubectl, "it", &pod("it", SLEEP, more));
    let id = sh(&kubectl, "it", "id -u; id -g; id -G");
    assert_eq!(id.lines().take(2).collect::<Vec<_>>(), ["1234", "2345"]);
    assert!(id.contains("4567") && id.contains("5678"), "{id}");
    let status = sh(&kubectl, "it", "cat /proc/1/status");
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    assert!(status.contains("CapBnd:\t0000000000000400"), "{status}");
    assert_ne!(kubectl.run(&["exec", "it", "--", "touch", "/new"]).code, 0);
    assert_eq!(
        sh(&kubectl, "it", "touch /work/new; stat -c %g /work/new").trim(),
        "5678"
    );
    let root = json!({"spec": {"securityContext": {"runAsNonRoot": true}}});
    kubectl.apply(&pod("root", SLEEP, root));
    eventually(
        "the refusal to run as root",
        Duration::from_secs(20),
        || {
            let waiting = kubectl.get(&["pod", "root"])["status"]["containerStatuses"][0]["state"]
                ["waiting"]
                .clone();
            let message = waiting["message"].as_str().unwrap_or_default();
            if message.contains("container has runAsNonRoot and image will run as root") {
                Ok(())
            } else {
                Err(waiting.to_string())
            }
        },
    );
    ready(
        &kubectl,
        "mighty",
        &pod(
            "mighty",
            SLEEP,
            json!({"spec": {"containers": [{"securityContext": {"privileged": true}}]}}),
        ),
    );
    assert!(sh(&kubectl, "mighty", "ls /dev").lines().count() > 20);
}

#[test]
fn limits_become_cgroups_and_memory_hogs_are_killed_alone() {
    let kubectl = namespace("limits");
    let resources = |memory: &str| json!({"spec": {"restartPolicy": "Never", "containers": [{"resources": {"limits": {"memory": memory, "cpu": "500m"}, "requests": {"cpu": "250m"}}}]}});
    ready(&kubectl, "it", &pod("it", SLEEP, resources("64Mi")));
    assert_eq!(
        kubectl.get(&["pod", "it"])["status"]["qosClass"],
        "Burstable"
    );
    kubectl.apply(&pod(
        "hog",
        "x=a; while :; do x=$x$x; done",
        resources("16Mi"),
    ));
    wait_phase(&kubectl, "hog", "Failed");
    let terminated =
        kubectl.get(&["pod", "hog"])["status"]["containerStatuses"][0]["state"]["terminated"]
            .clone();
    assert_eq!(
        (&terminated["reason"], &terminated["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
    assert_eq!(kubectl.get(&["pod", "it"])["status"]["phase"], "Running");
    let group = shared().edge_box.run(&["sh", "-c", "cat /sys/fs/cgroup/memory/*/burstable/pod*/*/memory.limit_in_bytes /sys/fs/cgroup/amphitest-box*/burstable/pod*/*/memory.max 2>/dev/null"]);
    assert!(
        group.stdout.lines().any(|line| line == "67108864"),
        "{group:?}"
    );
}

#[test]
fn logs_are_kept_in_the_usual_places() {
    let kubectl = namespace("log-files");
    ready(
        &kubectl,
        "it",
        &pod("it", &format!("echo to the file; {SLEEP}"), json!({})),
    );
    let object = kubectl.get(&["pod", "it"]);
    let uid = object["metadata"]["uid"].as_str().unwrap();
    let path = format!("/var/log/pods/log-files_it_{uid}/main/0.log");
    let text = shared().edge_box.run(&["cat", &path]).ok();
    assert!(text.contains(" stdout F to the file\n"), "{text}");
    let id = object["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let link = shared()
        .edge_box
        .run(&[
            "readlink",
            "-f",
            &format!("/var/log/containers/it_log-files_main-{id}.log"),
        ])
        .ok();
    assert_eq!(link.trim(), path);
}
