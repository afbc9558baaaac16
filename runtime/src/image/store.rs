//! The image store on disk: what is on this box, by name, digest and id.
//!
//! ```text
//! lock                      held by the one process that has the store open
//! index.json                images and their names; replaced whole
//! blobs/sha256-…            configs of the images; layers between download and unpacking
//! ingest/sha256-…           half a download
//! layers/0123456789abcdef/  one unpacked layer, named by the start of its chain id (short: overlayfs options are one page)
//!     fs/                   the lower directory
//!     layer.json            its whole chain id and size
//! layers/tmp-…              being unpacked or deleted
//! empty/                    the only layer of an image that has none
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use nix::fcntl::Flock;
use tokio::sync::Semaphore;

use super::catalog::{Catalog, Layer, Record};
use super::digest::Digest;
use super::disk::{
    IndexFile, WorkDir, file_name, load, lock, remove_files, replace_file, size_of_files,
    sync_file_system, write_file,
};
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::ImageConfig;
use super::options::{Limits, PullOptions};
use super::pull::Pulls;
use super::reference::Reference;
use super::tree::check_space;
use super::unpack::{LayerLimits, apply};

/// Half-downloads that nobody resumed for so long are deleted.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);

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
    /// Directories to use as overlayfs lower directories, **lowest first**; at least one.
    pub layers: Vec<PathBuf>,
}

