//! What a request asks for, beside the object: the options of `meta/v1`.
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-parameters/common-parameters/>

use std::time::Duration;

use amphipod_api::{FieldError, FieldSelector, GroupKind, LabelSelector, Status};
use bytes::Bytes;
use serde_json::Value;

/// A body that creates or replaces an object.
#[derive(Clone, Debug)]
pub enum Input {
    Json(Bytes),
    Yaml(Bytes),
    /// From within the server: taken as it is, without decoding against the schema.
    Value(Value),
}

impl From<Value> for Input {
    fn from(value: Value) -> Input {
        Input::Value(value)
    }
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the parameter; absent means `Warn`.
    ///
    /// # Errors
    /// 422 for another word.
    pub fn parse(text: Option<&str>, options_kind: &str) -> Result<FieldValidation, Status> {
        match text.unwrap_or_default() {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => {
                let error = FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["Ignore", "Strict", "Warn"],
                );
                Err(Status::invalid(
                    &GroupKind {
                        group: "meta.k8s.io".into(),
                        kind: options_kind.into(),
                    },
                    "",
                    &[error],
                ))
            }
        }
    }
}

/// Options of get.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// Empty or `0`: what is there. Another: at least as new.
    pub resource_version: String,
}

/// Options of list and watch. Texts are as the client sent them, empty if absent.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: LabelSelector,
    pub field_selector: FieldSelector,
    pub resource_version: String,
    /// `Exact` or `NotOlderThan`
    pub resource_version_match: String,
    /// 0: no limit.
    pub limit: i64,
    pub continue_token: String,
    /// When a watch ends by itself.
    pub timeout: Option<Duration>,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// What becomes of objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// Options of delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only the object at this version.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    /// The old spelling of propagation.
    pub orphan_dependents: Option<bool>,
    /// `dryRun: [All]`
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object. Unknown fields are ignored, as upstream does.
    ///
    /// # Errors
    /// 400 for values of the wrong type, 422 for ones that mean nothing.
    pub fn from_value(value: &Value) -> Result<DeleteOptions, Status> {
        let wrong = |field: &str| {
            Status::bad_request(format!(
                "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: invalid {field}"
            ))
        };
        let text = |value: &Value, field: &str| match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(wrong(field)),
        };
        let mut options = DeleteOptions::default();
        match &value["gracePeriodSeconds"] {
            Value::Null => {}
            seconds => {
                options.grace_period_seconds = Some(
                    seconds
                        .as_i64()
                        .ok_or_else(|| wrong("gracePeriodSeconds"))?,
                );
            }
        }
        match &value["orphanDependents"] {
            Value::Null => {}
            flag => {
                options.orphan_dependents =
                    Some(flag.as_bool().ok_or_else(|| wrong("orphanDependents"))?)
            }
        }
        options.uid = text(&value["preconditions"]["uid"], "preconditions.uid")?;
        options.resource_version = text(
            &value["preconditions"]["resourceVersion"],
            "preconditions.resourceVersion",
        )?;
        options
            .set_propagation(text(&value["propagationPolicy"], "propagationPolicy")?.as_deref())?;
        options.dry_run = match &value["dryRun"] {
            Value::Null => false,
            Value::Array(words) => {
                for word in words {
                    if word != "All" {
                        let error = FieldError::not_supported("dryRun", word.clone(), &["All"]);
                        return Err(invalid_options("DeleteOptions", error));
                    }
                }
                !words.is_empty()
            }
            _ => return Err(wrong("dryRun")),
        };
        options.check()?;
        Ok(options)
    }

    /// Sets the propagation policy from its word.
    ///
    /// # Errors
    /// 422 for an unknown word.
    pub fn set_propagation(&mut self, word: Option<&str>) -> Result<(), Status> {
        self.propagation = match word {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let error = FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                );
                return Err(invalid_options("DeleteOptions", error));
            }
        };
        Ok(())
    }

    /// Refuses contradictions.
    ///
    /// # Errors
    /// 422 if both spellings of propagation are set.
    pub fn check(&self) -> Result<(), Status> {
        if self.propagation.is_some() && self.orphan_dependents.is_some() {
            let error = FieldError::invalid(
                "propagationPolicy",
                self.propagation.map_or("", Propagation::as_str),
                "orphanDependents and deletionPropagation cannot be both set",
            );
            return Err(invalid_options("DeleteOptions", error));
        }
        Ok(())
    }
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        }
    }
}

pub(super) fn invalid_options(kind: &str, error: FieldError) -> Status {
    Status::invalid(
        &GroupKind {
            group: "meta.k8s.io".into(),
            kind: kind.into(),
        },
        "",
        &[error],
    )
}
