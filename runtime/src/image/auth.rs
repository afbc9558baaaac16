//! Credentials for registries, and which of them are meant for an image.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::{ErrorKind, ImageError, Result};
use super::reference::Reference;

/// One credential, as a Docker `config.json` entry holds it.
///
/// `registry` says where it is meant for: a host (`quay.io`, `*.example.com`, `host:5000`), a host and path prefix
/// (`ghcr.io/team`), or one of Docker Hub's old URLs (`https://index.docker.io/v1/`).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RegistryAuth {
    pub registry: String,
    pub username: String,
    pub password: String,
    /// An OAuth2 refresh token, used instead of the password where the registry has a token server.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

impl RegistryAuth {
    /// Reads a Docker `config.json` (`{"auths": {...}}`), or an old `.dockercfg` (the inner map alone).
    pub fn from_docker_config(json: &[u8]) -> Result<Vec<Self>> {
        #[derive(Deserialize)]
        struct File {
            auths: BTreeMap<String, Entry>,
        }
        // The text of serde's error could quote the secret: say only where.
        let bad = |e: serde_json::Error| {
            let place = format!("line {} column {}", e.line(), e.column());
            ImageError::new(
                ErrorKind::Unauthorized,
                format!("invalid registry credentials at {place}"),
            )
        };
        let value: serde_json::Value = serde_json::from_slice(json).map_err(bad)?;
        let entries = match value.get("auths") {
            Some(_) => serde_json::from_value::<File>(value).map_err(bad)?.auths,
            None => serde_json::from_value::<BTreeMap<String, Entry>>(value).map_err(bad)?,
        };
        entries
            .into_iter()
            .map(|(registry, entry)| Self::from_entry(registry, entry))
            .collect()
    }

    fn from_entry(registry: String, entry: Entry) -> Result<Self> {
        let mut auth = Self {
            registry,
            username: entry.username.unwrap_or_default(),
            password: entry.password.unwrap_or_default(),
            identity_token: entry.identitytoken.unwrap_or_default(),
            registry_token: entry.registrytoken.unwrap_or_default(),
        };
        if let Some(encoded) = entry.auth.filter(|a| !a.is_empty()) {
            let decoded = STANDARD
                .decode(encoded.trim())
                .ok()
                .and_then(|b| String::from_utf8(b).ok());
            let pair = decoded.as_deref().and_then(|d| d.split_once(':'));
            let Some((username, password)) = pair else {
                return Err(ImageError::new(
                    ErrorKind::Unauthorized,
                    format!(
                        "invalid registry credentials: the \"auth\" of {:?} is not base64 of user:password",
                        auth.registry
                    ),
                ));
            };
            auth.username = username.to_owned();
            auth.password = password.trim_end_matches('\0').to_owned();
        }
        Ok(auth)
    }

    /// Whether this credential is meant for `image`; an entry without a registry is meant for every image.
    pub(crate) fn is_for(&self, image: &Reference) -> bool {
        let pattern = self
            .registry
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
        if host.is_empty() {
            return true;
        }
        // Docker Hub goes by several names; the path of the old ones is an API version.
        let (host, path) = match host {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
                ("docker.io", path)
            }
            other => (other, path),
        };
        let path = match path.trim_end_matches('/') {
            "v1" | "v2" => "",
            other => other,
        };
        host_matches(host, image.registry()) && path_matches(path, image.repository())
    }

    /// How exact the entry is: longer paths and hosts without wildcards are tried first, as kubelet does.
    pub(crate) fn exactness(&self) -> (usize, bool) {
        (
            self.registry.matches('/').count(),
            !self.registry.contains('*'),
        )
    }
}

/// Each label of the pattern may hold `*`, which never spans a dot; ports must be equal.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern_name, pattern_port) = split_port(pattern);
    let (name, port) = split_port(host);
    if pattern_port != port {
        return false;
    }
    let patterns: Vec<&str> = pattern_name.split('.').collect();
    let labels: Vec<&str> = name.split('.').collect();
    patterns.len() == labels.len() && patterns.iter().zip(&labels).all(|(p, l)| glob(p, l))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(text),
        Some((head, tail)) => {
            let Some(rest) = text.get(head.len()..) else {
                return false;
            };
            text[..head.len()].eq_ignore_ascii_case(head)
                && (0..=rest.len())
                    .any(|skip| rest.get(skip..).is_some_and(|rest| glob(tail, rest)))
        }
    }
}

fn path_matches(prefix: &str, repository: &str) -> bool {
    prefix.is_empty()
        || repository
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_docker_config_yields_its_credentials() {
        let json = br#"{"auths":{"quay.io":{"auth":"dXNlcjpwYTpzcw=="},"x.io":{"username":"a","password":"b"},
            "y.io":{"auth":"","identitytoken":"t"}}}"#;
        let auths = RegistryAuth::from_docker_config(json).unwrap();
        let by = |name: &str| auths.iter().find(|a| a.registry == name).unwrap();
        assert_eq!(
            (
                by("quay.io").username.as_str(),
                by("quay.io").password.as_str()
            ),
            ("user", "pa:ss")
        );
        assert_eq!(
            (by("x.io").username.as_str(), by("x.io").password.as_str()),
            ("a", "b")
        );
        assert_eq!(by("y.io").identity_token, "t");
        let old = RegistryAuth::from_docker_config(br#"{"quay.io":{"auth":"dXNlcjpwYTpzcw=="}}"#)
            .unwrap();
        assert_eq!(old[0].username, "user");
    }

    #[test]
    fn broken_credentials_are_refused_without_showing_the_secret() {
        for json in [
            &b"{"[..],
            br#"{"auths":{"q":{"auth":"c2VjcmV0"}}}"#,
            br#"{"auths":{"q":{"auth":7}}}"#,
            b"[]",
        ] {
            let error = RegistryAuth::from_docker_config(json)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("invalid registry credentials") && !error.contains("c2VjcmV0"),
                "{error}"
            );
        }
        let shown = format!(
            "{:?}",
            RegistryAuth {
                password: "hunter2".into(),
                ..Default::default()
            }
        );
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn credentials_match_the_images_they_are_meant_for() {
        for (pattern, image, want) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "team/app", true),
            ("docker.io/team", "team/app", true),
            ("docker.io/team", "teamwork/app", false),
            ("*.example.com", "reg.example.com/x", true),
            ("*.example.com", "a.b.example.com/x", false),
            ("reg*.io", "registry.io/x", true),
            ("host:5000", "host:5000/x", true),
            ("host:5000", "host:5001/x", false),
            ("quay.io", "ghcr.io/x", false),
            ("", "ghcr.io/x", true),
        ] {
            let auth = RegistryAuth {
                registry: pattern.into(),
                ..Default::default()
            };
            assert_eq!(
                auth.is_for(&image.parse().unwrap()),
                want,
                "{pattern} for {image}"
            );
        }
    }
}
