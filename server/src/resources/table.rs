//! `meta.k8s.io/v1 Table`: what `kubectl get` prints.

use amphipod_api::time::{age, parse_time};
use jiff::Timestamp;
use serde_json::Value;

/// Name and age: the row of kinds without columns of their own.
pub fn default_row(obj: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(obj), age_cell(obj, now)]
}

/// `metadata.name` as a cell.
pub fn name(obj: &Value) -> Value {
    obj["metadata"]["name"].clone()
}

/// The age of the object as a cell.
pub fn age_cell(obj: &Value, now: Timestamp) -> Value {
    since(&obj["metadata"]["creationTimestamp"], now)
}

/// How long ago a time was; `<unknown>` if there is none.
pub fn since(time: &Value, now: Timestamp) -> Value {
    Value::String(age(time.as_str().and_then(parse_time), now))
}
