//! ConfigMap and Secret: <https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/>.

use k8s_openapi::api::core::v1;

use super::Kind;
use crate::resources::Descriptor;

pub fn config_map() -> Descriptor {
    Kind::new::<v1::ConfigMap>("", "v1", "ConfigMap", "configmaps")
        .short(&["cm"])
        .build()
}

pub fn secret() -> Descriptor {
    Kind::new::<v1::Secret>("", "v1", "Secret", "secrets").build()
}
