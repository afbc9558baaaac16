//! `meta.k8s.io/v1 Table`: what `kubectl get` prints. See [`crate::resources::Column`] for what a kind declares.

use amphipod_api::meta::{array_at, map_at, str_at};
use amphipod_api::time::{age, parse_time};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What a cell shows when there is nothing to show.
pub const NONE: &str = "<none>";

/// Name and age: the row of kinds without columns of their own.
pub fn default_row(obj: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(obj), age_cell(obj, now)]
}

/// `metadata.name` as a cell.
pub fn name(obj: &Value) -> Value {
    Value::from(str_at(obj, &["metadata", "name"]))
}

/// The age of the object as a cell.
pub fn age_cell(obj: &Value, now: Timestamp) -> Value {
    Value::from(since(str_at(obj, &["metadata", "creationTimestamp"]), now))
}

/// How long ago a time was; `<unknown>` if there is none.
pub fn since(time: &str, now: Timestamp) -> String {
    age(parse_time(time), now)
}

/// The text, or `<none>`.
pub fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { NONE } else { text })
}

/// `k=v,k2=v2` in order of the keys, or `<none>`.
pub fn labels(map: &Map<String, Value>) -> Value {
    let mut parts: Vec<String> = map
        .iter()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    parts.sort();
    or_none(&parts.join(","))
}

/// A LabelSelector as kubectl prints it: `app=a,tier in (x,y),!z`; an empty or absent one is `<none>`.
pub fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else {
        return NONE.into();
    };
    let mut parts: Vec<(String, String)> = map_at(selector, &["matchLabels"])
        .iter()
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for requirement in array_at(selector, &["matchExpressions"]) {
        let key = str_at(requirement, &["key"]);
        let mut values: Vec<&str> = array_at(requirement, &["values"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match str_at(requirement, &["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    if parts.is_empty() {
        return NONE.into();
    }
    parts
        .into_iter()
        .map(|(_, text)| text)
        .collect::<Vec<_>>()
        .join(",")
}

/// The names and images of a pod spec's containers, for wide output.
pub fn containers_and_images(pod_spec: Option<&Value>) -> [Value; 2] {
    let containers = pod_spec
        .map(|s| array_at(s, &["containers"]))
        .unwrap_or_default();
    ["name", "image"].map(|field| {
        let parts: Vec<&str> = containers.iter().map(|c| str_at(c, &[field])).collect();
        Value::from(parts.join(","))
    })
}
