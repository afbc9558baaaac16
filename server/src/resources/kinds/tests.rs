//! Promises of the kinds, through the hooks that the engine calls.
#![allow(clippy::unwrap_used)]

mod storage;

use std::collections::BTreeSet;
use std::sync::Mutex;

use amphipod_api::{FieldError, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::auth::UserInfo;
use crate::resources::{Catalog, ClusterConfig, Descriptor, Lookup, Privileges, StrategyContext};

/// Services there are; nothing else.
#[derive(Default)]
struct World {
    services: Vec<Value>,
    /// Whether the caller holds all permissions.
    mighty: bool,
}

impl Lookup for World {
    fn get(&self, resource: &str, _: &str, name: &str) -> Option<Value> {
        (resource.starts_with("clusterroles") && name == "view").then(
            || json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        )
    }

    fn list(&self, _: &str, _: Option<&str>) -> Vec<Value> {
        Vec::new()
    }

    fn scan_field(&self, resource: &str, field: &str, visit: &mut dyn FnMut(&str, &str, &str)) {
        assert_eq!(resource, "services");
        let descriptor = descriptor("services");
        let field = descriptor
            .selectable_fields
            .iter()
            .find(|f| f.name == field)
            .unwrap();
        for service in &self.services {
            visit("other", "name", &field.value(service));
        }
    }
}

impl Privileges for World {
    fn may(&self, _: &UserInfo, _: &str, _: &str, _: &str, _: &str, _: &str) -> bool {
        self.mighty
    }

    fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
        if self.mighty {
            Ok(())
        } else {
            Err(r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#.into())
        }
    }
}

fn descriptor(resource: &str) -> std::sync::Arc<Descriptor> {
    Catalog::builtin().by_resource(resource).unwrap()
}

fn with_context<T>(world: &World, run: impl FnOnce(&StrategyContext) -> T) -> T {
    let user = UserInfo::new("jane", &[]);
    let config = ClusterConfig::default();
    let warnings = Mutex::default();
    run(&StrategyContext {
        user: &user,
        namespace: "default",
        now: Timestamp::UNIX_EPOCH,
        dry_run: false,
        lookup: world,
        privileges: world,
        config: &config,
        warnings: &warnings,
    })
}

/// Defaults and prepares a new object.
fn create(world: &World, resource: &str, mut obj: Value) -> Result<Value, Status> {
    let strategy = &descriptor(resource).strategy;
    strategy.default(&mut obj);
    with_context(world, |cx| strategy.prepare_for_create(cx, &mut obj))?;
    Ok(obj)
}

/// Defaults and prepares a change.
fn update(
    world: &World,
    resource: &str,
    mut new: Value,
    old: &Value,
    sub: Option<&str>,
) -> Result<Value, Status> {
    let strategy = &descriptor(resource).strategy;
    strategy.default(&mut new);
    with_context(world, |cx| {
        strategy.prepare_for_update(cx, &mut new, old, sub)
    })?;
    Ok(new)
}

fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn create_errors(resource: &str, obj: Value) -> Vec<String> {
    let world = World {
        mighty: true,
        ..World::default()
    };
    let obj = create(&world, resource, obj).unwrap();
    texts(descriptor(resource).strategy.validate_create(&obj))
}

fn update_errors(resource: &str, new: Value, old: Value, sub: Option<&str>) -> Vec<String> {
    let world = World {
        mighty: true,
        ..World::default()
    };
    let old = create(&world, resource, old).unwrap();
    let new = update(&world, resource, new, &old, sub).unwrap();
    texts(
        descriptor(resource)
            .strategy
            .validate_update(&new, &old, sub),
    )
}

fn deployment(labels: Value) -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}})
}

#[test]
fn every_row_has_a_cell_for_each_column() {
    for d in Catalog::builtin().snapshot().iter().filter(|d| d.stored) {
        let mut obj = json!({"metadata": {"name": "x"}});
        d.strategy.default(&mut obj);
        assert_eq!(
            d.strategy.row(&obj, Timestamp::UNIX_EPOCH).len(),
            d.columns.len(),
            "{d:?}"
        );
    }
}

#[test]
fn defaults_are_idempotent_for_every_kind() {
    for d in Catalog::builtin().snapshot().iter() {
        let mut obj = json!({"metadata": {"name": "x"}, "spec": {}});
        d.strategy.default(&mut obj);
        let once = obj.clone();
        d.strategy.default(&mut obj);
        assert_eq!(obj, once, "{d:?}");
    }
}

