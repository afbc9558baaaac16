//! What a resource is: its names, verbs, subresources, columns and the hooks that make it different from others.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::schema::{Builtin, Schema};
use super::strategy::Strategy;

/// Text of a descriptor: static for built-in kinds, owned for CustomResourceDefinitions.
pub type Str = Cow<'static, str>;

/// One resource that the API serves.
pub struct Descriptor {
    /// API group; empty for the core group.
    pub group: Str,
    /// API version, e.g. `v1`.
    pub version: Str,
    pub kind: Str,
    /// Kind of a list of these, e.g. `PodList`.
    pub list_kind: Str,
    /// The name in paths, e.g. `pods`.
    pub plural: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    /// E.g. `all`: what `kubectl get all` shows.
    pub categories: Vec<Str>,
    pub scope: Scope,
    pub verbs: Verbs,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    /// Fields that a field selector may name, beside `metadata.name` and `metadata.namespace`, which all have.
    pub selectable_fields: Vec<SelectableField>,
    pub durability: Durability,
    /// `(group, plural)` of the resource whose objects these are, e.g. events of `events.k8s.io` are the core group's.
    pub storage_as: Option<(Str, Str)>,
    /// How objects change between this shape and the stored one, if another resource stores them.
    pub conversion: Option<Conversion>,
    /// False for reviews: `create` computes an answer, nothing is stored.
    pub stored: bool,
    pub strategy: Arc<dyn Strategy>,
    pub source: SchemaSource,
    /// Built at first need, see [`Descriptor::schema`].
    pub(super) schema: OnceLock<Schema>,
}

/// Where a kind's schema comes from.
#[derive(Clone)]
pub enum SchemaSource {
    Builtin(Builtin),
    /// A custom resource's; the schema as its definition has it is kept for the OpenAPI documents.
    Custom {
        schema: Schema,
        openapi: Arc<Value>,
    },
}

