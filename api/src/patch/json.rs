//! JSON Patch (RFC 6902). Our own, for upstream's error texts and limits on the work a patch may cause.

use serde_json::Value;

use super::PatchError;
use crate::text::quote;

/// Most operations in one patch, as upstream.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most bytes (roughly) that `copy` operations may add to a document, as upstream's limit on resource size.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Most places (in sum) by which operations may move the elements of lists, to insert or remove one: half a second's work.
const MAX_MOVED: usize = 50_000_000;

/// Deepest nesting that a patch may cause; requests themselves come with at most 128 levels.
const MAX_DEPTH: usize = 1024;

/// Applies a patch (an array of operations) to `document`. On an error the document is half-patched: patch a copy.
pub fn apply_json_patch(document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = patch.as_array().ok_or_else(|| {
        malformed("error decoding patch: a JSON patch must be an array of operations")
    })?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut work = Work {
        copied: 0,
        moved: 0,
        depth: REQUEST_DEPTH,
    };
    for operation in operations {
        apply(document, operation, &mut work)?;
    }
    Ok(())
}

/// What the JSON parser lets through.
const REQUEST_DEPTH: usize = 128;

/// What the operations so far have caused.
struct Work {
    copied: usize,
    moved: usize,
    /// An upper bound of the document's depth.
    depth: usize,
}

impl Work {
    /// So many elements of a list are moved by one place.
    fn shift(&mut self, elements: usize) -> Result<(), PatchError> {
        self.moved = self.moved.saturating_add(elements);
        if self.moved > MAX_MOVED {
            return Err(PatchError::TooLarge(
                "the patch inserts or removes too often in too long lists".into(),
            ));
        }
        Ok(())
    }

    /// Something at most so deep is put `to` levels down.
    fn nest(&mut self, depth: usize, to: usize) -> Result<(), PatchError> {
        self.depth = self.depth.max(to.saturating_add(depth));
        if self.depth > MAX_DEPTH {
            return Err(PatchError::TooLarge(
                "the patch nests the document too deeply".into(),
            ));
        }
        Ok(())
    }
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

fn does_not_apply(message: impl Into<String>) -> PatchError {
    PatchError::DoesNotApply(message.into())
}

fn apply(document: &mut Value, operation: &Value, work: &mut Work) -> Result<(), PatchError> {
    let member = |name: &str| operation.get(name);
    let text = |name: &str| member(name).and_then(Value::as_str);
    let op = text("op").ok_or_else(|| malformed("error decoding patch: operation without op"))?;
    let path_of = |name: &str| -> Result<Pointer, PatchError> {
        let path = text(name).ok_or_else(|| {
            malformed(format!(
                "error decoding patch: {op} operation without {name}"
            ))
        })?;
        Pointer::parse(path)
    };
    let path = path_of("path")?;
    // A missing value is null to upstream in `test`; elsewhere it is an error there, too.
    let value = || {
        member("value").ok_or_else(|| {
            malformed(format!(
                "error decoding patch: {op} operation without value"
            ))
        })
    };
    match op {
        "add" => {
            work.nest(REQUEST_DEPTH, path.tokens.len())?;
            path.add(document, value()?.clone(), op, work)
        }
        "remove" => path.remove(document, op, work).map(drop),
        "replace" => {
            work.nest(REQUEST_DEPTH, path.tokens.len())?;
            path.replace(document, value()?.clone())
        }
        "move" => {
            let from = path_of("from")?;
            if path.is_inside(&from) {
                return Err(does_not_apply(format!(
                    "error in move for path: '{path}': cannot move into itself"
                )));
            }
            work.nest(
                work.depth.saturating_sub(from.tokens.len()),
                path.tokens.len(),
            )?;
            let value = from.remove(document, op, work)?;
            path.add(document, value, op, work)
        }
        "copy" => {
            let from = path_of("from")?;
            let value = from
                .get(document)
                .ok_or_else(|| does_not_apply(format!("copy operation does not apply: doc is missing from path: {from}: missing value")))?
                .clone();
            work.nest(
                work.depth.saturating_sub(from.tokens.len()),
                path.tokens.len(),
            )?;
            work.copied += weight(&value);
            if work.copied > MAX_COPIED {
                return Err(PatchError::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}",
                    work.copied
                )));
            }
            path.add(document, value, op, work)
        }
        "test" => {
            let expected = member("value").unwrap_or(&Value::Null);
            match path.get(document) {
                Some(found) if equal(found, expected) => Ok(()),
                None if expected.is_null() => Ok(()),
                _ => Err(does_not_apply(format!(
                    "testing value {path} failed: test failed"
                ))),
            }
        }
        other => Err(malformed(format!("Unexpected kind: {other}"))),
    }
}

/// About the bytes that a value takes up.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|v| weight(v) + 1).sum::<usize>(),
        Value::Object(map) => {
            2 + map
                .iter()
                .map(|(k, v)| k.len() + 4 + weight(v))
                .sum::<usize>()
        }
        _ => 8,
    }
}