/// What the store takes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Unpacked layers, each counted once.
    pub layer_bytes: u64,
    pub layer_inodes: u64,
    /// Configs, and layers that are being fetched.
    pub blob_bytes: u64,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    dir: PathBuf,
    pub(crate) limits: Limits,
    /// Replaced whole by [`Inner::commit`]; readers take a snapshot.
    catalog: RwLock<Arc<Catalog>>,
    /// Serialises changes of the catalog, which wait for the disk.
    writer: Mutex<()>,
    /// Blobs and chains that work under way needs, with the number of its holders.
    pins: Mutex<HashMap<Digest, usize>>,
    /// One task at a time for each blob or chain.
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) downloads: Semaphore,
    pub(crate) pulls: Pulls,
    counter: AtomicU64,
    _lock: Flock<File>,
}
impl ImageStore {
    /// Opens the store at `dir`, made if need be, and discards what an interrupted run left half-done. Half-downloaded
    /// layers stay, to be resumed. One process at a time: a second open fails.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, Limits::default())
    }

    pub fn open_with(dir: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        for sub in ["", "blobs", "ingest", "layers", "empty"] {
            let path = dir.join(sub);
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path);
            made.map_err(|e| ImageError::io(format!("creating {}", path.display()), &e))?;
        }
        let lock = lock(&dir)?;
        let catalog = load(&dir)?;
        Ok(Self {
            inner: Arc::new(Inner {
                downloads: Semaphore::new(limits.parallel_downloads.max(1)),
                limits,
                catalog: RwLock::new(Arc::new(catalog)),
                writer: Mutex::new(()),
                pins: Mutex::default(),
                locks: Mutex::default(),
                pulls: Pulls::default(),
                counter: AtomicU64::new(0),
                _lock: lock,
                dir,
            }),
        })
    }

    /// Asks the registry what `reference` is now, fetches what is missing and unpacks it. Callers that ask for the same
    /// at the same time share one pull; dropping all their futures stops it. What was fetched is resumed next time.
    pub async fn pull(&self, reference: &Reference, options: &PullOptions) -> Result<Image> {
        super::pull::pull(self, reference, options).await
    }

    /// The image that `reference` names here, without asking a registry.
    pub fn resolve(&self, reference: &Reference) -> Option<Image> {
        let catalog = self.inner.catalog();
        catalog
            .resolve(reference)
            .map(|record| self.inner.image(&catalog, record))
    }

    /// The image with this id (config digest), or with this manifest or index digest.
    pub fn get(&self, digest: &Digest) -> Option<Image> {
        let catalog = self.inner.catalog();
        catalog
            .get(digest)
            .map(|record| self.inner.image(&catalog, record))
    }

    /// Every image, also those that lost their last name but are still in use.
    pub fn list(&self) -> Vec<Image> {
        let catalog = self.inner.catalog();
        catalog
            .images
            .values()
            .map(|record| self.inner.image(&catalog, record))
            .collect()
    }

    /// Takes the name away; the last tag takes the image's digests in its repository along. The image stays until
    /// [`ImageStore::gc`] finds it without names and not in use.
    pub async fn remove(&self, reference: &Reference) -> Result<()> {
        let reference = reference.clone();
        self.change(move |catalog| catalog.remove_name(&reference))
            .await
    }

    /// Takes all names of the image with this id away.
    pub async fn remove_image(&self, id: &Digest) -> Result<()> {
        let id = id.clone();
        self.change(move |catalog| catalog.names.retain(|_, pointer| pointer.image != id))
            .await
    }

    /// Deletes images without a name whose id is not in `in_use`, then blobs and layers that no image needs. Pulls
    /// that are under way keep what they need. Returns the bytes freed.
    pub async fn gc(&self, in_use: &BTreeSet<Digest>) -> Result<u64> {
        let (inner, in_use) = (self.inner.clone(), in_use.clone());
        blocking(move || inner.gc(&in_use)).await
    }

    pub fn disk_usage(&self) -> DiskUsage {
        let catalog = self.inner.catalog();
        DiskUsage {
            layer_bytes: catalog.layers.values().map(|layer| layer.bytes).sum(),
            layer_inodes: catalog.layers.values().map(|layer| layer.inodes).sum(),
            blob_bytes: ["blobs", "ingest"]
                .iter()
                .map(|sub| size_of_files(&self.inner.dir.join(sub)))
                .sum(),
        }
    }

    /// Imports a tar archive, plain, gzip or zstd: an OCI image layout (image-spec, image-layout.md), or what
    /// `docker save` and `podman save` write. Images are named by `name`, else as the archive says.
    pub async fn import_oci_archive(
        &self,
        archive: impl Read + Send + 'static,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>> {
        let (store, name) = (self.clone(), name.cloned());
        blocking(move || super::import::import(&store, archive, name.as_ref())).await
    }

    /// Makes an image that holds one static binary, at `/<file name>`, and stores it under `name`. The same binary gives
    /// the same image. The entrypoint is the binary with `args`.
    pub async fn build_single_binary_image(
        &self,
        binary: &Path,
        name: &Reference,
        args: &[&str],
    ) -> Result<Image> {
        let (store, binary, name) = (self.clone(), binary.to_path_buf(), name.clone());
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        // Pods that start together ask together: one builds, the others find the layer.
        let _lock = self
            .inner
            .lock(&Digest::sha256(binary.as_os_str().as_encoded_bytes()))
            .await;
        blocking(move || super::build::build(&store, &binary, &name, &args)).await
    }

    async fn change(&self, change: impl FnOnce(&mut Catalog) + Send + 'static) -> Result<()> {
        let inner = self.inner.clone();
        blocking(move || inner.commit(change)).await
    }
}

