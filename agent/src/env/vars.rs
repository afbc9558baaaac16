//! The environment of a container from `env` and `envFrom`; failures become CreateContainerConfigError in the kubelet's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use super::Objects;
use super::downward::{self, Facts};
use super::expand::expand;

/// An environment in the order in which variables were first named.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    vars: Vec<(String, String)>,
}

impl Environment {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn set(&mut self, name: &str, value: String) {
        match self.vars.iter_mut().find(|(n, _)| n == name) {
            Some(var) => var.1 = value,
            None => self.vars.push((name.to_string(), value)),
        }
    }

    /// `NAME=value` each.
    pub fn into_strings(self) -> Vec<String> {
        self.vars
            .into_iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect()
    }

    pub fn lookup(&self) -> impl Fn(&str) -> Option<String> + '_ {
        |name| self.get(name).map(str::to_string)
    }
}

/// Builds the environment of `container` of `pod`. `services` are the service variables; the container's own win over them.
pub fn environment(
    pod: &Pod,
    container: &Container,
    objects: &dyn Objects,
    facts: &Facts,
    services: &BTreeMap<String, String>,
) -> Result<Environment, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Environment::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match objects.config_map(namespace, &r.name)? {
                Some(cm) => {
                    for (k, v) in cm.data.iter().flatten() {
                        env.set(&format!("{prefix}{k}"), v.clone());
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match objects.secret(namespace, &r.name)? {
                Some(secret) => {
                    for (k, v) in secret.data.iter().flatten() {
                        env.set(
                            &format!("{prefix}{k}"),
                            String::from_utf8_lossy(&v.0).into_owned(),
                        );
                    }
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(
            pod, container, objects, facts, namespace, var, &env, services,
        )? {
            env.set(&var.name, value);
        }
    }
    for (name, value) in services {
        if env.get(name).is_none() {
            env.set(name, value.clone());
        }
    }
    Ok(env)
}

#[allow(clippy::too_many_arguments)]
fn value_of(
    pod: &Pod,
    container: &Container,
    objects: &dyn Objects,
    facts: &Facts,
    namespace: &str,
    var: &EnvVar,
    so_far: &Environment,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, String> {
    let look = |n: &str| {
        so_far
            .get(n)
            .map(str::to_string)
            .or_else(|| services.get(n).cloned())
    };
    let Some(from) = &var.value_from else {
        return Ok(Some(expand(var.value.as_deref().unwrap_or_default(), look)));
    };
    if let Some(r) = &from.field_ref {
        return downward::field(pod, facts, r).map(Some);
    }
    if let Some(r) = &from.resource_field_ref {
        return downward::resource(pod, Some(container), facts, r).map(Some);
    }
    if let Some(r) = &from.config_map_key_ref {
        let optional = r.optional == Some(true);
        return match objects.config_map(namespace, &r.name)? {
            None if optional => Ok(None),
            None => Err(format!("configmap \"{}\" not found", r.name)),
            Some(cm) => match cm.data.as_ref().and_then(|d| d.get(&r.key)) {
                Some(v) => Ok(Some(v.clone())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in ConfigMap {namespace}/{}",
                    r.key, r.name
                )),
            },
        };
    }
    if let Some(r) = &from.secret_key_ref {
        let optional = r.optional == Some(true);
        return match objects.secret(namespace, &r.name)? {
            None if optional => Ok(None),
            None => Err(format!("secret \"{}\" not found", r.name)),
            Some(secret) => match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
                Some(v) => Ok(Some(String::from_utf8_lossy(&v.0).into_owned())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in Secret {namespace}/{}",
                    r.key, r.name
                )),
            },
        };
    }
    Ok(Some(String::new()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::json;
    use std::sync::Arc;

    struct Fake;
    impl Objects for Fake {
        fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
            let cm = json!({"data": {"k": "v", "A": "from-cm"}});
            Ok((name == "cm").then(|| Arc::new(serde_json::from_value(cm).unwrap())))
        }
        fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>, String> {
            let s = json!({"data": {"k": "c2VjcmV0"}});
            Ok((name == "s").then(|| Arc::new(serde_json::from_value(s).unwrap())))
        }
    }

    fn env(c: serde_json::Value) -> Result<Vec<String>, String> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": []}}),
        )
        .unwrap();
        let mut v = json!({"name": "c"});
        v.as_object_mut()
            .unwrap()
            .extend(c.as_object().unwrap().clone());
        let services = [("WEB_SERVICE_HOST".to_string(), "10.43.0.2".to_string())].into();
        environment(
            &pod,
            &serde_json::from_value(v).unwrap(),
            &Fake,
            &Facts::default(),
            &services,
        )
        .map(Environment::into_strings)
    }

    #[test]
    fn later_sources_win_and_references_see_earlier_variables() {
        let got = env(json!({
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "S_", "secretRef": {"name": "s"}}],
            "env": [{"name": "A", "value": "own"}, {"name": "B", "value": "$(A)-$(k)-$(NO)-$(WEB_SERVICE_HOST)"},
                    {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "x", "optional": true}}}],
        }))
        .unwrap();
        assert_eq!(
            got,
            [
                "A=own",
                "k=v",
                "S_k=secret",
                "B=own-v-$(NO)-10.43.0.2",
                "N=p",
                "WEB_SERVICE_HOST=10.43.0.2"
            ]
        );
    }

    #[test]
    fn missing_objects_and_keys_are_told_as_users_know_it() {
        let e = |from: serde_json::Value| {
            env(json!({"env": [{"name": "A", "valueFrom": from}]})).unwrap_err()
        };
        assert_eq!(
            e(json!({"configMapKeyRef": {"name": "no", "key": "k"}})),
            "configmap \"no\" not found"
        );
        assert_eq!(
            e(json!({"configMapKeyRef": {"name": "cm", "key": "no"}})),
            "couldn't find key no in ConfigMap ns/cm"
        );
        assert_eq!(
            e(json!({"secretKeyRef": {"name": "no", "key": "k"}})),
            "secret \"no\" not found"
        );
        assert_eq!(
            e(json!({"secretKeyRef": {"name": "s", "key": "no"}})),
            "couldn't find key no in Secret ns/s"
        );
        assert_eq!(
            env(json!({"envFrom": [{"configMapRef": {"name": "no"}}]})).unwrap_err(),
            "configmap \"no\" not found"
        );
    }
}
