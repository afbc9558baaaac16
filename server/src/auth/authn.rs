//! Who is asking: client certificates, service-account tokens, impersonation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use amphipod_api::jwt::{BoundRef, Claims, TokenKeys};
use amphipod_api::pki::CertInfo;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{UNAUTHENTICATED, UserInfo, bootstrap_token};
use crate::cache::{Cache, Object};

/// Verified tokens that are remembered, so that a busy client costs one signature check and not one each request.
const REMEMBERED: usize = 1024;
/// A token of a pod holds until this long after the pod should be gone.
const DELETED_POD_LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// Checks tokens against keys and against what exists.
pub struct TokenAuthenticator {
    keys: Arc<TokenKeys>,
    cache: Arc<Cache>,
    pub issuer: String,
    /// Audiences by which the API itself is meant; the first is the default of a TokenRequest.
    pub api_audiences: Vec<String>,
    remembered: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

impl TokenAuthenticator {
    pub fn new(keys: Arc<TokenKeys>, cache: Arc<Cache>, issuer: String) -> Self {
        let api_audiences = vec![issuer.clone(), "amphipod".to_owned()];
        TokenAuthenticator {
            keys,
            cache,
            issuer,
            api_audiences,
            remembered: Mutex::default(),
        }
    }

    pub fn keys(&self) -> &TokenKeys {
        &self.keys
    }

    /// The user a token stands for, if it is good for one of `audiences` (empty: the API's own), and the audiences
    /// that matched.
    ///
    /// # Errors
    /// Why not, for TokenReview and the log; clients are told `Unauthorized`.
    pub fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        if let Some((id, secret)) = amphipod_api::join::bootstrap_token(token) {
            let user = bootstrap_token::authenticate(&self.cache, id, secret, Timestamp::now())?;
            return Ok((user, audiences.to_vec()));
        }
        let claims = self.verify(token)?;
        let wanted = if audiences.is_empty() {
            &self.api_audiences
        } else {
            audiences
        };
        let matched: Vec<String> = wanted
            .iter()
            .filter(|a| claims.aud.contains(a))
            .cloned()
            .collect();
        if matched.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud
            ));
        }
        self.check_bound(&claims)?;
        Ok((user_of(&claims), matched))
    }

    fn verify(&self, token: &str) -> Result<Arc<Claims>, String> {
        let now = Timestamp::now().as_second();
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = remembered.get(&digest) {
            if now <= claims.exp {
                return Ok(claims.clone());
            }
            remembered.remove(&digest);
        }
        drop(remembered);
        let claims = self
            .keys
            .verify(token, &self.issuer, &[], now)
            .map_err(|e| e.to_string())?;
        let claims = Arc::new(claims);
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest, claims.clone());
        Ok(claims)
    }

    /// A token dies with its service account and with the object that it is bound to.
    fn check_bound(&self, claims: &Claims) -> Result<(), String> {
        let bound = &claims.kubernetes;
        let account = &bound.serviceaccount;
        self.existing(
            "serviceaccounts",
            &bound.namespace,
            account,
            "service account",
        )?;
        if let Some(pod) = &bound.pod {
            let object = self.existing("pods", &bound.namespace, pod, "pod")?;
            let gone = object
                .meta
                .deletion_timestamp
                .as_deref()
                .and_then(|t| t.parse::<Timestamp>().ok())
                .is_some_and(|t| {
                    Timestamp::now() > t.saturating_add(DELETED_POD_LEEWAY).unwrap_or(t)
                });
            if gone {
                return Err(
                    "service account token has been invalidated: its pod is being deleted"
                        .to_owned(),
                );
            }
        } else if let Some(secret) = &bound.secret {
            self.existing("secrets", &bound.namespace, secret, "secret")?;
        } else if let Some(node) = &bound.node {
            self.existing("nodes", "", node, "node")?;
        }
        Ok(())
    }

    fn existing(
        &self,
        resource: &str,
        namespace: &str,
        bound: &BoundRef,
        what: &str,
    ) -> Result<Arc<Object>, String> {
        self.cache
            .table(resource)
            .and_then(|table| table.get(namespace, &bound.name))
            .filter(|object| *object.meta.uid == *bound.uid)
            .ok_or_else(|| {
                format!(
                    "service account token has been invalidated: its {what} {:?} is gone",
                    bound.name
                )
            })
    }
}