/// Equality of JSON: numbers by value (`1` is `1.0`).
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)))
        }
        _ => a == b,
    }
}

/// A JSON Pointer (RFC 6901), unescaped.
struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pointer {
    fn parse(text: &str) -> Result<Pointer, PatchError> {
        let tokens = match text.strip_prefix('/') {
            None if text.is_empty() => Vec::new(),
            None => {
                return Err(malformed(format!(
                    "error decoding patch: path {text:?} does not start with /"
                )));
            }
            Some(rest) => rest
                .split('/')
                .map(|t| t.replace("~1", "/").replace("~0", "~"))
                .collect(),
        };
        Ok(Pointer {
            text: text.into(),
            tokens,
        })
    }

    /// Whether this place is strictly within `other`.
    fn is_inside(&self, other: &Pointer) -> bool {
        self.tokens.len() > other.tokens.len() && self.tokens.starts_with(&other.tokens)
    }

    fn get<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.tokens
            .iter()
            .try_fold(document, |value, token| match value {
                Value::Object(map) => map.get(token),
                Value::Array(items) => items.get(index(token, items.len())?),
                _ => None,
            })
    }

    /// The container of the place, and the last token.
    fn parent<'a>(
        &self,
        document: &'a mut Value,
        op: &str,
    ) -> Result<(&'a mut Value, &str), PatchError> {
        let missing = || {
            let path = if op == "replace" {
                self.text.clone()
            } else {
                quote(&self.text)
            };
            does_not_apply(format!(
                "{op} operation does not apply: doc is missing path: {path}: missing value"
            ))
        };
        let (last, ancestors) = self.tokens.split_last().ok_or_else(missing)?;
        let mut value = document;
        for token in ancestors {
            value = match value {
                Value::Object(map) => map.get_mut(token),
                Value::Array(items) => {
                    let len = items.len();
                    index(token, len).and_then(|i| items.get_mut(i))
                }
                _ => None,
            }
            .ok_or_else(missing)?;
        }
        if value.is_object() || value.is_array() {
            Ok((value, last))
        } else {
            Err(missing())
        }
    }

    fn add(
        &self,
        document: &mut Value,
        new: Value,
        op: &str,
        work: &mut Work,
    ) -> Result<(), PatchError> {
        if self.tokens.is_empty() {
            *document = new;
            return Ok(());
        }
        let (parent, last) = self.parent(document, op)?;
        match parent {
            Value::Object(map) => {
                map.insert(last.into(), new);
            }
            Value::Array(items) => {
                let at = if last == "-" {
                    Some(items.len())
                } else {
                    index(last, items.len() + 1)
                };
                let at = at
                    .filter(|at| *at <= items.len())
                    .ok_or_else(|| self.bad_index(op, last))?;
                work.shift(items.len() - at)?;
                items.insert(at, new);
            }
            _ => {}
        }
        Ok(())
    }

    fn remove(&self, document: &mut Value, op: &str, work: &mut Work) -> Result<Value, PatchError> {
        let (parent, last) = self.parent(document, op)?;
        match parent {
            Value::Object(map) => map.remove(last).ok_or_else(|| {
                does_not_apply(format!(
                    "error in {op} for path: '{self}': Unable to remove nonexistent key: {last}: missing value"
                ))
            }),
            Value::Array(items) => match index(last, items.len()).filter(|at| *at < items.len()) {
                Some(at) => {
                    work.shift(items.len() - at)?;
                    Ok(items.remove(at))
                }
                None => Err(self.bad_index(op, last)),
            },
            _ => Ok(Value::Null),
        }
    }

    fn replace(&self, document: &mut Value, new: Value) -> Result<(), PatchError> {
        if self.tokens.is_empty() {
            *document = new;
            return Ok(());
        }
        let (parent, last) = self.parent(document, "replace")?;
        match parent {
            // Upstream does not mind that the key is new.
            Value::Object(map) => {
                map.insert(last.into(), new);
            }
            Value::Array(items) => {
                let len = items.len();
                match index(last, len).and_then(|at| items.get_mut(at)) {
                    Some(place) => *place = new,
                    None => {
                        return Err(does_not_apply(format!(
                            "replace operation does not apply: doc is missing key: {self}: missing value"
                        )));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn bad_index(&self, op: &str, token: &str) -> PatchError {
        let why = match token.parse::<i64>() {
            Ok(_) => format!("Unable to access invalid index: {token}: invalid index referenced"),
            Err(_) => format!("strconv.Atoi: parsing {}: invalid syntax", quote(token)),
        };
        does_not_apply(format!("error in {op} for path: '{self}': {why}"))
    }
}

/// An array index; negative ones count from the end (upstream takes them, the RFC does not).
fn index(token: &str, len: usize) -> Option<usize> {
    match token.strip_prefix('-') {
        Some(digits) => len.checked_sub(number(digits)?),
        None => number(token),
    }
}

fn number(digits: &str) -> Option<usize> {
    let canonical = digits == "0" || !digits.starts_with('0');
    (canonical && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn patched(mut document: Value, patch: Value) -> Result<Value, String> {
        apply_json_patch(&mut document, &patch).map_err(|e| e.to_string())?;
        Ok(document)
    }

    #[test]
    fn operations_do_what_the_rfc_says() {
        for (document, patch, result) in [
            (
                json!({"a": 1}),
                json!([{"op": "add", "path": "/b", "value": 2}]),
                json!({"a": 1, "b": 2}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/-", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2]}),
            ),
            (
                json!({"a": 1, "b": 2}),
                json!([{"op": "remove", "path": "/a"}]),
                json!({"b": 2}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "remove", "path": "/a/0"}]),
                json!({"a": [2]}),
            ),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "remove", "path": "/a/-1"}]),
                json!({"a": [1]}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "/a", "value": null}]),
                json!({"a": null}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c"}]),
                json!({"a": {}, "c": 1}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!([{"op": "copy", "from": "/a", "path": "/c"}]),
                json!({"a": {"b": 1}, "c": {"b": 1}}),
            ),
            (
                json!({"a/b~": 1}),
                json!([{"op": "test", "path": "/a~1b~0", "value": 1.0}]),
                json!({"a/b~": 1}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "test", "path": "/none"}]),
                json!({"a": 1}),
            ),
            (
                json!(1),
                json!([{"op": "replace", "path": "", "value": {"x": 1}}]),
                json!({"x": 1}),
            ),
            (
                json!({"": {"": 1}}),
                json!([{"op": "remove", "path": "//"}]),
                json!({"": {}}),
            ),
        ] {
            assert_eq!(patched(document, patch.clone()), Ok(result), "{patch}");
        }
    }

    #[test]
    fn what_does_not_apply_is_said_in_upstreams_words() {
        for (patch, error) in [
            (
                json!([{"op": "test", "path": "/a", "value": 2}]),
                "testing value /a failed: test failed",
            ),
            (
                json!([{"op": "remove", "path": "/x"}]),
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
            (
                json!([{"op": "add", "path": "/x/y", "value": 1}]),
                "add operation does not apply: doc is missing path: \"/x/y\": missing value",
            ),
            (
                json!([{"op": "replace", "path": "/l/7", "value": 1}]),
                "replace operation does not apply: doc is missing key: /l/7: missing value",
            ),
        ] {
            assert_eq!(
                patched(json!({"a": 1, "l": [1]}), patch).unwrap_err(),
                error
            );
        }
        for bad in [
            json!({}),
            json!([1]),
            json!([{"op": "dance", "path": "/a"}]),
            json!([{"op": "add", "path": "/b"}]),
            json!([{"op": "remove", "path": "a"}]),
            json!([{"op": "remove", "path": ""}]),
            json!([{"path": "/a"}]),
            json!([{"op": "add", "path": "/l/5", "value": 1}]),
            json!([{"op": "add", "path": "/l/01", "value": 1}]),
            json!([{"op": "remove", "path": "/l/-2"}]),
            json!([{"op": "add", "path": "/a/b", "value": 1}]),
            json!([{"op": "move", "from": "/l", "path": "/l/0"}]),
        ] {
            assert!(
                patched(json!({"a": 1, "l": [1]}), bad.clone()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_patch_cannot_blow_up_a_document() {
        let many = Value::Array(vec![
            json!({"op": "test", "path": "/a"});
            MAX_OPERATIONS + 1
        ]);
        assert!(matches!(
            apply_json_patch(&mut json!({}), &many),
            Err(PatchError::TooLarge(_))
        ));
        let doubling = (0..40)
            .map(|i| json!({"op": "copy", "from": "", "path": format!("/k{i}")}))
            .collect();
        let mut document = json!({"x": "y".repeat(1000)});
        assert!(matches!(
            apply_json_patch(&mut document, &doubling),
            Err(PatchError::TooLarge(_))
        ));
    }

    #[test]
    fn a_patch_cannot_nest_a_document_beyond_what_the_stack_bears() {
        let deeper = |i| {
            let step = [
                json!({"op": "move", "from": "/a", "path": "/b/x/y/z"}),
                json!({"op": "move", "from": "/b", "path": "/a"}),
            ];
            [json!({"op": "add", "path": "/b", "value": {"x": {"y": {}}, "i": i}})]
                .into_iter()
                .chain(step)
        };
        let patch = (0..1000).flat_map(deeper).collect();
        assert!(matches!(
            apply_json_patch(&mut json!({"a": 1}), &patch),
            Err(PatchError::TooLarge(_))
        ));
        let patch = (0..50).flat_map(deeper).collect();
        assert!(apply_json_patch(&mut json!({"a": 1}), &patch).is_ok());
    }
}
