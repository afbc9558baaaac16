//! Namespace: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/namespace-v1/>.

use k8s_openapi::api::core::v1;

use super::Kind;
use crate::resources::{Descriptor, SubresourceKind};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Namespace>("", "v1", "Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .status()
        .put("finalize", SubresourceKind::Finalize)
        .build()
}
