//! Field paths and field errors, with the texts of apimachinery's `field` package (v1.36).

use std::collections::HashSet;
use std::fmt;

use serde_json::Value;

use crate::text;

/// A path to a field of an object: `spec.containers[0].name`, `metadata.labels[key]`.
///
/// A link borrows its parent, so building paths while an object is valid costs no allocation; text is made by
/// `Display` when there is an error to report. A `child` may name several fields at once: `child("spec.template")`.
#[derive(Clone, Copy, Debug)]
pub struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    /// The path of the object itself: no text.
    Root,
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> FieldPath<'a> {
    /// The object itself: children of it have no leading dot. Errors on it print as `<nil>`, as upstream.
    pub const ROOT: FieldPath<'static> = FieldPath {
        parent: None,
        segment: Segment::Root,
    };

    /// A path that starts at a field: `spec`, or `spec.template`.
    pub const fn new(name: &'a str) -> FieldPath<'a> {
        FieldPath {
            parent: None,
            segment: Segment::Name(name),
        }
    }

    /// `self.name`
    pub const fn child<'b>(&'b self, name: &'b str) -> FieldPath<'b> {
        FieldPath {
            parent: Some(self),
            segment: Segment::Name(name),
        }
    }

    /// `self[index]`
    pub const fn index(&self, index: usize) -> FieldPath<'_> {
        FieldPath {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }

    /// `self[key]`
    pub const fn key<'b>(&'b self, key: &'b str) -> FieldPath<'b> {
        FieldPath {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }

    fn is_root(&self) -> bool {
        self.parent.is_none() && matches!(self.segment, Segment::Root)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at_start = true;
        if let Some(parent) = self.parent {
            parent.write(f)?;
            at_start = parent.is_root();
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Name(name) if at_start => f.write_str(name),
            Segment::Name(name) => write!(f, ".{name}"),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str("<nil>");
        }
        self.write(f)
    }
}

/// What is wrong with a field. `cause()` is the machine-readable reason of `Status.details.causes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    InternalError,
    TypeInvalid,
}

impl ErrorType {
    /// The `reason` of a status cause.
    pub const fn cause(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooShort => "FieldValueTooShort",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TooFew => "FieldValueTooFew",
            ErrorType::InternalError => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    /// The words that open the message.
    pub const fn title(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooShort => "Too short",
            ErrorType::TooMany => "Too many",
            ErrorType::TooFew => "Too few",
            ErrorType::InternalError => "Internal error",
        }
    }
}

/// One problem with one field. `Display` is `path: Invalid value: "x": detail`.
///
/// Fields are given as anything that prints as a path: a `&FieldPath` or text.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The kind of problem.
    pub kind: ErrorType,
    /// The path, as text.
    pub field: String,
    /// The offending value, where the message shows it.
    pub value: Option<Value>,
    /// What to do about it; may be empty.
    pub detail: String,
}

impl FieldError {
    fn make(
        kind: ErrorType,
        field: impl fmt::Display,
        value: Option<Value>,
        detail: String,
    ) -> FieldError {
        FieldError {
            kind,
            field: field.to_string(),
            value,
            detail,
        }
    }

    /// `path: Required value[: detail]`
    pub fn required(field: impl fmt::Display, detail: impl Into<String>) -> FieldError {
        Self::make(ErrorType::Required, field, None, detail.into())
    }

