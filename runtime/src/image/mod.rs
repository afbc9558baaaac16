//! OCI images: references, registries, a content store, and layers unpacked for overlayfs.
//!
//! [`ImageStore`] is the one entry: it pulls by [`Reference`], imports archives, builds an image from one binary, and
//! answers what is here. An [`Image`] lists its layer directories lowest first, ready to be overlayfs lower
//! directories (whiteouts are character devices 0/0, opaque directories carry `trusted.overlay.opaque`).
//!
//! Invariants:
//! - A blob file under its final name holds exactly what its digest names. A layer directory under its final name is
//!   complete and on disk. A name points only to images whose layers are all complete. So `kill -9` and power cuts at
//!   any moment leave either the state before or the state after.
//! - A layer is applied by file descriptors relative to its own root; no path of an image is ever handed to the kernel
//!   whole, so no link can lead out.
//! - Nothing here knows the Kubernetes API: pull policies, back-off and conditions are the caller's.

mod auth;
mod build;
mod catalog;
pub mod challenge;
#[cfg(test)]
mod chaos_tests;
mod compression;
mod digest;
mod disk;
pub mod dns;
mod docker_archive;
mod endpoint;
mod error;
mod fetch;
mod import;
pub mod manifest;
mod merged;
mod options;
mod pull;
mod reference;
mod registry;
mod retry;
mod store;
mod tar;
mod tls;
mod tree;
mod unpack;
pub mod user;

pub use auth::RegistryAuth;
pub use digest::{Algorithm, Digest};
pub use error::{ErrorKind, ImageError, Result};
pub use manifest::{ImageConfig, Platform};
pub use options::{Limits, Progress, ProgressFn, PullOptions, RegistryConfig};
pub use reference::{Reference, Target};
pub use store::{DiskUsage, Image, ImageStore};
pub use unpack::{Applied, LayerLimits, apply as apply_layer};
