//! What the endpoints of services need to know of a pod.

use std::net::IpAddr;

use amphipod_api::ip::parse_ip;
use k8s_openapi::api::core::v1::ObjectReference;
use serde::Deserialize;

use crate::cache::{Event, EventType, Object};
use crate::controllers::{Result, typed};

/// A pod that may answer for a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Addresses as written and of either family. None: the pod has no network yet, or is over.
    pub ips: Vec<String>,
    pub node: String,
    pub hostname: String,
    pub subdomain: String,
    /// Ports of its containers that have a name: name, protocol, number.
    pub ports: Vec<(String, String, i32)>,
    pub ready: bool,
    pub terminating: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    spec: WireSpec,
    status: WireStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSpec {
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    containers: Option<Vec<WireContainer>>,
    init_containers: Option<Vec<WireContainer>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireContainer {
    restart_policy: Option<String>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<WireIp>>,
    conditions: Option<Vec<WireCondition>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireIp {
    ip: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireCondition {
    r#type: String,
    status: String,
}

impl Backend {
    /// Reads a pod.
    ///
    /// # Errors
    /// The stored object is not a pod.
    pub fn read(object: &Object) -> Result<Backend> {
        let Wire { spec, status } = typed(object)?;
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let mut ips: Vec<String> = status
            .pod_ips
            .into_iter()
            .flatten()
            .map(|ip| ip.ip)
            .collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip);
        }
        ips.retain(|ip| !over && !ip.is_empty());
        let sidecars = spec.init_containers.into_iter().flatten();
        let sidecars =
            sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec
            .containers
            .into_iter()
            .flatten()
            .chain(sidecars)
            .flat_map(|container| container.ports.unwrap_or_default());
        let ports = ports.filter_map(|port| {
            Some((
                port.name?,
                port.protocol.unwrap_or_else(|| "TCP".to_owned()),
                port.container_port,
            ))
        });
        Ok(Backend {
            namespace: object.meta.namespace.to_string(),
            name: object.meta.name.to_string(),
            uid: object.meta.uid.to_string(),
            ips,
            node: spec.node_name.unwrap_or_default(),
            hostname: spec.hostname.unwrap_or_default(),
            subdomain: spec.subdomain.unwrap_or_default(),
            ports: ports.collect(),
            ready: status
                .conditions
                .into_iter()
                .flatten()
                .any(|c| c.r#type == "Ready" && c.status == "True"),
            terminating: object.meta.is_deleting(),
        })
    }

    /// Its addresses of one family.
    pub fn ips_of(&self, v6: bool) -> impl Iterator<Item = &str> {
        self.ips
            .iter()
            .map(String::as_str)
            .filter(move |ip| parse_ip(ip).is_some_and(|ip| ip.is_ipv6() == v6))
    }

    pub fn port_named(&self, name: &str, protocol: &str) -> Option<i32> {
        self.ports
            .iter()
            .find(|port| port.0 == name && port.1 == protocol)
            .map(|port| port.2)
    }

    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Whether a change of a pod may change endpoints.
pub fn counts(event: &Event) -> bool {
    let Some(prev) = event
        .prev
        .as_ref()
        .filter(|_| event.kind == EventType::Modified)
    else {
        return true;
    };
    if prev.meta.labels != event.object.meta.labels {
        return true;
    }
    match (Backend::read(prev), Backend::read(&event.object)) {
        (Ok(was), Ok(is)) => was != is,
        _ => true,
    }
}

/// The name of the family, as `addressType` and `ipFamilies` have it.
pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { "IPv6" } else { "IPv4" }
}