impl Descriptor {
    /// The schema of the kind, built at first need.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| match &self.source {
            SchemaSource::Builtin(builtin) => builtin.schema(),
            SchemaSource::Custom { schema, .. } => schema.clone(),
        })
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`: how messages and tables name the resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The name of the table that holds the objects: [`Descriptor::resource`], unless another resource stores them.
    pub fn storage_resource(&self) -> String {
        match &self.storage_as {
            None => self.resource(),
            Some((group, plural)) if group.is_empty() => plural.to_string(),
            Some((group, plural)) => format!("{plural}.{group}"),
        }
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Values of the selectable fields of an object, in the order of [`Descriptor::selectable_fields`].
    /// Missing fields are empty strings; lists are joined by commas.
    pub fn field_values(&self, object: &Value) -> Vec<String> {
        self.selectable_fields
            .iter()
            .map(|f| f.value(object))
            .collect()
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({}/{})", self.resource(), self.version)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// Two shapes of the same objects; each function changes an object in place.
#[derive(Clone, Copy)]
pub struct Conversion {
    /// From the shape that clients of this resource see to the stored one.
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
}

/// When an acknowledged write must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged.
    Immediate,
    /// Within seconds, coalesced: Events are not worth an fsync each.
    Lazy,
    /// Before it is acknowledged, but for updates that change nothing else than these fields (JSON pointers): the renewals of Leases.
    LazyFields(&'static [&'static str]),
}

/// What may be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Verb {
    Create = 1,
    Delete = 2,
    DeleteCollection = 4,
    Get = 8,
    List = 16,
    Patch = 32,
    Update = 64,
    Watch = 128,
}

impl Verb {
    /// All, in the order in which discovery names them.
    pub const ALL: [Verb; 8] = [
        Verb::Create,
        Verb::Delete,
        Verb::DeleteCollection,
        Verb::Get,
        Verb::List,
        Verb::Patch,
        Verb::Update,
        Verb::Watch,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

/// A set of verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbs(u16);

impl Verbs {
    /// Everything a stored resource offers.
    pub const ALL: Verbs = Verbs(0xff);
    pub const CREATE: Verbs = Verbs(Verb::Create as u16);
    pub const GET: Verbs = Verbs(Verb::Get as u16);
    /// `get`, `patch`, `update`: status and most other subresources.
    pub const GET_PATCH_UPDATE: Verbs =
        Verbs(Verb::Get as u16 | Verb::Patch as u16 | Verb::Update as u16);
    pub const UPDATE: Verbs = Verbs(Verb::Update as u16);

    pub const fn of(verbs: &[Verb]) -> Verbs {
        let mut bits = 0;
        let mut i = 0;
        while i < verbs.len() {
            bits |= verbs[i] as u16;
            i += 1;
        }
        Verbs(bits)
    }

    pub fn contains(self, verb: Verb) -> bool {
        self.0 & verb as u16 != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.into_iter().filter(move |v| self.contains(*v))
    }
}

/// A part of a resource with a path of its own.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Last part of the path, e.g. `status`.
    pub name: Str,
    pub what: SubresourceKind,
    pub verbs: Verbs,
    /// `(group, version, kind)` of the body when it is not the resource itself, e.g. `autoscaling/v1 Scale`.
    pub body: Option<(Str, Str, Str)>,
}

/// What a subresource does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubresourceKind {
    /// The object itself, of which only some fields may change; the strategy's `prepare_for_update` gets the name.
    Part,
    /// `autoscaling/v1 Scale` over three paths of the object, written with dots.
    Scale {
        spec_replicas: Str,
        status_replicas: Str,
        /// A string, or a LabelSelector (built-in kinds).
        selector: Option<Str>,
    },
    /// `POST pods/NAME/binding` (and `POST bindings`): assigns a pod to a node.
    Binding,
    /// `POST pods/NAME/eviction`: deletes a pod if disruption budgets allow it.
    Eviction,
    /// `POST serviceaccounts/NAME/token`: mints a token.
    Token,
    /// `PUT namespaces/NAME/finalize`: replaces `spec.finalizers`.
    Finalize,
    /// Streams to the node, or proxies.
    Connect(Connect),
}

/// Subresources that are answered by the node that runs the pod, or by what the object stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

/// One printed column of a table (`kubectl get`).
#[derive(Clone, Debug, Default)]
pub struct Column {
    pub name: Str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `number`, `date`.
    pub kind: Str,
    /// `name` for the column that identifies the row, else usually empty.
    pub format: Str,
    pub description: Str,
    /// 0 is always shown, higher ones only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of type `string`, always shown.
    pub fn new(name: impl Into<Str>, description: impl Into<Str>) -> Self {
        Column {
            name: name.into(),
            kind: "string".into(),
            description: description.into(),
            ..Column::default()
        }
    }

    /// The column `Name`, which every table begins with.
    pub fn name() -> Self {
        Column {
            format: "name".into(),
            ..Column::new("Name", super::kinds::META_NAME_DOC)
        }
    }

    /// The column `Age`.
    pub fn age() -> Self {
        Column::new("Age", super::kinds::META_CREATION_DOC)
    }

    pub fn of_type(mut self, kind: &'static str) -> Self {
        self.kind = kind.into();
        self
    }

    /// Shown only with `-o wide`.
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// A field that selectors and in-process look-ups may use without parsing the object.
#[derive(Clone, Debug)]
pub struct SelectableField {
    /// The name in selectors, e.g. `spec.nodeName`.
    pub name: Str,
    /// Where its value is, parts separated by dots; `*` walks a list. Usually the same as the name.
    pub path: Str,
    /// What an absent field counts as.
    pub default: &'static str,
    /// False for fields that only the server itself looks up (e.g. node ports in use).
    pub public: bool,
}

impl SelectableField {
    /// A field of the same name and path.
    pub fn new(name: &'static str) -> Self {
        SelectableField {
            name: name.into(),
            path: name.into(),
            default: "",
            public: true,
        }
    }

    /// A field whose name is not its path.
    pub fn at(name: &'static str, path: &'static str) -> Self {
        SelectableField {
            path: path.into(),
            ..SelectableField::new(name)
        }
    }

    pub fn with_default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// Not offered to clients.
    pub fn hidden(mut self) -> Self {
        self.public = false;
        self
    }

    /// The field's value in `object`; several values are joined by commas.
    pub fn value(&self, object: &Value) -> String {
        let mut found = Vec::new();
        collect(object, &self.path, &mut found);
        if found.is_empty() {
            self.default.to_owned()
        } else {
            found.join(",")
        }
    }
}

fn collect(value: &Value, path: &str, found: &mut Vec<String>) {
    if path.is_empty() {
        match value {
            Value::String(s) => found.push(s.clone()),
            Value::Array(items) => items.iter().for_each(|i| collect(i, "", found)),
            Value::Null | Value::Object(_) => {}
            other => found.push(other.to_string()),
        }
        return;
    }
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        Value::Array(items) if head == "*" => items.iter().for_each(|i| collect(i, rest, found)),
        Value::Object(map) => {
            if let Some(child) = map.get(head) {
                collect(child, rest, found);
            }
        }
        _ => {}
    }
}
