//! Ingress and IngressClass: <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/ingress-v1/>. The objects only: as
//! upstream, who wants them served installs an ingress controller.

use amphipod_api::meta::{array_at, at, i64_at, map_at, str_at};
use amphipod_api::{FieldError, FieldPath, Status, names};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1;
use serde_json::{Value, json};

use super::Kind;
use crate::resources::common::{
    create_with_status, fill_text, raise_generation, set_generation, spec_mut, update_with_status,
};
use crate::resources::table::{NONE, age_cell, name, or_none};
use crate::resources::validate::{Errors, immutable, one_of, problems};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

const SPEC: FieldPath = FieldPath::new("spec");

pub fn ingress() -> Descriptor {
    Kind::new::<v1::Ingress>("networking.k8s.io", "v1", "Ingress", "ingresses")
        .short(&["ing"])
        .status()
        .columns(vec![
            Column::name(),
            Column::new("Class", "The IngressClass that serves it."),
            Column::new("Hosts", "Hosts of its rules."),
            Column::new("Address", "Where it is served."),
            Column::new("Ports", "Ports where it is served."),
            Column::age(),
        ])
        .strategy(Ingress)
        .build()
}

pub fn ingress_class() -> Descriptor {
    Kind::new::<v1::IngressClass>("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
        .cluster()
        .columns(vec![
            Column::name(),
            Column::new("Controller", "Who serves ingresses of the class."),
            Column::new("Parameters", "Where the controller finds more."),
            Column::age(),
        ])
        .strategy(IngressClass)
        .build()
}

struct Ingress;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingress {
    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        create_with_status(obj, json!({"loadBalancer": {}}));
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        update_with_status(new, old, sub, &["spec"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = spec(obj);
        let annotations = FieldPath::new("metadata.annotations");
        let class = str_at(obj, &["metadata", "annotations", CLASS_ANNOTATION]);
        if !class.is_empty() && !str_at(obj, &["spec", "ingressClassName"]).is_empty() {
            let why = "can not be set when the class field is also set";
            errors.push(FieldError::invalid(
                annotations.key(CLASS_ANNOTATION),
                class,
                why,
            ));
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, sub: Option<&str>) -> Vec<FieldError> {
        if sub == Some("status") {
            return Vec::new();
        }
        spec(new)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let class = match str_at(obj, &["spec", "ingressClassName"]) {
            "" => str_at(obj, &["metadata", "annotations", CLASS_ANNOTATION]),
            class => class,
        };
        let hosts: Vec<&str> = array_at(obj, &["spec", "rules"])
            .iter()
            .map(|rule| str_at(rule, &["host"]))
            .filter(|host| !host.is_empty())
            .collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            1..=3 => hosts.join(","),
            n => format!("{} + {} more...", hosts[..3].join(","), n - 3),
        };
        let addresses: Vec<&str> = array_at(obj, &["status", "loadBalancer", "ingress"])
            .iter()
            .map(|point| match str_at(point, &["ip"]) {
                "" => str_at(point, &["hostname"]),
                ip => ip,
            })
            .collect();
        let tls = !array_at(obj, &["spec", "tls"]).is_empty();
        vec![
            name(obj),
            or_none(class),
            hosts.into(),
            addresses.join(",").into(),
            if tls { "80, 443" } else { "80" }.into(),
            age_cell(obj, now),
        ]
    }
}

fn spec(obj: &Value) -> Errors {
    let mut errors = Vec::new();
    let rules = array_at(obj, &["spec", "rules"]);
    let default = at(obj, &["spec", "defaultBackend"]);
    if rules.is_empty() && default.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(SPEC, obj["spec"].clone(), why));
    }
    if let Some(default) = default {
        backend(default, &SPEC.child("defaultBackend"), &mut errors);
    }
    let class = str_at(obj, &["spec", "ingressClassName"]);
    if !class.is_empty() {
        problems(
            &SPEC.child("ingressClassName"),
            class,
            names::dns1123_subdomain(class),
            &mut errors,
        );
    }
    for (index, tls) in array_at(obj, &["spec", "tls"]).iter().enumerate() {
        let list = SPEC.child("tls");
        let path = list.index(index);
        for (index, name) in array_at(tls, &["hosts"]).iter().enumerate() {
            let hosts = path.child("hosts");
            host(
                name.as_str().unwrap_or_default(),
                &hosts.index(index),
                &mut errors,
            );
        }
        let secret = str_at(tls, &["secretName"]);
        if !secret.is_empty() {
            problems(
                &path.child("secretName"),
                secret,
                names::dns1123_subdomain(secret),
                &mut errors,
            );
        }
    }
    for (index, rule) in rules.iter().enumerate() {
        let list = SPEC.child("rules");
        let path = list.index(index);
        let name = str_at(rule, &["host"]);
        if !name.is_empty() {
            if name.parse::<std::net::IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(path.child("host"), name, why));
            } else {
                host(name, &path.child("host"), &mut errors);
            }
        }
        let Some(http) = rule.get("http") else {
            continue;
        };
        let http_field = path.child("http");
        let paths = http_field.child("paths");
        if array_at(http, &["paths"]).is_empty() {
            errors.push(FieldError::required(paths, ""));
        }
        for (index, entry) in array_at(http, &["paths"]).iter().enumerate() {
            http_path(entry, &paths.index(index), &mut errors);
        }
    }
    errors
}

/// A host name, which may begin with `*.`.
fn host(name: &str, path: &FieldPath, errors: &mut Errors) {
    let found = if name.contains('*') {
        names::wildcard_dns1123_subdomain(name)
    } else {
        names::dns1123_subdomain(name)
    };
    problems(path, name, found, errors);
}

