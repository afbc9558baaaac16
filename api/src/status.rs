//! `Status`, the error (and sometimes the success) that the API answers with, and the texts kubectl users know.
//!
//! Shapes: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>. Messages are those of
//! apimachinery's `errors` package (v1.36).

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use crate::field::{self, FieldError};
use crate::gvk::{GroupKind, GroupResource};
use crate::text::quote;

/// Why a request failed, in one machine-readable word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Reason(pub Cow<'static, str>);

macro_rules! reasons {
    ($($name:ident = $text:literal,)*) => {
        impl Reason {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Reason = Reason(Cow::Borrowed($text));)*
        }
    };
}

reasons! {
    UNKNOWN = "",
    UNAUTHORIZED = "Unauthorized",
    FORBIDDEN = "Forbidden",
    NOT_FOUND = "NotFound",
    ALREADY_EXISTS = "AlreadyExists",
    CONFLICT = "Conflict",
    GONE = "Gone",
    INVALID = "Invalid",
    SERVER_TIMEOUT = "ServerTimeout",
    TIMEOUT = "Timeout",
    TOO_MANY_REQUESTS = "TooManyRequests",
    BAD_REQUEST = "BadRequest",
    METHOD_NOT_ALLOWED = "MethodNotAllowed",
    NOT_ACCEPTABLE = "NotAcceptable",
    REQUEST_ENTITY_TOO_LARGE = "RequestEntityTooLarge",
    UNSUPPORTED_MEDIA_TYPE = "UnsupportedMediaType",
    INTERNAL_ERROR = "InternalError",
    EXPIRED = "Expired",
    SERVICE_UNAVAILABLE = "ServiceUnavailable",
    INSUFFICIENT_STORAGE = "InsufficientStorage",
}

