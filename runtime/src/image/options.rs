//! What a caller may choose about pulling and storing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::auth::RegistryAuth;
use super::digest::Digest;
use super::manifest::Platform;

/// How to reach registries. Hosts are as in references (`docker.io`, `host:5000`); `*` stands for every host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RegistryConfig {
    /// Base URLs tried in order before the registry itself: `{"docker.io": ["https://mirror.lan:5000"]}`. A path in
    /// the URL is put before the repository (`https://host/v2/PATH/REPOSITORY`).
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that speak HTTP without TLS. Loopback hosts need not be listed: TLS is tried first, then plain HTTP.
    pub plain_http: BTreeSet<String>,
    /// Certificate authorities (PEM, one or more certificates) trusted for a host, beside those of the system.
    pub ca: BTreeMap<String, String>,
}

/// How to pull one image.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Credentials that may be used; those meant for other registries are left alone. Each that matches is tried;
    /// without any, the pull is anonymous.
    pub auth: Vec<RegistryAuth>,
    pub registries: RegistryConfig,
    /// The platform to choose from an index; this machine's by default.
    pub platform: Option<Platform>,
    /// Told of the layers. A caller that joins a pull under way hears nothing: the first one is told.
    pub progress: Option<ProgressFn>,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("auth", &self.auth)
            .field("registries", &self.registries)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

/// Called from any thread, at most a few times a second for each layer.
pub type ProgressFn = Arc<dyn Fn(&Progress) + Send + Sync>;

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the compressed layer that are here, of how many.
    Downloading {
        layer: Digest,
        done: u64,
        total: u64,
    },
    Unpacking {
        layer: Digest,
    },
    /// The layer is unpacked, by this pull or an earlier one.
    Ready {
        layer: Digest,
    },
}

/// What an image may cost before it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Unpacked bytes of one layer, and also the largest size that an entry may declare.
    pub layer_bytes: u64,
    /// Files, directories, links and devices in one layer.
    pub layer_entries: u64,
    /// Bytes of the file system that images never take.
    pub reserved_bytes: u64,
    /// Layers downloaded at the same time, over all pulls.
    pub parallel_downloads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 32 << 30,
            layer_entries: 2_000_000,
            reserved_bytes: 64 << 20,
            parallel_downloads: 3,
        }
    }
}
