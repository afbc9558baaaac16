//! Label selectors. Texts: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>; messages are those of
//! apimachinery's `labels` package (v1.36).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use super::{MAX_TEXT, SelectorError};
use crate::field::FieldError;
use crate::names;

/// Anything labels can be looked up in.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for HashMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks key, operator and values together.
    pub fn new(
        key: &str,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Requirement, SelectorError> {
        use Operator::*;
        values.sort();
        values.dedup();
        let mut errors = Vec::new();
        let problems = names::qualified_name(key);
        if !problems.is_empty() {
            errors.push(FieldError::invalid("key", key, problems.join("; ")));
        }
        let wrong_count = match operator {
            In | NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Equals | DoubleEquals | NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Exists | DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            GreaterThan | LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(detail) = wrong_count {
            errors.push(FieldError::invalid(
                "values",
                Value::from(values.clone()),
                detail,
            ));
        }
        for (i, value) in values.iter().enumerate() {
            if matches!(operator, GreaterThan | LessThan) && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(
                    format!("values[{i}]"),
                    value.as_str(),
                    detail,
                ));
            }
        }
        for (i, value) in values.iter().enumerate() {
            let problems = names::label_value(value);
            if !problems.is_empty() {
                let field = format!("values[{i}][{key}]");
                errors.push(FieldError::invalid(
                    field,
                    value.as_str(),
                    problems.join("; "),
                ));
            }
        }
        if !errors.is_empty() {
            return Err(SelectorError(crate::field::aggregate(&errors)));
        }
        Ok(Requirement {
            key: key.into(),
            operator,
            values,
        })
    }

    /// Whether the labels meet the requirement. An absent label meets the negative operators.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        use Operator::*;
        let label = labels.label(&self.key);
        let listed = |label: &str| self.values.iter().any(|v| v == label);
        let compare = |label: &str| {
            let wanted = self.values.first()?.parse::<i64>().ok()?;
            Some(label.parse::<i64>().ok()?.cmp(&wanted))
        };
        match self.operator {
            In | Equals | DoubleEquals => label.is_some_and(listed),
            NotIn | NotEquals => !label.is_some_and(listed),
            Exists => label.is_some(),
            DoesNotExist => label.is_none(),
            GreaterThan => label.and_then(compare).is_some_and(|o| o.is_gt()),
            LessThan => label.and_then(compare).is_some_and(|o| o.is_lt()),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A conjunction of requirements, or the selector that selects nothing. The default selects everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    /// Matches no object.
    pub fn nothing() -> LabelSelector {
        LabelSelector {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// The conjunction of requirements, in the order of their keys.
    pub fn new(mut requirements: Vec<Requirement>) -> LabelSelector {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector {
            requirements,
            nothing: false,
        }
    }

    /// Reads the text form: `a=b,c!=d,e in (x,y),!f,g notin (z),h>5`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        if text.len() > MAX_TEXT {
            return Err(SelectorError("selector is too long".into()));
        }
        Ok(LabelSelector::new(super::parser::parse(text)?))
    }

    /// Reads a `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`). Null selects nothing and `{}`
    /// everything, as upstream's `LabelSelectorAsSelector`.
    pub fn from_object(selector: &Value) -> Result<LabelSelector, SelectorError> {
        let Value::Object(selector) = selector else {
            return match selector {
                Value::Null => Ok(LabelSelector::nothing()),
                _ => Err(SelectorError("label selector must be an object".into())),
            };
        };
        let mut requirements = Vec::new();
        if let Some(Value::Object(labels)) = selector.get("matchLabels") {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or("").to_string();
                requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
            }
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |field| expression.get(field).and_then(Value::as_str).unwrap_or("");
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        crate::text::quote(other)
                    )));
                }
            };
            let values = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let values = values.filter_map(Value::as_str).map(String::from).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(LabelSelector::new(requirements))
    }

    /// Matches objects that carry all these labels (a Service's or ReplicationController's `spec.selector`).
    pub fn from_set(labels: &Map<String, Value>) -> LabelSelector {
        let requirements = labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or("").into()],
        });
        LabelSelector::new(requirements.collect())
    }

    /// Whether all requirements are met.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether the labels of an object (`metadata.labels`) match.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(crate::meta::labels(object))
    }

    /// Whether nothing is required.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

/// The canonical text form; empty for everything and for nothing.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn texts_are_read_and_printed_canonically() {
        for (text, canonical) in [
            ("", ""),
            ("a", "a"),
            ("!a", "!a"),
            ("a=b", "a=b"),
            ("a==b", "a==b"),
            ("c!=d,a = b", "a=b,c!=d"),
            (
                "x in (foo,,baz),y,z notin ()",
                "x in (,baz,foo),y,z notin ()",
            ),
            ("x in (a)", "x in (a)"),
            ("x in (in,notin)", "x in (in,notin)"),
            ("in in (a)", "in in (a)"),
            ("x in (a,)", "x in (,a)"),
            ("x in (,)", "x in ()"),
            ("a=", "a="),
            ("a=,b", "a=,b"),
            ("x>5,y<7", "x>5,y<7"),
            (" a \t= b ", "a=b"),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().to_string(),
                canonical,
                "{text}"
            );
        }
    }

    #[test]
    fn errors_read_as_upstream() {
        for (text, error) in [
            (
                ",",
                "found ',', expected: !, identifier, or 'end of string'",
            ),
            ("a,", "found '', expected: identifier after ','"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "x in a",
                "unable to parse requirement: found 'a' expected: '('",
            ),
            (
                "x in (a",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            (
                "a=(b)",
                "unable to parse requirement: found '(', expected: identifier",
            ),
            (
                "x>a",
                r#"unable to parse requirement: values[0]: Invalid value: "a": for 'Gt', 'Lt' operators, the value must be an integer"#,
            ),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().0, error, "{text}");
        }
        let bad_key = LabelSelector::parse("a/b/c=d").unwrap_err().0;
        assert!(bad_key.starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key"
        ));
        assert!(LabelSelector::parse("a=b=c").is_err());
        assert!(LabelSelector::parse(&format!("a={}", "x".repeat(64))).is_err());
    }

    #[test]
    fn matching_treats_absent_labels_as_kubernetes_does() {
        let labels = set(&[("a", "b"), ("n", "6")]);
        for (text, matches) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("a=b", true),
            ("a!=b", false),
            ("z!=b", true),
            ("z notin (b)", true),
            ("z", false),
            ("!z", true),
            ("a in (x,b)", true),
            ("n>5", true),
            ("n<5", false),
            ("z>5", false),
            ("a>5", false),
            ("a=b,n=6", true),
            ("a=b,n=7", false),
            ("z=", false),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches(&labels),
                matches,
                "{text}"
            );
        }
    }

    #[test]
    fn objects_select_as_upstream() {
        let selector = LabelSelector::from_object(&json!({
            "matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"}],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "a=b,c notin (d,e),f");
        assert!(selector.matches(&set(&[("a", "b"), ("f", "")])));
        assert!(
            LabelSelector::from_object(&json!({}))
                .unwrap()
                .is_everything()
        );
        let nothing = LabelSelector::from_object(&Value::Null).unwrap();
        assert!(!nothing.matches(&set(&[])) && !nothing.is_everything());
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert_eq!(
            LabelSelector::from_object(&bad).unwrap_err().0,
            r#""Near" is not a valid label selector operator"#
        );
        assert!(
            LabelSelector::from_object(
                &json!({"matchExpressions": [{"key": "a", "operator": "In"}]})
            )
            .is_err()
        );
    }
}
