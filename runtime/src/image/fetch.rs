//! Downloads blobs into the store: resumed where they stopped, verified while they stream, one task for each blob.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::spawn_blocking;

use super::digest::{Digest, Hasher};
use super::error::{ErrorKind, ImageError, Result};
use super::manifest::Descriptor;
use super::options::{Progress, ProgressFn};
use super::registry::{Session, causes};
use super::retry::{Backoff, Failure};
use super::store::{Inner, blocking};

/// Chunks between the network and the disk; each is at most what the HTTP library reads at once.
const QUEUE: usize = 4;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
const HASH_BUFFER: usize = 256 << 10;

/// Makes sure that the blob is in the store.
pub(crate) async fn fetch(
    inner: &Arc<Inner>,
    session: &Session,
    blob: &Descriptor,
    progress: Option<&ProgressFn>,
) -> Result<()> {
    let mut lock = inner.lock(&blob.digest).await;
    if inner.blob_path(&blob.digest).exists() {
        return Ok(());
    }
    let _slot = inner.downloads.acquire().await;
    let mut backoff = Backoff::new();
    let mut mismatched = false;
    loop {
        let mut partial = Partial::open(inner, blob, lock).await?;
        let before = partial.length;
        let result = partial.download(session, blob, progress).await;
        match (result, partial.finish().await) {
            // What the disk says counts more than what the network says.
            (_, Err(e)) => {
                if e.kind() == ErrorKind::NoSpace {
                    let _ = fs::remove_file(inner.ingest_path(&blob.digest));
                }
                return Err(e);
            }
            (Ok(()), Ok(done)) if done.digest == blob.digest => {
                return store(inner, blob, done).await;
            }
            (Ok(()), Ok(done)) => {
                // Never resume from rubbish. What an earlier run left may be to blame: then all of it once more.
                let _ = fs::remove_file(inner.ingest_path(&blob.digest));
                if !done.resumed || mismatched {
                    let why = format!(
                        "the registry sends {}, not what its digest names",
                        done.digest
                    );
                    return Err(mismatch(blob, &why));
                }
                mismatched = true;
                lock = done.lock;
            }
            (Err(failure), Ok(done)) => {
                if done.length > before {
                    backoff.reset();
                }
                lock = done.lock;
                backoff.pause(failure).await?;
            }
        }
    }
}

/// A half-downloaded blob: its file, and the hash of what is in it.
struct Partial {
    length: u64,
    /// To the thread that writes; `None` once it is told to end.
    chunks: Option<mpsc::Sender<Command>>,
    writer: tokio::task::JoinHandle<Result<Written>>,
}

enum Command {
    Append(Bytes),
    /// The registry sends everything again.
    Restart,
}

/// What the writer leaves behind. It holds the blob's lock to the end, so that nobody else opens the file before.
struct Written {
    length: u64,
    digest: Digest,
    resumed: bool,
    lock: OwnedMutexGuard<()>,
}

impl Partial {
    async fn open(
        inner: &Arc<Inner>,
        blob: &Descriptor,
        lock: OwnedMutexGuard<()>,
    ) -> Result<Self> {
        let path = inner.ingest_path(&blob.digest);
        let (digest, size) = (blob.digest.clone(), blob.size);
        let (mut file, mut hasher, length) =
            blocking(move || open_partial(&path, &digest, size)).await?;
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let algorithm = blob.digest.algorithm();
        let writer = spawn_blocking(move || {
            let mut written = length;
            let mut resumed = length > 0;
            let failed = |e: &std::io::Error| ImageError::io("storing the download", e);
            while let Some(command) = receiver.blocking_recv() {
                match command {
                    Command::Append(chunk) => {
                        file.write_all(&chunk).map_err(|e| failed(&e))?;
                        hasher.update(&chunk);
                        written += chunk.len() as u64;
                    }
                    Command::Restart => {
                        file.set_len(0)
                            .and_then(|()| file.rewind())
                            .map_err(|e| failed(&e))?;
                        hasher = Hasher::new(algorithm);
                        (written, resumed) = (0, false);
                    }
                }
            }
            Ok(Written {
                length: written,
                digest: hasher.finish(),
                resumed,
                lock,
            })
        });
        Ok(Self {
            length,
            chunks: Some(sender),
            writer,
        })
    }

