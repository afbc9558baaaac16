//! What server, agent and clients share: the object model helpers over `serde_json::Value`, Kubernetes `Status` errors,
//! quantities, selectors, names, patches, identity (PKI and tokens), the REST client with watch, and how files and databases are kept safe on a small disk.
//!
//! Architecture invariant: this crate knows the API's shapes and texts, never a server's storage nor an agent's kernel.

pub mod ballast;
pub mod client;
pub mod clock;
pub mod field;
pub mod files;
pub mod gvk;
pub mod host;
pub mod ip;
pub mod join;
pub mod jwt;
pub mod kubeconfig;
pub mod local_volumes;
pub mod meta;
pub mod names;
pub mod patch;
pub mod pki;
pub mod quantity;
pub mod reflector;
pub mod relay;
pub mod selector;
pub mod status;
pub mod text;
pub mod time;
pub mod tls;

pub use client::{Client, ClientConfig, ClientError, Target};
pub use field::{FieldError, FieldPath};
pub use gvk::{GroupKind, GroupResource, GroupVersionKind, GroupVersionResource};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Reason, Status};
