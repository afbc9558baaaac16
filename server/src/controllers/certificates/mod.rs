//! Certificate signing requests: approved, signed, and cleaned away.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>

mod approver;
mod cleaner;
mod signer;

pub use approver::Approver;
pub use cleaner::Cleaner;
pub use signer::Signer;

use amphipod_api::meta::{array_at, str_at};
use amphipod_api::pki::RequestInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

const RESOURCE: &str = "certificatesigningrequests.certificates.k8s.io";
/// The identity of all three, as upstream.
const NAME: &str = "certificate-controller";

/// A condition that is true.
fn condition<'a>(csr: &'a Value, kind: &str) -> Option<&'a Value> {
    array_at(csr, &["status", "conditions"])
        .iter()
        .find(|c| str_at(c, &["type"]) == kind && str_at(c, &["status"]) != "False")
}

fn issued(csr: &Value) -> bool {
    !str_at(csr, &["status", "certificate"]).is_empty()
}

/// The request itself, PEM, and what it asks for.
fn request(csr: &Value) -> Result<(String, RequestInfo), String> {
    let bytes = STANDARD
        .decode(str_at(csr, &["spec", "request"]))
        .map_err(|e| e.to_string())?;
    let pem = String::from_utf8(bytes).map_err(|e| e.to_string())?;
    let info = RequestInfo::from_pem(&pem).map_err(|e| e.to_string())?;
    Ok((pem, info))
}

fn usages(csr: &Value) -> Vec<&str> {
    array_at(csr, &["spec", "usages"])
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// The node that a request to [`amphipod_api::join::NODE_SIGNER`] is for, if it is one that this signer may sign.
///
/// # Errors
/// What is wrong with it, in upstream's words.
fn node_of<'a>(info: &'a RequestInfo, usages: &[&str]) -> Result<&'a str, String> {
    if info.organizations != [crate::auth::NODES] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    if !info.sans.is_empty() || info.other_sans {
        return Err("subject alternative names are not allowed".to_owned());
    }
    let allowed = ["client auth", "digital signature", "key encipherment"];
    if !usages.iter().all(|u| allowed.contains(u)) || !usages.contains(&"client auth") {
        return Err(
            "usages did not match [client auth digital signature key encipherment]".to_owned(),
        );
    }
    let name = info.common_name.strip_prefix("system:node:");
    let name = name.filter(|name| amphipod_api::names::dns1123_subdomain(name).is_empty());
    name.ok_or_else(|| "subject common name does not begin with system:node:".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_certificate_is_for_a_node_and_nothing_else() {
        let good = RequestInfo {
            common_name: "system:node:box-7".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            sans: vec![],
            other_sans: false,
        };
        let usages = ["digital signature", "client auth"];
        assert_eq!(node_of(&good, &usages), Ok("box-7"));
        let with = |change: &dyn Fn(&mut RequestInfo)| {
            let mut info = good.clone();
            change(&mut info);
            node_of(&info, &usages).is_err()
        };
        assert!(with(
            &|i| i.organizations = vec!["system:masters".to_owned()]
        ));
        assert!(with(&|i| i.organizations.push("system:masters".to_owned())));
        assert!(with(&|i| i.common_name = "admin".to_owned()));
        assert!(with(&|i| i.common_name = "system:node:".to_owned()));
        assert!(with(&|i| i.sans = vec!["kubernetes".to_owned()]));
        assert!(with(&|i| i.other_sans = true));
        assert!(node_of(&good, &["client auth", "server auth"]).is_err());
        assert!(node_of(&good, &["digital signature"]).is_err());
    }
}
