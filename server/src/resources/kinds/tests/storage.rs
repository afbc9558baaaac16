//! Promises of volumes, claims and classes.

use super::*;

const CLASSES: &str = "storageclasses.storage.k8s.io";

fn claim(spec: Value) -> Value {
    let mut claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}});
    for (field, value) in spec.as_object().unwrap() {
        claim["spec"][field] = value.clone();
    }
    claim
}

fn volume(spec: Value) -> Value {
    let mut volume = json!({"metadata": {"name": "v"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/data"}}});
    for (field, value) in spec.as_object().unwrap() {
        volume["spec"][field] = value.clone();
    }
    volume
}

#[test]
fn volumes_claims_and_classes_get_their_defaults() {
    let world = World::default();
    let made = create(&world, "persistentvolumes", volume(json!({}))).unwrap();
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(made["spec"]["volumeMode"], "Filesystem");
    assert_eq!(made["spec"]["hostPath"]["type"], "");
    assert_eq!(made["status"]["phase"], "Pending");
    let mut wanted = claim(json!({}));
    wanted["status"] = json!({"phase": "Bound"});
    let made = create(&world, "persistentvolumeclaims", wanted).unwrap();
    assert_eq!(made["spec"]["volumeMode"], "Filesystem");
    assert_eq!(made["status"], json!({"phase": "Pending"}));
    let made = create(&world, CLASSES, json!({"provisioner": "a.b/c"})).unwrap();
    assert_eq!(made["reclaimPolicy"], "Delete");
    assert_eq!(made["volumeBindingMode"], "Immediate");
}

#[test]
fn a_volume_is_one_thing_of_some_size() {
    let errors = |spec: Value| create_errors("persistentvolumes", volume(spec));
    assert!(errors(json!({})).is_empty());
    assert_eq!(
        errors(
            json!({"accessModes": [], "capacity": {"storage": "0"}, "hostPath": {"path": "/a/../b"}})
        ),
        [
            "spec.accessModes: Required value",
            r#"spec.capacity[storage]: Invalid value: "0": must be greater than zero"#,
            r#"spec.hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
        ]
    );
    assert_eq!(
        errors(
            json!({"nfs": {"server": "nas", "path": "/x"}, "accessModes": ["ReadWriteOncePod", "ReadWriteMany"]})
        ),
        [
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            "spec.nfs: Forbidden: may not specify more than 1 volume type",
        ]
    );
    let mut local = volume(json!({"local": {"path": "/disk"}}));
    local["spec"].as_object_mut().unwrap().remove("hostPath");
    assert_eq!(
        create_errors("persistentvolumes", local.clone()),
        ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
    );
    local["spec"].as_object_mut().unwrap().remove("local");
    assert_eq!(
        create_errors("persistentvolumes", local),
        ["spec: Required value: must specify a volume type"]
    );
}

#[test]
fn what_a_volume_is_does_not_change_but_who_has_it_does() {
    let errors =
        |new: Value| update_errors("persistentvolumes", volume(new), volume(json!({})), None);
    assert!(
        errors(json!({"claimRef": {"name": "a"}, "persistentVolumeReclaimPolicy": "Delete"}))
            .is_empty()
    );
    assert_eq!(
        errors(json!({"hostPath": {"path": "/other"}, "volumeMode": "Block"})),
        [
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
            r#"volumeMode: Invalid value: "Block": field is immutable"#,
        ]
    );
}

#[test]
fn the_time_of_a_volumes_phase_is_kept() {
    let world = World::default();
    let old = create(&world, "persistentvolumes", volume(json!({}))).unwrap();
    let mut new = old.clone();
    new["status"] = json!({"phase": "Available"});
    new["spec"] = json!({});
    let moved = update(&world, "persistentvolumes", new, &old, Some("status")).unwrap();
    assert_eq!(
        moved["status"]["lastPhaseTransitionTime"],
        "1970-01-01T00:00:00Z"
    );
    assert_eq!(moved["spec"], old["spec"]);
}

#[test]
fn a_claim_asks_for_something() {
    let errors = |spec: Value| create_errors("persistentvolumeclaims", claim(spec));
    assert!(errors(json!({})).is_empty());
    assert_eq!(
        errors(
            json!({"accessModes": [], "resources": {}, "storageClassName": "No", "volumeMode": "Tape"})
        ),
        [
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources[storage]: Required value",
            r#"spec.storageClassName: Invalid value: "No": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
            r#"spec.volumeMode: Unsupported value: "Tape": supported values: "Block", "Filesystem""#,
        ]
    );
    assert_eq!(
        errors(json!({"accessModes": ["Often"], "dataSource": {"kind": "Disk", "name": "a"}})),
        [
            r#"spec.accessModes: Unsupported value: "Often": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod""#,
            r#"spec.dataSource: Invalid value: "Disk": must be 'PersistentVolumeClaim' when referencing the default apiGroup"#,
        ]
    );
}

#[test]
fn a_claim_is_filled_in_once_and_only_a_bound_one_may_grow() {
    const FROZEN: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    let strategy = &descriptor("persistentvolumeclaims").strategy;
    let errors = |new: Value, old: Value| texts(strategy.validate_update(&new, &old, None));
    let mut classless = claim(json!({}));
    classless["spec"]
        .as_object_mut()
        .unwrap()
        .remove("storageClassName");
    let named = |name: &str| claim(json!({"volumeName": name}));
    assert!(errors(named("v"), claim(json!({}))).is_empty());
    assert!(errors(claim(json!({})), classless).is_empty());
    assert_eq!(errors(named("w"), named("v")), [FROZEN]);
    let other = claim(json!({"storageClassName": "other"}));
    assert_eq!(errors(other, claim(json!({}))), [FROZEN]);
    let sized = |size: &str| json!({"resources": {"requests": {"storage": size}}});
    assert_eq!(errors(claim(sized("2Gi")), claim(json!({}))), [FROZEN]);
    let mut bound = claim(json!({}));
    bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
    assert!(errors(claim(sized("2Gi")), bound.clone()).is_empty());
    assert_eq!(
        errors(claim(sized("500Mi")), bound),
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    );
}

#[test]
fn a_class_names_its_provisioner_for_good() {
    assert_eq!(
        create_errors(
            CLASSES,
            json!({"reclaimPolicy": "Recycle", "volumeBindingMode": "Later"})
        ),
        [
            "provisioner: Required value",
            r#"reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain""#,
            r#"volumeBindingMode: Unsupported value: "Later": supported values: "Immediate", "WaitForFirstConsumer""#,
        ]
    );
    let class = |policy: &str, mode: &str| json!({"provisioner": "a.b/c", "reclaimPolicy": policy, "volumeBindingMode": mode});
    assert_eq!(
        update_errors(
            CLASSES,
            class("Retain", "WaitForFirstConsumer"),
            class("Delete", "Immediate"),
            None
        ),
        [
            "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
            r#"volumeBindingMode: Invalid value: "WaitForFirstConsumer": field is immutable"#,
        ]
    );
}

#[test]
fn containers_of_a_stateful_set_mount_its_claims() {
    let set = |mount: &str| {
        let containers = json!([{"name": "a", "image": "x", "volumeMounts": [{"name": mount, "mountPath": "/data"}]}]);
        json!({"metadata": {"name": "s"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "volumeClaimTemplates": [claim(json!({}))],
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}}})
    };
    assert_eq!(create_errors("statefulsets.apps", set("data")), [""; 0]);
    assert_eq!(
        create_errors("statefulsets.apps", set("other")),
        [r#"spec.template.spec.containers[0].volumeMounts[0].name: Not found: "other""#]
    );
    let made = create(&World::default(), "statefulsets.apps", set("data")).unwrap();
    assert_eq!(
        made["spec"]["volumeClaimTemplates"][0]["status"]["phase"],
        "Pending"
    );
    assert!(made["spec"]["template"]["spec"].get("volumes").is_none());
}
