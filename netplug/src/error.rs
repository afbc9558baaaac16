//! What can go wrong, told as what we were doing.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the network. `source()` holds the kernel's own words where there are any.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work, whatever the kernel says.
    #[error("network configuration: {0}")]
    Config(String),
    /// The kernel refused.
    #[error("{doing}")]
    Kernel {
        doing: String,
        #[source]
        source: io::Error,
    },
    /// Every address of the pod range is taken.
    #[error("no free pod address in {0}: delete pods or give the node a larger pod CIDR")]
    Exhausted(ipnet::IpNet),
    /// The request makes no sense (bad names, a service with a port that does not exist, ...).
    #[error("{0}")]
    Invalid(String),
    /// A file of ours could not be read or written.
    #[error("{doing} {path}")]
    State {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Kernel { doing, source }
    }

    pub(crate) fn state(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::State {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// What came of removing a file or directory of ours: one that was gone already is as good.
    pub(crate) fn removing(path: &Path, done: io::Result<()>) -> Result<()> {
        match done {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::state("removing", path)(source))
            }
            _ => Ok(()),
        }
    }

    /// The error number of the kernel, if it was the kernel.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { source, .. } | Error::State { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