/// Runs `work` where it may wait for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ImageError::new(
            ErrorKind::Store,
            format!("image work was broken off: {e}"),
        )),
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks leaves its data half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(file_name(digest))
    }

    pub(crate) fn ingest_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("ingest").join(file_name(digest))
    }

    /// A new file in the store's own directory; whoever asked renames or deletes it.
    pub(crate) fn work_file(&self) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.dir.join("blobs").join(format!("tmp-{number}"))
    }

    fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.dir.join("layers").join(&chain.hex()[..16])
    }

    pub(crate) fn has_layer(&self, chain: &Digest) -> bool {
        self.catalog().layers.contains_key(chain)
    }

    pub(crate) fn image(&self, catalog: &Catalog, record: &Record) -> Image {
        let (repo_tags, repo_digests) = catalog.names_of(&record.id);
        let layers: Vec<&Layer> = record
            .layers
            .iter()
            .filter_map(|chain| catalog.layers.get(chain))
            .collect();
        // overlayfs does not look at the opaque mark of a root: leave out what it hides.
        let lowest = layers.iter().rposition(|layer| layer.opaque).unwrap_or(0);
        let mut paths: Vec<PathBuf> = layers
            .iter()
            .skip(lowest)
            .map(|layer| self.layer_path(&layer.chain).join("fs"))
            .collect();
        if paths.is_empty() {
            paths.push(self.dir.join("empty"));
        }
        Image {
            id: record.id.clone(),
            repo_tags,
            repo_digests,
            size_bytes: record.size,
            disk_bytes: layers.iter().map(|layer| layer.bytes).sum(),
            config: record.config.clone(),
            layers: paths,
        }
    }

    /// Changes images and names, on disk before in memory.
    pub(crate) fn commit(&self, change: impl FnOnce(&mut Catalog)) -> Result<()> {
        let _writer = guard(&self.writer);
        let before = self.catalog();
        let mut after = Catalog::clone(&before);
        change(&mut after);
        if (&before.images, &before.names) != (&after.images, &after.names) {
            self.write_index(&after)?;
        }
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        Ok(())
    }

    fn write_index(&self, catalog: &Catalog) -> Result<()> {
        let file = IndexFile {
            version: 1,
            images: catalog.images.values().cloned().collect(),
            names: catalog.names.clone(),
        };
        let json = serde_json::to_vec(&file).map_err(|e| {
            ImageError::new(ErrorKind::Store, format!("writing the image index: {e}"))
        })?;
        let path = self.dir.join("index.json");
        replace_file(&path, &json).map_err(|e| ImageError::io("writing the image index", &e))
    }

    /// Records an image whose layers are all here, and its config.
    pub(crate) fn add_image(
        self: &Arc<Self>,
        record: Record,
        config_blob: &[u8],
        reference: Option<&Reference>,
        target: &Digest,
    ) -> Result<Image> {
        let id = record.id.clone();
        let _pin = self.pin(&id);
        let config = self.work_file();
        let written = write_file(&config, config_blob)
            .and_then(|()| fs::rename(&config, self.blob_path(&id)));
        written.map_err(|e| ImageError::io("storing the image's config", &e))?;
        self.commit(|catalog| catalog.insert(record, reference, target))?;
        let catalog = self.catalog();
        match catalog.images.get(&id) {
            Some(record) => Ok(self.image(&catalog, record)),
            None => Err(ImageError::new(
                ErrorKind::Store,
                "the image was removed while it was stored",
            )),
        }
    }

    /// Unpacks a layer into its place, unless it is there. `diff` and `chain` are what it must become; `below` are the
    /// chains under it, lowest first. Nothing is left of a layer that fails.
    pub(crate) fn unpack(
        &self,
        source: impl Read,
        diff: Option<&Digest>,
        chain: impl FnOnce(&Digest) -> Digest,
        below: &[Digest],
        cancel: &AtomicBool,
    ) -> Result<Layer> {
        let work = WorkDir::create(&self.dir, self.counter.fetch_add(1, Ordering::Relaxed))?;
        let root = work.path.join("fs");
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&root)
            .map_err(|e| ImageError::io("creating the layer's directory", &e))?;
        let root: OwnedFd = File::open(&root)
            .map_err(|e| ImageError::io("opening the layer's directory", &e))?
            .into();
        let parents: Vec<PathBuf> = below
            .iter()
            .rev()
            .map(|c| self.layer_path(c).join("fs"))
            .collect();
        let limits = LayerLimits {
            bytes: self.limits.layer_bytes,
            entries: self.limits.layer_entries,
            reserved: self.limits.reserved_bytes,
        };
        let applied = apply(source, root, &parents, &limits, cancel)?;
        if diff.is_some_and(|diff| *diff != applied.diff_id) {
            return Err(ImageError::new(
                ErrorKind::Corrupt,
                format!(
                    "its content is {}, not what the image's config says",
                    applied.diff_id
                ),
            ));
        }
        let layer = Layer {
            chain: chain(&applied.diff_id),
            bytes: applied.bytes,
            inodes: applied.inodes,
            opaque: applied.opaque,
        };
        self.place(&work, &layer)?;
        Ok(layer)
    }

    /// Makes an unpacked layer durable and visible.
    fn place(&self, work: &WorkDir, layer: &Layer) -> Result<()> {
        let storing = |e: &io::Error| ImageError::io("storing the layer", e);
        let json = serde_json::to_vec(layer)
            .map_err(|e| ImageError::new(ErrorKind::Store, format!("storing the layer: {e}")))?;
        fs::write(work.path.join("layer.json"), json).map_err(|e| storing(&e))?;
        let layers = File::open(self.dir.join("layers")).map_err(|e| storing(&e))?;
        // One call for thousands of small files: only after it may the layer appear under its name.
        sync_file_system(&layers).map_err(|e| storing(&e))?;
        let _writer = guard(&self.writer);
        if self.catalog().layers.contains_key(&layer.chain) {
            return Ok(());
        }
        let path = self.layer_path(&layer.chain);
        if let Err(e) = fs::rename(&work.path, &path) {
            let taken = "another layer has the same short name";
            return Err(match e.raw_os_error() {
                Some(libc::ENOTEMPTY | libc::EEXIST) => ImageError::new(ErrorKind::Hostile, taken),
                _ => storing(&e),
            });
        }
        layers.sync_all().map_err(|e| storing(&e))?;
        let mut catalog = Catalog::clone(&self.catalog());
        catalog.layers.insert(layer.chain.clone(), layer.clone());
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        Ok(())
    }

    /// An error if `bytes` more would not fit on the disk.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<()> {
        let dir =
            File::open(&self.dir).map_err(|e| ImageError::io("opening the image store", &e))?;
        check_space(&dir.into(), bytes, self.limits.reserved_bytes)
    }

    fn gc(&self, in_use: &BTreeSet<Digest>) -> Result<u64> {
        let before = self.catalog();
        let mut trash = Vec::new();
        let mut freed = 0;
        {
            let pins = guard(&self.pins);
            let mut layers = Vec::new();
            self.commit(|catalog| {
                let garbage = catalog.collect(in_use, |chain| pins.contains_key(chain));
                layers = garbage.layers;
            })?;
            for chain in layers {
                freed += before.layers.get(&chain).map_or(0, |layer| layer.bytes);
                let number = self.counter.fetch_add(1, Ordering::Relaxed);
                let aside = WorkDir::name(&self.dir, number);
                // Aside first: a half-deleted layer must never be found under its name.
                match fs::rename(self.layer_path(&chain), &aside) {
                    Ok(()) => trash.push(WorkDir { path: aside }),
                    Err(e) => tracing::warn!("cannot delete image layer {chain}: {e}"),
                }
            }
            let keep: BTreeSet<String> = self
                .catalog()
                .images
                .keys()
                .chain(pins.keys())
                .map(file_name)
                .collect();
            freed += remove_files(&self.dir.join("blobs"), |name, _| !keep.contains(name));
            freed += remove_files(&self.dir.join("ingest"), |name, meta| {
                let age = meta
                    .modified()
                    .ok()
                    .and_then(|t| SystemTime::now().duration_since(t).ok());
                !keep.contains(name) && age.is_some_and(|age| age > INGEST_AGE)
            });
        }
        // Outside of the lock: this is the long part.
        drop(trash);
        Ok(freed)
    }

    /// Keeps a blob or chain from being collected while the pin lives.
    pub(crate) fn pin(self: &Arc<Self>, digest: &Digest) -> Pin {
        *guard(&self.pins).entry(digest.clone()).or_default() += 1;
        Pin {
            inner: self.clone(),
            digest: digest.clone(),
        }
    }

    /// Deletes a layer's blob once it is unpacked, unless somebody else wants it too.
    pub(crate) fn discard_blob(&self, pin: &Pin) {
        let pins = guard(&self.pins);
        if pins.get(&pin.digest) == Some(&1) && !self.catalog().images.contains_key(&pin.digest) {
            let _ = fs::remove_file(self.blob_path(&pin.digest));
        }
    }

    /// Waits until nobody else works on this blob or chain.
    pub(crate) async fn lock(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = guard(&self.locks);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(digest).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(digest.clone(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        mutex.lock_owned().await
    }
}

/// A hold on a blob or chain.
pub(crate) struct Pin {
    inner: Arc<Inner>,
    pub(crate) digest: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = guard(&self.inner.pins);
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}
