//! Importing images from tar archives: OCI image layouts, and what `docker save` and `podman save` write.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::catalog::Record;
use super::compression::decompress;
use super::digest::{Algorithm, Digest, Hasher};
use super::docker_archive;
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::{Document, Manifest, Platform, chain_ids, parse_config, parse_document};
use super::pull::choose_entry;
use super::reference::Reference;
use super::registry::DOCUMENT_LIMIT;
use super::store::{Image, ImageStore, Inner, Pin};
use super::tar::{Kind, TarError, TarReader};

const COPY_BUFFER: usize = 128 << 10;
/// The full reference, as containerd, BuildKit and Docker write it.
const FULL_NAME: &str = "io.containerd.image.name";
/// The reference or only its tag (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(crate) fn import(
    store: &ImageStore,
    archive: impl Read,
    name: Option<&Reference>,
) -> Result<Vec<Image>> {
    let mut content = Content {
        inner: store.inner.clone(),
        blobs: HashMap::new(),
        index: None,
        docker: None,
        files: HashMap::new(),
        links: HashMap::new(),
    };
    let imported = content.read(archive).and_then(|()| content.store(name));
    for pin in content.blobs.values() {
        store.inner.discard_blob(pin);
    }
    imported.map_err(|e| e.context("failed to import the image archive"))
}

/// What was found in the archive. Its blobs are in the store, verified, and pinned.
pub(crate) struct Content {
    pub inner: std::sync::Arc<Inner>,
    blobs: HashMap<Digest, Pin>,
    index: Option<Vec<u8>>,
    /// `manifest.json` of a Docker archive.
    docker: Option<Vec<u8>>,
    /// The digests of what a Docker archive names by path.
    pub files: HashMap<String, Digest>,
    pub links: HashMap<String, String>,
}

fn damaged(error: TarError) -> ImageError {
    match error {
        TarError::Read(e) => unreadable(&e),
        TarError::Corrupt(message)
        | TarError::Hostile(message)
        | TarError::Unsupported(message) => ImageError::new(ErrorKind::Corrupt, message),
    }
}

fn unreadable(error: &io::Error) -> ImageError {
    match error.raw_os_error() {
        Some(_) => ImageError::io("reading the archive", error),
        None => ImageError::new(ErrorKind::Corrupt, format!("reading the archive: {error}")),
    }
}

pub(crate) fn invalid(what: impl Into<String>) -> ImageError {
    ImageError::new(ErrorKind::Corrupt, what)
}

