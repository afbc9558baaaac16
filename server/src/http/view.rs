//! Objects as Tables and as PartialObjectMetadata.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>

use amphipod_api::Status;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::negotiate::View;
use super::query::Query;
use crate::cache::Object;
use crate::registry::WatchItem;
use crate::resources::Descriptor;

/// What a table row carries of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    /// Reads the parameter `includeObject`.
    ///
    /// # Errors
    /// 400 for another word.
    pub fn read(query: &Query) -> Result<IncludeObject, Status> {
        match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "None" => Ok(IncludeObject::None),
            "Object" => Ok(IncludeObject::Object),
            other => Err(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            ))),
        }
    }
}

/// How the objects of one request are shown.
#[derive(Clone, Copy)]
pub struct Viewer<'a> {
    pub descriptor: &'a Descriptor,
    pub view: View,
    pub include: IncludeObject,
    pub now: Timestamp,
}

#[derive(Deserialize)]
struct WithMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

fn metadata_of(bytes: &[u8]) -> &str {
    serde_json::from_slice::<WithMetadata<'_>>(bytes).map_or("{}", |o| o.metadata.get())
}

impl Viewer<'_> {
    /// One object in this view.
    pub fn object(&self, object: &Object) -> Bytes {
        self.object_bytes(&object.bytes, true)
    }

    /// As [`Viewer::object`] for bytes; without `columns` a table leaves its column definitions out, as in all but
    /// the first event of a watch.
    pub fn object_bytes(&self, bytes: &Bytes, columns: bool) -> Bytes {
        match self.view {
            View::Whole => bytes.clone(),
            View::Metadata(version) => Bytes::from(self.partial(bytes, version)),
            View::Table(_) => {
                let version =
                    serde_json::from_str::<Version>(metadata_of(bytes)).unwrap_or_default();
                let metadata = json!({"resourceVersion": version.resource_version});
                let mut out = self.table_head(&metadata, columns);
                self.row(&mut out, bytes);
                out.push_str("]}");
                Bytes::from(out)
            }
        }
    }

    /// A bookmark in this view: nothing but its metadata.
    pub fn bookmark(&self, item: &WatchItem) -> Bytes {
        let WatchItem::Bookmark { revision, initial } = item else {
            return Bytes::from_static(b"null");
        };
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if *initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let partial = format!(
            "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata}}}"
        );
        if !matches!(self.view, View::Table(_)) {
            return Bytes::from(partial);
        }
        // A table of one row without cells: readers take the metadata of its object.
        let mut out = self.table_head(&json!({"resourceVersion": revision.to_string()}), false);
        out.push_str("{\"cells\":[],\"object\":");
        out.push_str(&partial);
        out.push_str("}]}");
        Bytes::from(out)
    }

    /// A list in this view, with its `metadata`.
    pub fn list(&self, items: &[std::sync::Arc<Object>], metadata: &Value) -> Bytes {
        let mut out = match self.view {
            View::Metadata(version) => format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"items\":["
            ),
            _ => self.table_head(metadata, true),
        };
        for (index, object) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            match self.view {
                View::Metadata(version) => out.push_str(&self.partial(&object.bytes, version)),
                _ => self.row(&mut out, &object.bytes),
            }
        }
        out.push_str("]}\n");
        Bytes::from(out)
    }

    fn partial(&self, bytes: &[u8], version: &str) -> String {
        format!(
            "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{}}}",
            metadata_of(bytes)
        )
    }

    fn table_head(&self, metadata: &Value, columns: bool) -> String {
        let version = match self.view {
            View::Table(version) => version,
            _ => "v1",
        };
        let columns: Value = if columns { self.columns() } else { Value::Null };
        format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":["
        )
    }

    fn columns(&self) -> Value {
        self.descriptor
            .columns
            .iter()
            .map(|c| {
                json!({
                    "name": c.name, "type": c.kind, "format": c.format,
                    "description": c.description, "priority": c.priority,
                })
            })
            .collect()
    }

    fn row(&self, out: &mut String, bytes: &[u8]) {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let cells = self.descriptor.strategy.row(&value, self.now);
        out.push_str("{\"cells\":");
        out.push_str(&Value::Array(cells).to_string());
        out.push_str(",\"object\":");
        match self.include {
            IncludeObject::None => out.push_str("null"),
            IncludeObject::Metadata => out.push_str(&self.partial(
                bytes,
                match self.view {
                    View::Table(version) => version,
                    _ => "v1",
                },
            )),
            IncludeObject::Object => out.push_str(std::str::from_utf8(bytes).unwrap_or("null")),
        }
        out.push('}');
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Version {
    resource_version: String,
}
