use serde_json::json;

use super::*;

/// The errors of a pod spec that is fine but for `changes`, after defaults.
fn errors_of(changes: Value) -> Vec<String> {
    let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
    if let (Some(spec), Value::Object(changes)) = (pod["spec"].as_object_mut(), changes) {
        spec.extend(changes);
    }
    crate::resources::kinds::default_pod(&mut pod);
    pod_spec(&pod["spec"], &FieldPath::new("spec"), Where::Pod)
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The errors of a container with these fields.
fn container_errors(fields: Value) -> Vec<String> {
    let mut container = json!({"name": "a", "image": "x"});
    if let (Some(map), Value::Object(fields)) = (container.as_object_mut(), fields) {
        map.extend(fields);
    }
    errors_of(json!({"containers": [container]}))
}

#[test]
fn a_plain_pod_is_fine() {
    assert!(errors_of(json!({})).is_empty());
}

#[test]
fn containers_need_names_and_images() {
    assert_eq!(
        errors_of(json!({"containers": []})),
        ["spec.containers: Required value"]
    );
    assert_eq!(
        errors_of(
            json!({"containers": [{"image": "x"}, {"name": "A"}, {"name": "b", "image": " x"}, {"name": "b", "image": "x"}]})
        ),
        [
            "spec.containers[0].name: Required value",
            r#"spec.containers[1].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"#,
            "spec.containers[1].image: Required value",
            r#"spec.containers[2].image: Invalid value: " x": must not have leading or trailing whitespace"#,
            r#"spec.containers[3].name: Duplicate value: "b""#,
        ]
    );
}

#[test]
fn ports_are_checked_one_by_one_and_against_each_other() {
    assert_eq!(
        container_errors(json!({"ports": [
            {"name": "http", "containerPort": 80, "hostPort": 8080}, {"name": "http", "containerPort": 70000, "hostPort": 8080},
            {"protocol": "ICMP"}]})),
        [
            r#"spec.containers[0].ports[1].name: Duplicate value: "http""#,
            "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[2].containerPort: Required value",
            r#"spec.containers[0].ports[2].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#,
            r#"spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//8080""#,
        ]
    );
    assert_eq!(
        errors_of(
            json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80, "hostPort": 81}]}]})
        ),
        [
            "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true"
        ]
    );
}

#[test]
fn variables_have_names_and_one_source() {
    assert_eq!(
        container_errors(
            json!({"env": [{"value": "x"}, {"name": "A", "valueFrom": {}},
            {"name": "B", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}},
            {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}},
            {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}}]})
        ),
        [
            "spec.containers[0].env[0].name: Required value",
            r#"spec.containers[0].env[1].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"#,
            r#"spec.containers[0].env[2].valueFrom: Invalid value: "": may not be specified when `value` is not empty"#,
            r#"spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: "spec.nope": error converting fieldPath: field label not supported: spec.nope"#,
            r#"spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs""#,
        ]
    );
    assert_eq!(
        container_errors(json!({"envFrom": [{"prefix": "P"}]})),
        [
            r#"spec.containers[0].envFrom: Invalid value: "": must specify one of: `configMapRef` or `secretRef`"#
        ]
    );
}

#[test]
fn mounts_name_volumes_that_are_there() {
    assert_eq!(
        errors_of(
            json!({"volumes": [{"name": "v"}, {"name": "v"}, {"name": "c", "configMap": {}}, {"name": "h", "hostPath": {"path": "/a/../b"}}],
            "containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v", "subPath": "../x"}]}]})
        ),
        [
            r#"spec.volumes[1].name: Duplicate value: "v""#,
            "spec.volumes[2].configMap.name: Required value",
            r#"spec.volumes[3].hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
            r#"spec.containers[0].volumeMounts[1].name: Not found: "w""#,
            r#"spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/v": must be unique"#,
            r#"spec.containers[0].volumeMounts[1].subPath: Invalid value: "../x": must not contain '..'"#,
        ]
    );
}

