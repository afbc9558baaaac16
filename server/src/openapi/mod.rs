//! What the API says of itself: discovery, OpenAPI v2 and v3, and the version. Pure functions of the
//! [`Catalog`](crate::resources::Catalog), worked out on request and not kept: clients cache them by their ETag.
//!
//! Sources: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/>, kube-openapi's conventions.

pub mod discovery;
mod operations;
mod protobuf;
mod schemas;
mod v2;
mod v3;
mod version;

use sha2::{Digest, Sha256};

use crate::resources::{Descriptor, SchemaSource};

pub use v2::{document as v2_json, document_protobuf as v2_protobuf};
pub use v3::{document as v3_document, index as v3_index};
pub use version::version;

/// Media types of `/openapi/v2` and `/openapi/v3/...`.
pub mod media {
    /// What is answered with, and the names it is asked for by: `@` is no token of RFC 7231, so that newer clients refuse to read it.
    pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    pub const V2_PROTOBUF_NAMES: [&str; 2] = [
        V2_PROTOBUF,
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    ];
    pub const AGGREGATED: [(&str, &str); 2] = [
        (
            "v2",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        ),
        (
            "v2beta1",
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        ),
    ];
}

/// A hash that changes when the documents of these resources do: 64 hexadecimal digits, in upper case.
/// Good as an ETag (in quotes).
pub fn hash<'a>(descriptors: impl IntoIterator<Item = &'a Descriptor>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    for d in descriptors {
        hasher.update(format!(
            "\n{}/{} {} {} {:?}",
            d.group, d.version, d.plural, d.kind, d.verbs
        ));
        for s in &d.subresources {
            hasher.update(format!("/{}", s.name));
        }
        if let SchemaSource::Custom { openapi, .. } = &d.source {
            hasher.update(openapi.to_string());
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

#[cfg(test)]
mod tests;
