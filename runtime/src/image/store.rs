//! The image store: what is on this box, by name, digest and id.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::ImageConfig;
use super::options::{Limits, PullOptions};
use super::reference::Reference;

/// An image that is here, complete, ready to be the root of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of the config: what `imageID` and `docker inspect` call the image id.
    pub id: Digest,
    /// `docker.io/library/nginx:1.27`
    pub repo_tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:…`, with the digest that the registry resolves the tag to.
    pub repo_digests: Vec<String>,
    /// Bytes as the registry holds it: manifest, config and (compressed) layers. This is what node status shows.
    pub size_bytes: u64,
    /// Bytes of the unpacked layers on this disk; layers shared with other images are counted in each.
    pub disk_bytes: u64,
    pub config: ImageConfig,
    /// Directories to use as overlayfs lower directories, **lowest first**.
    pub layers: Vec<PathBuf>,
}

/// What the store takes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Unpacked layers, each counted once.
    pub layer_bytes: u64,
    pub layer_inodes: u64,
    /// Manifests, configs, and layers that are being fetched.
    pub blob_bytes: u64,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    limits: Limits,
}

fn missing() -> ImageError {
    ImageError::new(ErrorKind::Unsupported, "not there yet")
}

impl ImageStore {
    /// Opens the store at `dir`, made if need be, and discards what an interrupted run left half-done. Half-downloaded
    /// layers stay, to be resumed. One process at a time: a second open fails.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, Limits::default())
    }

    pub fn open_with(dir: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        Ok(Self {
            inner: Arc::new(Inner { dir, limits }),
        })
    }

    /// Asks the registry what `reference` is now, fetches what is missing and unpacks it. Callers that ask for the same
    /// at the same time share one pull; dropping all their futures stops it. What was fetched is resumed next time.
    pub async fn pull(&self, _reference: &Reference, _options: &PullOptions) -> Result<Image> {
        let _ = (&self.inner.dir, &self.inner.limits);
        Err(missing())
    }

    /// The image that `reference` names here, without asking a registry.
    pub fn resolve(&self, _reference: &Reference) -> Option<Image> {
        None
    }

    /// The image with this id (config digest), or with this manifest or index digest.
    pub fn get(&self, _digest: &Digest) -> Option<Image> {
        None
    }

    /// Every image, also those that lost their last name but are still in use.
    pub fn list(&self) -> Vec<Image> {
        Vec::new()
    }

    /// Takes the name away. The image stays until [`ImageStore::gc`] finds it without names and not in use.
    pub async fn remove(&self, _reference: &Reference) -> Result<()> {
        Err(missing())
    }

    /// Takes all names of the image with this id away.
    pub async fn remove_image(&self, _id: &Digest) -> Result<()> {
        Err(missing())
    }

    /// Deletes images without a name whose id is not in `in_use`, then blobs and layers that no image needs. Pulls
    /// that are under way keep what they need. Returns the bytes freed.
    pub async fn gc(&self, _in_use: &BTreeSet<Digest>) -> Result<u64> {
        Err(missing())
    }

    pub fn disk_usage(&self) -> DiskUsage {
        DiskUsage::default()
    }

    /// Imports a tar archive of an OCI image layout (image-spec, image-layout.md; also what `docker save` writes since
    /// v25), plain, gzip or zstd. Images are named by `name`, else by their annotations.
    pub async fn import_oci_archive(
        &self,
        _archive: impl Read + Send + 'static,
        _name: Option<&Reference>,
    ) -> Result<Vec<Image>> {
        Err(missing())
    }

    /// Makes an image that holds one static binary, at `/<file name>`, and stores it under `name`. The same binary gives
    /// the same image. The entrypoint is the binary with `args`.
    pub async fn build_single_binary_image(
        &self,
        _binary: &Path,
        _name: &Reference,
        _args: &[&str],
    ) -> Result<Image> {
        Err(missing())
    }
}
