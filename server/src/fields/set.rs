//! Sets of fields, as `FieldsV1` spells them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths into an object, as a tree.
///
/// The steps are spelled as in `FieldsV1`: `f:NAME` a field or a key of a map, `k:{"name":"a"}` an item of a list by its key fields,
/// `v:VALUE` an item of a list that is a set, `i:NUMBER` an item by its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path that ends here is in the set, not only paths through here.
    pub member: bool,
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// The set of the path that ends here.
    pub fn leaf() -> FieldSet {
        FieldSet {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Adds a subtree; an empty one leaves no trace.
    pub fn insert(&mut self, step: String, below: FieldSet) {
        if !below.is_empty() {
            self.children.entry(step).or_default().unite(&below);
        }
    }

    /// Adds all paths of `other`.
    pub fn unite(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (step, below) in &other.children {
            self.children.entry(step.clone()).or_default().unite(below);
        }
    }

    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        self.unite(other);
        self
    }

    /// The paths that are in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && b, |_| FieldSet::default())
    }

    /// The paths that are not in `other`. A path in `other` takes nothing away that goes on from it.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && !b, FieldSet::clone)
    }

    fn combine(
        &self,
        other: &FieldSet,
        member: fn(bool, bool) -> bool,
        alone: fn(&FieldSet) -> FieldSet,
    ) -> FieldSet {
        let mut made = FieldSet {
            member: member(self.member, other.member),
            children: BTreeMap::new(),
        };
        for (step, below) in &self.children {
            let both = match other.children.get(step) {
                Some(theirs) => below.combine(theirs, member, alone),
                None => alone(below),
            };
            made.insert(step.clone(), both);
        }
        made
    }

    /// The set without everything that goes through the field.
    pub fn without(mut self, field: &str) -> FieldSet {
        self.children.remove(&format!("f:{field}"));
        self
    }

    /// What of the set goes through the field.
    pub fn only(mut self, field: &str) -> FieldSet {
        self.children
            .retain(|step, _| step.strip_prefix("f:").is_some_and(|name| name == field));
        self
    }

    /// All paths in the set, as messages name them: `.spec.containers[name="main"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect(&mut String::new(), &mut found);
        found
    }

    fn collect(&self, path: &mut String, found: &mut Vec<String>) {
        if self.member {
            found.push(path.clone());
        }
        for (step, below) in &self.children {
            let length = path.len();
            path.push_str(&spoken(step));
            below.collect(path, found);
            path.truncate(length);
        }
    }

    /// Reads `fieldsV1`.
    ///
    /// # Errors
    /// Says what is no field set.
    pub fn from_v1(value: &Value) -> Result<FieldSet, String> {
        let mut root = FieldSet::read(value)?;
        root.member = false;
        Ok(root)
    }

    fn read(value: &Value) -> Result<FieldSet, String> {
        let Value::Object(map) = value else {
            return Err(format!("{value} is no set of fields"));
        };
        let mut set = FieldSet {
            member: map.is_empty(),
            children: BTreeMap::new(),
        };
        for (step, below) in map {
            if step == "." {
                set.member = true;
                continue;
            }
            if !["f:", "k:", "v:", "i:"]
                .iter()
                .any(|kind| step.starts_with(kind))
            {
                return Err(format!("{step:?} is no step of a path"));
            }
            set.children.insert(step.clone(), FieldSet::read(below)?);
        }
        Ok(set)
    }

    /// Writes `fieldsV1`.
    pub fn to_v1(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, below) in &self.children {
            map.insert(step.clone(), below.to_v1());
        }
        Value::Object(map)
    }
}

/// A step as messages have it.
pub(super) fn spoken(step: &str) -> String {
    let (kind, rest) = step.split_at_checked(2).unwrap_or(("", step));
    match kind {
        "k:" => match serde_json::from_str::<Map<String, Value>>(rest) {
            Ok(keys) => {
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{rest}]"),
        },
        "v:" => format!("[={rest}]"),
        "i:" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> FieldSet {
        FieldSet::from_v1(&value).unwrap()
    }

    #[test]
    fn sets_are_read_and_written_as_fields_v1() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:replicas": {},
            "f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:image": {}}}, "f:finalizers": {"v:\"x/y\"": {}}}});
        assert_eq!(set(text.clone()).to_v1(), text);
        assert_eq!(
            set(text).paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.containers[name=\"main\"]",
                ".spec.containers[name=\"main\"].image",
                ".spec.finalizers[=\"x/y\"]",
                ".spec.replicas"
            ]
        );
        assert!(FieldSet::from_v1(&json!({"spec": {}})).is_err());
        assert!(FieldSet::from_v1(&json!({"f:spec": 1})).is_err());
        assert!(set(json!({})).is_empty());
    }

    #[test]
    fn sets_combine_path_by_path() {
        let a = set(json!({"f:a": {".": {}, "f:x": {}}, "f:b": {}}));
        let b = set(json!({"f:a": {}, "f:c": {}}));
        assert_eq!(a.intersection(&b), set(json!({"f:a": {}})));
        // The path `a` goes, what is below it stays.
        assert_eq!(
            a.difference(&b),
            set(json!({"f:a": {"f:x": {}}, "f:b": {}}))
        );
        assert_eq!(
            a.clone().union(&b),
            set(json!({"f:a": {".": {}, "f:x": {}}, "f:b": {}, "f:c": {}}))
        );
        assert!(a.difference(&a).is_empty());
        assert_eq!(a.without("a"), set(json!({"f:b": {}})));
    }
}
