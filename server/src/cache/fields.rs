//! Selectable fields, read from an object's JSON in one pass that skips everything else.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::resources::SelectableField;

/// The selectable fields of a resource, as a tree of their paths.
#[derive(Default)]
pub struct FieldSet {
    names: Vec<Box<str>>,
    defaults: Vec<&'static str>,
    root: Node,
}

#[derive(Default)]
struct Node {
    /// The fields whose path ends here.
    leaves: Vec<usize>,
    children: Vec<(Box<str>, Node)>,
    /// Where `*` leads: every element of a list.
    each: Option<Box<Node>>,
}

/// Values of the fields of one object, in the order of the set.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct FieldValues(Box<[Box<str>]>);

impl FieldValues {
    pub(super) fn get(&self, index: usize) -> &str {
        self.0.get(index).map_or("", |value| value)
    }
}

impl FieldSet {
    /// The set of a resource's fields, hidden ones included.
    pub fn new(fields: &[SelectableField]) -> FieldSet {
        let mut set = FieldSet::default();
        for (index, field) in fields.iter().enumerate() {
            set.names.push(field.name.as_ref().into());
            set.defaults.push(field.default);
            let mut node = &mut set.root;
            for part in field.path.split('.') {
                node = if part == "*" {
                    node.each.get_or_insert_default()
                } else {
                    node.child(part)
                };
            }
            node.leaves.push(index);
        }
        set
    }

    /// Where a field stands in the set; `None`: it is not in it.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|have| &**have == name)
    }

    /// Reads the fields of an object. Missing ones take their default, several values are joined by commas.
    ///
    /// # Errors
    /// The bytes are not JSON.
    pub fn extract(&self, json: &[u8]) -> Result<FieldValues, serde_json::Error> {
        if self.names.is_empty() {
            return Ok(FieldValues::default());
        }
        let mut found: Vec<Option<String>> = vec![None; self.names.len()];
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        Walk {
            node: &self.root,
            found: &mut found,
        }
        .deserialize(&mut deserializer)?;
        Ok(FieldValues(
            found
                .into_iter()
                .zip(&self.defaults)
                .map(|(value, default)| {
                    value.map_or_else(|| Box::from(*default), String::into_boxed_str)
                })
                .collect(),
        ))
    }
}

impl Node {
    fn child(&mut self, name: &str) -> &mut Node {
        let at = match self.children.iter().position(|(have, _)| &**have == name) {
            Some(at) => at,
            None => {
                self.children.push((name.into(), Node::default()));
                self.children.len() - 1
            }
        };
        &mut self.children[at].1
    }
}

struct Walk<'n, 'f> {
    node: &'n Node,
    found: &'f mut Vec<Option<String>>,
}

impl Walk<'_, '_> {
    fn take(&mut self, value: impl fmt::Display) {
        for leaf in &self.node.leaves {
            match &mut self.found[*leaf] {
                Some(text) => *text = format!("{text},{value}"),
                empty => *empty = Some(value.to_string()),
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.node.children.iter().find(|(name, _)| **name == *key) {
                Some((_, node)) => map.next_value_seed(Walk {
                    node,
                    found: self.found,
                })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let only_leaves;
        let node = match &self.node.each {
            Some(node) => &**node,
            None => {
                only_leaves = Node {
                    leaves: self.node.leaves.clone(),
                    ..Node::default()
                };
                &only_leaves
            }
        };
        while seq
            .next_element_seed(Walk {
                node,
                found: self.found,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_str<E>(mut self, value: &str) -> Result<(), E> {
        self.take(value);
        Ok(())
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.take(value);
        Ok(())
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.take(value);
        Ok(())
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.take(value);
        Ok(())
    }

    fn visit_f64<E>(mut self, value: f64) -> Result<(), E> {
        self.take(value);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_are_found_joined_and_defaulted() {
        let set = FieldSet::new(&[
            SelectableField::new("spec.nodeName"),
            SelectableField::new("status.phase").with_default("Pending"),
            SelectableField::at("ports", "spec.ports.*.nodePort"),
            SelectableField::at("ips", "spec.clusterIPs"),
            SelectableField::new("spec.hostNetwork").with_default("false"),
        ]);
        let json = br#"{"metadata":{"name":"a"},"spec":{"nodeName":"n\u00311","clusterIPs":["a","b"],
            "ports":[{"nodePort":1,"x":{"nodePort":7}},{"y":[]},{"nodePort":2}],"hostNetwork":true},"status":{"phase":null}}"#;
        let values = set.extract(json).unwrap();
        let get = |name: &str| values.get(set.position(name).unwrap()).to_owned();
        assert_eq!(get("spec.nodeName"), "n11");
        assert_eq!(get("status.phase"), "Pending");
        assert_eq!(get("ports"), "1,2");
        assert_eq!(get("ips"), "a,b");
        assert_eq!(get("spec.hostNetwork"), "true");
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        for field in [
            SelectableField::at("ports", "spec.ports.*.nodePort"),
            SelectableField::at("ips", "spec.clusterIPs"),
        ] {
            assert_eq!(field.value(&value), get(&field.name));
        }
    }
}
