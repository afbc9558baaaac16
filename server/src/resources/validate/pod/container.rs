//! Containers, init containers and ephemeral containers.

use std::collections::{HashMap, HashSet};

use amphipod_api::meta::{array_at, at, bool_at, i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use serde_json::Value;

use super::{Where, env, one_of_required, probe, quantities, security};
use crate::resources::validate::{Errors, one_of, problems};

/// Volumes by name.
pub type Volumes<'a> = HashMap<&'a str, &'a Value>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Init,
    Ephemeral,
}

/// All containers of a spec.
pub fn all(spec: &Value, path: &FieldPath, volumes: &Volumes, place: Where, errors: &mut Errors) {
    let grace = i64_at(spec, &["terminationGracePeriodSeconds"]).unwrap_or(30);
    let list = path.child("containers");
    let containers = array_at(spec, &["containers"]);
    let mut names: HashSet<&str> = HashSet::new();
    if containers.is_empty() {
        errors.push(FieldError::required(list, ""));
    }
    let check = Check {
        volumes,
        place,
        grace,
    };
    for (index, container) in containers.iter().enumerate() {
        check.container(
            &list.index(index),
            container,
            Role::Main,
            &mut names,
            errors,
        );
    }
    host_ports(containers, &list, errors);

    let list = path.child("initContainers");
    for (index, container) in array_at(spec, &["initContainers"]).iter().enumerate() {
        let path = list.index(index);
        check.container(&path, container, Role::Init, &mut names, errors);
        init_only(&path, container, errors);
        host_ports(std::slice::from_ref(container), &list, errors);
    }

    let list = path.child("ephemeralContainers");
    for (index, container) in array_at(spec, &["ephemeralContainers"]).iter().enumerate() {
        let path = list.index(index);
        check.container(&path, container, Role::Ephemeral, &mut names, errors);
        ephemeral_only(&path, container, spec, errors);
    }
}

/// What init containers may have only if they keep running beside the others.
fn init_only(path: &FieldPath, container: &Value, errors: &mut Errors) {
    if str_at(container, &["restartPolicy"]) == "Always" {
        return;
    }
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if container.get(field).is_some() {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(path.child(field), why));
        }
    }
}

