//! Signs approved requests with the cluster's CA, for the signers that Kubernetes itself defines. Others' requests are left alone.

use std::time::Duration;

use amphipod_api::join::{NODE_SIGNER, SERVING_SIGNER as SERVING};
use amphipod_api::meta::{i64_at, str_at};
use amphipod_api::pki::{Grant, LEAF_LIFETIME, RequestInfo};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools, itself};
use super::{NAME, RESOURCE, condition, issued, node_of, request, usages};
use crate::auth::MASTERS;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

pub struct Signer;

impl Controller for Signer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new(RESOURCE, itself)]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, &key.name))
    }
}

async fn reconcile(tools: &Tools, name: &str) -> Result<Outcome> {
    let Some(object) = tools.table(RESOURCE).get("", name) else {
        return Ok(Outcome::Done);
    };
    let csr = object.value();
    let has = |kind| condition(&csr, kind).is_some();
    if !has("Approved") || has("Denied") || has("Failed") || issued(&csr) {
        return Ok(Outcome::Done);
    }
    let Some(signed) = sign(tools, &csr) else {
        return Ok(Outcome::Done);
    };
    let set = |csr: &mut Value| {
        match &signed {
            Ok(pem) => csr["status"]["certificate"] = STANDARD.encode(pem).into(),
            Err(why) => {
                let failed = json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why});
                if let Some(conditions) = csr["status"]["conditions"].as_array_mut() {
                    conditions.push(failed);
                }
            }
        }
        Ok(())
    };
    let cx = tools.sub_context(RESOURCE, "", "status")?;
    tools.registry.update_with(&cx, name, set).await?;
    Ok(Outcome::Done)
}

/// The certificate, or why it cannot be; `None` if the signer is not one of ours.
fn sign(tools: &Tools, csr: &Value) -> Option<std::result::Result<String, String>> {
    let signer = str_at(csr, &["spec", "signerName"]);
    if ![NODE_SIGNER, CLIENT, SERVING].contains(&signer) {
        return None;
    }
    Some(request(csr).and_then(|(pem, info)| {
        let usages = usages(csr);
        check(signer, &info, &usages)?;
        let organizations: Vec<&str> = info.organizations.iter().map(String::as_str).collect();
        let grant = Grant {
            common_name: &info.common_name,
            organizations: &organizations,
            sans: &info.sans,
            server: usages.contains(&"server auth"),
            client: usages.contains(&"client auth"),
            lifetime: lifetime(csr),
            made: made(tools, signer, &info),
        };
        let ca = tools.config.pki.ca();
        ca.sign_request(&pem, &grant).map_err(|e| e.to_string())
    }))
}

/// What each signer insists on.
pub(super) fn check(
    signer: &str,
    info: &RequestInfo,
    usages: &[&str],
) -> std::result::Result<(), String> {
    let only = |allowed: &[&str], needed: &str| {
        if usages.iter().all(|u| allowed.contains(u)) && usages.contains(&needed) {
            Ok(())
        } else {
            Err(format!("usages did not match [{}]", allowed.join(" ")))
        }
    };
    match signer {
        NODE_SIGNER => node_of(info, usages).map(drop),
        SERVING => {
            only(
                &["digital signature", "key encipherment", "server auth"],
                "server auth",
            )?;
            if info.organizations != [crate::auth::NODES] {
                return Err("subject organization is not system:nodes".to_owned());
            }
            if !info.common_name.starts_with("system:node:") {
                return Err("subject common name does not begin with system:node:".to_owned());
            }
            if info.sans.is_empty() || info.other_sans {
                return Err("DNS or IP subjectAltName is required, and no other kinds".to_owned());
            }
            Ok(())
        }
        _ => {
            only(
                &["digital signature", "key encipherment", "client auth"],
                "client auth",
            )?;
            if info.organizations.iter().any(|o| o == MASTERS) {
                return Err(format!("subject organization {MASTERS} is not allowed"));
            }
            // Nodes get theirs where what nodes may ask for is checked.
            if info.organizations.iter().any(|o| o == crate::auth::NODES) {
                return Err(format!(
                    "ask the signer {NODE_SIGNER} for certificates of nodes"
                ));
            }
            Ok(())
        }
    }
}

fn lifetime(csr: &Value) -> Duration {
    let asked = i64_at(csr, &["spec", "expirationSeconds"]).and_then(|s| u64::try_from(s).ok());
    asked.map_or(LEAF_LIFETIME, |asked| {
        Duration::from_secs(asked).min(LEAF_LIFETIME)
    })
}

/// Now; for a node that was removed, at any rate later than that, whatever the clock says.
fn made(tools: &Tools, signer: &str, info: &RequestInfo) -> Timestamp {
    let now = Timestamp::now();
    let node = info.common_name.strip_prefix("system:node:");
    let removed = node
        .filter(|_| signer == NODE_SIGNER)
        .and_then(|node| tools.config.removed.when(node));
    let after = removed.and_then(|at| at.checked_add(SignedDuration::from_millis(2)).ok());
    after.map_or(now, |after| now.max(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, organizations: &[&str], sans: &[&str]) -> RequestInfo {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        RequestInfo {
            common_name: name.to_owned(),
            organizations: owned(organizations),
            sans: owned(sans),
            other_sans: false,
        }
    }

    #[test]
    fn each_signer_signs_only_what_it_is_for() {
        let client = &["client auth", "digital signature"][..];
        assert!(check(CLIENT, &asked("jane", &["dev"], &[]), client).is_ok());
        assert!(check(CLIENT, &asked("jane", &["system:masters"], &[]), client).is_err());
        assert!(
            check(
                CLIENT,
                &asked("system:node:a", &["system:nodes"], &[]),
                client
            )
            .is_err()
        );
        assert!(check(CLIENT, &asked("jane", &[], &[]), &["server auth"]).is_err());
        let serving = &["server auth", "digital signature"][..];
        let node = asked("system:node:a", &["system:nodes"], &["a"]);
        assert!(check(SERVING, &node, serving).is_ok());
        assert!(check(SERVING, &node, client).is_err());
        assert!(check(SERVING, &asked("a", &["system:nodes"], &["a"]), serving).is_err());
        let node = asked("system:node:a", &["system:nodes"], &[]);
        assert!(check(NODE_SIGNER, &node, client).is_ok());
        assert!(check(SERVING, &node, serving).is_err());
    }

    #[test]
    fn a_shorter_life_may_be_asked_for() {
        let day = 86400;
        assert_eq!(lifetime(&json!({"spec": {}})), LEAF_LIFETIME);
        let asked = |seconds: i64| lifetime(&json!({"spec": {"expirationSeconds": seconds}}));
        assert_eq!(asked(day), Duration::from_secs(day as u64));
        assert_eq!(asked(day * 9999), LEAF_LIFETIME);
    }
}
