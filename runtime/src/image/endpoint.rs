//! Where an image may come from: mirrors first, then the registry itself.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use reqwest::Url;

use super::error::{ErrorKind, ImageError, Result};
use super::options::RegistryConfig;
use super::reference::Reference;
use super::retry::Failure;

/// One place that may have the image: a mirror, or the registry itself.
pub(crate) struct Endpoint {
    /// `https://host:port/v2/` and, for some mirrors, a path.
    pub base: Url,
    /// TLS was not asked for by name: plain HTTP will do if the other side does not speak TLS.
    pub may_fall_back: bool,
    fell_back: AtomicBool,
    /// It could not be reached in this session: ask others first.
    pub down: AtomicBool,
    /// What it accepted last.
    pub authorization: Mutex<Option<Authorization>>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Authorization {
    Basic(String, String),
    Bearer(String),
}
impl Endpoint {
    pub(crate) fn scheme(&self) -> &str {
        match self.fell_back.load(Ordering::Relaxed) {
            true => "http",
            false => self.base.scheme(),
        }
    }

    pub(crate) fn url(&self, repository: &str, path: &str) -> Result<Url> {
        let bad = |e: &dyn std::fmt::Display| {
            ImageError::new(ErrorKind::Network, format!("{}: {e}", self.base))
        };
        let mut url = self
            .base
            .join(&format!("{repository}/{path}"))
            .map_err(|e| bad(&e))?;
        url.set_scheme(self.scheme())
            .map_err(|()| bad(&"not an HTTP URL"))?;
        Ok(url)
    }

    /// Neither TLS nor plain HTTP led to an answer: tell both, and begin with TLS next time.
    pub(crate) fn neither_way(&self, tls: Failure, plain: Failure) -> Failure {
        if plain.error.kind() != ErrorKind::Network {
            return plain;
        }
        self.fell_back.store(false, Ordering::Relaxed);
        let message = format!("{} (without TLS: {})", tls.error, plain.error);
        Failure {
            error: ImageError::new(ErrorKind::Network, message),
            ..tls
        }
    }

    /// Whether to try again without TLS; true only once.
    pub(crate) fn fall_back(&self) -> bool {
        self.may_fall_back && !self.fell_back.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn authorization(&self) -> Option<Authorization> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The mirrors of a registry in their order, then the registry.
pub(crate) fn endpoints(image: &Reference, config: &RegistryConfig) -> Result<Vec<Endpoint>> {
    let registry = image.registry();
    let mirrors = config
        .mirrors
        .get(registry)
        .or_else(|| config.mirrors.get("*"));
    let mut endpoints = Vec::new();
    for mirror in mirrors.into_iter().flatten() {
        endpoints.push(
            endpoint(mirror, config)
                .map_err(|e| e.context(format!("mirror {mirror:?} of {registry}")))?,
        );
    }
    endpoints.push(endpoint(&upstream_host(registry), config)?);
    Ok(endpoints)
}

/// `docker.io` is served under another name.
pub(crate) fn upstream_host(registry: &str) -> String {
    match registry {
        "docker.io" => "registry-1.docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// An endpoint from `host[:port]` or an URL.
fn endpoint(address: &str, config: &RegistryConfig) -> Result<Endpoint> {
    let bad = |e: &dyn std::fmt::Display| {
        ImageError::new(
            ErrorKind::Network,
            format!("invalid address {address:?}: {e}"),
        )
    };
    let (url, named) = match address.contains("://") {
        true => (address.to_owned(), true),
        false => (format!("https://{address}"), false),
    };
    let mut base = Url::parse(&url).map_err(|e| bad(&e))?;
    let host = base.host_str().unwrap_or_default().to_owned();
    if host.is_empty() || !matches!(base.scheme(), "http" | "https") {
        return Err(bad(&"not an HTTP URL"));
    }
    let plain = !named && (config.plain_http.contains(address) || config.plain_http.contains("*"));
    if plain {
        base.set_scheme("http")
            .map_err(|()| bad(&"not an HTTP URL"))?;
    }
    let path = match base.path().trim_end_matches('/') {
        "" => "/v2/".to_owned(),
        path if path == "/v2" || path.starts_with("/v2/") => format!("{path}/"),
        path => format!("/v2{path}/"),
    };
    base.set_path(&path);
    Ok(Endpoint {
        may_fall_back: !named && !plain && is_loopback(&host),
        fell_back: AtomicBool::new(false),
        down: AtomicBool::new(false),
        authorization: Mutex::new(None),
        base,
    })
}

pub(crate) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => v4.octets()[0] == Ipv4Addr::LOCALHOST.octets()[0],
        Ok(IpAddr::V6(v6)) => v6.is_loopback(),
        Err(_) => bare == "localhost",
    }
}
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bases(image: &str, config: &RegistryConfig) -> Vec<String> {
        let endpoints = endpoints(&image.parse().unwrap(), config).unwrap();
        endpoints
            .iter()
            .map(|e| e.url("r", "x").unwrap().to_string())
            .collect()
    }

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let mut config = RegistryConfig::default();
        let mirrors = vec![
            "http://m.lan:5000".to_owned(),
            "https://proxy.lan/v2/hub".to_owned(),
        ];
        config.mirrors.insert("docker.io".into(), mirrors);
        config.plain_http.insert("plain.lan:80".into());
        assert_eq!(
            bases("nginx", &config),
            [
                "http://m.lan:5000/v2/r/x",
                "https://proxy.lan/v2/hub/r/x",
                "https://registry-1.docker.io/v2/r/x"
            ]
        );
        assert_eq!(bases("quay.io/a", &config), ["https://quay.io/v2/r/x"]);
        assert_eq!(
            bases("plain.lan:80/a", &config),
            ["http://plain.lan/v2/r/x"]
        );
        config
            .mirrors
            .insert("quay.io".into(), vec!["ftp://x".into()]);
        assert!(endpoints(&"quay.io/a".parse().unwrap(), &config).is_err());
    }

    #[test]
    fn only_loopback_registries_may_fall_back_to_plain_http() {
        for (host, want) in [
            ("127.0.0.1:5000", true),
            ("localhost:5000", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(
                endpoint(host, &RegistryConfig::default())
                    .unwrap()
                    .may_fall_back,
                want,
                "{host}"
            );
        }
        assert!(
            !endpoint("https://127.0.0.1:5000", &RegistryConfig::default())
                .unwrap()
                .may_fall_back
        );
    }
}