#[test]
fn what_defaults_make_is_in_the_schema() {
    for d in Catalog::builtin().snapshot().iter() {
        let mut obj = json!({"metadata": {"name": "x"}});
        d.strategy.default(&mut obj);
        let read = d.schema().decode_value(obj).unwrap();
        assert!(read.strict.is_empty(), "{d:?}: {:?}", read.strict);
    }
}

#[test]
fn a_deployment_gets_its_defaults_and_no_status() {
    let mut wanted = deployment(json!({"a": "b"}));
    wanted["status"] = json!({"replicas": 3});
    let made = create(&World::default(), "deployments.apps", wanted).unwrap();
    let spec = &made["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(
        (
            &spec["revisionHistoryLimit"],
            &spec["progressDeadlineSeconds"]
        ),
        (&json!(10), &json!(600))
    );
    assert_eq!(spec["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    assert!(spec["template"]["spec"].get("enableServiceLinks").is_none());
    assert_eq!(
        (&made["status"], &made["metadata"]["generation"]),
        (&json!({}), &json!(1))
    );
}

#[test]
fn a_deployment_without_selector_says_so_twice_as_upstream() {
    let mut obj = deployment(json!({"a": "b"}));
    obj["spec"].as_object_mut().unwrap().remove("selector");
    assert_eq!(
        create_errors("deployments.apps", obj),
        [
            "spec.selector: Required value",
            r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#,
        ]
    );
}

#[test]
fn deployments_are_checked_with_their_templates() {
    let mut obj = deployment(json!({"a": "b"}));
    obj["spec"]["template"]["spec"] =
        json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
    obj["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
    obj["spec"]["progressDeadlineSeconds"] = json!(0);
    assert_eq!(
        create_errors("deployments.apps", obj),
        [
            "spec.template.spec.containers[0].image: Required value",
            r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
        ]
    );
}

#[test]
fn selectors_of_workloads_do_not_change() {
    for resource in ["deployments.apps", "replicasets.apps"] {
        assert_eq!(
            update_errors(
                resource,
                deployment(json!({"a": "c"})),
                deployment(json!({"a": "b"})),
                None
            ),
            [r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#]
        );
    }
}

#[test]
fn the_generation_follows_the_spec_and_status_has_its_own_path() {
    let world = World::default();
    let old = create(&world, "deployments.apps", deployment(json!({"a": "b"}))).unwrap();
    let mut scaled = old.clone();
    scaled["spec"]["replicas"] = json!(5);
    scaled["status"] = json!({"replicas": 5});
    let new = update(&world, "deployments.apps", scaled.clone(), &old, None).unwrap();
    assert_eq!(
        (&new["metadata"]["generation"], &new["status"]),
        (&json!(2), &json!({}))
    );
    let new = update(&world, "deployments.apps", scaled, &old, Some("status")).unwrap();
    assert_eq!(
        (&new["spec"]["replicas"], &new["status"]),
        (&json!(1), &json!({"replicas": 5}))
    );
    assert_eq!(new["metadata"]["generation"], 1);
    let same = update(&world, "deployments.apps", old.clone(), &old, None).unwrap();
    assert_eq!(same["metadata"]["generation"], 1);
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x"}]}})
}

#[test]
fn only_a_few_fields_of_a_pod_change() {
    let mut new = pod();
    new["spec"]["containers"][0]["image"] = json!("y");
    new["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    assert!(update_errors("pods", new, pod(), None).is_empty());

    let mut new = pod();
    new["spec"]["containers"][0]["command"] = json!(["z"]);
    let errors = update_errors("pods", new, pod(), None);
    assert_eq!(
        errors,
        [
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n+ spec.containers[0].command: [\"z\"]"
        ]
    );

    let mut new = pod();
    new["spec"]["containers"] = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]);
    assert_eq!(
        update_errors("pods", new, pod(), None),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
}

#[test]
fn ephemeral_containers_are_added_by_their_own_path_only() {
    let world = World::default();
    let old = create(&world, "pods", pod()).unwrap();
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] =
        json!([{"name": "debug", "image": "x", "targetContainerName": "a"}]);
    new["spec"]["nodeName"] = json!("ignored");
    let added = update(
        &world,
        "pods",
        new.clone(),
        &old,
        Some("ephemeralcontainers"),
    )
    .unwrap();
    assert!(added["spec"].get("nodeName").is_none());
    assert_eq!(
        added["spec"]["ephemeralContainers"][0]["imagePullPolicy"],
        "Always"
    );
    let strategy = &descriptor("pods").strategy;
    assert!(
        strategy
            .validate_update(&added, &old, Some("ephemeralcontainers"))
            .is_empty()
    );
    let gone = texts(strategy.validate_update(&old, &added, Some("ephemeralcontainers")));
    assert!(gone[0].starts_with(r#"spec.ephemeralContainers: Forbidden: existing ephemeral containers "debug" may not be removed"#));
    assert_eq!(
        create_errors("pods", new),
        ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
    );
}

#[test]
fn a_pod_ends_with_grace_once_it_has_a_node() {
    let strategy = &descriptor("pods").strategy;
    let grace = |pod: &Value, asked| {
        with_context(&World::default(), |cx| {
            strategy.delete_grace(cx, pod, asked)
        })
    };
    let mut pod = json!({"spec": {"terminationGracePeriodSeconds": 30}});
    assert_eq!(grace(&pod, None), Some(0));
    pod["spec"]["nodeName"] = json!("n");
    assert_eq!(grace(&pod, None), Some(30));
    assert_eq!(grace(&pod, Some(5)), Some(5));
    assert_eq!(grace(&pod, Some(-1)), Some(1));
    pod["status"] = json!({"phase": "Failed"});
    assert_eq!(grace(&pod, Some(5)), Some(0));
}

fn service(spec: Value) -> Value {
    let mut obj = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    if let (Some(map), Value::Object(spec)) = (obj["spec"].as_object_mut(), spec) {
        map.extend(spec);
    }
    obj
}

#[test]
fn a_service_gets_an_address_of_its_own() {
    let world = World {
        services: vec![json!({"spec": {"clusterIPs": ["10.43.0.1"]}})],
        mighty: false,
    };
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let made = create(&world, "services", service(json!({}))).unwrap();
        let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert!(
            ip.starts_with("10.43.")
                && ip != "10.43.0.1"
                && ip != "10.43.0.0"
                && ip != "10.43.255.255",
            "{ip}"
        );
        assert_eq!(made["spec"]["clusterIPs"], json!([ip]));
        assert!(texts(descriptor("services").strategy.validate_create(&made)).is_empty());
        seen.insert(ip);
    }
    assert!(seen.len() > 10, "addresses are taken at random");
    let made = create(&world, "services", service(json!({}))).unwrap();
    let spec = &made["spec"];
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(
        (&spec["sessionAffinity"], &spec["internalTrafficPolicy"]),
        (&json!("None"), &json!("Cluster"))
    );
    assert_eq!(
        spec["ports"],
        json!([{"port": 80, "protocol": "TCP", "targetPort": 80}])
    );
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
}

#[test]
fn addresses_and_ports_are_given_once() {
    let world = World {
        services: vec![
            json!({"spec": {"clusterIPs": ["10.43.0.10"], "ports": [{"nodePort": 30080}]}}),
        ],
        mighty: false,
    };
    let refused = |spec: Value| {
        create(&world, "services", service(spec))
            .unwrap_err()
            .message
            .clone()
    };
    assert_eq!(
        refused(json!({"clusterIP": "10.43.0.10"})),
        r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.43.0.10"]: failed to allocate IP 10.43.0.10: provided IP is already allocated"#
    );
    assert_eq!(
        refused(json!({"clusterIP": "10.1.0.1"})),
        r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.1.0.1"]: failed to allocate IP 10.1.0.1: provided IP is not in the valid range. The range of valid IPs is 10.43.0.0/16"#
    );
    assert_eq!(
        refused(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
        r#"Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"#
    );
    assert_eq!(
        refused(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]})),
        r#"Service "s" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"#
    );
}

#[test]
fn node_ports_are_found_and_shared_by_protocols() {
    let ports = json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}, {"name": "w", "port": 80}]);
    let made = create(
        &World::default(),
        "services",
        service(json!({"type": "NodePort", "ports": ports})),
    )
    .unwrap();
    let port = |i: usize| made["spec"]["ports"][i]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port(0)));
    assert_eq!(port(0), port(1));
    assert_ne!(port(0), port(2));
    assert_eq!(made["spec"]["externalTrafficPolicy"], "Cluster");
}