/// The user a token stands for.
pub fn user_of(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let mut user = UserInfo::service_account(&bound.namespace, &bound.serviceaccount.name);
    user.uid = bound.serviceaccount.uid.clone();
    let mut extra = |key: &str, value: String| {
        user.extra
            .insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    if !claims.jti.is_empty() {
        extra("credential-id", format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bound.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &bound.node {
        extra("node-name", node.name.clone());
        extra("node-uid", node.uid.clone());
    }
    user
}

/// The user of a client certificate that TLS has verified, but for its time.
pub struct CertificateUser {
    user: Arc<UserInfo>,
    not_after: Timestamp,
    /// When it was made, as far as its serial number tells.
    made: Option<Timestamp>,
}

impl CertificateUser {
    /// Reads a certificate once per connection.
    pub fn read(der: &[u8]) -> Option<CertificateUser> {
        let info = CertInfo::from_der(der).ok()?;
        if info.common_name.is_empty() {
            return None;
        }
        let groups: Vec<&str> = info.organizations.iter().map(String::as_str).collect();
        let mut user = UserInfo::new(info.common_name, &groups);
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("X509SHA256={}", hex(&Sha256::digest(der)))],
        );
        Some(CertificateUser {
            user: Arc::new(user),
            not_after: info.not_after,
            made: info.made,
        })
    }

    /// When the certificate was made.
    pub fn made(&self) -> Option<Timestamp> {
        self.made
    }

    /// The user, whatever the time.
    pub fn user(&self) -> &Arc<UserInfo> {
        &self.user
    }

    /// Whether the certificate's time is over.
    pub fn is_over(&self) -> bool {
        Timestamp::now() > self.not_after
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bearer token of a request. WebSocket clients in browsers put it into the subprotocol list.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION)
        && let Ok(text) = value.to_str()
        && let Some((scheme, token)) = text.trim().split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        let token = token.trim();
        return (!token.is_empty()).then(|| token.to_owned());
    }
    websocket_token(headers)
}

fn websocket_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    headers
        .get_all(http::header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix(PREFIX))
        .and_then(|encoded| {
            base64::engine::general_purpose::URL_SAFE_NO_PAD
                .decode(encoded.trim_end_matches('='))
                .ok()
        })
        .and_then(|bytes| String::from_utf8(bytes).ok())
}

/// Who a caller wants to be instead: `Impersonate-User`, `-Group`, `-Uid`, `-Extra-KEY`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Impersonation {
    pub user: String,
    pub groups: Vec<String>,
    pub uid: String,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// Reads the headers; `None` if there are none.
    ///
    /// # Errors
    /// Groups, uid or extras without a user.
    pub fn read(headers: &HeaderMap) -> Result<Option<Impersonation>, String> {
        let text = |name: &str| -> Vec<String> {
            headers
                .get_all(name)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .map(str::to_owned)
                .collect()
        };
        let mut wanted = Impersonation::default();
        // Nearly no request impersonates: look before allocating.
        if !headers
            .keys()
            .any(|k| k.as_str().starts_with("impersonate-"))
        {
            return Ok(None);
        }
        wanted.user = text("impersonate-user")
            .into_iter()
            .next()
            .unwrap_or_default();
        wanted.groups = text("impersonate-group");
        wanted.uid = text("impersonate-uid")
            .into_iter()
            .next()
            .unwrap_or_default();
        for name in headers.keys() {
            if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
                wanted
                    .extra
                    .insert(crate::http::query::decode_path(key), text(name.as_str()));
            }
        }
        if wanted.user.is_empty() {
            return Err(format!(
                "requested {:?} without impersonating a user",
                wanted
                    .groups
                    .iter()
                    .chain([&wanted.uid])
                    .chain(wanted.extra.keys())
                    .collect::<Vec<_>>()
            ));
        }
        Ok(Some(wanted))
    }

    /// The user that results once the caller was found to be allowed: groups that a user always has are added.
    pub fn user_info(self) -> UserInfo {
        let mut user = UserInfo {
            name: self.user,
            uid: self.uid,
            groups: self.groups,
            extra: self.extra,
        };
        if user.name == super::ANONYMOUS {
            if !user.in_group(UNAUTHENTICATED) {
                user.groups.push(UNAUTHENTICATED.to_owned());
            }
            return user;
        }
        if user.groups.is_empty()
            && let Some((namespace, name)) = user.service_account_name()
        {
            user.groups = UserInfo::service_account(namespace, name).groups;
        }
        if !user.in_group(super::AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(super::AUTHENTICATED.to_owned());
        }
        user
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (k, v) in pairs {
            map.append(*k, v.parse().unwrap());
        }
        map
    }

    #[test]
    fn bearer_tokens_are_found_in_header_and_subprotocol() {
        assert_eq!(
            bearer(&headers(&[("authorization", "Bearer abc")])),
            Some("abc".to_owned())
        );
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        let protocols = "base64url.bearer.authorization.k8s.io.YWJj, v4.channel.k8s.io";
        assert_eq!(
            bearer(&headers(&[("sec-websocket-protocol", protocols)])),
            Some("abc".to_owned())
        );
    }

    #[test]
    fn impersonated_users_have_the_groups_that_users_have() {
        let read = |pairs| {
            Impersonation::read(&headers(pairs))
                .unwrap()
                .unwrap()
                .user_info()
        };
        assert_eq!(
            read(&[("impersonate-user", "bob")]).groups,
            ["system:authenticated"]
        );
        let both = read(&[
            ("impersonate-user", "bob"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
        ]);
        assert_eq!(both.groups, ["a", "b", "system:authenticated"]);
        let account = read(&[("impersonate-user", "system:serviceaccount:ns:app")]);
        assert!(account.in_group("system:serviceaccounts:ns"));
        assert_eq!(
            read(&[("impersonate-user", "system:anonymous")]).groups,
            ["system:unauthenticated"]
        );
        assert!(Impersonation::read(&headers(&[("impersonate-group", "a")])).is_err());
        assert_eq!(Impersonation::read(&headers(&[("accept", "a")])), Ok(None));
    }
}