    /// `path: Invalid value: value: detail`
    pub fn invalid(
        field: impl fmt::Display,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> FieldError {
        Self::make(ErrorType::Invalid, field, Some(value.into()), detail.into())
    }

    /// As `invalid`, for a value of the wrong type.
    pub fn type_invalid(
        field: impl fmt::Display,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> FieldError {
        Self::make(
            ErrorType::TypeInvalid,
            field,
            Some(value.into()),
            detail.into(),
        )
    }

    /// `path: Unsupported value: "x": supported values: "A", "B"` (in the order given).
    pub fn not_supported(
        field: impl fmt::Display,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> FieldError {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| text::quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::make(ErrorType::NotSupported, field, Some(value.into()), detail)
    }

    /// `path: Duplicate value: "x"`
    pub fn duplicate(field: impl fmt::Display, value: impl Into<Value>) -> FieldError {
        Self::make(
            ErrorType::Duplicate,
            field,
            Some(value.into()),
            String::new(),
        )
    }

    /// `path: Not found: "x"`
    pub fn not_found(field: impl fmt::Display, value: impl Into<Value>) -> FieldError {
        Self::make(
            ErrorType::NotFound,
            field,
            Some(value.into()),
            String::new(),
        )
    }

    /// `path: Forbidden: detail`
    pub fn forbidden(field: impl fmt::Display, detail: impl Into<String>) -> FieldError {
        Self::make(ErrorType::Forbidden, field, None, detail.into())
    }

    /// `path: Too long: may not be more than N bytes`
    pub fn too_long(field: impl fmt::Display, max_bytes: usize) -> FieldError {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {max_bytes} {unit}");
        Self::make(ErrorType::TooLong, field, None, detail)
    }

    /// `path: Too many: N: must have at most M items`
    pub fn too_many(field: impl fmt::Display, actual: usize, max: usize) -> FieldError {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        Self::make(ErrorType::TooMany, field, Some(actual.into()), detail)
    }

    /// `path: Internal error: detail`
    pub fn internal(field: impl fmt::Display, detail: impl Into<String>) -> FieldError {
        Self::make(ErrorType::InternalError, field, None, detail.into())
    }

    /// The message without the path: what `Status.details.causes[].message` holds.
    pub fn body(&self) -> String {
        let title = self.kind.title();
        let mut out = match &self.value {
            None => title.to_string(),
            Some(Value::String(s)) => format!("{title}: {}", text::quote(s)),
            Some(value) => format!("{title}: {}", text::go_json(value)),
        };
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Joins errors as an apimachinery Aggregate prints: duplicates once, one alone bare, several as `[a, b]`.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut seen = HashSet::with_capacity(errors.len());
    let mut texts: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    texts.retain(|text| seen.insert(text.clone()));
    match texts.len() {
        1 => texts.swap_remove(0),
        _ => format!("[{}]", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_print_as_upstream() {
        let spec = FieldPath::new("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        assert_eq!(first.child("name").to_string(), "spec.containers[0].name");
        let labels = FieldPath::new("metadata")
            .child("labels")
            .key("a/b")
            .to_string();
        assert_eq!(labels, "metadata.labels[a/b]");
        assert_eq!(FieldPath::ROOT.child("spec").to_string(), "spec");
        assert_eq!(FieldPath::ROOT.to_string(), "<nil>");
    }

    #[test]
    fn errors_read_as_upstream() {
        let path = FieldPath::new("spec.x");
        let cases = [
            (FieldError::required(path, ""), "spec.x: Required value"),
            (
                FieldError::required(path, "why"),
                "spec.x: Required value: why",
            ),
            (
                FieldError::invalid(path, "a\"b", "bad"),
                r#"spec.x: Invalid value: "a\"b": bad"#,
            ),
            (
                FieldError::invalid(path, 5, "bad"),
                "spec.x: Invalid value: 5: bad",
            ),
            (
                FieldError::invalid(path, json!({"a": 1}), "bad"),
                r#"spec.x: Invalid value: {"a":1}: bad"#,
            ),
            (
                FieldError::not_supported(path, "TPC", &["SCTP", "TCP", "UDP"]),
                r#"spec.x: Unsupported value: "TPC": supported values: "SCTP", "TCP", "UDP""#,
            ),
            (
                FieldError::duplicate(path, "a"),
                r#"spec.x: Duplicate value: "a""#,
            ),
            (
                FieldError::not_found(path, "a"),
                r#"spec.x: Not found: "a""#,
            ),
            (FieldError::forbidden(path, "no"), "spec.x: Forbidden: no"),
            (
                FieldError::too_long(path, 63),
                "spec.x: Too long: may not be more than 63 bytes",
            ),
            (
                FieldError::too_many(path, 5, 3),
                "spec.x: Too many: 5: must have at most 3 items",
            ),
            (
                FieldError::internal(path, "oops"),
                "spec.x: Internal error: oops",
            ),
            (
                FieldError::invalid(path, Value::Null, "bad"),
                "spec.x: Invalid value: null: bad",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn aggregates_print_each_text_once() {
        let a = FieldError::required("a", "");
        let b = FieldError::required("b", "");
        assert_eq!(aggregate(&[a.clone(), a.clone()]), "a: Required value");
        assert_eq!(
            aggregate(&[a.clone(), b, a]),
            "[a: Required value, b: Required value]"
        );
    }
}