impl Content {
    fn read(&mut self, archive: impl Read) -> Result<()> {
        let mut tar = TarReader::new(decompress(archive).map_err(|e| unreadable(&e))?);
        while let Some(entry) = tar.next().map_err(damaged)? {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let path = path.trim_start_matches("./");
            match entry.kind {
                Kind::File => self.read_file(path, &mut tar, entry.size)?,
                Kind::Symlink if path.ends_with(".tar") => {
                    let target = String::from_utf8_lossy(&entry.link).into_owned();
                    self.links.insert(path.to_owned(), target);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &str, content: &mut impl Read, size: u64) -> Result<()> {
        if let Some((algorithm, hex)) = path.strip_prefix("blobs/").and_then(|p| p.split_once('/'))
        {
            let digest: Digest = format!("{algorithm}:{hex}").parse()?;
            self.read_blob(path, Some(digest), content, size)
        } else if matches!(path, "index.json" | "manifest.json") {
            if size > DOCUMENT_LIMIT {
                return Err(invalid(format!("its {path} is too long")));
            }
            let mut bytes = Vec::new();
            content
                .read_to_end(&mut bytes)
                .map_err(|e| unreadable(&e))?;
            let place = if path == "index.json" {
                &mut self.index
            } else {
                &mut self.docker
            };
            *place = Some(bytes);
            Ok(())
        } else if path.ends_with(".tar") || path.ends_with(".json") {
            self.read_blob(path, None, content, size)
        } else {
            Ok(())
        }
    }

    /// Stores a file as a blob, under the digest that its path states, or else its own.
    fn read_blob(
        &mut self,
        path: &str,
        stated: Option<Digest>,
        content: &mut impl Read,
        size: u64,
    ) -> Result<()> {
        self.inner.check_space(size)?;
        let work = self.inner.work_file();
        let stored = copy(content, &work, stated.as_ref()).and_then(|digest| {
            let pin = self.inner.pin(&digest);
            let renamed = fs::rename(&work, self.inner.blob_path(&digest));
            renamed
                .map_err(|e| ImageError::io("storing a blob", &e))
                .map(|()| (digest, pin))
        });
        match stored {
            Ok((digest, pin)) => {
                self.files.insert(path.to_owned(), digest.clone());
                self.blobs.insert(digest, pin);
                Ok(())
            }
            Err(e) => {
                let _ = fs::remove_file(&work);
                Err(e)
            }
        }
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.blobs.contains_key(digest) {
            let file = File::open(self.inner.blob_path(digest))
                .map_err(|e| ImageError::io("reading a blob", &e))?;
            let read = file.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes);
            read.map_err(|e| ImageError::io("reading a blob", &e))?;
        }
        match bytes.len() as u64 {
            0 => Err(invalid(format!("blob {digest} is missing"))),
            length if length > DOCUMENT_LIMIT => {
                Err(invalid(format!("blob {digest} is too long for a document")))
            }
            _ => Ok(bytes),
        }
    }

    fn store(&self, name: Option<&Reference>) -> Result<Vec<Image>> {
        let images = match (&self.index, &self.docker) {
            (Some(index), _) => self.store_layout(index, name)?,
            (None, Some(list)) => docker_archive::store(self, list, name)?,
            (None, None) => {
                return Err(invalid(
                    "it is no image archive: neither index.json nor manifest.json is in it",
                ));
            }
        };
        match images.is_empty() {
            true => Err(invalid("it has no image")),
            false => Ok(images),
        }
    }

    fn store_layout(&self, index: &[u8], name: Option<&Reference>) -> Result<Vec<Image>> {
        let Document::Index(index) = parse_document(index, super::manifest::OCI_INDEX)? else {
            return Err(invalid("its index.json is not an index"));
        };
        let mut images: Vec<Image> = Vec::new();
        let mut seen = HashSet::new();
        for entry in &index.manifests {
            let annotation = |key: &str| {
                entry
                    .annotations
                    .get(key)
                    .and_then(|n| n.parse::<Reference>().ok())
            };
            let full = |key: &str| {
                annotation(key)
                    .filter(|_| entry.annotations.get(key).is_some_and(|n| n.contains('/')))
            };
            let name = name
                .cloned()
                .or_else(|| annotation(FULL_NAME))
                .or_else(|| full(REF_NAME));
            if !(entry.is_manifest() || entry.is_index())
                || !seen.insert((entry.digest.clone(), name.clone()))
            {
                continue;
            }
            let image = self.store_one(entry.digest.clone(), &entry.media_type, name.as_ref())?;
            images.retain(|known| known.id != image.id);
            images.push(image);
        }
        Ok(images)
    }

    fn store_one(
        &self,
        target: Digest,
        media_type: &str,
        name: Option<&Reference>,
    ) -> Result<Image> {
        let (mut digest, mut media_type) = (target.clone(), media_type.to_owned());
        for _ in 0..3 {
            let bytes = self.blob(&digest)?;
            match parse_document(&bytes, &media_type)? {
                Document::Manifest(manifest) => {
                    return self.store_manifest(&manifest, digest, bytes.len(), &target, name);
                }
                Document::Index(index) => {
                    let chosen = choose_entry(&index, &Platform::host())?;
                    digest = chosen.digest.clone();
                    media_type = chosen.media_type.clone();
                }
            }
        }
        Err(ImageError::new(
            ErrorKind::Hostile,
            "image indexes are nested too deep",
        ))
    }

    pub(crate) fn store_manifest(
        &self,
        manifest: &Manifest,
        digest: Digest,
        length: usize,
        target: &Digest,
        name: Option<&Reference>,
    ) -> Result<Image> {
        let config_bytes = self.blob(&manifest.config.digest)?;
        let config = parse_config(&config_bytes, manifest)?;
        let chains = chain_ids(&config.rootfs.diff_ids);
        let _pins: Vec<Pin> = chains.iter().map(|chain| self.inner.pin(chain)).collect();
        for (i, layer) in manifest.layers.iter().enumerate() {
            if self.inner.has_layer(&chains[i]) {
                continue;
            }
            if !self.blobs.contains_key(&layer.digest) {
                return Err(invalid(format!("layer {} is missing", layer.digest)));
            }
            let source = File::open(self.inner.blob_path(&layer.digest));
            let source = source.map_err(|e| ImageError::io("reading a layer", &e))?;
            let (diff, never) = (&config.rootfs.diff_ids[i], AtomicBool::new(false));
            let unpacked = self.inner.unpack(
                source,
                Some(diff),
                |_| chains[i].clone(),
                &chains[..i],
                &never,
            );
            unpacked.map_err(|e| e.context(format!("failed to extract layer {}", layer.digest)))?;
        }
        let record = Record {
            id: manifest.config.digest.clone(),
            manifest: digest,
            size: manifest.layers.iter().map(|l| l.size).sum::<u64>()
                + (config_bytes.len() + length) as u64,
            layers: chains,
            config: config.config,
        };
        self.inner.add_image(record, &config_bytes, name, target)
    }
}

/// Copies into a file; returns the digest, which must be the stated one.
fn copy(content: &mut impl Read, path: &Path, stated: Option<&Digest>) -> Result<Digest> {
    let storing = |e: &io::Error| ImageError::io("storing a blob", e);
    let mut file = File::create(path).map_err(|e| storing(&e))?;
    let mut hasher = Hasher::new(stated.map_or(Algorithm::Sha256, Digest::algorithm));
    let mut buffer = vec![0; COPY_BUFFER];
    loop {
        match content.read(&mut buffer).map_err(|e| unreadable(&e))? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                file.write_all(&buffer[..n]).map_err(|e| storing(&e))?;
            }
        }
    }
    let digest = hasher.finish();
    match stated {
        Some(stated) if *stated != digest => {
            Err(invalid(format!("blob {stated} does not match its digest")))
        }
        _ => Ok(digest),
    }
}
