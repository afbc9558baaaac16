//! What a request is about: a place in the API, and what to select there.

use serde_json::Value;

use crate::gvk::GroupVersionResource;
use crate::meta;

/// A collection, an object, or a subresource of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub resource: GroupVersionResource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    /// A collection in all namespaces (or a cluster-scoped one).
    pub fn new(group: &str, version: &str, plural: &str) -> Target {
        GroupVersionResource::new(group, version, plural).into()
    }

    /// A resource of the core group, `v1`.
    pub fn core(plural: &str) -> Target {
        Target::new("", "v1", plural)
    }

    /// In a namespace; empty means none.
    pub fn namespace(mut self, namespace: &str) -> Target {
        self.namespace = (!namespace.is_empty()).then(|| namespace.into());
        self
    }

    pub fn name(mut self, name: &str) -> Target {
        self.name = Some(name.into());
        self
    }

    pub fn subresource(mut self, subresource: &str) -> Target {
        self.subresource = Some(subresource.into());
        self
    }

    /// The object that `object` is, by its namespace and name.
    pub fn of(self, object: &Value) -> Target {
        self.namespace(meta::namespace(object))
            .name(meta::name(object))
    }

    /// The URL path.
    pub fn path(&self) -> String {
        self.resource.path(
            self.namespace.as_deref(),
            self.name.as_deref(),
            self.subresource.as_deref(),
        )
    }
}

impl From<GroupVersionResource> for Target {
    fn from(resource: GroupVersionResource) -> Target {
        Target {
            resource,
            namespace: None,
            name: None,
            subresource: None,
        }
    }
}

/// What a list or watch selects. `Default` selects everything at the newest revision.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    pub label_selector: String,
    pub field_selector: String,
    /// `""` newest, `"0"` any, else at least this.
    pub resource_version: String,
    /// At most so many items; 0 means all.
    pub limit: u32,
    pub continue_token: String,
}

impl ListParams {
    pub(super) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        for (name, value) in [
            ("labelSelector", &self.label_selector),
            ("fieldSelector", &self.field_selector),
            ("resourceVersion", &self.resource_version),
            ("continue", &self.continue_token),
        ] {
            if !value.is_empty() {
                query.push((name, value.clone()));
            }
        }
        if self.limit > 0 {
            query.push(("limit", self.limit.to_string()));
        }
        query
    }
}

/// A list as the server answered it.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub resource_version: String,
    /// For the next page; empty on the last.
    pub continue_token: String,
    pub items: Vec<Value>,
}

/// Options of a watch besides those of a list. `list.resource_version` is where it starts.
#[derive(Clone, Debug, Default)]
pub struct WatchParams {
    pub list: ListParams,
    /// Ask for the present objects first, and a bookmark annotated `k8s.io/initial-events-end` after them.
    pub send_initial_events: bool,
    /// After which the server ends the watch; 0 leaves it to the server.
    pub timeout_seconds: u32,
}
