//! The registries file: mirrors, plain-HTTP hosts and certificate authorities.
//!
//! ```json
//! {"mirrors": {"docker.io": ["https://mirror.lan:5000"]}, "plainHTTP": ["registry.lan:5000"], "ca": {"registry.lan": "/etc/ca.pem"}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use amphipod_runtime::image::RegistryConfig;
use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    mirrors: BTreeMap<String, Vec<String>>,
    #[serde(rename = "plainHTTP")]
    plain_http: BTreeSet<String>,
    /// Paths of PEM files by host.
    ca: BTreeMap<String, PathBuf>,
}

/// Reads the file; without one, the defaults.
pub fn read(path: Option<&Path>) -> Result<RegistryConfig> {
    let Some(path) = path else {
        return Ok(RegistryConfig::default());
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &str) -> Result<RegistryConfig> {
    let file: File = serde_yaml_ng::from_str::<Option<File>>(text)?.unwrap_or_default();
    let mut ca = BTreeMap::new();
    for (host, path) in file.ca {
        let pem = std::fs::read_to_string(&path)
            .with_context(|| format!("reading the CA of {host}, {}", path.display()))?;
        ca.insert(host, pem);
    }
    Ok(RegistryConfig {
        mirrors: file.mirrors,
        plain_http: file.plain_http,
        ca,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn json_and_yaml_are_read_and_typos_refused() {
        let c = parse("mirrors: {docker.io: ['https://m']}\nplainHTTP: [r]\n").unwrap();
        assert_eq!(
            (
                c.mirrors["docker.io"][0].as_str(),
                c.plain_http.contains("r")
            ),
            ("https://m", true)
        );
        assert!(parse("{\"plainHTTP\": [\"r\"]}").is_ok());
        assert!(parse("").unwrap().mirrors.is_empty());
        assert!(parse("plainhttp: [r]").is_err());
    }
}
