//! The words in which server and agent speak of volumes that are directories of a box (`amphipod.io/local`).
//!
//! The server makes such a volume and names its directory; the agent makes the directory when a pod first needs it. When the volume is
//! deleted, it waits with [`FINALIZER`] until the agent of its box has removed the data.

/// The provisioner, in classes and in the annotation [`PROVISIONED_BY`] of volumes.
pub const PROVISIONER: &str = "amphipod.io/local";

/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The finalizer by which a volume waits for its box.
pub const FINALIZER: &str = "amphipod.io/local-data";

/// The finalizer by which a volume waits for its claim: while it is there, the data is somebody's.
pub const PROTECTION: &str = "kubernetes.io/pv-protection";

/// The field of volumes by which a box selects its own.
pub const HOME: &str = "spec.nodeAffinity.hostname";

/// On a node: the directory in which its volumes are.
pub const DIRECTORY: &str = "amphipod.io/storage-directory";

/// Where that is unless the node says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/amphipod/storage";
