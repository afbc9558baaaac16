//! What a container finds around it: environment variables, /etc/hosts, /etc/resolv.conf, its host name. All pure.

pub mod downward;
pub mod expand;
pub mod hosts;
pub mod resolv;
pub mod service_links;
pub mod vars;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};

/// The objects that environment and volumes are made from: the agent's durable copy.
pub trait Objects {
    /// `data` and `binaryData` of a ConfigMap; `Ok(None)` when it does not exist.
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String>;
    fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, String>;
}

/// The claims of pods and their volumes, from the same copy.
pub trait Storage {
    fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, String>;
    fn volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, String>;
}
