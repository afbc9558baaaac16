//! Manifests, indexes and configs (OCI image-spec v1.1 and Docker image manifest v2, schema 2), read leniently:
//! `null` is the same as absent, unknown fields are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::error::{ErrorKind, ImageError, Result};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What we ask registries for.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Layers an image may have; overlayfs takes no more than 500, Docker builds no more than 127.
const LAYER_LIMIT: usize = 127;

/// A pointer to content (image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// A platform as image indexes name it: `linux/arm/v7`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

impl Platform {
    /// The platform of this binary.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well an image built for `offered` runs on `self`: lower is better, `None` not at all.
    fn rank(&self, offered: &Self) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        match self.architecture.as_str() {
            // Older variants run on newer processors.
            "arm" => {
                let own = arm_version(&self.variant, 7)?;
                let theirs = arm_version(&offered.variant, 7)?;
                own.checked_sub(theirs)
            }
            // Every arm64 is at least v8; an amd64 variant states a micro-architecture level that we cannot vouch for.
            "arm64" => {
                let own = arm_version(&self.variant, 8)?;
                let theirs = arm_version(&offered.variant, 8)?;
                own.checked_sub(theirs)
            }
            _ if offered.variant == self.variant => Some(0),
            _ if offered.variant.is_empty() || offered.variant == "v1" => Some(1),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

fn arm_version(variant: &str, default: u32) -> Option<u32> {
    match variant {
        "" => Some(default),
        other => other.strip_prefix('v')?.split('.').next()?.parse().ok(),
    }
}

/// What a registry may answer for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    pub config: Descriptor,
    #[serde(deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    #[serde(deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The manifest that fits `platform` best; the first of equals.
    pub fn choose(&self, platform: &Platform) -> Option<&Descriptor> {
        self.manifests
            .iter()
            .filter(|d| d.is_manifest() || d.is_index())
            .filter_map(|d| match &d.platform {
                Some(offered) => Some((platform.rank(offered)?, d)),
                // An entry that names no platform is taken only when nothing better is there.
                None => Some((u32::MAX, d)),
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, d)| d)
    }
}

impl Descriptor {
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }

    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

/// Reads a manifest or an index. `media_type` is what the transport said; the document's own word wins.
pub fn parse_document(bytes: &[u8], media_type: &str) -> Result<Document> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        #[serde(default)]
        schema_version: u32,
        #[serde(default, deserialize_with = "nullable")]
        media_type: String,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
    }
    let corrupt = |e: serde_json::Error| {
        ImageError::new(ErrorKind::Corrupt, format!("invalid image manifest: {e}"))
    };
    let probe: Probe = serde_json::from_slice(bytes).map_err(corrupt)?;
    let media_type = match probe.media_type.as_str() {
        "" => media_type.split(';').next().unwrap_or_default().trim(),
        own => own,
    };
    if probe.schema_version == 1 || media_type.starts_with(DOCKER_SCHEMA_1) {
        return Err(ImageError::new(
            ErrorKind::Unsupported,
            "Docker image manifests of schema 1 are not supported: push the image again with a current tool",
        ));
    }
    if probe.manifests.is_some() && probe.config.is_some() {
        return Err(ImageError::new(
            ErrorKind::Corrupt,
            "invalid image manifest: it has both \"manifests\" and \"config\"",
        ));
    }
    match media_type {
        OCI_INDEX | DOCKER_LIST => Ok(Document::Index(
            serde_json::from_slice(bytes).map_err(corrupt)?,
        )),
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Document::Manifest(parse_manifest(bytes)?)),
        _ if probe.manifests.is_some() => Ok(Document::Index(
            serde_json::from_slice(bytes).map_err(corrupt)?,
        )),
        _ if probe.config.is_some() => Ok(Document::Manifest(parse_manifest(bytes)?)),
        other => Err(ImageError::new(
            ErrorKind::Unsupported,
            format!("unsupported manifest media type {other:?}"),
        )),
    }
}

pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|e| ImageError::new(ErrorKind::Corrupt, format!("invalid image manifest: {e}")))?;
    if manifest.layers.len() > LAYER_LIMIT {
        let count = manifest.layers.len();
        return Err(ImageError::new(
            ErrorKind::Hostile,
            format!("the image has {count} layers, more than {LAYER_LIMIT}"),
        ));
    }
    for layer in &manifest.layers {
        if layer.media_type.contains("+encrypted") {
            return Err(ImageError::new(
                ErrorKind::Unsupported,
                format!("layer {}: encrypted layers are not supported", layer.digest),
            ));
        }
    }
    if !matches!(
        manifest.config.media_type.as_str(),
        OCI_CONFIG | DOCKER_CONFIG | "application/octet-stream"
    ) {
        return Err(ImageError::new(
            ErrorKind::Unsupported,
            format!(
                "not a container image: its config is {:?}",
                manifest.config.media_type
            ),
        ));
    }
    Ok(manifest)
}

