//! The verbs over descriptors: get, list, watch, create, update, patch, delete and the subresources that are part of an
//! object. One engine for all kinds; what differs is in [`Descriptor`] and its strategy.
//!
//! A write goes: decode against the schema → default → admission may change it → the strategy prepares it → validate →
//! admission may refuse it → the store commits it if the object is still the one that was read → the cache tells everybody →
//! the answer. Controllers inside the server call the same verbs with their own identity.
//!
//! **Invariants:** no object changes but through [`Registry`]; whatever a verb answers was committed (or is a dry run); a
//! refusal leaves everything as it was.

mod admission;
mod apply;
mod binding;
mod delete;
pub mod expire;
mod lookup;
mod metadata;
mod options;
mod patch;
mod read;
mod scale;
mod watch;
mod write;

use std::sync::{Arc, Mutex};

use amphipod_api::{GroupKind, GroupResource, Status};

use crate::auth::UserInfo;
use crate::cache::{Cache, Object, Table, TableSpec};
use crate::resources::{Catalog, ClusterConfig, Descriptor, Durability, Privileges};
use crate::store::{Store, StoreError};

pub use admission::{Admission, Open, Operation, Request};
pub use amphipod_api::patch::PatchType;
pub use delete::Deleted;
pub use options::{DeleteOptions, FieldValidation, GetOptions, Input, ListOptions, Propagation};
pub use read::Listed;
pub use watch::{WatchItem, WatchStream};

/// One request: who asks for what kind where, and how.
#[derive(Debug)]
pub struct Context {
    pub user: Arc<UserInfo>,
    pub descriptor: Arc<Descriptor>,
    /// Empty for cluster-scoped resources, and for lists and watches over all namespaces.
    pub namespace: String,
    /// `status`, `scale`, ...; the object itself for `None`.
    pub subresource: Option<String>,
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    /// Who owns what this request changes; empty for callers within the server.
    pub field_manager: String,
    /// An apply takes over fields that others own.
    pub force: bool,
    /// Filled on the way: `Warning` headers to answer with.
    pub warnings: Mutex<Vec<String>>,
}

impl Context {
    /// A plain request.
    pub fn new(
        user: Arc<UserInfo>,
        descriptor: Arc<Descriptor>,
        namespace: impl Into<String>,
    ) -> Context {
        Context {
            user,
            descriptor,
            namespace: namespace.into(),
            subresource: None,
            dry_run: false,
            field_validation: FieldValidation::default(),
            field_manager: String::new(),
            force: false,
            warnings: Mutex::default(),
        }
    }

    /// The same for a subresource.
    pub fn with_subresource(mut self, subresource: impl Into<String>) -> Context {
        self.subresource = Some(subresource.into());
        self
    }

    /// Adds a warning for the user.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(text.into());
    }

    /// Takes the warnings collected so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(
            &mut *self
                .warnings
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// How messages name the resource.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource {
            group: self.descriptor.group.to_string(),
            resource: self.descriptor.plural.to_string(),
        }
    }

    /// How messages name the kind.
    pub fn group_kind(&self) -> GroupKind {
        GroupKind {
            group: self.descriptor.group.to_string(),
            kind: self.descriptor.kind.to_string(),
        }
    }
}

/// The engine. Cheap to share by `Arc`.
pub struct Registry {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    catalog: Arc<Catalog>,
    admission: Arc<dyn Admission>,
    privileges: Arc<dyn Privileges>,
    config: ClusterConfig,
    /// Held from reading what is taken until the commit, by writes that allocate (cluster IPs, node ports).
    allocating: tokio::sync::Mutex<()>,
}

impl Registry {
    /// An engine over a store. The cache must follow that store.
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        catalog: Arc<Catalog>,
        admission: Arc<dyn Admission>,
        privileges: Arc<dyn Privileges>,
        config: ClusterConfig,
    ) -> Registry {
        Registry {
            store,
            cache,
            catalog,
            admission,
            privileges,
            config,
            allocating: tokio::sync::Mutex::default(),
        }
    }

    /// The tables that a catalog's resources need, for [`Cache::start`].
    pub fn tables(catalog: &Catalog) -> Vec<TableSpec> {
        let mut specs: Vec<TableSpec> = Vec::new();
        for descriptor in catalog
            .snapshot()
            .iter()
            .filter(|descriptor| descriptor.stored)
        {
            if descriptor.storage_as.is_none() {
                specs.push(table_spec(descriptor));
            }
        }
        specs
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// A request by someone inside the server for a resource such as `pods` or `deployments.apps`.
    ///
    /// # Errors
    /// 404 for a resource that does not exist.
    pub fn context(
        &self,
        user: &Arc<UserInfo>,
        resource: &str,
        namespace: &str,
    ) -> Result<Context, Status> {
        let descriptor = self
            .catalog
            .by_resource(resource)
            .ok_or_else(Status::no_such_resource)?;
        Ok(Context::new(user.clone(), descriptor, namespace))
    }

    /// The table of a resource. Made if it is new, as for a CustomResourceDefinition just added.
    pub fn table(&self, descriptor: &Descriptor) -> Arc<Table> {
        match self.cache.table(&descriptor.storage_resource()) {
            Some(table) => table,
            None => self.cache.define(table_spec(descriptor)),
        }
    }
}

/// The object in the shape that clients of the resource see, if that is not the stored one.
fn shown(descriptor: &Descriptor, object: Arc<Object>) -> Arc<Object> {
    match &descriptor.conversion {
        None => object,
        Some(conversion) => Arc::new(object.reshaped(conversion.from_stored)),
    }
}

/// Fields with an index: the questions asked all the time.
const INDEXED: [&str; 1] = ["spec.nodeName"];

/// Labels with an index, by resource: what belongs to one of thousands of services must be found without looking at all.
const INDEXED_LABELS: [(&str, &str); 1] = [(
    "endpointslices.discovery.k8s.io",
    "kubernetes.io/service-name",
)];

fn table_spec(descriptor: &Descriptor) -> TableSpec {
    let fields = descriptor.selectable_fields.clone();
    let resource = descriptor.storage_resource();
    let label = INDEXED_LABELS.iter().find(|(of, _)| *of == resource);
    TableSpec {
        label: label.map(|(_, label)| *label),
        resource,
        indexed: INDEXED
            .iter()
            .filter(|name| fields.iter().any(|field| field.name == **name))
            .map(|name| (*name).to_owned())
            .collect(),
        fields,
        lazy: descriptor.durability != Durability::Immediate,
    }
}

/// A store's failure as an answer. A conflict must have been told before, in the words of the verb.
fn storage_status(error: &StoreError) -> Status {
    match error {
        StoreError::Full(_) => Status::insufficient_storage(error.to_string()),
        StoreError::Closed => Status::service_unavailable(error.to_string()),
        StoreError::Compacted { horizon } => Status::too_old_resource_version(0, *horizon),
        _ => Status::internal_error(error),
    }
}
