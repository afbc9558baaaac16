//! patch: the stored object, changed by a patch document, goes the road of an update.

use std::sync::Arc;

use amphipod_api::patch::{
    Field, PatchSchema, PatchType, apply_json_patch, apply_merge_patch, apply_strategic_merge_patch,
};
use amphipod_api::{FieldError, GroupKind, Status, meta};
use serde_json::Value;

use super::{Context, FieldValidation, Registry};
use crate::cache::Object;
use crate::resources::schema::Ty;

impl Registry {
    /// Patches an object, or the part of it that the subresource is. True: it was created (by server-side apply only).
    ///
    /// A patch that names no resourceVersion is applied again when others write the object at the same time.
    ///
    /// # Errors
    /// 400 for a patch that cannot be read, 422 for one that does not apply or makes an invalid object, 404, 409, 415.
    pub async fn patch(
        &self,
        cx: &Context,
        name: &str,
        kind: PatchType,
        body: &[u8],
    ) -> Result<(Arc<Object>, bool), Status> {
        let patch = match kind {
            PatchType::Apply => return self.apply(cx, name, body).await,
            _ => serde_json::from_slice::<Value>(body)
                .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?,
        };
        if kind != PatchType::Json && !patch.is_object() {
            return Err(Status::bad_request(
                "error decoding patch: a merge patch must be an object",
            ));
        }
        if let Some(scaled) = self.patch_scale(cx, name, kind, &patch).await {
            return Ok((scaled?, false));
        }
        let schema = cx.descriptor.schema();
        let change = |old: &Value| {
            let mut new = old.clone();
            apply(&mut new, kind, &patch, &schema.root)?;
            check_identity(cx, &new, old)?;
            // Upstream shows what could not be read: the patched object, or the strategic patch as Go prints it.
            let shown = match kind {
                PatchType::StrategicMerge => go_text(&patch),
                _ => new.to_string(),
            };
            let unreadable = |why: String| {
                Status::invalid(
                    &GroupKind::default(),
                    "",
                    &[FieldError::invalid("patch", &*shown, why)],
                )
            };
            let decoded = schema
                .decode_value(new)
                .map_err(|error| unreadable(error.to_string()))?;
            if cx.field_validation == FieldValidation::Strict && !decoded.strict.is_empty() {
                return Err(unreadable(format!(
                    "strict decoding error: {}",
                    decoded.strict.join(", ")
                )));
            }
            self.note_strict(cx, &decoded.strict)?;
            Ok(decoded.value)
        };
        Ok((self.modify(cx, name, change).await?, false))
    }
}

/// Applies a patch to a document in place.
pub(super) fn apply(
    document: &mut Value,
    kind: PatchType,
    patch: &Value,
    root: &Ty,
) -> Result<(), Status> {
    match kind {
        PatchType::Json => apply_json_patch(document, patch)?,
        PatchType::Merge | PatchType::Apply => apply_merge_patch(document, patch),
        PatchType::StrategicMerge => apply_strategic_merge_patch(document, patch, &Shape(root))?,
    }
    Ok(())
}

/// Refuses a patch that makes another object of it.
fn check_identity(cx: &Context, new: &Value, old: &Value) -> Result<(), Status> {
    for (field, have) in [("apiVersion", &new["apiVersion"]), ("kind", &new["kind"])] {
        if have != &old[field] {
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: the patch changes {field}",
                cx.descriptor.kind, cx.descriptor.version, cx.descriptor.kind
            )));
        }
    }
    if meta::name(new) != meta::name(old) {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(new),
            meta::name(old)
        )));
    }
    if meta::namespace(new) != meta::namespace(old) {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({}) does not match the namespace on the request ({})",
            meta::namespace(new),
            meta::namespace(old)
        )));
    }
    Ok(())
}

/// A value as Go's `%+v` prints it: `map[spec:map[replicas:many]]`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(go_text).collect::<Vec<_>>().join(" ")
        ),
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", go_text(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// A schema as strategic merge asks for it.
#[derive(Clone)]
struct Shape<'s>(&'s Ty);

impl PatchSchema for Shape<'_> {
    fn field(&self, name: &str) -> Field<Self> {
        let (ty, facts) = match self.0 {
            Ty::Struct(fields) => match fields.field(name) {
                Some(field) => (&field.ty, field.merge),
                None => return Field::default(),
            },
            Ty::Map(value) => (&**value, None),
            _ => return Field::default(),
        };
        let strategy = facts.map_or("", |facts| facts.patch_strategy);
        let key = facts.map_or("", |facts| facts.patch_key);
        Field {
            merge: strategy.split(',').any(|word| word == "merge"),
            replace: strategy.split(',').any(|word| word == "replace"),
            merge_key: (!key.is_empty()).then(|| key.into()),
            schema: match ty {
                Ty::List(item) => Some(Shape(item)),
                Ty::Struct(_) | Ty::Map(_) => Some(Shape(ty)),
                _ => None,
            },
        }
    }
}
