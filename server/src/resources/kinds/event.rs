//! Event of the core group and of `events.k8s.io`: one kind of object, two shapes.
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>.

use amphipod_api::meta::{i64_at, str_at};
use amphipod_api::{FieldError, FieldPath, names};
use jiff::Timestamp;
use k8s_openapi::api::{core, events};
use serde_json::{Value, json};

use super::Kind;
use crate::resources::table::since;
use crate::resources::validate::{Errors, problems};
use crate::resources::{Column, Conversion, Descriptor, SelectableField, Strategy};

fn columns() -> Vec<Column> {
    vec![
        Column::new("Last Seen", "When the event happened last."),
        Column::new("Type", "Normal or Warning."),
        Column::new("Reason", "Why, in one word."),
        Column::new("Object", "What the event is about."),
        Column::new("Subobject", "The field the event is about.").wide(),
        Column::new("Source", "Who reported it.").wide(),
        Column::new("Message", "What happened."),
        Column::new("First Seen", "When the event happened first.").wide(),
        Column::new("Count", "How often.").wide(),
        Column {
            format: "name".into(),
            ..Column::new("Name", super::META_NAME_DOC)
        }
        .wide(),
    ]
}

/// Paths are those of the core shape, which is the stored one.
fn fields() -> Vec<SelectableField> {
    vec![
        SelectableField::new("involvedObject.kind"),
        SelectableField::new("involvedObject.namespace"),
        SelectableField::new("involvedObject.name"),
        SelectableField::new("involvedObject.uid"),
        SelectableField::new("involvedObject.apiVersion"),
        SelectableField::new("involvedObject.resourceVersion"),
        SelectableField::new("involvedObject.fieldPath"),
        SelectableField::at("regarding.kind", "involvedObject.kind"),
        SelectableField::at("regarding.namespace", "involvedObject.namespace"),
        SelectableField::at("regarding.name", "involvedObject.name"),
        SelectableField::at("regarding.uid", "involvedObject.uid"),
        SelectableField::new("reason"),
        SelectableField::new("reportingComponent"),
        SelectableField::at("reportingController", "reportingComponent"),
        SelectableField::at("source", "source.component"),
        SelectableField::new("type"),
    ]
}

pub fn core_event() -> Descriptor {
    Kind::new::<core::v1::Event>("", "v1", "Event", "events")
        .short(&["ev"])
        .lazy()
        .fields(fields())
        .columns(columns())
        .strategy(Event { new_shape: false })
        .build()
}

pub fn event() -> Descriptor {
    Kind::new::<events::v1::Event>("events.k8s.io", "v1", "Event", "events")
        .short(&["ev"])
        .lazy()
        .fields(fields())
        .columns(columns())
        .storage_as(
            "",
            "events",
            Conversion {
                to_stored: to_core,
                from_stored: from_core,
            },
        )
        .strategy(Event { new_shape: true })
        .build()
}

