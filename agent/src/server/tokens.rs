//! Service account tokens for pods: asked of the server (TokenRequest), kept on disk, renewed at 80 % of their life.

use std::collections::BTreeMap;

use amphipod_api::client::{Client, Target};
use amphipod_api::meta;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::store::{Store, StoredToken};
use crate::volumes::{TokenKey, payload};

/// Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    store: Store,
}

/// The tokens that a pod's volumes ask for.
pub fn wanted(pod: &Pod) -> Vec<TokenKey> {
    let mut keys: Vec<TokenKey> = pod
        .spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter_map(|v| v.projected.as_ref())
        .flat_map(|p| p.sources.iter().flatten())
        .filter_map(|s| s.service_account_token.as_ref())
        .map(payload::token_key)
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Tokens, and when (seconds since 1970) they should be asked for again.
pub struct Issued {
    pub tokens: BTreeMap<TokenKey, String>,
    pub renew_at: Option<i64>,
}

/// Seconds by which clocks may differ.
const SKEW: i64 = 300;

/// When a token is renewed: at 80 % of its life, and not later than a day after it was issued (the kubelet's rule).
fn renew_at(t: &StoredToken) -> i64 {
    let life = (t.expires - t.issued).max(0);
    t.issued + (life * 8 / 10).min(24 * 3600)
}

impl Tokens {
    pub fn new(client: Client, store: Store) -> Self {
        Self { client, store }
    }

    /// All tokens of a pod. A token that could not be renewed is used as long as it is valid, and beyond that too: offline,
    /// an old token is better than a pod that does not start.
    pub async fn get(&self, pod: &Pod) -> Result<Issued, String> {
        let wanted = wanted(pod);
        let mut issued = Issued {
            tokens: BTreeMap::new(),
            renew_at: None,
        };
        if wanted.is_empty() {
            return Ok(issued);
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let stored = self.store.tokens(uid.clone()).await.unwrap_or_default();
        let now = jiff::Timestamp::now().as_second();
        for key in wanted {
            let old = stored
                .iter()
                .find(|t| t.audience == key.0 && t.seconds == key.1);
            let token = match old {
                // A token from the future is of a clock that was wrong, ours or the server's.
                Some(t) if now < renew_at(t) && now > t.issued - SKEW => t.clone(),
                old => match self.request(pod, &uid, &key).await {
                    Ok(t) => t,
                    Err(e) => match old {
                        Some(t) if e.is_retryable() => StoredToken {
                            issued: now - (t.expires - t.issued) * 8 / 10 + 60,
                            ..t.clone()
                        },
                        _ => return Err(format!("failed to fetch token: {e}")),
                    },
                },
            };
            let at = renew_at(&token);
            issued.renew_at = Some(issued.renew_at.map_or(at, |r| r.min(at)));
            issued.tokens.insert(key, token.token);
        }
        Ok(issued)
    }

    async fn request(
        &self,
        pod: &Pod,
        uid: &str,
        key: &TokenKey,
    ) -> Result<StoredToken, amphipod_api::ClientError> {
        let m = &pod.metadata;
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref())
            .filter(|n| !n.is_empty())
            .unwrap_or("default");
        let target = Target::core("serviceaccounts")
            .namespace(m.namespace.as_deref().unwrap_or_default())
            .name(account)
            .subresource("token");
        let audiences: Vec<&str> = if key.0.is_empty() {
            vec![]
        } else {
            vec![&key.0]
        };
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": m.namespace},
            "spec": {"audiences": audiences, "expirationSeconds": key.1,
                     "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": m.name, "uid": uid}},
        });
        let answer = self.client.create(&target, &body).await?;
        let token = meta::str_at(&answer, &["status", "token"]).to_string();
        let now = jiff::Timestamp::now().as_second();
        // Not the time that the server says: its clock and ours need not agree. How long it is good, it says as well.
        let seconds = answer["spec"]["expirationSeconds"].as_i64();
        let expires = now + seconds.unwrap_or(key.1);
        let stored = StoredToken {
            pod: uid.to_string(),
            audience: key.0.clone(),
            seconds: key.1,
            token,
            issued: now,
            expires,
        };
        if let Err(error) = self.store.put_token(stored.clone()).await {
            tracing::debug!(
                error = format!("{error:#}"),
                "a token is kept in memory only"
            );
        }
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life_and_within_a_day() {
        let t = |life| StoredToken {
            pod: String::new(),
            audience: String::new(),
            seconds: life,
            token: String::new(),
            issued: 1000,
            expires: 1000 + life,
        };
        assert_eq!(renew_at(&t(1000)), 1800);
        assert_eq!(renew_at(&t(365 * 86400)), 1000 + 86400);
    }
}
