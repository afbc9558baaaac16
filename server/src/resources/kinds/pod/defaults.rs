//! What v1.36 fills into pods and pod templates.

use amphipod_api::meta::child;
use serde_json::{Map, Value, json};

use crate::resources::common::{fill, fill_text, items_mut, object_mut, spec_mut};

/// A pod: its spec, and what templates do not get.
pub fn pod(obj: &mut Value) {
    let spec = spec_mut(obj);
    pod_spec(spec);
    fill(spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for container in items_mut(spec, list) {
                for port in items_mut(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        fill(port, "hostPort", number);
                    }
                }
            }
        }
    }
}

/// `spec.template` of a workload: labels and spec.
pub fn pod_template(template: &mut Map<String, Value>) {
    template.entry("metadata").or_insert_with(|| json!({}));
    let spec = template.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    same_service_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            self::container(container);
        }
    }
    for volume in items_mut(spec, "volumes") {
        self::volume(volume);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always shown.
fn same_service_account(spec: &mut Map<String, Value>) {
    let name = ["serviceAccountName", "serviceAccount"]
        .iter()
        .filter_map(|field| spec.get(*field).and_then(Value::as_str))
        .find(|name| !name.is_empty())
        .map(str::to_owned);
    for field in ["serviceAccountName", "serviceAccount"] {
        match &name {
            Some(name) => drop(spec.insert(field.into(), name.clone().into())),
            None => drop(spec.remove(field)),
        }
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = object_mut(container, "resources") else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn container(container: &mut Map<String, Value>) {
    let image = container
        .get("image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let policy = pull_policy(image);
    fill_text(container, "imagePullPolicy", policy);
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in items_mut(container, "ports") {
        fill_text(port, "protocol", "TCP");
        if port.get("hostPort") == Some(&json!(0)) {
            port.remove("hostPort");
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(from) = object_mut(variable, "valueFrom") {
            sources(from);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = object_mut(container, probe) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = object_mut(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = object_mut(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

/// `Always` for images that move: tagged `latest`, or not at all.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or_default();
    if name.contains('@') {
        return "IfNotPresent";
    }
    match name.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

fn probe(probe: &mut Map<String, Value>) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe.get(field).and_then(Value::as_i64).unwrap_or_default() == 0 {
            probe.insert(field.into(), value.into());
        }
    }
    if let Some(grpc) = object_mut(probe, "grpc") {
        fill(grpc, "service", "");
    }
    http_get(probe);
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = object_mut(handler, "httpGet") {
        fill_text(get, "path", "/");
        fill_text(get, "scheme", "HTTP");
    }
}

/// References to fields of the pod, in variables and in downward API files.
fn sources(from: &mut Map<String, Value>) {
    if let Some(field) = object_mut(from, "fieldRef") {
        fill_text(field, "apiVersion", "v1");
    }
    if let Some(resource) = object_mut(from, "resourceFieldRef") {
        fill(resource, "divisor", "0");
    }
    if let Some(file) = object_mut(from, "fileKeyRef") {
        fill(file, "optional", false);
    }
}

/// The mode of files from secrets and config maps: 0644.
const FILE_MODE: i64 = 0o644;

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|k| k == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = object_mut(volume, kind) {
            fill(source, "defaultMode", FILE_MODE);
            for item in items_mut(source, "items") {
                sources(item);
            }
            for projection in items_mut(source, "sources") {
                if let Some(token) = object_mut(projection, "serviceAccountToken") {
                    fill(token, "expirationSeconds", 3600);
                }
                if let Some(downward) = object_mut(projection, "downwardAPI") {
                    items_mut(downward, "items").for_each(sources);
                }
            }
        }
    }
    if let Some(template) = object_mut(volume, "ephemeral")
        .and_then(|ephemeral| object_mut(ephemeral, "volumeClaimTemplate"))
        && let Some(spec) = object_mut(template, "spec")
    {
        fill_text(spec, "volumeMode", "Filesystem");
    }
    if let Some(path) = object_mut(volume, "hostPath") {
        fill(path, "type", "");
    }
    if let Some(image) = object_mut(volume, "image") {
        let policy = pull_policy(
            image
                .get("reference")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        fill_text(image, "pullPolicy", policy);
    }
    if let Some(claim) = volume
        .get_mut("ephemeral")
        .and_then(|e| e.get_mut("volumeClaimTemplate"))
    {
        let spec = child(claim, "spec");
        fill_text(spec, "volumeMode", "Filesystem");
    }
    if let Some(iscsi) = object_mut(volume, "iscsi") {
        fill_text(iscsi, "iscsiInterface", "default");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use amphipod_api::meta::str_at;

    use super::*;

    #[test]
    fn a_bare_pod_gets_the_defaults_that_kubectl_shows() {
        let mut obj = json!({"spec": {"containers": [{"name": "a", "image": "nginx",
            "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "c"}}]}});
        pod(&mut obj);
        assert_eq!(
            obj["spec"],
            json!({
                "containers": [{"name": "a", "image": "nginx", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName", "apiVersion": "v1"}}}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c", "defaultMode": 420}}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            })
        );
        let once = obj.clone();
        pod(&mut obj);
        assert_eq!(obj, once, "defaulting again changes nothing");
    }

    #[test]
    fn pull_policy_depends_on_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn host_network_ports_are_host_ports_in_pods_but_not_in_templates() {
        let spec = json!({"hostNetwork": true, "containers": [{"name": "a", "ports": [{"containerPort": 80}]}]});
        let mut obj = json!({"spec": spec});
        pod(&mut obj);
        assert_eq!(
            obj.pointer("/spec/containers/0/ports/0/hostPort"),
            Some(&json!(80))
        );
        let mut template = json!({"spec": spec});
        pod_template(template.as_object_mut().unwrap());
        assert_eq!(
            template.pointer("/spec/containers/0/ports/0/hostPort"),
            None
        );
    }

    #[test]
    fn both_names_of_the_service_account_are_kept_equal() {
        let mut obj = json!({"spec": {"serviceAccount": "x"}});
        pod(&mut obj);
        assert_eq!(str_at(&obj, &["spec", "serviceAccountName"]), "x");
    }
}
