//! What a pod's spec asks of its containers, reduced to what decisions need.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::handle::ContainerKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            Some("Always") => Some(Self::Always),
            Some("OnFailure") => Some(Self::OnFailure),
            Some("Never") => Some(Self::Never),
            _ => None,
        }
    }
}

/// `restartPolicyRules`: exit codes that restart a container whatever its policy says (KEP-5307).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartRule {
    pub codes: Vec<i32>,
    pub not_in: bool,
}

/// One container as decisions see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    pub name: String,
    pub kind: ContainerKind,
    pub policy: RestartPolicy,
    pub rules: Vec<RestartRule>,
    pub startup_probe: bool,
    pub readiness_probe: bool,
    /// The image as written; a container that runs another one is restarted.
    pub image: String,
}

impl ContainerPlan {
    /// Whether an instance that ended with `code` is started again.
    pub fn restarts_after(&self, code: i32) -> bool {
        if self
            .rules
            .iter()
            .any(|r| r.codes.contains(&code) != r.not_in)
        {
            return true;
        }
        match self.policy {
            // A plain init container has done its work once it succeeded, whatever the pod's policy.
            RestartPolicy::Always => self.kind != ContainerKind::Init || code != 0,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// One pod as decisions see it. Containers stand in order: init and sidecars, regular, ephemeral.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    pub policy: RestartPolicy,
    pub containers: Vec<ContainerPlan>,
    pub grace: Duration,
    pub host_network: bool,
}

impl PodPlan {
    pub fn of(pod: &Pod) -> PodPlan {
        let Some(spec) = pod.spec.as_ref() else {
            return PodPlan {
                policy: RestartPolicy::Always,
                containers: vec![],
                grace: Duration::from_secs(30),
                host_network: false,
            };
        };
        let policy =
            RestartPolicy::parse(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always);
        let mut containers = Vec::new();
        for c in spec.init_containers.iter().flatten() {
            let kind = if c.restart_policy.as_deref() == Some("Always") {
                ContainerKind::Sidecar
            } else {
                ContainerKind::Init
            };
            containers.push(container(c, kind, policy));
        }
        for c in &spec.containers {
            containers.push(container(c, ContainerKind::Regular, policy));
        }
        for c in spec.ephemeral_containers.iter().flatten() {
            containers.push(ContainerPlan {
                name: c.name.clone(),
                kind: ContainerKind::Ephemeral,
                policy: RestartPolicy::Never,
                rules: vec![],
                startup_probe: false,
                readiness_probe: false,
                image: c.image.clone().unwrap_or_default(),
            });
        }
        PodPlan {
            policy,
            containers,
            grace: Duration::from_secs(
                spec.termination_grace_period_seconds.unwrap_or(30).max(0) as u64
            ),
            host_network: spec.host_network.unwrap_or(false),
        }
    }

    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == name)
    }
}

fn container(c: &Container, kind: ContainerKind, pod_policy: RestartPolicy) -> ContainerPlan {
    let rules = c
        .restart_policy_rules
        .iter()
        .flatten()
        .filter(|r| r.action.starts_with("Restart"))
        .filter_map(|r| r.exit_codes.as_ref())
        .map(|e| RestartRule {
            codes: e.values.clone().unwrap_or_default(),
            not_in: e.operator == "NotIn",
        })
        .collect();
    ContainerPlan {
        name: c.name.clone(),
        kind,
        policy: RestartPolicy::parse(c.restart_policy.as_deref()).unwrap_or(pod_policy),
        rules,
        startup_probe: c.startup_probe.is_some(),
        readiness_probe: c.readiness_probe.is_some(),
        image: c.image.clone().unwrap_or_default(),
    }
}
