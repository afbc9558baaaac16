//! Service-account tokens: JSON Web Tokens signed with ES256 (RFC 7515, 7518, 7519), with the claims that Kubernetes binds.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Longest token that is looked at.
const MAX_TOKEN: usize = 16 * 1024;
/// How far clocks may differ.
const LEEWAY_SECONDS: i64 = 60;

/// An object that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct BoundRef {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// The private claims of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct KubernetesClaims {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundRef>,
    #[serde(default)]
    pub serviceaccount: BoundRef,
    /// When users of the token should be warned that it lives longer than it should, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims of a service-account token. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Claims {
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io", default)]
    pub kubernetes: KubernetesClaims,
    #[serde(default)]
    pub nbf: i64,
    pub sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

impl Claims {
    /// The claims of a token for a service account, from now on, with a fresh `jti`.
    pub fn new(
        issuer: &str,
        audiences: Vec<String>,
        namespace: &str,
        account: BoundRef,
        now: i64,
        seconds: i64,
    ) -> Claims {
        Claims {
            aud: audiences,
            exp: now.saturating_add(seconds),
            iat: now,
            iss: issuer.into(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            kubernetes: KubernetesClaims {
                namespace: namespace.into(),
                serviceaccount: account,
                ..KubernetesClaims::default()
            },
            nbf: now,
        }
    }
}

/// Why a token is refused, or a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("malformed token")]
    Malformed,
    #[error("token is not signed with ES256")]
    Algorithm,
    #[error("invalid signature")]
    Signature,
    #[error("token was issued by {0:?}")]
    Issuer(String),
    #[error("token audiences {0:?} do not include any of the expected ones")]
    Audience(Vec<String>),
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYetValid,
    #[error("reading the signing key: {0}")]
    Key(String),
}

/// Signs tokens, and verifies those signed by it or by keys it was told of.
pub struct TokenKeys {
    signer: EcdsaKeyPair,
    /// First our own key, then retired ones whose tokens still live.
    verifiers: Vec<PublicKey>,
    random: SystemRandom,
}

struct PublicKey {
    id: String,
    /// Uncompressed point: 0x04, x, y.
    point: Vec<u8>,
}