fn http_path(entry: &Value, path: &FieldPath, errors: &mut Errors) {
    let text = str_at(entry, &["path"]);
    let at = path.child("path");
    match entry.get("pathType").and_then(Value::as_str) {
        None => errors.push(FieldError::required(
            path.child("pathType"),
            "pathType must be specified",
        )),
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                errors.push(FieldError::invalid(at, text, "must be an absolute path"));
            } else {
                for part in ["//", "/./", "/../", "%2f", "%2F"] {
                    if text.contains(part) {
                        let why = format!("must not contain '{part}'");
                        errors.push(FieldError::invalid(at, text, why));
                    }
                }
                for end in ["/..", "/."] {
                    if text.ends_with(end) {
                        let why = format!("cannot end with '{end}'");
                        errors.push(FieldError::invalid(at, text, why));
                    }
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(FieldError::invalid(at, text, "must be an absolute path"));
            }
        }
        Some(other) => one_of(
            &path.child("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
            errors,
        ),
    }
    backend(&entry["backend"], &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &FieldPath, errors: &mut Errors) {
    match (backend.get("service"), backend.get("resource")) {
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", why));
        }
        (None, None) => {
            let why = "resource or service backend is required";
            errors.push(FieldError::required(path, why));
        }
        (None, Some(resource)) => {
            let path = path.child("resource");
            for field in ["kind", "name"] {
                if str_at(resource, &[field]).is_empty() {
                    errors.push(FieldError::required(path.child(field), ""));
                }
            }
        }
        (Some(service), None) => service_backend(service, &path.child("service"), errors),
    }
}

fn service_backend(service: &Value, path: &FieldPath, errors: &mut Errors) {
    match str_at(service, &["name"]) {
        "" => errors.push(FieldError::required(path.child("name"), "")),
        name => problems(
            &path.child("name"),
            name,
            names::dns1035_label(name),
            errors,
        ),
    }
    let port = path.child("port");
    let name = str_at(service, &["port", "name"]);
    match (i64_at(service, &["port", "number"]).unwrap_or(0), name) {
        (0, "") => errors.push(FieldError::required(
            port,
            "port name or number is required",
        )),
        (0, name) => problems(&port.child("name"), name, names::port_name(name), errors),
        (number, "") => {
            for problem in names::port_number(number) {
                errors.push(FieldError::invalid(port.child("number"), number, problem));
            }
        }
        _ => {
            let why = "cannot set both port name & port number";
            errors.push(FieldError::invalid(path, "", why));
        }
    }
}

struct IngressClass;

impl Strategy for IngressClass {
    fn default(&self, obj: &mut Value) {
        if map_at(obj, &["spec", "parameters"]).is_empty() {
            return;
        }
        if let Some(parameters) = spec_mut(obj)
            .get_mut("parameters")
            .and_then(Value::as_object_mut)
        {
            fill_text(parameters, "scope", "Cluster");
        }
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        set_generation(obj, 1);
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        _: Option<&str>,
    ) -> Result<(), Status> {
        raise_generation(new, old, &["spec"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let controller = str_at(obj, &["spec", "controller"]);
        let path = SPEC.child("controller");
        if controller.len() > 250 {
            errors.push(FieldError::too_long(path, 250));
        }
        match controller.split_once('/') {
            _ if controller.is_empty() => errors.push(FieldError::required(path, "")),
            Some((domain, rest)) if !rest.is_empty() => {
                problems(
                    &path,
                    controller,
                    names::dns1123_subdomain(domain),
                    &mut errors,
                );
            }
            _ => {
                let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                errors.push(FieldError::invalid(path, controller, why));
            }
        }
        if let Some(parameters) = at(obj, &["spec", "parameters"]) {
            parameters_reference(parameters, &SPEC.child("parameters"), &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, _: Option<&str>) -> Vec<FieldError> {
        let mut errors = self.validate_create(new);
        immutable(
            &SPEC.child("controller"),
            at(new, &["spec", "controller"]),
            at(old, &["spec", "controller"]),
            &mut errors,
        );
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let parameters = match at(obj, &["spec", "parameters"]) {
            None => NONE.to_owned(),
            Some(p) => {
                let group = match str_at(p, &["apiGroup"]) {
                    "" => String::new(),
                    group => format!(".{group}"),
                };
                format!("{}{group}/{}", str_at(p, &["kind"]), str_at(p, &["name"]))
            }
        };
        vec![
            name(obj),
            str_at(obj, &["spec", "controller"]).into(),
            parameters.into(),
            age_cell(obj, now),
        ]
    }
}

fn parameters_reference(parameters: &Value, path: &FieldPath, errors: &mut Errors) {
    for field in ["kind", "name"] {
        if str_at(parameters, &[field]).is_empty() {
            errors.push(FieldError::required(path.child(field), ""));
        }
    }
    let namespace = str_at(parameters, &["namespace"]);
    match str_at(parameters, &["scope"]) {
        "Cluster" if !namespace.is_empty() => errors.push(FieldError::forbidden(
            path.child("namespace"),
            "`parameters.scope` is set to 'Cluster'",
        )),
        "Namespace" if namespace.is_empty() => errors.push(FieldError::required(
            path.child("namespace"),
            "`parameters.scope` is set to 'Namespace'",
        )),
        "Cluster" | "Namespace" => {}
        other => one_of(
            &path.child("scope"),
            other,
            &["Cluster", "Namespace"],
            errors,
        ),
    }
}
