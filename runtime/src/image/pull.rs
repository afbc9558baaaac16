//! Pulling: what a reference is now, what of it is missing, fetching and unpacking that, and recording the image last.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared, try_join_all};
use tokio::sync::oneshot;

use super::auth::RegistryAuth;
use super::catalog::Record;
use super::digest::Digest;
use super::error::{ErrorKind, ImageError, Result};
use super::fetch::fetch;
use super::manifest::{
    Descriptor, Document, Index, Manifest, Platform, chain_ids, parse_config, parse_document,
};
use super::options::{Progress, ProgressFn, PullOptions, RegistryConfig};
use super::reference::Reference;
use super::registry::{DOCUMENT_LIMIT, Session};
use super::store::{Image, ImageStore, Inner, Pin, blocking};

/// Pulls under way, to be shared by all who ask for the same with the same credentials.
#[derive(Default)]
pub(crate) struct Pulls {
    running: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Result<Image>>>>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    auth: Vec<RegistryAuth>,
    registries: RegistryConfig,
    platform: Platform,
}

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
) -> Result<Image> {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let key = Key {
        reference: reference.clone(),
        auth: options.auth.clone(),
        registries: options.registries.clone(),
        platform: platform.clone(),
    };
    let shared: Shared<_> = {
        let mut running = store
            .inner
            .pulls
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        match running.get(&key).and_then(WeakShared::upgrade) {
            Some(shared) => shared,
            None => {
                let (store, reference, options) =
                    (store.clone(), reference.clone(), options.clone());
                let work = async move {
                    let done = pull_now(&store, &reference, &options, &platform).await;
                    done.map_err(|e| {
                        e.context(format!("failed to pull and unpack image \"{reference}\""))
                    })
                };
                let shared = work.boxed().shared();
                if let Some(weak) = shared.downgrade() {
                    running.insert(key, weak);
                }
                shared
            }
        }
    };
    shared.await
}

async fn pull_now(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
    platform: &Platform,
) -> Result<Image> {
    let session = Session::new(reference, &options.auth, &options.registries)?;
    let resolving =
        |e: ImageError| e.context(format!("failed to resolve reference \"{reference}\""));

    // A tag that has not moved costs one small request.
    if let Some((image, target)) = known(store, reference)
        && session.head().await.map_err(resolving)?.as_ref() == Some(&target)
    {
        return Ok(image);
    }
    let (bytes, target, media_type) = session.manifest().await.map_err(resolving)?;
    let (manifest_bytes, manifest_digest, manifest) =
        choose(&session, bytes, &target, &media_type, platform).await?;
    let config_bytes = config(&session, &manifest).await?;
    let config = parse_config(&config_bytes, &manifest)?;
    let chains = chain_ids(&config.rootfs.diff_ids);

    let layers: Vec<Wanted> = (0..manifest.layers.len())
        .map(|i| Wanted {
            blob: manifest.layers[i].clone(),
            diff: config.rootfs.diff_ids[i].clone(),
            below: chains[..i].to_vec(),
            blob_pin: store.inner.pin(&manifest.layers[i].digest),
            chain_pin: Arc::new(store.inner.pin(&chains[i])),
        })
        .collect();
    fetch_and_unpack(&store.inner, &session, &layers, options).await?;

    let sizes = manifest.layers.iter().map(|l| l.size).sum::<u64>();
    let record = Record {
        id: manifest.config.digest.clone(),
        manifest: manifest_digest,
        size: sizes + config_bytes.len() as u64 + manifest_bytes as u64,
        layers: chains,
        config: config.config,
    };
    let (inner, reference) = (store.inner.clone(), reference.clone());
    let image =
        blocking(move || inner.add_image(record, &config_bytes, Some(&reference), &target)).await;
    // Only now may the layers be without pins: a name holds them.
    drop(layers);
    image
}

/// The image that is here under this very reference, and what the registry had for it then.
fn known(store: &ImageStore, reference: &Reference) -> Option<(Image, Digest)> {
    let catalog = store.inner.catalog();
    let pointer = catalog.names.get(&reference.to_string())?;
    let record = catalog.images.get(&pointer.image)?;
    Some((store.inner.image(&catalog, record), pointer.target.clone()))
}

/// Follows indexes to the manifest for `platform`: its length, digest and content.
async fn choose(
    session: &Session,
    mut bytes: Vec<u8>,
    target: &Digest,
    media_type: &str,
    platform: &Platform,
) -> Result<(usize, Digest, Manifest)> {
    let mut digest = target.clone();
    let mut media_type = media_type.to_owned();
    // An index may name an index, but not without end.
    for _ in 0..3 {
        match parse_document(&bytes, &media_type)? {
            Document::Manifest(manifest) => return Ok((bytes.len(), digest, manifest)),
            Document::Index(index) => {
                let chosen = choose_entry(&index, platform)?;
                digest = chosen.digest.clone();
                media_type = chosen.media_type.clone();
                bytes = session.manifest_by_digest(&digest).await?;
            }
        }
    }
    Err(ImageError::new(
        ErrorKind::Hostile,
        "image indexes are nested too deep",
    ))
}

