//! The store's files: reading them at start, replacing them whole, deleting them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, Layer, Pointer, Record};
use super::digest::Digest;
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::ConfigFile;

/// `index.json`
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    pub version: u32,
    pub images: Vec<Record>,
    pub names: BTreeMap<String, Pointer>,
}
/// A directory under `layers/` that is deleted when dropped, or at the next open.
pub(crate) struct WorkDir {
    pub path: PathBuf,
}

impl WorkDir {
    pub(crate) fn name(dir: &Path, number: u64) -> PathBuf {
        dir.join("layers").join(format!("tmp-{number}"))
    }

    pub(crate) fn create(dir: &Path, number: u64) -> Result<Self> {
        let path = Self::name(dir, number);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| ImageError::io(format!("creating {}", path.display()), &e))?;
        Ok(Self { path })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Not there any more once it was renamed into place.
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot delete {}: {e}", self.path.display());
            }
            _ => {}
        }
    }
}

pub(crate) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

pub(crate) fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|e| ImageError::io(format!("opening {}", path.display()), &e))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => Ok(locked),
        Err((_, Errno::EAGAIN)) => Err(ImageError::new(
            ErrorKind::Store,
            format!(
                "the image store {} is in use by another process",
                dir.display()
            ),
        )),
        Err((_, e)) => Err(ImageError::io(
            format!("locking {}", path.display()),
            &e.into(),
        )),
    }
}

/// Reads the store's state, and deletes what was half-done.
pub(crate) fn load(dir: &Path) -> Result<Catalog> {
    let mut catalog = Catalog::default();
    let layers = dir.join("layers");
    let reading = |e: &io::Error| ImageError::io(format!("reading {}", layers.display()), e);
    for item in fs::read_dir(&layers).map_err(|e| reading(&e))? {
        let item = item.map_err(|e| reading(&e))?;
        match load_layer(&item.path()) {
            Some(layer) if item.file_name().to_str() == Some(&layer.chain.hex()[..16]) => {
                catalog.layers.insert(layer.chain.clone(), layer);
            }
            _ => drop(WorkDir { path: item.path() }),
        }
    }
    let index = load_index(&dir.join("index.json"))?;
    for mut record in index.images {
        let config = fs::read(dir.join("blobs").join(file_name(&record.id))).ok();
        let config = config.filter(|bytes| record.id.matches(bytes));
        let config = config.and_then(|bytes| serde_json::from_slice::<ConfigFile>(&bytes).ok());
        let whole = record
            .layers
            .iter()
            .all(|chain| catalog.layers.contains_key(chain));
        match (config, whole) {
            (Some(file), true) => {
                record.config = file.config;
                catalog.images.insert(record.id.clone(), record);
            }
            _ => tracing::warn!(
                "image {} is damaged on disk and must be pulled again",
                record.id
            ),
        }
    }
    reclaim_blobs(dir, &catalog);
    catalog.names = index.names;
    catalog
        .names
        .retain(|_, pointer| catalog.images.contains_key(&pointer.image));
    Ok(catalog)
}

/// Layers that were downloaded but not unpacked may not be whole on the disk after a power cut: they become
/// half-downloads again, which are checked before they are used.
fn reclaim_blobs(dir: &Path, catalog: &Catalog) {
    let needed: BTreeSet<String> = catalog.images.keys().map(file_name).collect();
    for item in fs::read_dir(dir.join("blobs"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = item.file_name().to_string_lossy().into_owned();
        let is_digest = name.replacen('-', ":", 1).parse::<Digest>().is_ok();
        let done = match (needed.contains(&name), is_digest) {
            (true, _) => Ok(()),
            (false, true) => fs::rename(item.path(), dir.join("ingest").join(&name)),
            (false, false) => fs::remove_file(item.path()),
        };
        if let Err(e) = done {
            tracing::warn!("cannot tidy {}: {e}", item.path().display());
        }
    }
}

fn load_layer(path: &Path) -> Option<Layer> {
    let layer = serde_json::from_slice(&fs::read(path.join("layer.json")).ok()?).ok()?;
    path.join("fs").is_dir().then_some(layer)
}

fn load_index(path: &Path) -> Result<IndexFile> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(IndexFile::default()),
        Err(e) => return Err(ImageError::io(format!("reading {}", path.display()), &e)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(index) => Ok(index),
        Err(e) => {
            let aside = path.with_extension("json.corrupt");
            tracing::error!(
                "{} is damaged ({e}); it is kept as {}, images must be pulled again",
                path.display(),
                aside.display()
            );
            fs::rename(path, &aside)
                .map_err(|e| ImageError::io(format!("renaming {}", path.display()), &e))?;
            Ok(IndexFile::default())
        }
    }
}

/// Replaces a file so that after a power cut either the old or the new content is there.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    write_file(&new, content)?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes a file and waits until its content is on the disk.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

pub(crate) fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open while `file` lives.
    let result = unsafe { libc::syncfs(file.as_raw_fd()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

pub(crate) fn size_of_files(dir: &Path) -> u64 {
    let items = fs::read_dir(dir).into_iter().flatten().flatten();
    items
        .filter_map(|item| item.metadata().ok())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

/// Deletes the files in `dir` that `doomed` names; returns their size.
pub(crate) fn remove_files(dir: &Path, doomed: impl Fn(&str, &fs::Metadata) -> bool) -> u64 {
    let mut freed = 0;
    for item in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = item.metadata() else { continue };
        if doomed(&item.file_name().to_string_lossy(), &meta)
            && fs::remove_file(item.path()).is_ok()
        {
            freed += meta.blocks() * 512;
        }
    }
    freed
}