/// The fixed start of the SubjectPublicKeyInfo of every P-256 key; the uncompressed point follows.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl PublicKey {
    fn new(point: &[u8]) -> PublicKey {
        // As upstream: the key id is the hash of the DER public key.
        let digest = Sha256::new()
            .chain_update(P256_SPKI_PREFIX)
            .chain_update(point)
            .finalize();
        PublicKey {
            id: URL_SAFE_NO_PAD.encode(digest),
            point: point.to_vec(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl TokenKeys {
    /// Takes up a P-256 key (PKCS #8 PEM, as `pki::generate_key` makes).
    pub fn load(key_pem: &str) -> Result<TokenKeys, TokenError> {
        let random = SystemRandom::new();
        let der = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| TokenError::Key(e.to_string()))?;
        let signer = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|e| TokenError::Key(e.to_string()))?;
        let verifiers = vec![PublicKey::new(signer.public_key().as_ref())];
        Ok(TokenKeys {
            signer,
            verifiers,
            random,
        })
    }

    /// Also takes tokens signed by a retired key.
    pub fn with_retired(mut self, key_pem: &str) -> Result<TokenKeys, TokenError> {
        let retired = TokenKeys::load(key_pem)?;
        self.verifiers.extend(retired.verifiers);
        Ok(self)
    }

    /// The id of the signing key.
    pub fn key_id(&self) -> &str {
        &self.verifiers[0].id
    }

    /// A signed token.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let encode = |value: Result<Vec<u8>, serde_json::Error>| {
            value
                .map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
                .map_err(|_| TokenError::Malformed)
        };
        let header = Header {
            alg: "ES256".into(),
            kid: self.key_id().into(),
        };
        let header = encode(serde_json::to_vec(&header))?;
        let mut token = format!("{header}.{}", encode(serde_json::to_vec(claims))?);
        let signature = self
            .signer
            .sign(&self.random, token.as_bytes())
            .map_err(|_| TokenError::Signature)?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// The claims of a token, if its signature, issuer, time (`now`, Unix seconds) and audience (any of `audiences`; an
    /// empty list takes all) are right. Whether the account and bound objects still exist is for the caller to check.
    pub fn verify(
        &self,
        token: &str,
        issuer: &str,
        audiences: &[&str],
        now: i64,
    ) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| TokenError::Malformed)
        };
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header.alg != "ES256" {
            return Err(TokenError::Algorithm);
        }
        let signature = decode(signature)?;
        let valid = self
            .verifiers
            .iter()
            .filter(|key| header.kid.is_empty() || header.kid == key.id)
            .any(|key| {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point);
                key.verify(signed.as_bytes(), &signature).is_ok()
            });
        if !valid {
            return Err(TokenError::Signature);
        }
        let claims: Claims =
            serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != issuer {
            return Err(TokenError::Issuer(claims.iss));
        }
        if now > claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::Expired);
        }
        if now < claims.nbf.saturating_sub(LEEWAY_SECONDS) {
            return Err(TokenError::NotYetValid);
        }
        if !audiences.is_empty() && !claims.aud.iter().any(|a| audiences.contains(&a.as_str())) {
            return Err(TokenError::Audience(claims.aud));
        }
        Ok(claims)
    }

    /// The JSON Web Key Set of all keys (`/openid/v1/jwks`).
    pub fn jwks(&self) -> Value {
        let keys = self.verifiers.iter().map(|key| {
            json!({
                "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                "x": URL_SAFE_NO_PAD.encode(&key.point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&key.point[33..]),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }

    /// The public signing key, PEM.
    pub fn public_key_pem(&self) -> String {
        let der = [P256_SPKI_PREFIX.as_slice(), &self.verifiers[0].point].concat();
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .filter_map(|l| std::str::from_utf8(l).ok())
            .collect();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pki;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn keys() -> TokenKeys {
        TokenKeys::load(&pki::generate_key().unwrap()).unwrap()
    }

    fn claims() -> Claims {
        let account = BoundRef {
            name: "default".into(),
            uid: "u1".into(),
        };
        Claims::new(ISSUER, vec!["api".into()], "ns", account, 1_000_000, 3600)
    }

    #[test]
    fn signed_claims_come_back() {
        let keys = keys();
        let mut claims = claims();
        claims.kubernetes.pod = Some(BoundRef {
            name: "p".into(),
            uid: "u2".into(),
        });
        let token = keys.sign(&claims).unwrap();
        assert_eq!(
            keys.verify(&token, ISSUER, &["other", "api"], 1_000_100),
            Ok(claims)
        );
    }

    #[test]
    fn every_way_to_be_wrong_is_refused() {
        let keys = keys();
        let token = keys.sign(&claims()).unwrap();
        let verify = |token: &str, issuer, audience, now| {
            keys.verify(token, issuer, &[audience], now).unwrap_err()
        };
        assert_eq!(
            verify(&token, ISSUER, "api", 1_003_661),
            TokenError::Expired
        );
        assert_eq!(
            verify(&token, ISSUER, "api", 999_939),
            TokenError::NotYetValid
        );
        assert_eq!(
            verify(&token, ISSUER, "x", 1_000_000),
            TokenError::Audience(vec!["api".into()])
        );
        assert_eq!(
            verify(&token, "x", "api", 1_000_000),
            TokenError::Issuer(ISSUER.into())
        );
        assert_eq!(
            verify(
                &self::keys().sign(&claims()).unwrap(),
                ISSUER,
                "api",
                1_000_000
            ),
            TokenError::Signature
        );

        let parts: Vec<&str> = token.split('.').collect();
        let mut forged = claims();
        forged.sub = "system:serviceaccount:kube-system:admin".into();
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        let forged = format!("{}.{payload}.{}", parts[0], parts[2]);
        assert_eq!(
            verify(&forged, ISSUER, "api", 1_000_000),
            TokenError::Signature
        );
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(
            verify(&format!("{none}.{}.", parts[1]), ISSUER, "api", 1_000_000),
            TokenError::Algorithm
        );
        for bad in ["", ".", "..", "a.b", "a.b.c", &"x".repeat(MAX_TOKEN + 1)] {
            assert_eq!(verify(bad, ISSUER, "api", 1_000_000), TokenError::Malformed);
        }
    }

    #[test]
    fn retired_keys_still_verify() {
        let old_pem = pki::generate_key().unwrap();
        let token = TokenKeys::load(&old_pem).unwrap().sign(&claims()).unwrap();
        let keys = keys().with_retired(&old_pem).unwrap();
        assert!(keys.verify(&token, ISSUER, &[], 1_000_000).is_ok());
        assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_public_key_is_one_that_others_read() {
        let keys = keys();
        let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(
            keys.public_key_pem().as_bytes(),
        )
        .unwrap();
        let (_, spki) = <x509_parser::x509::SubjectPublicKeyInfo as x509_parser::prelude::FromDer<_>>::from_der(&der).unwrap();
        assert_eq!(
            spki.subject_public_key.data.as_ref(),
            keys.verifiers[0].point
        );
    }
}