fn ephemeral_only(path: &FieldPath, container: &Value, spec: &Value, errors: &mut Errors) {
    for field in [
        "lifecycle",
        "livenessProbe",
        "ports",
        "readinessProbe",
        "resizePolicy",
        "startupProbe",
    ] {
        if container.get(field).is_some() {
            errors.push(FieldError::forbidden(
                path.child(field),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
    if container
        .get("resources")
        .is_some_and(|r| r.as_object().is_some_and(|r| !r.is_empty()))
    {
        errors.push(FieldError::forbidden(
            path.child("resources"),
            "cannot be set for an Ephemeral Container",
        ));
    }
    let target = str_at(container, &["targetContainerName"]);
    let exists = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| array_at(spec, &[*list]))
        .any(|c| str_at(c, &["name"]) == target);
    if !target.is_empty() && !exists {
        errors.push(FieldError::not_found(
            path.child("targetContainerName"),
            target,
        ));
    }
    for (index, mount) in array_at(container, &["volumeMounts"]).iter().enumerate() {
        for field in ["subPath", "subPathExpr"] {
            if !str_at(mount, &[field]).is_empty() {
                let list = path.child("volumeMounts");
                let path = list.index(index);
                errors.push(FieldError::forbidden(
                    path.child(field),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
    }
}

struct Check<'a> {
    volumes: &'a Volumes<'a>,
    place: Where,
    grace: i64,
}

impl Check<'_> {
    fn container<'a>(
        &self,
        path: &FieldPath,
        container: &'a Value,
        role: Role,
        seen: &mut HashSet<&'a str>,
        errors: &mut Errors,
    ) {
        let name = str_at(container, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else {
            problems(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            );
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        let image = str_at(container, &["image"]);
        if image.is_empty() {
            errors.push(FieldError::required(path.child("image"), ""));
        } else if self.place == Where::Pod && image.trim() != image {
            let why = "must not have leading or trailing whitespace";
            errors.push(FieldError::invalid(path.child("image"), image, why));
        }
        if role != Role::Ephemeral {
            probe::lifecycle(container, &path.child("lifecycle"), self.grace, errors);
            probe::probes(container, path, errors);
        }
        let policy = str_at(container, &["terminationMessagePolicy"]);
        let policies = ["File", "FallbackToLogsOnError"];
        one_of_required(
            &path.child("terminationMessagePolicy"),
            policy,
            &policies,
            errors,
        );
        ports(
            array_at(container, &["ports"]),
            &path.child("ports"),
            errors,
        );
        env::variables(array_at(container, &["env"]), &path.child("env"), errors);
        env::sources(
            array_at(container, &["envFrom"]),
            &path.child("envFrom"),
            errors,
        );
        self.mounts(container, &path.child("volumeMounts"), errors);
        self.devices(container, &path.child("volumeDevices"), errors);
        let policy = str_at(container, &["imagePullPolicy"]);
        let policies = ["Always", "IfNotPresent", "Never"];
        one_of_required(&path.child("imagePullPolicy"), policy, &policies, errors);
        quantities::requirements(&container["resources"], &path.child("resources"), errors);
        security::container(
            &container["securityContext"],
            &path.child("securityContext"),
            errors,
        );
        let policy = str_at(container, &["restartPolicy"]);
        if !policy.is_empty() {
            one_of(
                &path.child("restartPolicy"),
                policy,
                &["Always", "OnFailure", "Never"],
                errors,
            );
        }
        let list = path.child("resizePolicy");
        for (index, policy) in array_at(container, &["resizePolicy"]).iter().enumerate() {
            let path = list.index(index);
            one_of(
                &path.child("resourceName"),
                str_at(policy, &["resourceName"]),
                &["cpu", "memory"],
                errors,
            );
            let policies = ["NotRequired", "RestartContainer"];
            one_of(
                &path.child("restartPolicy"),
                str_at(policy, &["restartPolicy"]),
                &policies,
                errors,
            );
        }
    }

    fn mounts(&self, container: &Value, path: &FieldPath, errors: &mut Errors) {
        let mut mount_paths = HashSet::new();
        let devices: HashSet<&str> = array_at(container, &["volumeDevices"])
            .iter()
            .map(|device| str_at(device, &["name"]))
            .collect();
        for (index, mount) in array_at(container, &["volumeMounts"]).iter().enumerate() {
            let path = path.index(index);
            let name = str_at(mount, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(path.child("name"), ""));
            }
            if !self.volumes.contains_key(name) {
                errors.push(FieldError::not_found(path.child("name"), name));
            }
            let target = str_at(mount, &["mountPath"]);
            if target.is_empty() {
                errors.push(FieldError::required(path.child("mountPath"), ""));
            }
            if !mount_paths.insert(target) {
                errors.push(FieldError::invalid(
                    path.child("mountPath"),
                    target,
                    "must be unique",
                ));
            }
            if devices.contains(name) {
                errors.push(FieldError::invalid(
                    path.child("name"),
                    name,
                    "must not already exist in volumeDevices",
                ));
            }
            let (sub, expr) = (str_at(mount, &["subPath"]), str_at(mount, &["subPathExpr"]));
            if !sub.is_empty() {
                descending_path(&path.child("subPath"), sub, errors);
            }
            if !expr.is_empty() {
                if !sub.is_empty() {
                    let why = "subPathExpr and subPath are mutually exclusive";
                    errors.push(FieldError::invalid(path.child("subPathExpr"), expr, why));
                }
                descending_path(&path.child("subPathExpr"), expr, errors);
            }
            propagation(&path, mount, container, errors);
        }
    }

    fn devices(&self, container: &Value, path: &FieldPath, errors: &mut Errors) {
        for (index, device) in array_at(container, &["volumeDevices"]).iter().enumerate() {
            let path = path.index(index);
            let name = str_at(device, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(path.child("name"), ""));
            }
            match self.volumes.get(name) {
                None => errors.push(FieldError::not_found(path.child("name"), name)),
                Some(volume)
                    if volume.get("persistentVolumeClaim").is_none()
                        && volume.get("ephemeral").is_none() =>
                {
                    let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    errors.push(FieldError::invalid(path.child("name"), name, why));
                }
                Some(_) => {}
            }
            let device_path = str_at(device, &["devicePath"]);
            if device_path.is_empty() {
                errors.push(FieldError::required(path.child("devicePath"), ""));
            } else if device_path.split('/').any(|part| part == "..") {
                let why = "can not contain backsteps ('..')";
                errors.push(FieldError::invalid(
                    path.child("devicePath"),
                    device_path,
                    why,
                ));
            }
        }
    }
}

fn propagation(path: &FieldPath, mount: &Value, container: &Value, errors: &mut Errors) {
    let read_only = bool_at(mount, &["readOnly"]) == Some(true);
    if let Some(mode) = mount.get("mountPropagation").and_then(Value::as_str) {
        let path = path.child("mountPropagation");
        let privileged = bool_at(container, &["securityContext", "privileged"]) == Some(true);
        if mode == "Bidirectional" && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(path, why));
        }
        one_of(
            &path,
            mode,
            &["Bidirectional", "HostToContainer", "None"],
            errors,
        );
    }
    if let Some(mode) = mount.get("recursiveReadOnly").and_then(Value::as_str) {
        let path = path.child("recursiveReadOnly");
        one_of(&path, mode, &["Disabled", "IfPossible", "Enabled"], errors);
        if mode != "Disabled" && !read_only {
            errors.push(FieldError::forbidden(
                path,
                "may only be specified when readOnly is true",
            ));
        }
    }
}

/// A path inside a volume.
pub fn descending_path(path: &FieldPath, target: &str, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, target, "must not contain '..'"));
    }
}

