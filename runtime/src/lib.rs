//! OCI images and containers on the bare kernel: content, layers, bundles, the keeper, exec, cgroups.
//!
//! [`Runtime`] is the way in. It knows OCI and the kernel, never the Kubernetes API.

mod error;
mod hidden;
pub mod image;
mod runtime;
mod session;
mod spec;
mod status;
mod stream;
mod sys;
mod user;

pub use error::{Error, Result};
pub use hidden::run_hidden_command;
pub use runtime::{Runtime, RuntimeConfig};
pub use session::{AttachInput, AttachSession, ExecOutcome, ExecSession, Resizer};
pub use spec::*;
pub use status::*;
pub use stream::FdStream;
pub use user::resolve_user;
