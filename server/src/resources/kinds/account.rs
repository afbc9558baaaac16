//! ServiceAccount: <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/service-account-v1/>.

use amphipod_api::meta::array_at;
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::Kind;
use crate::resources::table::{age_cell, name};
use crate::resources::{Column, Descriptor, Strategy, SubresourceKind};

pub fn service_account() -> Descriptor {
    Kind::new::<v1::ServiceAccount>("", "v1", "ServiceAccount", "serviceaccounts")
        .short(&["sa"])
        .post(
            "token",
            SubresourceKind::Token,
            ["authentication.k8s.io", "v1", "TokenRequest"],
        )
        .columns(vec![
            Column::name(),
            Column::new("Secrets", "Number of secrets."),
            Column::age(),
        ])
        .strategy(ServiceAccount)
        .build()
}

struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            array_at(obj, &["secrets"]).len().into(),
            age_cell(obj, now),
        ]
    }
}
