//! OCI images and containers on the bare kernel: content, layers, bundles, the keeper, exec, cgroups.
//!
//! [`Runtime`] is the way in. It knows OCI and the kernel, never the Kubernetes API.

mod cgroup;
mod devices;
mod error;
mod files;
mod hidden;
mod host;
pub mod image;
mod keeper;
mod link;
mod oci;
mod process;
mod proto;
mod runtime;
mod seccomp;
mod session;
mod spec;
mod status;
mod stream;
mod supervise;
mod sys;

pub use error::{Error, Result};
pub use hidden::run_hidden_command;
pub use runtime::{Runtime, RuntimeConfig};
pub use session::{AttachInput, AttachSession, ExecOutcome, ExecSession, Resizer};
pub use spec::*;
pub use status::*;
pub use stream::FdStream;

/// A name that nothing else in this process has, for files about to be renamed.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
