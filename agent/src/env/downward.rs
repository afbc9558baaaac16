//! The downward API: a pod's own fields and resources as text
//! (<https://kubernetes.io/docs/concepts/workloads/pods/downward-api/>).

use amphipod_api::Quantity;
use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::resources::requests::{Amounts, amount, limits, requests};

/// What fields may refer to beside the pod object.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub node_name: String,
    /// What limits default to: the node's allocatable CPU (millis), memory, ephemeral storage (bytes).
    pub allocatable: Amounts,
}

/// `fieldRef`. Errors in the API server's words.
pub fn field(pod: &Pod, facts: &Facts, selector: &ObjectFieldSelector) -> Result<String, String> {
    let m = &pod.metadata;
    let spec = pod.spec.as_ref();
    let path = selector.field_path.as_str();
    if let Some((head, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match head {
            "metadata.labels" => m.labels.as_ref(),
            "metadata.annotations" => m.annotations.as_ref(),
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let text = match path {
        "metadata.name" => m.name.clone().unwrap_or_default(),
        "metadata.namespace" => m.namespace.clone().unwrap_or_default(),
        "metadata.uid" => m.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(m.labels.as_ref()),
        "metadata.annotations" => format_map(m.annotations.as_ref()),
        "spec.nodeName" => spec
            .and_then(|s| s.node_name.clone())
            .unwrap_or_else(|| facts.node_name.clone()),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    };
    Ok(text)
}

/// One `key="value"` a line, sorted, values quoted as Go's `%q`.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", go_quote(v)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Go's `%q`.
pub fn go_quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `resourceFieldRef` of `container` (or of the container it names), divided by its divisor and rounded up.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    facts: &Facts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let spec = pod.spec.as_ref();
    let container = match named {
        Some(name) => spec
            .and_then(|s| {
                s.containers
                    .iter()
                    .chain(s.init_containers.iter().flatten())
                    .find(|c| c.name == name)
            })
            .ok_or_else(|| format!("container {name} not found"))?,
        None => container.ok_or_else(|| "container name is required".to_string())?,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let amounts = match kind {
        "limits" => limits(container),
        "requests" => requests(container),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                selector.resource
            ));
        }
    };
    let mut value = amounts.get(name).copied().unwrap_or(0);
    if value == 0 && kind == "limits" {
        value = facts.allocatable.get(name).copied().unwrap_or(0);
    }
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|d| d.0.parse::<Quantity>().is_ok_and(|q| !q.is_zero()));
    let divisor = match divisor {
        Some(d) => amount(name, d),
        None if name == "cpu" => 1000,
        None => 1,
    }
    .max(1);
    Ok((value + divisor - 1).div_euclid(divisor).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "100Mi"}}}]},
        }))
        .unwrap()
    }

    fn f(path: &str) -> Result<String, String> {
        let facts = Facts {
            pod_ips: vec!["1.1.1.1".into(), "::1".into()],
            host_ips: vec!["2.2.2.2".into()],
            node_name: "box".into(),
            ..Default::default()
        };
        field(
            &pod(),
            &facts,
            &ObjectFieldSelector {
                api_version: None,
                field_path: path.into(),
            },
        )
    }

    #[test]
    fn fields() {
        assert_eq!(f("metadata.name").unwrap(), "p");
        assert_eq!(f("metadata.labels").unwrap(), "a=\"x\\\"y\"\nb=\"2\"");
        assert_eq!(f("metadata.labels['b']").unwrap(), "2");
        assert_eq!(f("metadata.annotations['none']").unwrap(), "");
        assert_eq!(f("status.podIPs").unwrap(), "1.1.1.1,::1");
        assert_eq!(f("status.hostIP").unwrap(), "2.2.2.2");
        assert_eq!(f("spec.nodeName").unwrap(), "box");
        assert!(f("spec.nonsense").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let p = pod();
        let facts = Facts {
            allocatable: [("cpu".to_string(), 2000)].into(),
            ..Default::default()
        };
        let r = |resource_: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                container_name: None,
                resource: resource_.into(),
                divisor: divisor
                    .map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.into())),
            };
            resource(
                &p,
                p.spec.as_ref().unwrap().containers.first(),
                &facts,
                &selector,
            )
            .unwrap()
        };
        assert_eq!(r("requests.cpu", None), "1");
        assert_eq!(r("requests.cpu", Some("1m")), "250");
        assert_eq!(r("limits.memory", Some("1Mi")), "100");
        assert_eq!(r("limits.memory", Some("0")), "104857600");
        assert_eq!(r("limits.cpu", None), "2", "no limit: what the node has");
    }
}