pub(crate) fn choose_entry<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor> {
    index.choose(platform).ok_or_else(|| {
        let offered: Vec<String> = index
            .manifests
            .iter()
            .filter_map(|d| Some(d.platform.as_ref()?.to_string()))
            .collect();
        ImageError::new(
            ErrorKind::NotFound,
            format!(
                "no match for platform {platform} in manifest (it has {}): not found",
                offered.join(", ")
            ),
        )
    })
}

async fn config(session: &Session, manifest: &Manifest) -> Result<Vec<u8>> {
    if manifest.config.size > DOCUMENT_LIMIT {
        let size = manifest.config.size;
        return Err(ImageError::new(
            ErrorKind::Hostile,
            format!("the image's config has {size} bytes"),
        ));
    }
    session
        .small_blob(&manifest.config.digest)
        .await
        .map_err(|e| e.context("failed to fetch the image's config"))
}

/// One layer of the image that is being pulled.
struct Wanted {
    blob: Descriptor,
    diff: Digest,
    /// Chain ids of the layers under it, lowest first.
    below: Vec<Digest>,
    blob_pin: Pin,
    chain_pin: Arc<Pin>,
}

impl Wanted {
    fn chain(&self) -> &Digest {
        &self.chain_pin.digest
    }
}

/// Stops the thread that unpacks when nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Downloads in parallel (as many at a time as the store allows), and unpacks from the lowest layer up as they come.
async fn fetch_and_unpack(
    inner: &Arc<Inner>,
    session: &Session,
    layers: &[Wanted],
    options: &PullOptions,
) -> Result<()> {
    let progress = options.progress.as_ref();
    let tell = |what: Progress| {
        if let Some(progress) = progress {
            progress(&what);
        }
    };
    let missing: Vec<&Wanted> = layers
        .iter()
        .filter(|layer| !inner.has_layer(layer.chain()))
        .collect();
    for layer in layers.iter().filter(|layer| inner.has_layer(layer.chain())) {
        tell(Progress::Ready {
            layer: layer.blob.digest.clone(),
        });
    }
    for layer in &missing {
        if layer.blob.size > inner.limits.layer_bytes {
            let (digest, size) = (&layer.blob.digest, layer.blob.size);
            let message = format!(
                "layer {digest}: {size} bytes are more than the limit of {}",
                inner.limits.layer_bytes
            );
            return Err(ImageError::new(ErrorKind::Hostile, message));
        }
    }
    if !missing.is_empty() {
        inner.check_space(missing.iter().map(|layer| layer.blob.size).sum())?;
    }

    // All at once: the store itself bounds how many download at the same time.
    let (arrived, arrivals): (Vec<_>, Vec<_>) = missing.iter().map(|_| oneshot::channel()).unzip();
    let mut downloads = Vec::with_capacity(missing.len());
    for (layer, arrived) in missing.iter().zip(arrived) {
        downloads.push(fetch_one(inner, session, &layer.blob, progress, arrived));
    }
    let unpack = async {
        for (layer, arrival) in missing.iter().zip(arrivals) {
            if arrival.await.is_err() {
                // The download failed, and says so itself.
                return std::future::pending().await;
            }
            tell(Progress::Unpacking {
                layer: layer.blob.digest.clone(),
            });
            let unpacked = unpack_one(inner, layer).await;
            unpacked
                .map_err(|e| e.context(format!("failed to extract layer {}", layer.blob.digest)))?;
            tell(Progress::Ready {
                layer: layer.blob.digest.clone(),
            });
        }
        Ok(())
    };
    tokio::try_join!(try_join_all(downloads), unpack).map(|_| ())
}

async fn fetch_one(
    inner: &Arc<Inner>,
    session: &Session,
    blob: &Descriptor,
    progress: Option<&ProgressFn>,
    arrived: oneshot::Sender<()>,
) -> Result<()> {
    let fetched = fetch(inner, session, blob, progress).await;
    fetched.map_err(|e| e.context(format!("failed to fetch layer {}", blob.digest)))?;
    // Nobody listens any more if the pull failed elsewhere.
    let _ = arrived.send(());
    Ok(())
}

async fn unpack_one(inner: &Arc<Inner>, layer: &Wanted) -> Result<()> {
    let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
    let lock = inner.lock(layer.chain()).await;
    let work = {
        let (inner, cancel, pin) = (inner.clone(), cancel.0.clone(), layer.chain_pin.clone());
        let (blob, diff, below) = (
            layer.blob.digest.clone(),
            layer.diff.clone(),
            layer.below.clone(),
        );
        move || {
            // Held until the work is done, also when nobody waits any more.
            let _lock = lock;
            if inner.has_layer(&pin.digest) {
                return Ok(());
            }
            let source = File::open(inner.blob_path(&blob))
                .map_err(|e| ImageError::io("opening the download", &e))?;
            inner
                .unpack(source, Some(&diff), |_| pin.digest.clone(), &below, &cancel)
                .map(|_| ())
        }
    };
    let result = blocking(work).await;
    // Unpacked, or not worth keeping: either way the blob has done its work.
    inner.discard_blob(&layer.blob_pin);
    drop(cancel);
    result
}
