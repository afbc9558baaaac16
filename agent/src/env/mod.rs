//! What a container finds around it: environment variables, /etc/hosts, /etc/resolv.conf, its host name. All pure.

pub mod downward;
pub mod expand;
pub mod hosts;
pub mod resolv;
pub mod service_links;
pub mod vars;

/// The objects that environment and volumes are made from: the agent's durable copy.
pub trait Objects {
    /// `data` and `binaryData` of a ConfigMap; `Ok(None)` when it does not exist.
    fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<std::sync::Arc<k8s_openapi::api::core::v1::ConfigMap>>, String>;
    fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<std::sync::Arc<k8s_openapi::api::core::v1::Secret>>, String>;
}
