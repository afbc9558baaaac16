//! Reviews: questions to the authenticator and the authorizer, asked by creating an object that is never stored.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/>.

use amphipod_api::meta::{at, str_at};
use amphipod_api::{FieldError, FieldPath};
use k8s_openapi::api::{authentication, authorization};
use serde_json::Value;

use super::Kind;
use crate::resources::validate::Errors;
use crate::resources::{Descriptor, Strategy};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

pub fn all() -> Vec<Descriptor> {
    vec![
        Kind::review::<authentication::v1::SelfSubjectReview>(
            AUTHENTICATION,
            "SelfSubjectReview",
            "selfsubjectreviews",
        )
        .build(),
        Kind::review::<authentication::v1::TokenReview>(
            AUTHENTICATION,
            "TokenReview",
            "tokenreviews",
        )
        .build(),
        Kind::review::<authorization::v1::LocalSubjectAccessReview>(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
        )
        .namespaced()
        .strategy(Access { of_user: true })
        .build(),
        Kind::review::<authorization::v1::SelfSubjectAccessReview>(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
        )
        .strategy(Access { of_user: false })
        .build(),
        Kind::review::<authorization::v1::SelfSubjectRulesReview>(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
        )
        .build(),
        Kind::review::<authorization::v1::SubjectAccessReview>(
            AUTHORIZATION,
            "SubjectAccessReview",
            "subjectaccessreviews",
        )
        .strategy(Access { of_user: true })
        .build(),
    ]
}

/// May somebody (or the caller) do something?
struct Access {
    of_user: bool,
}

impl Strategy for Access {
    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors: Errors = Vec::new();
        let spec = FieldPath::new("spec");
        let (resource, url) = (
            at(obj, &["spec", "resourceAttributes"]),
            at(obj, &["spec", "nonResourceAttributes"]),
        );
        if resource.is_some() && url.is_some() {
            let path = spec.child("nonResourceAttributes");
            errors.push(FieldError::invalid(
                path,
                url.cloned().unwrap_or_default(),
                "cannot be specified in combination with resourceAttributes",
            ));
        }
        if resource.is_none() && url.is_none() {
            errors.push(FieldError::invalid(
                spec.child("resourceAttributes"),
                Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
        if self.of_user
            && str_at(obj, &["spec", "user"]).is_empty()
            && at(obj, &["spec", "groups"]).is_none()
        {
            errors.push(FieldError::invalid(
                spec.child("user"),
                "",
                "at least one of user or group must be specified",
            ));
        }
        errors
    }
}