fn ports(ports: &[Value], path: &FieldPath, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            let found = names::port_name(name);
            let valid = found.is_empty();
            problems(&path.child("name"), name, found, errors);
            if valid && !seen.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        match i64_at(port, &["containerPort"]).unwrap_or(0) {
            0 => errors.push(FieldError::required(path.child("containerPort"), "")),
            number => {
                for problem in names::port_number(number) {
                    errors.push(FieldError::invalid(
                        path.child("containerPort"),
                        number,
                        problem,
                    ));
                }
            }
        }
        if let Some(number) = i64_at(port, &["hostPort"]).filter(|n| *n != 0) {
            for problem in names::port_number(number) {
                errors.push(FieldError::invalid(path.child("hostPort"), number, problem));
            }
        }
        let protocol = str_at(port, &["protocol"]);
        one_of_required(
            &path.child("protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
}

/// No two containers on the same port of the host.
fn host_ports(containers: &[Value], list: &FieldPath, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = list.index(index);
        let ports = path.child("ports");
        for (index, port) in array_at(container, &["ports"]).iter().enumerate() {
            let Some(number) = i64_at(port, &["hostPort"]).filter(|n| *n != 0) else {
                continue;
            };
            let key = format!(
                "{}/{}/{number}",
                str_at(port, &["protocol"]),
                str_at(port, &["hostIP"])
            );
            if seen.contains(&key) {
                errors.push(FieldError::duplicate(
                    ports.index(index).child("hostPort"),
                    key,
                ));
            } else {
                seen.insert(key);
            }
        }
    }
}

/// In the host's network, a container's port is the host's.
pub fn host_network_ports(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        let path = path.child(list);
        for (index, container) in array_at(spec, &[list]).iter().enumerate() {
            let path = path.index(index);
            let path = path.child("ports");
            for (index, port) in array_at(container, &["ports"]).iter().enumerate() {
                let (host, inner) = (at(port, &["hostPort"]), at(port, &["containerPort"]));
                if host.is_some() && host != inner {
                    let why = "must match `hostPort` when `hostNetwork` is true";
                    let value = inner.cloned().unwrap_or_default();
                    errors.push(FieldError::invalid(
                        path.index(index).child("containerPort"),
                        value,
                        why,
                    ));
                }
            }
        }
    }
}