#[test]
fn a_service_keeps_what_it_was_given() {
    let world = World::default();
    let old = create(&world, "services", service(json!({"type": "NodePort"}))).unwrap();
    // Applied again without the allocated fields.
    let new = update(
        &world,
        "services",
        service(json!({"type": "NodePort"})),
        &old,
        None,
    )
    .unwrap();
    assert_eq!(new["spec"], old["spec"]);
    // Back to a plain service: the node port goes, the address stays.
    let mut plain = old.clone();
    plain["spec"]["type"] = json!("ClusterIP");
    let new = update(&world, "services", plain, &old, None).unwrap();
    assert!(new["spec"]["ports"][0].get("nodePort").is_none());
    assert!(new["spec"].get("externalTrafficPolicy").is_none());
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert!(
        texts(
            descriptor("services")
                .strategy
                .validate_update(&new, &old, None)
        )
        .is_empty()
    );
    // And to an external name: the address goes, too.
    let mut external = old.clone();
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("example.com");
    let new = update(&world, "services", external, &old, None).unwrap();
    assert!(new["spec"].get("clusterIP").is_none() && new["spec"].get("ipFamilies").is_none());
    assert!(
        texts(
            descriptor("services")
                .strategy
                .validate_update(&new, &old, None)
        )
        .is_empty()
    );
}