/// `(events.k8s.io name, core name)` of the fields that differ.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(
    obj: &mut Value,
    api_version: &str,
    from_to: impl Iterator<Item = (&'static str, &'static str)>,
) {
    let Some(map) = obj.as_object_mut() else {
        return;
    };
    // Events inside watch bookmarks and the like have no version: they get none.
    if map.contains_key("apiVersion") {
        map.insert("apiVersion".into(), api_version.into());
    }
    for (from, to) in from_to {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

fn to_core(obj: &mut Value) {
    rename(obj, "v1", RENAMED.iter().copied());
}

fn from_core(obj: &mut Value) {
    rename(
        obj,
        "events.k8s.io/v1",
        RENAMED.iter().map(|(new, core)| (*core, *new)),
    );
}

struct Event {
    new_shape: bool,
}

impl Event {
    /// A field by its core name.
    fn get<'a>(&self, obj: &'a Value, name: &'static str) -> &'a Value {
        static NULL: Value = Value::Null;
        let renamed = RENAMED
            .iter()
            .find(|(_, core)| *core == name)
            .map(|(new, _)| *new);
        let name = if self.new_shape {
            renamed.unwrap_or(name)
        } else {
            name
        };
        obj.get(name).unwrap_or(&NULL)
    }
}

impl Strategy for Event {
    fn default(&self, obj: &mut Value) {
        let Some(map) = obj.as_object_mut() else {
            return;
        };
        if !self.new_shape {
            for (field, empty) in [("source", json!({})), ("involvedObject", json!({}))] {
                map.entry(field).or_insert(empty);
            }
            for field in ["reportingComponent", "reportingInstance"] {
                map.entry(field).or_insert_with(|| "".into());
            }
        }
        map.entry("eventTime").or_insert(Value::Null);
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let regarding = self.get(obj, "involvedObject");
        let about = str_at(regarding, &["namespace"]);
        let namespace = str_at(obj, &["metadata", "namespace"]);
        let path = FieldPath::new("involvedObject");
        // Events about cluster-scoped objects live in `default` (or kube-system, as old clients do).
        if about.is_empty() {
            if !matches!(namespace, "default" | "kube-system") {
                errors.push(FieldError::invalid(
                    path.child("namespace"),
                    about,
                    "does not match event.namespace",
                ));
            }
        } else if about != namespace {
            errors.push(FieldError::invalid(
                path.child("namespace"),
                about,
                "does not match event.namespace",
            ));
        }
        if self.new_shape || !obj.get("eventTime").is_none_or(Value::is_null) {
            self.new_style(obj, &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, _: &Value, _: Option<&str>) -> Vec<FieldError> {
        self.validate_create(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let time = |name| self.get(obj, name).as_str().unwrap_or_default();
        let first = match time("firstTimestamp") {
            "" => time("eventTime"),
            first => first,
        };
        let mut last = match time("lastTimestamp") {
            "" => first,
            last => last,
        };
        let mut count = self.get(obj, "count").as_i64().unwrap_or(0);
        if let Some(series) = obj.get("series").filter(|s| s.is_object()) {
            last = str_at(series, &["lastObservedTime"]);
            count = i64_at(series, &["count"]).unwrap_or(0);
        } else if count == 0 {
            count = 1;
        }
        let regarding = self.get(obj, "involvedObject");
        let kind = str_at(regarding, &["kind"]).to_lowercase();
        let about = match str_at(regarding, &["name"]) {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let first_of = |a: &'static str, b: &str| {
            let a = str_at(self.get(obj, "source"), &[a]);
            if a.is_empty() {
                str_at(obj, &[b]).to_owned()
            } else {
                a.to_owned()
            }
        };
        let reporter = if self.new_shape {
            "reportingController"
        } else {
            "reportingComponent"
        };
        let component = first_of("component", reporter);
        let instance = first_of("host", "reportingInstance");
        let source = if instance.is_empty() {
            component
        } else {
            format!("{component}, {instance}")
        };
        vec![
            since(last, now).into(),
            str_at(obj, &["type"]).into(),
            str_at(obj, &["reason"]).into(),
            about.into(),
            str_at(regarding, &["fieldPath"]).into(),
            source.into(),
            self.get(obj, "message")
                .as_str()
                .unwrap_or_default()
                .trim()
                .into(),
            since(first, now).into(),
            count.into(),
            str_at(obj, &["metadata", "name"]).into(),
        ]
    }
}

impl Event {
    /// What events with an `eventTime` must have.
    fn new_style(&self, obj: &Value, errors: &mut Errors) {
        let controller = self
            .get(obj, "reportingComponent")
            .as_str()
            .unwrap_or_default();
        if controller.is_empty() {
            errors.push(FieldError::required("reportingController", ""));
        } else {
            problems(
                &FieldPath::new("reportingController"),
                controller,
                names::qualified_name(controller),
                errors,
            );
        }
        if self.new_shape {
            if obj.get("eventTime").is_none_or(Value::is_null) {
                errors.push(FieldError::required("eventTime", ""));
            }
            let kind = str_at(obj, &["type"]);
            if !matches!(kind, "Normal" | "Warning") {
                errors.push(FieldError::invalid(
                    "type",
                    "",
                    format!("has invalid value: {kind}"),
                ));
            }
        }
        for (field, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
            let value = str_at(obj, &[field]);
            if value.is_empty() {
                errors.push(FieldError::required(field, ""));
            } else if value.len() > max {
                errors.push(FieldError::invalid(
                    field,
                    "",
                    format!("can have at most {max} characters"),
                ));
            }
        }
        if self.get(obj, "message").as_str().unwrap_or_default().len() > 1024 {
            errors.push(FieldError::invalid(
                "message",
                "",
                "can have at most 1024 characters",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_shapes_convert_into_each_other() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"}, "message": "m",
            "source": {"component": "c"}, "count": 2, "reportingComponent": ""});
        let mut obj = core.clone();
        from_core(&mut obj);
        assert_eq!(obj["regarding"]["kind"], "Pod");
        assert_eq!(obj["note"], "m");
        assert_eq!(obj["apiVersion"], "events.k8s.io/v1");
        to_core(&mut obj);
        assert_eq!(obj, core);
    }

    #[test]
    fn events_of_the_new_group_say_when_and_who() {
        let event = Event { new_shape: true };
        let bad = json!({"metadata": {"namespace": "default"}, "regarding": {}, "reportingController": "a/b"});
        let errors: Vec<String> = event
            .validate_create(&bad)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "eventTime: Required value",
                r#"type: Invalid value: "": has invalid value: "#,
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Required value",
            ]
        );
    }

    #[test]
    fn rows_show_the_last_time_the_object_and_the_source() {
        let now = amphipod_api::time::parse_time("2024-01-01T00:10:00Z").unwrap_or_default();
        let obj = json!({"metadata": {"name": "e"}, "type": "Warning", "reason": "BackOff", "message": "again \n",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"},
            "source": {"component": "kubelet", "host": "n"}, "count": 3,
            "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:09:00Z"});
        let row = Event { new_shape: false }.row(&obj, now);
        let expected: Vec<Value> = vec![
            "60s".into(),
            "Warning".into(),
            "BackOff".into(),
            "pod/p".into(),
            "spec.containers{a}".into(),
            "kubelet, n".into(),
            "again".into(),
            "10m".into(),
            3.into(),
            "e".into(),
        ];
        assert_eq!(row, expected);
    }

    #[test]
    fn events_live_in_the_namespace_of_what_they_are_about() {
        let event = Event { new_shape: false };
        let bad = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
        assert_eq!(
            event.validate_create(&bad)[0].to_string(),
            r#"involvedObject.namespace: Invalid value: "b": does not match event.namespace"#
        );
        assert!(
            event
                .validate_create(
                    &json!({"metadata": {"namespace": "default"}, "involvedObject": {}})
                )
                .is_empty()
        );
    }
}
