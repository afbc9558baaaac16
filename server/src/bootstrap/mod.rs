//! What a first start makes, and every start checks: keys and certificates, and the objects that are always there.

pub mod addresses;
pub mod moves;
pub mod objects;
pub mod pki;
mod policy;

pub use policy::{DefaultObject, objects as default_policy};

use k8s_openapi::api::rbac::v1::PolicyRule;

/// What every node may do: the rules of the role `system:node`.
pub fn node_rules() -> Vec<PolicyRule> {
    let policy = default_policy();
    let role = policy
        .iter()
        .find(|o| o.plural == "clusterroles" && o.name == "system:node");
    role.and_then(|role| serde_json::from_value(role.object["rules"].clone()).ok())
        .unwrap_or_default()
}
