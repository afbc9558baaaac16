//! The objects that a pod names: what the node that runs it may read.

use serde::Deserialize;

use crate::cache::Object;

/// The parts of a pod that name other objects.
#[derive(Debug, Default, Deserialize)]
pub struct PodRefs {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    image_pull_secrets: Vec<Named>,
    volumes: Vec<Volume>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    secret: Option<SecretVolume>,
    config_map: Option<Named>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<Claim>,
    ephemeral: Option<serde::de::IgnoredAny>,
    csi: Option<Csi>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    claim_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Csi {
    node_publish_secret_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Vec<Source>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    secret: Option<Named>,
    config_map: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<Env>,
    env_from: Vec<EnvFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Option<Named>,
    config_map_key_ref: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    secret_ref: Option<Named>,
    config_map_ref: Option<Named>,
}

impl PodRefs {
    pub fn of(pod: &Object) -> Option<PodRefs> {
        pod.typed().ok()
    }

    fn all_containers(&self) -> impl Iterator<Item = &Container> {
        let spec = &self.spec;
        spec.containers
            .iter()
            .chain(&spec.init_containers)
            .chain(&spec.ephemeral_containers)
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.spec
            .volumes
            .iter()
            .filter_map(|v| v.projected.as_ref())
            .flat_map(|p| &p.sources)
    }

    fn values(&self) -> impl Iterator<Item = &ValueFrom> {
        self.all_containers()
            .flat_map(|c| &c.env)
            .filter_map(|e| e.value_from.as_ref())
    }

    pub fn secrets(&self, name: &str) -> bool {
        let is = |named: &Option<Named>| named.as_ref().is_some_and(|n| n.name == name);
        self.spec.image_pull_secrets.iter().any(|n| n.name == name)
            || self.spec.volumes.iter().any(|v| {
                v.secret.as_ref().is_some_and(|s| s.secret_name == name)
                    || v.csi
                        .as_ref()
                        .is_some_and(|c| is(&c.node_publish_secret_ref))
            })
            || self.sources().any(|s| is(&s.secret))
            || self.values().any(|v| is(&v.secret_key_ref))
            || self
                .all_containers()
                .flat_map(|c| &c.env_from)
                .any(|e| is(&e.secret_ref))
    }

    pub fn config_maps(&self, name: &str) -> bool {
        let is = |named: &Option<Named>| named.as_ref().is_some_and(|n| n.name == name);
        self.spec.volumes.iter().any(|v| is(&v.config_map))
            || self.sources().any(|s| is(&s.config_map))
            || self.values().any(|v| is(&v.config_map_key_ref))
            || self
                .all_containers()
                .flat_map(|c| &c.env_from)
                .any(|e| is(&e.config_map_ref))
    }

    pub fn service_account(&self, name: &str) -> bool {
        self.spec.service_account_name.as_deref() == Some(name)
    }

    /// Also those that are made for the pod alone.
    pub fn claims(&self, name: &str) -> bool {
        self.spec.volumes.iter().any(|v| {
            v.persistent_volume_claim
                .as_ref()
                .is_some_and(|c| c.claim_name == name)
                || (v.ephemeral.is_some() && format!("{}-{}", self.metadata.name, v.name) == name)
        })
    }
}
