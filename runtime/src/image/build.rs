//! An image made from one static binary: what a box runs when no registry is there.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::catalog::Record;
use super::digest::{Algorithm, Digest, Hasher};
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::{
    OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform, parse_config, parse_manifest,
};
use super::reference::Reference;
use super::store::{Image, ImageStore};
use super::tar::header;

const PASSWD: &str = "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\n";

pub(crate) fn build(
    store: &ImageStore,
    binary: &Path,
    name: &Reference,
    args: &[String],
) -> Result<Image> {
    build_now(store, binary, name, args)
        .map_err(|e| e.context(format!("failed to build image \"{name}\"")))
}

fn build_now(
    store: &ImageStore,
    binary: &Path,
    name: &Reference,
    args: &[String],
) -> Result<Image> {
    let file_name = binary
        .file_name()
        .map(OsStrExt::as_bytes)
        .and_then(|n| std::str::from_utf8(n).ok());
    let file_name = file_name.filter(|n| n.len() < 100).ok_or_else(|| {
        ImageError::new(
            ErrorKind::Unsupported,
            format!("{} cannot be the name of a binary", binary.display()),
        )
    })?;
    // Twice over the same bytes: once for the digest, which decides whether there is anything to unpack.
    let (diff, size) = hash(layer(binary, file_name)?)?;

    let mut entrypoint = vec![format!("/{file_name}")];
    entrypoint.extend_from_slice(args);
    let platform = Platform::host();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Entrypoint": entrypoint, "WorkingDir": "/", "Env": ["PATH=/"] },
        "rootfs": { "type": "layers", "diff_ids": [diff] },
    })
    .to_string();
    let id = Digest::sha256(config.as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": id, "size": config.len() },
        "layers": [{ "mediaType": OCI_LAYER, "digest": diff, "size": size }],
    })
    .to_string();
    let config_file = parse_config(config.as_bytes(), &parse_manifest(manifest.as_bytes())?)?;

    let _pin = store.inner.pin(&diff);
    if !store.inner.has_layer(&diff) {
        let never = AtomicBool::new(false);
        store.inner.unpack(
            layer(binary, file_name)?,
            Some(&diff),
            Digest::clone,
            &[],
            &never,
        )?;
    }
    let target = Digest::sha256(manifest.as_bytes());
    let record = Record {
        id,
        manifest: target.clone(),
        size: size + (config.len() + manifest.len()) as u64,
        layers: vec![diff.clone()],
        config: config_file.config,
    };
    store
        .inner
        .add_image(record, config.as_bytes(), Some(name), &target)
}

/// The layer as a tar stream: the binary, users, and a place for temporary files. No times: the same binary gives the
/// same digest everywhere.
fn layer(binary: &Path, name: &str) -> Result<impl Read + use<>> {
    let opening = |e: &io::Error| ImageError::io(format!("opening {}", binary.display()), e);
    let file = File::open(binary).map_err(|e| opening(&e))?;
    let size = file.metadata().map_err(|e| opening(&e))?.len();
    let mut head = Vec::new();
    head.extend_from_slice(&header("etc/", b'5', 0o755, 0));
    for (path, content) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        head.extend_from_slice(&header(path, b'0', 0o644, content.len() as u64));
        head.extend_from_slice(content.as_bytes());
        head.resize(head.len().next_multiple_of(512), 0);
    }
    head.extend_from_slice(&header("tmp/", b'5', 0o1777, 0));
    head.extend_from_slice(&header(name, b'0', 0o755, size));
    let tail = vec![0; (size.next_multiple_of(512) - size) as usize + 1024];
    Ok(Cursor::new(head)
        .chain(file.take(size))
        .chain(Cursor::new(tail)))
}

fn hash(mut stream: impl Read) -> Result<(Digest, u64)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0;
    loop {
        match stream
            .read(&mut buffer)
            .map_err(|e| ImageError::io("reading the binary", &e))?
        {
            0 => return Ok((hasher.finish(), size)),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}
