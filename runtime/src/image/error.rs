//! The one error of image work. Its text is complete: it names the image, what we were doing, and what went wrong.

use std::fmt;
use std::io;

/// What kind of trouble an image is in; the caller chooses retries, conditions and exit codes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The reference cannot be parsed. Trying again cannot help.
    InvalidName,
    /// The registry does not know the repository, tag, digest or a platform that fits this machine.
    NotFound,
    /// The registry wants other credentials than those we have.
    Unauthorized,
    /// The registry cannot be reached, or broke off, or is overloaded. Trying again may help.
    Network,
    /// Content that is not what its digest, media type or format promises.
    Corrupt,
    /// Content made to hurt the box: a layer that leaves its root, forbidden device nodes, sizes beyond the limits.
    Hostile,
    /// The disk that holds the images is full, or would be.
    NoSpace,
    /// Well-formed, but of a kind that is not run here (schema 1 manifests, encrypted layers, artifacts).
    Unsupported,
    /// The image store on this box failed (permissions, read-only disk, I/O errors).
    Store,
}

/// An error with its kind; `Display` is the whole message, in the words that users of kubelet know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageError {
    kind: ErrorKind,
    message: String,
}

impl ImageError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An I/O error of the store: a full disk is its own kind.
    pub fn io(doing: impl fmt::Display, source: &io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Store,
        };
        Self::new(kind, format!("{doing}: {source}"))
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Puts what we were doing before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Network)
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ImageError {}

pub(crate) fn hostile(message: impl Into<String>) -> ImageError {
    ImageError::new(ErrorKind::Hostile, message)
}

pub type Result<T, E = ImageError> = std::result::Result<T, E>;
