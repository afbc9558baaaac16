//! Node selectors: `nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution` and a preference's terms.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity>.

use serde_json::Value;

use super::{Labels, Operator, Requirement, SelectorError};
use crate::meta;

/// Terms of which one must match. No terms match nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeSelector {
    pub terms: Vec<NodeSelectorTerm>,
}

/// Requirements that must all be met. A term without requirements matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeSelectorTerm {
    /// On the node's labels; Gt and Lt compare integers.
    pub labels: Vec<Requirement>,
    /// On the node's name (`metadata.name`, the only field upstream takes).
    pub fields: Vec<Requirement>,
}

impl NodeSelector {
    /// Reads a `v1.NodeSelector` (`{nodeSelectorTerms: [...]}`).
    pub fn from_object(selector: &Value) -> Result<NodeSelector, SelectorError> {
        let terms = meta::array_at(selector, &["nodeSelectorTerms"]);
        let terms = terms
            .iter()
            .map(NodeSelectorTerm::from_object)
            .collect::<Result<_, _>>()?;
        Ok(NodeSelector { terms })
    }

    pub fn matches<L: Labels + ?Sized>(&self, node_name: &str, labels: &L) -> bool {
        self.terms.iter().any(|t| t.matches(node_name, labels))
    }
}

impl NodeSelectorTerm {
    /// Reads a `v1.NodeSelectorTerm` (`{matchExpressions, matchFields}`).
    pub fn from_object(term: &Value) -> Result<NodeSelectorTerm, SelectorError> {
        let read = |field: &str, is_field: bool| {
            meta::array_at(term, &[field])
                .iter()
                .map(|e| requirement(e, is_field))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(NodeSelectorTerm {
            labels: read("matchExpressions", false)?,
            fields: read("matchFields", true)?,
        })
    }

    pub fn matches<L: Labels + ?Sized>(&self, node_name: &str, labels: &L) -> bool {
        struct Name<'a>(&'a str);
        impl Labels for Name<'_> {
            fn label(&self, key: &str) -> Option<&str> {
                (key == "metadata.name").then_some(self.0)
            }
        }
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.labels.iter().all(|r| r.matches(labels))
            && self.fields.iter().all(|r| r.matches(&Name(node_name)))
    }
}

fn requirement(expression: &Value, is_field: bool) -> Result<Requirement, SelectorError> {
    let key = meta::str_at(expression, &["key"]);
    let values: Vec<String> = meta::array_at(expression, &["values"])
        .iter()
        .filter_map(Value::as_str)
        .map(String::from)
        .collect();
    let operator = match meta::str_at(expression, &["operator"]) {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" if !is_field => Operator::Exists,
        "DoesNotExist" if !is_field => Operator::DoesNotExist,
        "Gt" if !is_field => Operator::GreaterThan,
        "Lt" if !is_field => Operator::LessThan,
        other => {
            return Err(SelectorError(format!(
                "{} is not a valid node selector operator",
                crate::text::quote(other)
            )));
        }
    };
    if is_field {
        // Node names are longer than label values may be, so the label rules do not apply.
        return match (key, values.len()) {
            ("metadata.name", 1) => Ok(Requirement {
                key: key.into(),
                operator,
                values,
            }),
            ("metadata.name", _) => Err(SelectorError("must have one element".into())),
            _ => Err(SelectorError(format!(
                "not a valid field selector key: {}",
                crate::text::quote(key)
            ))),
        };
    }
    Requirement::new(key, operator, values)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn matches(selector: Value) -> bool {
        let labels = json!({"zone": "a", "cpus": "8"});
        NodeSelector::from_object(&selector)
            .unwrap()
            .matches("n1", labels.as_object().unwrap())
    }

    #[test]
    fn one_term_must_match_wholly() {
        let zone_a = json!({"key": "zone", "operator": "In", "values": ["a", "b"]});
        let zone_c = json!({"key": "zone", "operator": "In", "values": ["c"]});
        let many = json!({"key": "cpus", "operator": "Gt", "values": ["4"]});
        let name = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
        assert!(matches(
            json!({"nodeSelectorTerms": [{"matchExpressions": [zone_c]}, {"matchExpressions": [zone_a, many]}]})
        ));
        assert!(!matches(
            json!({"nodeSelectorTerms": [{"matchExpressions": [zone_a, zone_c]}]})
        ));
        assert!(matches(
            json!({"nodeSelectorTerms": [{"matchFields": [name]}]})
        ));
        assert!(!matches(json!({"nodeSelectorTerms": [{}]})));
        assert!(!matches(json!({"nodeSelectorTerms": []})));
    }

    #[test]
    fn unknown_operators_and_fields_are_refused() {
        for bad in [
            json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
            json!({"matchFields": [{"key": "spec.x", "operator": "In", "values": ["a"]}]}),
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": []}]}),
        ] {
            assert!(NodeSelectorTerm::from_object(&bad).is_err(), "{bad}");
        }
    }
}