#[test]
fn the_address_of_a_service_does_not_change() {
    let world = World::default();
    let old = create(
        &world,
        "services",
        service(json!({"clusterIP": "10.43.0.50"})),
    )
    .unwrap();
    let mut moved = old.clone();
    moved["spec"]["clusterIP"] = json!("10.43.0.51");
    let new = update(&world, "services", moved, &old, None).unwrap();
    assert_eq!(
        texts(
            descriptor("services")
                .strategy
                .validate_update(&new, &old, None)
        ),
        [r#"spec.clusterIPs[0]: Invalid value: ["10.43.0.51"]: may not change once set"#]
    );
}

#[test]
fn headless_services_have_no_address() {
    let made = create(
        &World::default(),
        "services",
        service(json!({"clusterIP": "None"})),
    )
    .unwrap();
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut bare = service(json!({"clusterIP": "None"}));
    bare["spec"].as_object_mut().unwrap().remove("selector");
    let made = create(&World::default(), "services", bare).unwrap();
    assert_eq!(made["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
}

#[test]
fn services_are_refused_in_upstreams_words() {
    let cases = [
        (json!({"ports": []}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "Else"}),
            r#"spec.type: Unsupported value: "Else": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        ),
        (
            json!({"type": "ExternalName"}),
            "spec.externalName: Required value",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None"}),
            r#"spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services"#,
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ),
        (
            json!({"externalIPs": ["127.0.0.1"]}),
            r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
        ),
        (
            json!({"loadBalancerClass": "a"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
    ];
    for (spec, text) in cases {
        let errors = create_errors("services", service(spec.clone()));
        assert!(errors.iter().any(|e| e == text), "{spec}: {errors:?}");
    }
    let two = json!({"ports": [{"port": 80}, {"port": 80}]});
    assert_eq!(
        create_errors("services", service(two)),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
            r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#,
        ]
    );
}

#[test]
fn secrets_take_plain_text_and_keep_their_type() {
    let made = create(
        &World::default(),
        "secrets",
        json!({"stringData": {"a": "b"}, "data": {"a": "eA==", "c": "eA=="}}),
    )
    .unwrap();
    assert_eq!(
        made,
        json!({"type": "Opaque", "data": {"a": "Yg==", "c": "eA=="}})
    );
    assert_eq!(
        update_errors("secrets", json!({"type": "b"}), json!({"type": "a"}), None),
        [r#"type: Invalid value: "b": field is immutable"#]
    );
    assert_eq!(
        create_errors(
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"a/b": ""}})
        ),
        [
            r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#,
            "data[tls.crt]: Required value",
            "data[tls.key]: Required value",
        ]
    );
}

#[test]
fn immutable_config_maps_and_secrets_stay_as_they_are() {
    for (resource, value) in [("configmaps", "x"), ("secrets", "eA==")] {
        let old = json!({"immutable": true, "data": {"a": value}});
        assert_eq!(
            update_errors(resource, json!({"data": {"b": value}}), old, None),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }
}

#[test]
fn a_namespace_is_labelled_by_its_name_and_ends_through_its_finalizer() {
    let world = World::default();
    let made = create(
        &world,
        "namespaces",
        json!({"metadata": {"name": "n"}, "status": {"phase": "Odd"}}),
    )
    .unwrap();
    assert_eq!(
        made["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "n"})
    );
    assert_eq!(
        (&made["spec"], &made["status"]),
        (
            &json!({"finalizers": ["kubernetes"]}),
            &json!({"phase": "Active"})
        )
    );
    let mut new = made.clone();
    new["spec"]["finalizers"] = json!([]);
    assert_eq!(
        update(&world, "namespaces", new.clone(), &made, None).unwrap()["spec"],
        made["spec"]
    );
    assert_eq!(
        update(&world, "namespaces", new, &made, Some("finalize")).unwrap()["spec"],
        json!({"finalizers": []})
    );
}

#[test]
fn nobody_grants_more_than_they_have() {
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let refused = create(
        &World::default(),
        "roles.rbac.authorization.k8s.io",
        role.clone(),
    )
    .unwrap_err();
    assert_eq!(
        refused.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
    );
    let mighty = World {
        mighty: true,
        ..World::default()
    };
    assert!(create(&mighty, "roles.rbac.authorization.k8s.io", role).is_ok());
    let binding = |role: &str| json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role}});
    let resource = "rolebindings.rbac.authorization.k8s.io";
    assert_eq!(
        create(&World::default(), resource, binding("view"))
            .unwrap_err()
            .http_code(),
        403
    );
    assert_eq!(
        create(&World::default(), resource, binding("nope"))
            .unwrap_err()
            .message,
        r#"clusterroles.rbac.authorization.k8s.io "nope" not found"#
    );
}

#[test]
fn network_policies_default_their_types_and_check_their_peers() {
    let resource = "networkpolicies.networking.k8s.io";
    let made = create(
        &World::default(),
        resource,
        json!({"spec": {"podSelector": {}, "egress": [{}]}}),
    )
    .unwrap();
    assert_eq!(made["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(
        create_errors(
            resource,
            json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"endPort": 5}],
            "from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}})
        ),
        [
            "spec.ingress[0].ports[0].endPort: Invalid value: 5: may not be specified when `port` is not specified",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            r#"spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `10.0.0.0/8`"#,
        ]
    );
}

#[test]
fn user_priorities_end_where_the_systems_begin() {
    let resource = "priorityclasses.scheduling.k8s.io";
    assert_eq!(
        create_errors(
            resource,
            json!({"metadata": {"name": "a"}, "value": 2000000000})
        ),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    assert!(
        create_errors(
            resource,
            json!({"metadata": {"name": "system-node-critical"}, "value": 2000001000})
        )
        .is_empty()
    );
    assert_eq!(
        update_errors(resource, json!({"value": 2}), json!({"value": 1}), None),
        ["value: Forbidden: may not be changed in an update."]
    );
}

#[test]
fn a_signing_request_is_from_whoever_sends_it() {
    let resource = "certificatesigningrequests.certificates.k8s.io";
    let made = create(
        &World::default(),
        resource,
        json!({"spec": {"username": "somebody else", "request": "eA=="}}),
    )
    .unwrap();
    assert_eq!(made["spec"]["username"], "jane");
    assert_eq!(made["spec"]["groups"], json!(["system:authenticated"]));
    assert_eq!(
        create_errors(
            resource,
            json!({"spec": {"request": "eA==", "signerName": "x", "expirationSeconds": 1}})
        ),
        [
            r#"spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST"#,
            "spec.usages: Required value: usages is required",
            r#"spec.signerName: Invalid value: "x": must be a fully qualified domain and path of the form 'example.com/signer-name'"#,
            "spec.expirationSeconds: Invalid value: 1: may not specify a duration less than 600 seconds (10 minutes)",
        ]
    );
}

#[test]
fn access_reviews_ask_one_question() {
    let resource = "subjectaccessreviews.authorization.k8s.io";
    assert_eq!(
        create_errors(resource, json!({"spec": {}})),
        [
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            r#"spec.user: Invalid value: "": at least one of user or group must be specified"#,
        ]
    );
}

#[test]
fn leases_are_made_by_put_and_never_blindly_overwritten() {
    let strategy = &descriptor("leases.coordination.k8s.io").strategy;
    assert!(strategy.allow_create_on_update() && !strategy.allow_unconditional_update());
    assert_eq!(
        create_errors(
            "leases.coordination.k8s.io",
            json!({"spec": {"leaseDurationSeconds": 0}})
        ),
        ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
    );
}