#[test]
fn requests_stay_within_limits() {
    assert_eq!(
        container_errors(
            json!({"resources": {"requests": {"cpu": "2", "example.com/gpu": "1"}, "limits": {"cpu": "1", "foo": "1", "memory": "-1"}}})
        ),
        [
            r#"spec.containers[0].resources.limits[foo]: Invalid value: "foo": must be a standard resource for containers"#,
            r#"spec.containers[0].resources.limits[memory]: Invalid value: "-1": must be greater than or equal to 0"#,
            r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
            // Defaults made the request for what has only a limit.
            r#"spec.containers[0].resources.requests[foo]: Invalid value: "foo": must be a standard resource for containers"#,
            r#"spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0"#,
        ]
    );
}

#[test]
fn probes_have_one_handler_and_sane_numbers() {
    assert_eq!(
        container_errors(
            json!({"livenessProbe": {"successThreshold": 2, "timeoutSeconds": -1},
            "readinessProbe": {"exec": {"command": []}, "tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 1},
            "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}})
        ),
        [
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 60: must be non-negative and less than terminationGracePeriodSeconds (30)",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].livenessProbe.timeoutSeconds: Invalid value: -1: must be greater than or equal to 0",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.containers[0].readinessProbe.exec.command: Required value",
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes",
        ]
    );
}

#[test]
fn init_containers_have_names_of_their_own_and_no_probes() {
    assert_eq!(
        errors_of(json!({"initContainers": [{"name": "a", "image": "x"},
            {"name": "b", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}}},
            {"name": "c", "image": "x", "restartPolicy": "Always", "livenessProbe": {"exec": {"command": ["x"]}}}]})),
        [
            r#"spec.initContainers[0].name: Duplicate value: "a""#,
            "spec.initContainers[1].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ]
    );
}

#[test]
fn policies_are_known_words() {
    assert_eq!(
        errors_of(
            json!({"restartPolicy": "Maybe", "dnsPolicy": "None", "activeDeadlineSeconds": 0})
        ),
        [
            r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#,
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ]
    );
    assert!(
        errors_of(json!({"nodeName": "A"}))[0]
            .starts_with(r#"spec.nodeName: Invalid value: "A": a lowercase RFC 1123 subdomain"#)
    );
}

#[test]
fn security_contexts_do_not_contradict_themselves() {
    assert_eq!(
        errors_of(json!({"hostPID": true, "shareProcessNamespace": true,
            "securityContext": {"runAsUser": -1, "seccompProfile": {"type": "Localhost"}, "sysctls": [{"name": "a..b"}]},
            "containers": [{"name": "a", "image": "x", "securityContext": {"seccompProfile": {"type": "Nope"}}}]})),
        [
            r#"spec.containers[0].securityContext.seccompProfile.type: Unsupported value: "Nope": supported values: "Localhost", "RuntimeDefault", "Unconfined""#,
            "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            r#"spec.securityContext.sysctls[0].name: Invalid value: "a..b": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"#,
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost ",
        ]
    );
    let both = container_errors(
        json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
    );
    assert_eq!(
        both,
        [
            r#"spec.containers[0].securityContext: Invalid value: {"allowPrivilegeEscalation":false,"privileged":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true"#
        ]
    );
}

#[test]
fn placement_rules_are_complete() {
    assert_eq!(
        errors_of(json!({
            "tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "x"}, {"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {}}]}},
            "topologySpreadConstraints": [{"topologyKey": "a", "maxSkew": 0, "whenUnsatisfiable": "Never"}]})),
        [
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            r#"spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Never": supported values: "DoNotSchedule", "ScheduleAnyway""#,
            r#"spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys""#,
            r#"spec.tolerations[1].operator: Invalid value: {"key":"a","operator":"Exists","value":"x"}: value must be empty when `operator` is 'Exists'"#,
            r#"spec.tolerations[2].effect: Invalid value: "NoSchedule": effect must be 'NoExecute' when `tolerationSeconds` is set"#,
        ]
    );
}

#[test]
fn tokens_live_at_least_ten_minutes() {
    assert_eq!(
        errors_of(
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}}]})
        ),
        [
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"
        ]
    );
}

#[test]
fn odd_but_legal_pods_get_warnings() {
    let spec = json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
        "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
        "resources": {"limits": {"memory": "500m"}}}]});
    assert_eq!(
        warnings(&spec, &FieldPath::new("spec")),
        [
            r#"spec.containers[0].resources.limits[memory]: fractional byte value "500m" is invalid, must be an integer"#,
            r#"spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply"#,
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ]
    );
}
