//! Bootstrap tokens: Secrets in `kube-system` of type `bootstrap.kubernetes.io/token`, by which boxes join.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use amphipod_api::meta::str_at;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::{BOOTSTRAPPERS, UserInfo};
use crate::cache::Cache;

pub const NAMESPACE: &str = "kube-system";
/// The type of the Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";

/// The name of a token's Secret.
pub fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// What a token's Secret says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    pub id: String,
    pub description: String,
    /// `None`: it never ends.
    pub expiration: Option<Timestamp>,
    /// May be used to authenticate.
    pub authenticates: bool,
    /// Groups besides `system:bootstrappers`.
    pub groups: Vec<String>,
    secret: Vec<u8>,
}

impl Token {
    /// Reads a Secret; `None` if it is no token. An expiration that cannot be read counts as past.
    pub fn of(secret: &Value) -> Option<Token> {
        if str_at(secret, &["type"]) != TYPE {
            return None;
        }
        let bytes = |key: &str| {
            STANDARD
                .decode(str_at(secret, &["data", key]))
                .unwrap_or_default()
        };
        let text = |key: &str| String::from_utf8_lossy(&bytes(key)).into_owned();
        let id = text("token-id");
        if secret_name(&id) != str_at(secret, &["metadata", "name"]) {
            return None;
        }
        let expiration = match text("expiration").as_str() {
            "" => None,
            time => Some(time.parse().unwrap_or(Timestamp::MIN)),
        };
        Some(Token {
            description: text("description"),
            expiration,
            authenticates: text("usage-bootstrap-authentication") == "true",
            groups: text("auth-extra-groups")
                .split(',')
                .map(str::trim)
                .filter(|group| group.starts_with("system:bootstrappers:"))
                .map(str::to_owned)
                .collect(),
            secret: bytes("token-secret"),
            id,
        })
    }

    pub fn expired(&self, now: Timestamp) -> bool {
        self.expiration.is_some_and(|end| end <= now)
    }

    fn is(&self, secret: &str) -> bool {
        // Digests are compared, so that the time it takes tells nothing about the secret.
        !self.secret.is_empty()
            && digest(&SHA256, &self.secret).as_ref() == digest(&SHA256, secret.as_bytes()).as_ref()
    }
}

/// The Secret of a new token.
pub fn new_secret(
    id: &str,
    secret: &str,
    expiration: Option<Timestamp>,
    description: &str,
) -> Value {
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
    });
    if let Some(expiration) = expiration {
        data["expiration"] = amphipod_api::time::format_time(expiration).into();
    }
    if !description.is_empty() {
        data["description"] = description.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE,
        "metadata": {"name": secret_name(id), "namespace": NAMESPACE},
        "stringData": data,
    })
}

/// The user whom a token stands for.
///
/// # Errors
/// Why it stands for nobody.
pub fn authenticate(
    cache: &Cache,
    id: &str,
    secret: &str,
    now: Timestamp,
) -> Result<UserInfo, String> {
    let stored = cache
        .table("secrets")
        .and_then(|secrets| secrets.get(NAMESPACE, &secret_name(id)))
        .filter(|object| !object.meta.is_deleting());
    let token = stored.and_then(|object| Token::of(&object.value()));
    match token {
        None => Err(format!("there is no bootstrap token {id}")),
        Some(token) if !token.is(secret) => Err(format!("wrong secret for bootstrap token {id}")),
        Some(token) if token.expired(now) => Err(format!("the bootstrap token {id} has expired")),
        Some(token) if !token.authenticates => Err(format!(
            "the bootstrap token {id} is not for authentication"
        )),
        Some(token) => {
            let mut groups = vec![BOOTSTRAPPERS];
            groups.extend(token.groups.iter().map(String::as_str));
            Ok(UserInfo::new(format!("system:bootstrap:{id}"), &groups))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::cache::TableSpec;
    use crate::store::{Key, Record};

    /// As it is stored: `stringData` has become `data`.
    fn stored(mut secret: Value) -> Value {
        let data = secret["stringData"].take();
        for (key, value) in data.as_object().unwrap() {
            secret["data"][key] = STANDARD.encode(value.as_str().unwrap()).into();
        }
        secret
    }

    fn try_it(secret: Value, id: &str, shown: &str) -> Result<UserInfo, String> {
        let cache = Cache::empty();
        cache.define(TableSpec {
            resource: "secrets".to_owned(),
            fields: vec![],
            indexed: vec![],
            lazy: false,
            ..TableSpec::default()
        });
        cache.apply(&[Record {
            revision: 1,
            key: Key::new("secrets", NAMESPACE, "bootstrap-token-abcdef"),
            value: Some(Bytes::from(serde_json::to_vec(&stored(secret)).unwrap())),
        }]);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        authenticate(&cache, id, shown, now)
    }

    #[test]
    fn a_token_stands_for_a_bootstrapper_until_it_ends() {
        const SECRET: &str = "0123456789abcdef";
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let good = || new_secret("abcdef", SECRET, at(1_800_000_001), "for box 7");
        let user = try_it(good(), "abcdef", SECRET).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, [BOOTSTRAPPERS, "system:authenticated"]);
        assert!(try_it(good(), "abcdef", "0123456789abcdeg").is_err());
        assert!(try_it(good(), "bbcdef", SECRET).is_err());
        let old = new_secret("abcdef", SECRET, at(1_800_000_000), "");
        assert!(
            try_it(old, "abcdef", SECRET)
                .unwrap_err()
                .contains("expired")
        );
        let mut other = good();
        other["stringData"]["usage-bootstrap-authentication"] = "false".into();
        assert!(try_it(other, "abcdef", SECRET).is_err());
        let mut opaque = good();
        opaque["type"] = "Opaque".into();
        assert!(try_it(opaque, "abcdef", SECRET).is_err());
    }

    #[test]
    fn groups_are_bootstrappers_only() {
        let mut secret = new_secret("abcdef", "0123456789abcdef", None, "");
        secret["stringData"]["auth-extra-groups"] = "system:masters,system:bootstrappers:x".into();
        let user = try_it(secret, "abcdef", "0123456789abcdef").unwrap();
        assert_eq!(
            user.groups,
            [
                BOOTSTRAPPERS,
                "system:bootstrappers:x",
                "system:authenticated"
            ]
        );
    }
}
