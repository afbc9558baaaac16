//! How boxes come into a cluster and stay connected to it: the join token, and the few paths and names that server and agent
//! agree on besides the Kubernetes API.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

/// `GET`: [`ClusterFacts`], for boxes that join and for nodes.
pub const CLUSTER_PATH: &str = "/amphipod.io/v1/cluster";
/// What the `Upgrade` header of a tunnel says.
pub const TUNNEL_PROTOCOL: &str = "amphipod-tunnel.v1";
/// The authority by which the server asks, inside a tunnel, for the node API. Any other is an address in the pod network.
pub const NODE_API: &str = "node-api:10250";
/// Who signs the certificates of nodes.
/// <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>
pub const NODE_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// Who signs the certificates of node APIs.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// `DELETE` removes the node for good.
pub fn node_path(node: &str) -> String {
    format!("/amphipod.io/v1/nodes/{node}")
}

/// `GET` with an upgrade to [`TUNNEL_PROTOCOL`]: the connection that an agent keeps to the server. The roles turn around on it: the
/// server sends HTTP/2 `CONNECT` requests, each of which becomes one connection.
pub fn tunnel_path(node: &str) -> String {
    format!("{}/tunnel", node_path(node))
}

/// What an agent must know of its cluster before it runs pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFacts {
    /// Ranges of the pods' addresses, comma-separated.
    pub cluster_cidr: String,
    /// Ranges of the services' addresses, comma-separated.
    pub service_cidr: String,
    pub cluster_domain: String,
    /// Address of the DNS service.
    pub cluster_dns: String,
    /// Inclusive.
    pub node_port_range: (u16, u16),
}

/// The text that lets a box join: `ID.SECRET.HASH`. The first two parts are a Kubernetes bootstrap token, the last is the SHA-256 of the
/// cluster CA's public key, by which the box knows the server at the first contact.
/// <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public: six of `a-z0-9`.
    pub id: String,
    /// Sixteen of `a-z0-9`.
    pub secret: String,
    /// As [`crate::pki::ca_hash`] has it.
    pub ca_hash: String,
}

const ID: usize = 6;
const SECRET: usize = 16;
const HASH: usize = 64;

impl JoinToken {
    /// A new token for a cluster's CA.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn generate(ca_hash: String) -> Result<JoinToken, String> {
        Ok(JoinToken {
            id: random(ID)?,
            secret: random(SECRET)?,
            ca_hash,
        })
    }

    /// What is presented to the server.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

/// The parts of a bootstrap token, `ID.SECRET`, if the text has that form.
pub fn bootstrap_token(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.split_once('.')?;
    (is_word(id, ID) && is_word(secret, SECRET)).then_some((id, secret))
}

fn is_word(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn random(length: usize) -> Result<String, String> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 32];
    while text.len() < length {
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| "the kernel gave no random numbers".to_owned())?;
        // 252 is the largest multiple of 36: every character is equally likely.
        let fair = bytes.iter().filter(|b| **b < 252);
        text.extend(
            fair.map(|b| char::from(ALPHABET[usize::from(*b) % 36]))
                .take(length - text.len()),
        );
    }
    Ok(text)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = self
            .ca_hash
            .strip_prefix("sha256:")
            .unwrap_or(&self.ca_hash);
        write!(f, "{}.{}.{hash}", self.id, self.secret)
    }
}

/// Tokens are not for logs.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<JoinToken, String> {
        let wrong =
            || "a join token has the form ID.SECRET.HASH, as `amphipod token create` prints it";
        let (token, hash) = text.trim().rsplit_once('.').ok_or_else(wrong)?;
        let (id, secret) = bootstrap_token(token).ok_or_else(wrong)?;
        if hash.len() != HASH || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong().to_owned());
        }
        Ok(JoinToken {
            id: id.to_owned(),
            secret: secret.to_owned(),
            ca_hash: format!("sha256:{}", hash.to_lowercase()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_printed() {
        let token = JoinToken::generate(format!("sha256:{}", "0a".repeat(32))).unwrap();
        let again: JoinToken = token.to_string().parse().unwrap();
        assert!(again == token);
        assert_eq!(
            bootstrap_token(&token.bearer()),
            Some((token.id.as_str(), token.secret.as_str()))
        );
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn tokens_without_a_hash_or_of_another_form_are_refused() {
        for text in [
            "",
            "abcdef.0123456789abcdef",
            "abcdef.0123456789abcdef.00",
            "ABCDEF.0123456789abcdef.0",
        ] {
            assert!(text.parse::<JoinToken>().is_err(), "{text:?}");
        }
        assert_eq!(bootstrap_token("abcdef.0123456789abcde"), None);
        assert_eq!(bootstrap_token("eyJhbGciOi.eyJpc3Mi.c2ln"), None);
    }
}
