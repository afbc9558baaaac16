//! Lease: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/lease-v1/>.

use amphipod_api::meta::{i64_at, str_at};
use amphipod_api::{FieldError, FieldPath};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1;
use serde_json::Value;

use super::Kind;
use crate::resources::table::{age_cell, name};
use crate::resources::validate::non_negative;
use crate::resources::{Column, Descriptor, Strategy};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::Lease>("coordination.k8s.io", "v1", "Lease", "leases")
        // Who holds a Lease must outlive a crash: else two would take themselves for leaders. That the holder lives need not.
        .lazy_fields(&["/spec/renewTime", "/metadata/managedFields"])
        .columns(vec![
            Column::name(),
            Column::new("Holder", "Who holds the lease."),
            Column::age(),
        ])
        .strategy(Lease)
        .build()
}

struct Lease;

impl Strategy for Lease {
    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = FieldPath::new("spec");
        if let Some(seconds) = i64_at(obj, &["spec", "leaseDurationSeconds"])
            && seconds <= 0
        {
            errors.push(FieldError::invalid(
                path.child("leaseDurationSeconds"),
                seconds,
                "must be greater than 0",
            ));
        }
        non_negative(
            &path.child("leaseTransitions"),
            obj.pointer("/spec/leaseTransitions"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(obj),
            str_at(obj, &["spec", "holderIdentity"]).into(),
            age_cell(obj, now),
        ]
    }
}
