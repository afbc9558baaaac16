//! Validation that several kinds share, with upstream's paths and texts.

use amphipod_api::{FieldError, FieldPath};
use serde_json::Value;

pub mod pod;
mod selector;

pub use selector::{label_selector, labels};

/// The errors found so far.
pub type Errors = Vec<FieldError>;

/// `Invalid value: NEW: field is immutable`, if the field differs.
pub fn immutable(path: &FieldPath, new: Option<&Value>, old: Option<&Value>, errors: &mut Errors) {
    if new.unwrap_or(&Value::Null) != old.unwrap_or(&Value::Null) {
        errors.push(FieldError::invalid(
            path,
            new.cloned().unwrap_or_default(),
            IMMUTABLE,
        ));
    }
}

pub const IMMUTABLE: &str = "field is immutable";

/// `must be greater than or equal to 0`, if it is there and is not.
pub fn non_negative(path: &FieldPath, value: Option<&Value>, errors: &mut Errors) {
    if let Some(n) = value.and_then(Value::as_i64)
        && n < 0
    {
        errors.push(FieldError::invalid(path, n, NON_NEGATIVE));
    }
}

pub const NON_NEGATIVE: &str = "must be greater than or equal to 0";

/// One error for each problem that a name rule finds.
pub fn problems(path: &FieldPath, value: &str, found: Vec<String>, errors: &mut Errors) {
    for problem in found {
        errors.push(FieldError::invalid(path, value, problem));
    }
}

/// `Unsupported value`, if the text is none of `supported`. An empty text is for the caller to judge.
pub fn one_of(path: &FieldPath, value: &str, supported: &[&str], errors: &mut Errors) {
    if !supported.contains(&value) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}
