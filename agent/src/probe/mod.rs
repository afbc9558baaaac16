//! Probes: is a container started, alive, ready? (<https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/>)
//!
//! [`Tracker`] counts results and says when a verdict changes; it is pure. [`worker`] asks at the right times. The rest asks.

pub mod exec;
pub mod grpc;
pub mod http;
pub mod tcp;
mod worker;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPHeader, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub use worker::{Subject, Verdict, Worker, spawn};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// How to ask; everything resolved but the pod's address.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    Exec(Vec<String>),
    Http {
        host: Option<String>,
        port: u16,
        path: String,
        https: bool,
        headers: Vec<HTTPHeader>,
    },
    Tcp {
        host: Option<String>,
        port: u16,
    },
    Grpc {
        port: u16,
        service: String,
    },
}

/// One probe of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeSpec {
    pub kind: ProbeKind,
    pub check: Check,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    /// The probe's own `terminationGracePeriodSeconds`.
    pub grace: Option<Duration>,
}

/// What one attempt gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The container says no, or says nothing in time.
    Failure(String),
    /// We could not ask.
    Error(String),
}

impl ProbeSpec {
    pub fn of(kind: ProbeKind, container: &Container) -> Option<Result<ProbeSpec, String>> {
        let probe = match kind {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }?;
        Some(Self::build(kind, container, probe))
    }

    fn build(kind: ProbeKind, container: &Container, probe: &Probe) -> Result<ProbeSpec, String> {
        let check = if let Some(e) = &probe.exec {
            Check::Exec(e.command.clone().unwrap_or_default())
        } else if let Some(h) = &probe.http_get {
            http_check(container, h)?
        } else if let Some(t) = &probe.tcp_socket {
            Check::Tcp {
                host: t.host.clone().filter(|h| !h.is_empty()),
                port: port(container, &t.port)?,
            }
        } else if let Some(g) = &probe.grpc {
            let port =
                u16::try_from(g.port).map_err(|_| format!("invalid port number: {}", g.port))?;
            Check::Grpc {
                port,
                service: g.service.clone().unwrap_or_default(),
            }
        } else {
            return Err("missing probe handler".into());
        };
        let seconds = |v: Option<i32>, default: i32| {
            Duration::from_secs(v.filter(|v| *v > 0).unwrap_or(default) as u64)
        };
        Ok(ProbeSpec {
            kind,
            check,
            initial_delay: Duration::from_secs(
                probe.initial_delay_seconds.unwrap_or(0).max(0) as u64
            ),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: probe.success_threshold.unwrap_or(1).max(1) as u32,
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1) as u32,
            grace: probe
                .termination_grace_period_seconds
                .map(|s| Duration::from_secs(s.max(1) as u64)),
        })
    }
}

/// An `httpGet` action, of a probe or a lifecycle hook.
pub fn http_check(
    container: &Container,
    h: &k8s_openapi::api::core::v1::HTTPGetAction,
) -> Result<Check, String> {
    Ok(Check::Http {
        host: h.host.clone().filter(|h| !h.is_empty()),
        port: port(container, &h.port)?,
        path: h
            .path
            .clone()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "/".into()),
        https: h.scheme.as_deref() == Some("HTTPS"),
        headers: h.http_headers.clone().unwrap_or_default(),
    })
}

/// A port by number or by the name of one of the container's ports.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
        {
            Some(p) => p.container_port,
            None => name
                .parse()
                .map_err(|_| format!("couldn't find port: {name:?} in container ports"))?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// Asks once. Exec checks need the runtime and are asked elsewhere.
pub async fn ask_network(check: &Check, ip: IpAddr, timeout: Duration) -> Outcome {
    match check {
        Check::Http {
            host,
            port,
            path,
            https,
            headers,
        } => http::probe(host.as_deref(), ip, *port, path, *https, headers, timeout).await,
        Check::Tcp { host, port } => tcp::probe(host.as_deref(), ip, *port, timeout).await,
        Check::Grpc { port, service } => grpc::probe(ip, *port, service, timeout).await,
        Check::Exec(_) => Outcome::Error("exec check without a container".into()),
    }
}

/// Counts results in a row. A verdict changes only when its threshold is reached.
///
/// The first verdict on readiness is always told: what the pod's actor holds of a container that ran before the agent's start comes
/// from the record, and may have been true then only.
#[derive(Debug, Clone)]
pub struct Tracker {
    success_threshold: u32,
    failure_threshold: u32,
    verdict: Option<bool>,
    last: Option<bool>,
    run: u32,
}

impl Tracker {
    pub fn new(spec: &ProbeSpec) -> Self {
        let verdict = match spec.kind {
            ProbeKind::Startup | ProbeKind::Readiness => None,
            ProbeKind::Liveness => Some(true),
        };
        Self {
            success_threshold: spec.success_threshold,
            failure_threshold: spec.failure_threshold,
            verdict,
            last: None,
            run: 0,
        }
    }

    /// Takes in one result; the new verdict if it is one. A liveness or startup failure is told each time it stands.
    pub fn add(&mut self, ok: bool) -> Option<bool> {
        if self.last == Some(ok) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(ok);
            self.run = 1;
        }
        let needed = if ok {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < needed || self.verdict == Some(ok) {
            return None;
        }
        self.verdict = Some(ok);
        Some(ok)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn spec(kind: ProbeKind, probe: serde_json::Value) -> ProbeSpec {
        let c: Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}),
        )
        .unwrap();
        ProbeSpec::of(kind, &c).unwrap().unwrap()
    }

    #[test]
    fn defaults_and_named_ports() {
        let s = spec(ProbeKind::Readiness, json!({"httpGet": {"port": "web"}}));
        assert_eq!(
            (s.period.as_secs(), s.timeout.as_secs(), s.failure_threshold),
            (10, 1, 3)
        );
        assert_eq!(
            s.check,
            Check::Http {
                host: None,
                port: 8080,
                path: "/".into(),
                https: false,
                headers: vec![]
            }
        );
    }

    #[test]
    fn verdicts_change_at_their_thresholds() {
        let mut t = Tracker::new(&spec(
            ProbeKind::Readiness,
            json!({"tcpSocket": {"port": 1}, "failureThreshold": 2, "successThreshold": 2}),
        ));
        assert_eq!([t.add(false), t.add(false)], [None, Some(false)]);
        assert_eq!([t.add(true), t.add(true)], [None, Some(true)]);
        assert_eq!(
            [t.add(false), t.add(true), t.add(false), t.add(false)],
            [None, None, None, Some(false)]
        );
        let mut t = Tracker::new(&spec(
            ProbeKind::Liveness,
            json!({"tcpSocket": {"port": 1}, "failureThreshold": 3}),
        ));
        assert_eq!(
            [t.add(false), t.add(false), t.add(false)],
            [None, None, Some(false)]
        );
        let mut t = Tracker::new(&spec(ProbeKind::Startup, json!({"tcpSocket": {"port": 1}})));
        assert_eq!(t.add(true), Some(true));
    }
}
