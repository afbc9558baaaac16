//! The older archive format of `docker save`, which `podman save` still writes: `manifest.json` names files by path.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use super::digest::Digest;
use super::error::{ImageError, Result};
use super::import::{Content, invalid};
use super::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, parse_manifest};
use super::reference::Reference;
use super::store::Image;

/// One image of the list in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Stores the images of a Docker archive: under `name`, else under their tags.
pub(crate) fn store(
    content: &Content,
    list: &[u8],
    name: Option<&Reference>,
) -> Result<Vec<Image>> {
    let list: Vec<DockerImage> =
        serde_json::from_slice(list).map_err(|e| invalid(format!("invalid manifest.json: {e}")))?;
    let mut images: Vec<Image> = Vec::new();
    for image in &list {
        // The archive has no manifest of the kind that registries hold: make the one that fits.
        let layers = image
            .layers
            .iter()
            .map(|path| describe(content, path, OCI_LAYER));
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: describe(content, &image.config, OCI_CONFIG)?,
            layers: layers.collect::<Result<_>>()?,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| invalid(e.to_string()))?;
        let manifest = parse_manifest(&bytes)?;
        let digest = Digest::sha256(&bytes);
        let tags = image
            .repo_tags
            .iter()
            .flatten()
            .filter_map(|tag| tag.parse().ok());
        let mut names: Vec<Option<Reference>> = match name {
            Some(name) => vec![Some(name.clone())],
            None => tags.map(Some).collect(),
        };
        if names.is_empty() {
            names.push(None);
        }
        for name in names {
            let stored = content.store_manifest(
                &manifest,
                digest.clone(),
                bytes.len(),
                &digest,
                name.as_ref(),
            )?;
            images.retain(|known| known.id != stored.id);
            images.push(stored);
        }
    }
    Ok(images)
}

fn describe(content: &Content, path: &str, media_type: &str) -> Result<Descriptor> {
    let digest = find(content, path).ok_or_else(|| invalid(format!("{path:?} is missing")))?;
    let meta = fs::metadata(content.inner.blob_path(&digest))
        .map_err(|e| ImageError::io("reading a blob", &e))?;
    Ok(Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size: meta.len(),
        platform: None,
        annotations: BTreeMap::new(),
    })
}

/// The blob at `path`; a layer that occurs twice is a link to the first, `../OTHER/layer.tar`.
fn find(content: &Content, path: &str) -> Option<Digest> {
    let direct = content.files.get(path);
    let linked = || {
        content
            .files
            .get(content.links.get(path)?.strip_prefix("../")?)
    };
    direct.or_else(linked).cloned()
}
