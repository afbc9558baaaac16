//! The `scale` subresource: `autoscaling/v1` Scale over three paths of an object.
//! <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/scale-v1/> (the kind), KEP-1929 (CRDs).

use std::sync::Arc;

use amphipod_api::patch::PatchType;
use amphipod_api::{FieldError, GroupKind, LabelSelector, Status, meta};
use serde_json::{Map, Value, json};

use super::patch::apply;
use super::{Context, Input, Registry};
use crate::cache::Object;
use crate::resources::SubresourceKind;
use crate::resources::schema::Ty;
use crate::resources::schema::yaml;

/// Where the numbers are in the object.
struct Paths<'a> {
    spec: &'a str,
    status: &'a str,
    selector: Option<&'a str>,
}

impl Registry {
    /// A subresource as get answers it: the object itself, or its Scale.
    pub(super) fn part(
        &self,
        cx: &Context,
        subresource: &str,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        match cx.descriptor.subresource(subresource).map(|sub| &sub.what) {
            None => Err(Status::no_such_resource()),
            Some(SubresourceKind::Scale { .. }) => match paths(cx) {
                Some(paths) => self.detached(
                    cx,
                    &mut to_scale(&object.value(), &paths),
                    object.meta.revision,
                ),
                None => Err(Status::no_such_resource()),
            },
            Some(_) => Ok(object),
        }
    }

    /// Sets the replicas from a Scale; `None` if the request is not about a Scale.
    pub(super) async fn update_scale(
        &self,
        cx: &Context,
        name: &str,
        input: &Input,
    ) -> Option<Result<Arc<Object>, Status>> {
        let paths = paths(cx)?;
        let scale = match decode(input) {
            Ok(scale) => scale,
            Err(status) => return Some(Err(status)),
        };
        if !meta::name(&scale).is_empty() && meta::name(&scale) != name {
            return Some(Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&scale)
            ))));
        }
        Some(
            self.set_scale(cx, name, &paths, |_| Ok(scale.clone()))
                .await,
        )
    }

    /// Patches the Scale; `None` if the request is not about a Scale.
    pub(super) async fn patch_scale(
        &self,
        cx: &Context,
        name: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Option<Result<Arc<Object>, Status>> {
        let paths = paths(cx)?;
        let change = |mut scale: Value| {
            apply(&mut scale, kind, patch, &Ty::Any)?;
            Ok(scale)
        };
        Some(self.set_scale(cx, name, &paths, change).await)
    }

    async fn set_scale(
        &self,
        cx: &Context,
        name: &str,
        paths: &Paths<'_>,
        change: impl Fn(Value) -> Result<Value, Status> + Send + Sync,
    ) -> Result<Arc<Object>, Status> {
        let object = self
            .modify(cx, name, |old| {
                let scale = change(to_scale(old, paths))?;
                let replicas = match &scale["spec"]["replicas"] {
                    Value::Null => 0,
                    value => value.as_i64().filter(|replicas| i32::try_from(*replicas).is_ok()).ok_or_else(|| {
                        Status::bad_request(format!(
                            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {value} into Go \
                             struct field ScaleSpec.spec.replicas of type int32"
                        ))
                    })?,
                };
                if replicas < 0 {
                    let error =
                        FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                    let kind = GroupKind { group: "autoscaling".into(), kind: "Scale".into() };
                    return Err(Status::invalid(&kind, name, &[error]));
                }
                let mut new = old.clone();
                set(&mut new, paths.spec, json!(replicas));
                for field in ["resourceVersion", "uid"] {
                    let value = meta::str_at(&scale, &["metadata", field]);
                    meta::metadata_mut(&mut new).insert(field.into(), value.into());
                }
                Ok(new)
            })
            .await?;
        self.detached(
            cx,
            &mut to_scale(&object.value(), paths),
            object.meta.revision,
        )
    }
}

fn paths(cx: &Context) -> Option<Paths<'_>> {
    match &cx.descriptor.subresource(cx.subresource.as_deref()?)?.what {
        SubresourceKind::Scale {
            spec_replicas,
            status_replicas,
            selector,
        } => Some(Paths {
            spec: spec_replicas,
            status: status_replicas,
            selector: selector.as_deref(),
        }),
        _ => None,
    }
}

fn decode(input: &Input) -> Result<Value, Status> {
    let bad = |why: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type Scale): couldn't get version/kind; json parse error: {why}"
        ))
    };
    let scale: Value = match input {
        Input::Value(value) => value.clone(),
        Input::Json(body) => {
            serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?
        }
        Input::Yaml(body) => {
            yaml::check(body).map_err(bad)?;
            serde_yaml_ng::from_slice(body).map_err(|error| bad(error.to_string()))?
        }
    };
    match scale["kind"].as_str() {
        Some("Scale") | None => Ok(scale),
        Some(kind) => Err(Status::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a Scale: unknown conversion"
        ))),
    }
}

/// The Scale of an object.
fn to_scale(object: &Value, paths: &Paths<'_>) -> Value {
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let number = |path: &str| {
        path.split('.')
            .try_fold(object, |value, part| value.get(part))
            .and_then(Value::as_i64)
    };
    let mut status = json!({"replicas": number(paths.status).unwrap_or(0)});
    let selector = paths.selector.and_then(|path| {
        path.split('.')
            .try_fold(object, |value, part| value.get(part))
    });
    let selector = match selector {
        Some(Value::String(text)) => text.clone(),
        // A ReplicationController's selector is a plain set of labels; a LabelSelector has these two fields.
        Some(Value::Object(map))
            if !map
                .keys()
                .all(|key| key == "matchLabels" || key == "matchExpressions") =>
        {
            LabelSelector::from_set(map).to_string()
        }
        Some(selector @ Value::Object(_)) => LabelSelector::from_object(selector)
            .map(|selector| selector.to_string())
            .unwrap_or_default(),
        _ => String::new(),
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut spec = Map::new();
    if let Some(replicas) = number(paths.spec) {
        spec.insert("replicas".into(), replicas.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

fn set(object: &mut Value, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(meta_child(object).insert(path.to_owned(), value)),
        Some((head, rest)) => set(
            meta_child(object).entry(head).or_insert(Value::Null),
            rest,
            value,
        ),
    }
}

fn meta_child(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_tells_replicas_and_selector() {
        let paths = Paths {
            spec: "spec.replicas",
            status: "status.replicas",
            selector: Some("spec.selector"),
        };
        let object = json!({"metadata": {"name": "a", "labels": {}}, "spec": {"replicas": 2,
            "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let scale = to_scale(&object, &paths);
        assert_eq!(scale["spec"], json!({"replicas": 2}));
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=b"}));
        assert_eq!(scale["metadata"], json!({"name": "a"}));
        let mut made = json!({});
        set(&mut made, "spec.replicas", json!(3));
        assert_eq!(made, json!({"spec": {"replicas": 3}}));
    }
}
