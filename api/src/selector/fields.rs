//! Field selectors: `metadata.name=x,status.phase!=Running`.
//!
//! Values may contain `\,`, `\=` and `\\` (backslash escapes), as kubectl writes them.

use std::borrow::Cow;
use std::fmt;

use super::{MAX_TEXT, SelectorError};
use crate::text::quote;

/// One requirement on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

/// A conjunction of field requirements. The default selects everything.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> FieldSelector {
        FieldSelector::default()
    }

    /// `field=value`
    pub fn equals(field: &str, value: &str) -> FieldSelector {
        let requirement = FieldRequirement {
            field: field.into(),
            value: value.into(),
            negated: false,
        };
        FieldSelector {
            requirements: vec![requirement],
        }
    }

    /// Reads the text form; operators are `=`, `==` and `!=`. Which fields exist is the resource's business.
    pub fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        if text.len() > MAX_TEXT {
            return Err(SelectorError("selector is too long".into()));
        }
        let mut terms: Vec<&str> = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let Some((field, operator, value)) = split_term(term) else {
                let message = format!("invalid selector: '{text}'; can't understand '{term}'");
                return Err(SelectorError(message));
            };
            let value = unescape(value)?;
            requirements.push(FieldRequirement {
                field: field.into(),
                value,
                negated: operator == "!=",
            });
        }
        Ok(FieldSelector { requirements })
    }

    /// Whether all requirements are met; `get` answers with the object's value of a field, `""` if it has none.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.requirements
            .iter()
            .all(|r| (get(&r.field) == r.value) != r.negated)
    }

    /// The value that the selector requires a field to have, if it requires one.
    pub fn requires(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.field == field && !r.negated)
            .map(|r| r.value.as_str())
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }
}

/// The text form, with values escaped.
impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if r.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{operator}{}", r.field, escape(&r.value))?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator.
fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    (0..term.len())
        .filter(|i| term.is_char_boundary(*i))
        .find_map(|i| {
            let operator = ["!=", "==", "="]
                .into_iter()
                .find(|op| term[i..].starts_with(op))?;
            Some((&term[..i], operator, &term[i + operator.len()..]))
        })
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence = format!("\\{}", other.map(String::from).unwrap_or_default());
                    let message = format!(
                        "invalid field selector: invalid escape sequence: {}",
                        quote(&sequence)
                    );
                    return Err(SelectorError(message));
                }
            },
            ',' | '=' => {
                let message = format!(
                    "invalid field selector: unescaped character in value: {}",
                    quote(&c.to_string())
                );
                return Err(SelectorError(message));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_are_read() {
        let selector = FieldSelector::parse("status.phase!=Running,metadata.name==x,").unwrap();
        assert_eq!(
            selector.to_string(),
            "metadata.name=x,status.phase!=Running"
        );
        assert_eq!(selector.requires("metadata.name"), Some("x"));
        assert_eq!(selector.requires("status.phase"), None);
        assert!(FieldSelector::parse("").unwrap().is_everything());
    }

    #[test]
    fn escapes_go_both_ways() {
        let selector = FieldSelector::parse(r"a=b\,c\=d\\").unwrap();
        assert_eq!(selector.requires("a"), Some(r"b,c=d\"));
        assert_eq!(selector.to_string(), r"a=b\,c\=d\\");
        assert!(FieldSelector::parse(r"a=b\x").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
    }

    #[test]
    fn what_has_no_operator_is_refused() {
        let error = FieldSelector::parse("metadata.name").unwrap_err();
        assert_eq!(
            error.0,
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
    }

    #[test]
    fn absent_fields_read_as_empty() {
        let selector = FieldSelector::parse("spec.nodeName=").unwrap();
        assert!(selector.matches(|_| "".into()));
        assert!(!selector.matches(|_| "n1".into()));
    }
}