    async fn download(
        &mut self,
        session: &Session,
        blob: &Descriptor,
        progress: Option<&ProgressFn>,
    ) -> Result<(), Failure> {
        if self.length == blob.size && self.length > 0 {
            return Ok(());
        }
        let mut response = session.open_blob(&blob.digest, self.length).await?;
        if self.length > 0 && !continues(&response, self.length) {
            self.send(Command::Restart).await;
            self.length = 0;
            if response.status() != StatusCode::OK {
                response = session.open_blob(&blob.digest, 0).await?;
            }
        }
        let mut told: Option<Instant> = None;
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(e) => return Err(broken_off(self.length, blob.size, &causes(e))),
            };
            self.length += chunk.len() as u64;
            if self.length > blob.size {
                self.send(Command::Restart).await;
                return Err(
                    mismatch(blob, "the registry sends more bytes than the manifest says").into(),
                );
            }
            if !self.send(Command::Append(chunk)).await {
                // The disk failed; the writer knows why.
                return Ok(());
            }
            if let Some(progress) = progress
                && (told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL)
                    || self.length == blob.size)
            {
                told = Some(Instant::now());
                progress(&Progress::Downloading {
                    layer: blob.digest.clone(),
                    done: self.length,
                    total: blob.size,
                });
            }
        }
        match self.length < blob.size {
            true => Err(broken_off(self.length, blob.size, "the connection ended")),
            false => Ok(()),
        }
    }

    async fn send(&self, command: Command) -> bool {
        match &self.chunks {
            Some(chunks) => chunks.send(command).await.is_ok(),
            None => false,
        }
    }

    async fn finish(mut self) -> Result<Written> {
        self.chunks = None;
        match self.writer.await {
            Ok(written) => written,
            Err(e) => Err(ImageError::new(
                ErrorKind::Store,
                format!("storing the download was broken off: {e}"),
            )),
        }
    }
}

/// Opens what an earlier attempt left and hashes it.
fn open_partial(path: &Path, digest: &Digest, size: u64) -> Result<(File, Hasher, u64)> {
    let failed = |e: &std::io::Error| ImageError::io(format!("opening {}", path.display()), e);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let mut file = file.map_err(|e| failed(&e))?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut length = file.metadata().map_err(|e| failed(&e))?.len();
    if length > size {
        file.set_len(0).map_err(|e| failed(&e))?;
        length = 0;
    }
    if length > 0 {
        let mut buffer = vec![0; HASH_BUFFER];
        loop {
            match file.read(&mut buffer).map_err(|e| failed(&e))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
    }
    file.seek(SeekFrom::Start(length)).map_err(|e| failed(&e))?;
    Ok((file, hasher, length))
}

/// Whether the answer goes on at `offset` (RFC 9110, section 15.3.7).
fn continues(response: &reqwest::Response, offset: u64) -> bool {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|v| v.to_str().ok());
    let start = range.and_then(|r| {
        r.strip_prefix("bytes ")?
            .split_once('-')?
            .0
            .trim()
            .parse::<u64>()
            .ok()
    });
    response.status() == StatusCode::PARTIAL_CONTENT && start == Some(offset)
}

fn broken_off(length: u64, size: u64, why: &str) -> Failure {
    Failure {
        error: ImageError::new(
            ErrorKind::Network,
            format!("the download broke off at byte {length} of {size}: {why}"),
        ),
        again: true,
        after: None,
        connecting: false,
    }
}

fn mismatch(blob: &Descriptor, why: &str) -> ImageError {
    ImageError::new(ErrorKind::Corrupt, format!("blob {}: {why}", blob.digest))
}

/// Moves a whole and verified download into place.
async fn store(inner: &Arc<Inner>, blob: &Descriptor, done: Written) -> Result<()> {
    let (inner, digest) = (inner.clone(), blob.digest.clone());
    blocking(move || {
        let _lock = done.lock;
        fs::rename(inner.ingest_path(&digest), inner.blob_path(&digest))
            .map_err(|e| ImageError::io("storing the download", &e))
    })
    .await
}
