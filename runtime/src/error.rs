//! One error type for the whole crate.

use std::io;

/// What went wrong, in terms a user of containers knows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be run in the container; the text is what runc users know, e.g.
    /// `exec: "foo": executable file not found in $PATH`. The agent reports it as StartError with exit code 128.
    #[error("{0}")]
    Exec(String),
    /// The request makes no sense as it stands (unknown signal, bad id, empty args).
    #[error("{0}")]
    Invalid(String),
    #[error("container {0} not found")]
    ContainerNotFound(String),
    #[error("sandbox {0} not found")]
    SandboxNotFound(String),
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// Right request, wrong time, e.g. exec in a container that does not run.
    #[error("{0}")]
    State(String),
    /// Creating or starting failed for another reason (mounts, cgroups, namespaces).
    #[error("{0}")]
    Create(String),
    /// The keeper is away; it is being started again, try later.
    #[error("container keeper is not available: {0}")]
    Keeper(String),
    #[error("{context}")]
    Io {
        context: String,
        #[source]
        source: io::Error,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what we were doing when an I/O error came.
pub(crate) trait IoContext<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            context: what(),
            source,
        })
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io {
            context: what(),
            source: errno.into(),
        })
    }
}