/// What an image says about running it (image-spec, config.md). Empty where the image says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value`
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; see [`super::user::resolve`].
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// `SIGQUIT`, or a number.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "keys",
        serialize_with = "as_keys",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub volumes: Vec<String>,
    /// `80/tcp`
    #[serde(
        deserialize_with = "keys",
        serialize_with = "as_keys",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exposed_ports: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
}

/// The config blob: what to run and the digests of the unpacked layers, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigFile {
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    #[serde(deserialize_with = "nullable")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

pub fn parse_config(bytes: &[u8], manifest: &Manifest) -> Result<ConfigFile> {
    let config: ConfigFile = serde_json::from_slice(bytes)
        .map_err(|e| ImageError::new(ErrorKind::Corrupt, format!("invalid image config: {e}")))?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::new(
            ErrorKind::Corrupt,
            format!(
                "invalid image config: {} layers in the manifest, but {} in the config",
                manifest.layers.len(),
                config.rootfs.diff_ids.len()
            ),
        ));
    }
    Ok(config)
}

/// The chain ids of a stack of layers (image-spec, config.md#layer-chainid): one for each layer, lowest first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(parent) => Digest::sha256(format!("{parent} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn as_keys<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    let empty = BTreeMap::<String, String>::new();
    serializer.collect_map(keys.iter().map(|key| (key, &empty)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn platform(architecture: &str, variant: &str) -> Platform {
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    fn index(offers: &[(&str, &str)]) -> Index {
        let manifests = offers.iter().map(|(architecture, variant)| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::sha256(format!("{architecture}{variant}").as_bytes()),
            size: 1,
            platform: Some(platform(architecture, variant)),
            annotations: BTreeMap::new(),
        });
        Index {
            manifests: manifests.collect(),
        }
    }

    #[test]
    fn an_index_yields_the_manifest_that_fits_the_machine_best() {
        let all = index(&[
            ("386", ""),
            ("amd64", "v3"),
            ("amd64", ""),
            ("arm", "v5"),
            ("arm", "v6"),
            ("arm", "v7"),
            ("arm64", ""),
            ("unknown", ""),
        ]);
        for (host, want) in [
            (platform("amd64", ""), Some(platform("amd64", ""))),
            (platform("arm64", "v8"), Some(platform("arm64", ""))),
            (platform("arm", "v7"), Some(platform("arm", "v7"))),
            (platform("arm", "v6"), Some(platform("arm", "v6"))),
            (platform("riscv64", ""), None),
        ] {
            let chosen = all.choose(&host).and_then(|d| d.platform.clone());
            assert_eq!(chosen, want, "{host}");
        }
        let old = index(&[("arm", "v5"), ("arm", "v6")]);
        let chosen = old.choose(&platform("arm", "v7")).unwrap();
        assert_eq!(chosen.platform, Some(platform("arm", "v6")));
        assert!(
            index(&[("arm", "v7")])
                .choose(&platform("arm", "v6"))
                .is_none()
        );
    }

    #[test]
    fn configs_with_null_everywhere_are_read_as_empty() {
        let json = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":null,"Cmd":["sh"],"Env":null,
            "Labels":null,"Volumes":null,"ExposedPorts":{"80/tcp":{}},"User":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config: ConfigFile = serde_json::from_slice(json).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.config.user, "");
        let bare: ConfigFile = serde_json::from_slice(b"{}").unwrap();
        assert_eq!(bare, ConfigFile::default());
    }

    #[test]
    fn schema_1_and_ambiguous_documents_are_refused() {
        let one = br#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        let error = parse_document(one, "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let both = br#"{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}"#;
        assert_eq!(
            parse_document(both, "").unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        assert_eq!(
            parse_document(b"<html>", "text/html").unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        assert_eq!(
            parse_document(b"{}", "text/html").unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = Digest::sha256(b"a");
        let b = Digest::sha256(b"b");
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::sha256(format!("{a} {b}").as_bytes()));
    }
}