impl Reason {
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One cause of a failure: which field, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct StatusCause {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the status is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct StatusDetails {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// A kind for `Invalid`, else the resource's plural, as upstream.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i32,
}

/// The list metadata of a status: empty but for continue tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct StatusMeta {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// A fresh token with which an expired list may be continued (inconsistently).
    #[serde(default, rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

fn is_zero<T: Default + PartialEq>(n: &T) -> bool {
    *n == T::default()
}

/// The fields of a [`Status`], in the order Kubernetes prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusBody {
    #[serde(default)]
    pub kind: Cow<'static, str>,
    #[serde(default)]
    pub api_version: Cow<'static, str>,
    #[serde(default)]
    pub metadata: StatusMeta,
    /// `Success` or `Failure`
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub status: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Reason::is_unknown")]
    pub reason: Reason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// The HTTP status code; 0 when absent (success statuses).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// A Kubernetes Status. Boxed, so that `Result<T, Status>` stays small; its fields are reached by dereference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Status(Box<StatusBody>);

impl Deref for Status {
    type Target = StatusBody;
    fn deref(&self) -> &StatusBody {
        &self.0
    }
}

impl DerefMut for Status {
    fn deref_mut(&mut self) -> &mut StatusBody {
        &mut self.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// The most errors of one object that are told; nobody mends more at once, and a hostile object has a hundred thousand.
const MAX_CAUSES: usize = 1000;

impl Status {
    /// A failure with any code, reason and message, and no details.
    pub fn failure(code: u16, reason: Reason, message: impl Into<String>) -> Status {
        Status(Box::new(StatusBody {
            kind: Cow::Borrowed("Status"),
            api_version: Cow::Borrowed("v1"),
            metadata: StatusMeta::default(),
            status: Cow::Borrowed("Failure"),
            message: message.into(),
            reason,
            details: None,
            code,
        }))
    }

    /// Sets the details.
    pub fn with_details(mut self, details: StatusDetails) -> Status {
        self.details = Some(details);
        self
    }

    /// The HTTP status to answer with: `code`, or 200 for a success without one, or 500 for nonsense.
    pub fn http_code(&self) -> u16 {
        match self.code {
            0 if self.status == "Success" => 200,
            code @ 100..=599 => code,
            _ => 500,
        }
    }

    /// The JSON document.
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising strings and integers cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The JSON document as a value (watch ERROR events carry it).
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn about(
        code: u16,
        reason: Reason,
        resource: &GroupResource,
        name: &str,
        message: String,
    ) -> Status {
        Status::failure(code, reason, message).with_details(StatusDetails {
            name: name.into(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            ..StatusDetails::default()
        })
    }

    /// 404 `pods "x" not found`
    pub fn not_found(resource: &GroupResource, name: &str) -> Status {
        let message = format!("{resource} {} not found", quote(name));
        Self::about(404, Reason::NOT_FOUND, resource, name, message)
    }

    /// 404 for a path that is no resource.
    pub fn no_such_resource() -> Status {
        Self::failure(
            404,
            Reason::NOT_FOUND,
            "the server could not find the requested resource",
        )
        .with_details(StatusDetails::default())
    }

    /// 409 `pods "x" already exists`
    pub fn already_exists(resource: &GroupResource, name: &str) -> Status {
        let message = format!("{resource} {} already exists", quote(name));
        Self::about(409, Reason::ALREADY_EXISTS, resource, name, message)
    }

    /// 409 when every generated name was taken.
    pub fn generate_name_conflict(
        resource: &GroupResource,
        name: &str,
        retry_after_seconds: i32,
    ) -> Status {
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Self::about(409, Reason::ALREADY_EXISTS, resource, name, message)
            .retry_after(retry_after_seconds)
    }

    /// 409 `Operation cannot be fulfilled on pods "x": why`
    pub fn conflict(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Status {
        let message = format!(
            "Operation cannot be fulfilled on {resource} {}: {why}",
            quote(name)
        );
        Self::about(409, Reason::CONFLICT, resource, name, message)
    }

    /// The conflict of optimistic locking: the stored resourceVersion is another.
    pub fn modified(resource: &GroupResource, name: &str) -> Status {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// 409 of server-side apply: `message` and one cause for each conflicting field manager.
    pub fn apply_conflict(causes: Vec<StatusCause>, message: impl Into<String>) -> Status {
        Self::failure(409, Reason::CONFLICT, message).with_details(StatusDetails {
            causes,
            ..StatusDetails::default()
        })
    }

    /// 422 `Pod "x" is invalid: spec.containers: Required value`; several errors print as `[a, b]`.
    pub fn invalid(kind: &GroupKind, name: &str, errors: &[FieldError]) -> Status {
        let errors = &errors[..errors.len().min(MAX_CAUSES)];
        let mut message = format!("{kind} {} is invalid", quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&field::aggregate(errors));
        }
        let causes = errors
            .iter()
            .map(|e| StatusCause {
                reason: e.kind.cause().into(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        Self::failure(422, Reason::INVALID, message).with_details(StatusDetails {
            name: name.into(),
            group: kind.group.clone(),
            kind: kind.kind.clone(),
            causes,
            ..StatusDetails::default()
        })
    }

    /// 403 `pods "x" is forbidden: why`; an empty name or resource leaves its part out.
    pub fn forbidden(resource: &GroupResource, name: &str, why: impl fmt::Display) -> Status {
        let message = if resource.resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {} is forbidden: {why}", quote(name))
        };
        Self::about(403, Reason::FORBIDDEN, resource, name, message)
    }

    /// 401 `Unauthorized`
    pub fn unauthorized() -> Status {
        Self::failure(401, Reason::UNAUTHORIZED, "Unauthorized")
    }

    /// 400
    pub fn bad_request(message: impl Into<String>) -> Status {
        Self::failure(400, Reason::BAD_REQUEST, message)
    }

    /// 405 `patch is not supported on resources of kind "pods"`
    pub fn method_not_supported(resource: &GroupResource, verb: &str) -> Status {
        let message = format!(
            "{verb} is not supported on resources of kind {}",
            quote(&resource.to_string())
        );
        Self::about(405, Reason::METHOD_NOT_ALLOWED, resource, "", message)
    }

    /// 405 for a method that the path never takes.
    pub fn method_not_allowed() -> Status {
        Self::failure(
            405,
            Reason::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        )
        .with_details(StatusDetails::default())
    }

    /// 410 Gone: what was here is no more.
    pub fn gone(message: impl Into<String>) -> Status {
        Self::failure(410, Reason::GONE, message)
    }

    /// 410 Expired: a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Status {
        Self::failure(410, Reason::EXPIRED, message)
    }

    /// 410 `too old resource version: 5 (100)`
    pub fn too_old_resource_version(requested: u64, oldest: u64) -> Status {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 504 for a resourceVersion that the server has not reached: clients retry.
    pub fn too_large_resource_version(
        requested: u64,
        current: u64,
        retry_after_seconds: i32,
    ) -> Status {
        let mut status = Self::timeout(
            format!("Too large resource version: {requested}, current: {current}"),
            retry_after_seconds,
        );
        let message = "Too large resource version".into();
        let cause = StatusCause {
            reason: "ResourceVersionTooLarge".into(),
            message,
            field: String::new(),
        };
        if let Some(details) = &mut status.details {
            details.causes.push(cause);
        }
        status
    }

    /// 429; `message` as it is.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Status {
        Self::failure(429, Reason::TOO_MANY_REQUESTS, message).retry_after(retry_after_seconds)
    }

    /// 500 ServerTimeout: the operation may be tried again.
    pub fn server_timeout(
        resource: &GroupResource,
        operation: &str,
        retry_after_seconds: i32,
    ) -> Status {
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        Self::about(500, Reason::SERVER_TIMEOUT, resource, operation, message)
            .retry_after(retry_after_seconds)
    }

    /// 504 `Timeout: why`
    pub fn timeout(why: impl fmt::Display, retry_after_seconds: i32) -> Status {
        Self::failure(504, Reason::TIMEOUT, format!("Timeout: {why}"))
            .retry_after(retry_after_seconds)
    }

    /// 503
    pub fn service_unavailable(message: impl Into<String>) -> Status {
        Self::failure(503, Reason::SERVICE_UNAVAILABLE, message)
    }

    /// 507, as HTTP calls it (RFC 4918, section 11.5): nothing new fits on the server's disk. Upstream has no such case; clients
    /// treat a reason that they do not know by its code, a server's error that may pass.
    pub fn insufficient_storage(message: impl Into<String>) -> Status {
        Self::failure(507, Reason::INSUFFICIENT_STORAGE, message)
    }

    /// 500 `Internal error occurred: why`
    pub fn internal_error(why: impl fmt::Display) -> Status {
        let message = why.to_string();
        let causes = vec![StatusCause {
            message: message.clone(),
            ..StatusCause::default()
        }];
        Self::failure(
            500,
            Reason::INTERNAL_ERROR,
            format!("Internal error occurred: {message}"),
        )
        .with_details(StatusDetails {
            causes,
            ..StatusDetails::default()
        })
    }

    /// 413 `Request entity too large: why`
    pub fn request_entity_too_large(why: impl fmt::Display) -> Status {
        Self::failure(
            413,
            Reason::REQUEST_ENTITY_TOO_LARGE,
            format!("Request entity too large: {why}"),
        )
    }

    /// 415, naming what the server can read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, Reason::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// 406, naming what the server can write.
    pub fn not_acceptable(offered: &[&str]) -> Status {
        let message = format!(
            "only the following media types are accepted: {}",
            offered.join(", ")
        );
        Self::failure(406, Reason::NOT_ACCEPTABLE, message)
    }

    /// The success that answers a delete.
    pub fn deleted(resource: &GroupResource, name: &str, uid: &str) -> Status {
        let mut status = Self::success();
        status.details = Some(StatusDetails {
            name: name.into(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            uid: uid.into(),
            ..StatusDetails::default()
        });
        status
    }

    /// A success without details.
    pub fn success() -> Status {
        let mut status = Self::failure(0, Reason::UNKNOWN, "");
        status.status = Cow::Borrowed("Success");
        status
    }

    /// Sets `retryAfterSeconds` (servers send it as the `Retry-After` header, too).
    pub fn retry_after(mut self, seconds: i32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NOT_FOUND
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::ALREADY_EXISTS
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::CONFLICT
    }

    /// 410 of both kinds: list again.
    pub fn is_expired(&self) -> bool {
        self.reason == Reason::EXPIRED || self.reason == Reason::GONE || self.code == 410
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::field::FieldPath;

    fn pods() -> GroupResource {
        GroupResource::new("", "pods")
    }

    #[test]
    fn not_found_is_the_document_that_kubectl_knows() {
        let json = String::from_utf8(Status::not_found(&pods(), "x").to_json()).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},"code":404}"#
        );
    }

    #[test]
    fn delete_answers_success_without_a_code() {
        let deployments = GroupResource::new("apps", "deployments");
        let json = String::from_utf8(Status::deleted(&deployments, "x", "u").to_json()).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"x","group":"apps","kind":"deployments","uid":"u"}}"#
        );
        assert_eq!(Status::success().http_code(), 200);
    }

    #[test]
    fn invalid_lists_every_error_and_its_cause() {
        let spec = FieldPath::new("spec");
        let errors = [
            FieldError::required(spec.child("containers"), ""),
            FieldError::invalid(spec.child("nodeName"), "_", "bad"),
        ];
        let status = Status::invalid(&GroupKind::new("", "Pod"), "x", &errors);
        assert_eq!(
            status.message,
            r#"Pod "x" is invalid: [spec.containers: Required value, spec.nodeName: Invalid value: "_": bad]"#
        );
        let causes = &status.details.as_ref().unwrap().causes;
        assert_eq!(causes[0].reason, "FieldValueRequired");
        assert_eq!(causes[1].message, r#"Invalid value: "_": bad"#);
        assert_eq!(causes[1].field, "spec.nodeName");
    }

    #[test]
    fn messages_read_as_upstream() {
        let deployments = GroupResource::new("apps", "deployments");
        let cases = [
            (
                Status::already_exists(&deployments, "x"),
                409,
                r#"deployments.apps "x" already exists"#,
            ),
            (
                Status::modified(&pods(), "x"),
                409,
                r#"Operation cannot be fulfilled on pods "x": the object has been modified; please apply your changes to the latest version and try again"#,
            ),
            (
                Status::forbidden(&pods(), "x", "no"),
                403,
                r#"pods "x" is forbidden: no"#,
            ),
            (
                Status::forbidden(&pods(), "", "no"),
                403,
                "pods is forbidden: no",
            ),
            (
                Status::too_old_resource_version(1, 2),
                410,
                "too old resource version: 1 (2)",
            ),
            (
                Status::internal_error("boom"),
                500,
                "Internal error occurred: boom",
            ),
            (
                Status::method_not_supported(&pods(), "patch"),
                405,
                r#"patch is not supported on resources of kind "pods""#,
            ),
            (Status::timeout("late", 1), 504, "Timeout: late"),
        ];
        for (status, code, message) in cases {
            assert_eq!(
                (status.http_code(), status.message.as_str()),
                (code, message)
            );
        }
    }

    #[test]
    fn statuses_of_other_servers_are_read() {
        let status: Status = serde_json::from_str(
            r#"{"kind":"Status","status":"Failure","reason":"Strange","code":418}"#,
        )
        .unwrap();
        assert_eq!(status.reason.as_str(), "Strange");
        assert_eq!(status.http_code(), 418);
    }
}
