//! What of policies and pods matters here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use amphipod_api::LabelSelector;
use amphipod_netplug::{Direction, IpNet, Protocol};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub type Labels = BTreeMap<String, String>;

/// A NetworkPolicy.
#[derive(Debug, Clone)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    pods: LabelSelector,
    /// `None`: pods are not isolated in this direction.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

#[derive(Debug, Clone)]
pub struct Rule {
    /// `None`: everyone.
    pub peers: Option<Vec<PeerIs>>,
    /// `None`: all traffic.
    pub ports: Option<Vec<PortIs>>,
}

#[derive(Debug, Clone)]
pub enum PeerIs {
    Block {
        net: IpNet,
        except: Vec<IpNet>,
    },
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `None`: all.
        pods: Option<LabelSelector>,
    },
}

#[derive(Debug, Clone)]
pub enum PortIs {
    Numbers {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    Name {
        protocol: Protocol,
        name: String,
    },
}

/// A pod with addresses of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub labels: Labels,
    pub ips: Vec<IpAddr>,
    /// Named ports of its containers.
    pub ports: Vec<(String, Protocol, u16)>,
}

fn protocol(value: &Value) -> Protocol {
    match value.as_str() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn list(value: &Value) -> Option<&Vec<Value>> {
    value.as_array().filter(|l| !l.is_empty())
}

impl Policy {
    /// Reads an object; the error says what of it cannot be understood.
    pub fn read(object: &Value) -> Result<Policy, String> {
        let spec = &object["spec"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let types: Vec<&str> = match list(&spec["policyTypes"]) {
            Some(types) => types.iter().filter_map(Value::as_str).collect(),
            None if list(&spec["egress"]).is_some() => vec!["Ingress", "Egress"],
            None => vec!["Ingress"],
        };
        let rules = |kind: &str, field: &str, peers: &str| {
            if !types.contains(&kind) {
                return Ok(None);
            }
            let rules = spec[field].as_array().into_iter().flatten();
            let rules = rules.map(|r| Rule::read(r, peers));
            rules.collect::<Result<Vec<_>, String>>().map(Some)
        };
        Ok(Policy {
            namespace: text(&object["metadata"]["namespace"]),
            name: text(&object["metadata"]["name"]),
            pods: selector(&spec["podSelector"])?,
            ingress: rules("Ingress", "ingress", "from")?,
            egress: rules("Egress", "egress", "to")?,
        })
    }

    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    pub fn selects(&self, pod: &PodView) -> bool {
        self.namespace == pod.namespace && self.pods.matches(&pod.labels)
    }
}

fn selector(value: &Value) -> Result<LabelSelector, String> {
    if value.is_null() {
        return Ok(LabelSelector::everything());
    }
    LabelSelector::from_object(value).map_err(|e| e.to_string())
}

impl Rule {
    fn read(rule: &Value, peers: &str) -> Result<Rule, String> {
        let peers = list(&rule[peers]).map(|l| l.iter().map(PeerIs::read).collect());
        let ports = list(&rule["ports"]).map(|l| l.iter().map(PortIs::read).collect());
        Ok(Rule {
            peers: peers.transpose()?,
            ports: ports.transpose()?,
        })
    }
}

impl PeerIs {
    fn read(peer: &Value) -> Result<PeerIs, String> {
        let net = |v: &Value| {
            let text = v.as_str().unwrap_or_default();
            text.parse::<IpNet>()
                .map_err(|_| format!("{text:?} is not a CIDR"))
        };
        let block = &peer["ipBlock"];
        if !block.is_null() {
            let except = block["except"].as_array().into_iter().flatten();
            return Ok(PeerIs::Block {
                net: net(&block["cidr"])?,
                except: except.map(net).collect::<Result<_, _>>()?,
            });
        }
        let given = |field: &str| {
            let value = &peer[field];
            (!value.is_null()).then(|| selector(value)).transpose()
        };
        Ok(PeerIs::Pods {
            namespaces: given("namespaceSelector")?,
            pods: given("podSelector")?,
        })
    }
}

impl PortIs {
    fn read(port: &Value) -> Result<PortIs, String> {
        let protocol = protocol(&port["protocol"]);
        let number = |v: &Value| {
            let number = v.as_u64().and_then(|n| u16::try_from(n).ok());
            number.ok_or_else(|| format!("{v} is not a port"))
        };
        let value = &port["port"];
        if let Some(name) = value.as_str() {
            return Ok(PortIs::Name {
                protocol,
                name: name.to_owned(),
            });
        }
        let (first, last) = match (value.is_null(), &port["endPort"]) {
            (true, _) => (0, u16::MAX),
            (false, Value::Null) => (number(value)?, number(value)?),
            (false, end) => (number(value)?, number(end)?),
        };
        Ok(PortIs::Numbers {
            protocol,
            first,
            last,
        })
    }
}

impl PodView {
    /// Reads an object; `None` if the pod has no addresses of its own, not yet or no more.
    pub fn read(pod: &Value) -> Option<PodView> {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        if ended || spec["hostNetwork"] == json!(true) {
            return None;
        }
        let mut ips: Vec<IpAddr> = status["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect();
        if ips.is_empty() {
            ips.extend(
                status["podIP"]
                    .as_str()
                    .and_then(|ip| ip.parse::<IpAddr>().ok()),
            );
        }
        if ips.is_empty() {
            return None;
        }
        Some(PodView::with(pod, ips))
    }

    /// A pod whose addresses are known otherwise.
    pub fn with(pod: &Value, ips: Vec<IpAddr>) -> PodView {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let meta = &pod["metadata"];
        let containers = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten());
        let ports = containers
            .flat_map(|c| c["ports"].as_array().into_iter().flatten())
            .filter_map(|p| {
                let number = u16::try_from(p["containerPort"].as_u64()?).ok()?;
                Some((
                    p["name"].as_str()?.to_owned(),
                    protocol(&p["protocol"]),
                    number,
                ))
            });
        PodView {
            uid: text(&meta["uid"]),
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            node: text(&pod["spec"]["nodeName"]),
            labels: labels(pod),
            ips,
            ports: ports.collect(),
        }
    }

    /// The number of a named port.
    pub fn port(&self, protocol: Protocol, name: &str) -> Option<u16> {
        let same = |(n, p, _): &&(String, Protocol, u16)| n == name && *p == protocol;
        self.ports.iter().find(same).map(|(_, _, number)| *number)
    }
}

/// The labels of an object.
pub fn labels(object: &Value) -> Labels {
    let labels = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten();
    labels
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}
