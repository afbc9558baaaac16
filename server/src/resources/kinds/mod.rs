//! The built-in kinds: one file each (or one for a few tiny ones), one row each in [`all`].

use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;

use super::schema::Builtin;
use super::strategy::{Plain, Strategy};
use super::{
    Column, Connect, Conversion, Descriptor, Durability, SchemaSource, Scope, SelectableField, Str,
    Subresource, SubresourceKind, Verbs,
};

mod account;
mod claim;
mod config;
mod cron_job;
mod csr;
mod daemon_set;
mod endpoints;
mod event;
mod ingress;
mod job;
mod lease;
mod limits;
mod namespace;
mod node;
mod pod;
mod pod_template;
mod policy;
mod rbac;
mod replica_set;
mod reviews;
mod service;
mod stateful_set;
mod storage_class;
mod volume;
mod workload;

pub use claim::claim_spec;
pub use limits::{quota_covers, quota_is_scoped};
pub use pod::default_pod;

pub(super) const META_NAME_DOC: &str = "Name of the object, unique within its namespace.";
pub(super) const META_CREATION_DOC: &str = "When the object was made, as its age.";

/// All built-in descriptors, in the order of discovery: by group (core first), then by name.
pub fn all() -> Vec<Descriptor> {
    let mut all = vec![
        pod::binding(),
        config::config_map(),
        endpoints::endpoints(),
        event::core_event(),
        limits::limit_range(),
        namespace::descriptor(),
        node::descriptor(),
        claim::descriptor(),
        volume::descriptor(),
        pod::descriptor(),
        pod_template::descriptor(),
        replica_set::replication_controller(),
        limits::resource_quota(),
        config::secret(),
        account::service_account(),
        service::descriptor(),
        workload::controller_revision(),
        daemon_set::descriptor(),
        workload::deployment(),
        replica_set::replica_set(),
        stateful_set::descriptor(),
    ];
    all.extend(reviews::all());
    all.extend([
        cron_job::descriptor(),
        job::descriptor(),
        csr::descriptor(),
        lease::descriptor(),
        endpoints::endpoint_slice(),
        event::event(),
        ingress::ingress_class(),
        ingress::ingress(),
        policy::network_policy(),
        rbac::cluster_role_binding(),
        rbac::cluster_role(),
        rbac::role_binding(),
        rbac::role(),
        policy::priority_class(),
        storage_class::descriptor(),
    ]);
    all
}

/// The type of a body that is not a resource of its own: what subresources and deletes take.
pub fn body(group: &str, version: &str, kind: &str) -> Option<Builtin> {
    use k8s_openapi::api::{authentication, autoscaling, core, policy};
    use k8s_openapi::apimachinery::pkg::apis::meta;
    Some(match (group, version, kind) {
        ("", "v1", "Binding") => Builtin::of::<core::v1::Binding>(),
        ("", "v1", "DeleteOptions") => Builtin::of::<meta::v1::DeleteOptions>(),
        ("authentication.k8s.io", "v1", "TokenRequest") => {
            Builtin::of::<authentication::v1::TokenRequest>()
        }
        ("autoscaling", "v1", "Scale") => Builtin::of::<autoscaling::v1::Scale>(),
        ("policy", "v1", "Eviction") => Builtin::of::<policy::v1::Eviction>(),
        _ => return None,
    })
}

/// Types that every group's documents refer to.
pub fn common_types() -> Vec<Builtin> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1;
    vec![
        Builtin::of::<v1::DeleteOptions>(),
        Builtin::of::<v1::ListMeta>(),
        Builtin::of::<v1::ObjectMeta>(),
        Builtin::of::<v1::Status>(),
    ]
}

/// Makes a descriptor step by step.
pub(super) struct Kind(Descriptor);

impl Kind {
    /// A namespaced resource with all verbs, a name and an age.
    pub fn new<T: JsonSchema>(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Kind {
        Kind(Descriptor {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List").into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            verbs: Verbs::ALL,
            subresources: Vec::new(),
            columns: vec![Column::name(), Column::age()],
            selectable_fields: Vec::new(),
            durability: Durability::Immediate,
            storage_as: None,
            conversion: None,
            stored: true,
            strategy: Arc::new(Plain),
            source: SchemaSource::Builtin(Builtin::of::<T>()),
            schema: OnceLock::new(),
        })
    }

    /// A review: `POST` computes an answer, nothing is stored.
    pub fn review<T: JsonSchema>(
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Kind {
        let mut made = Kind::new::<T>(group, "v1", kind, plural).cluster();
        made.0.verbs = Verbs::CREATE;
        made.0.stored = false;
        made
    }

    pub fn cluster(mut self) -> Self {
        self.0.scope = Scope::Cluster;
        self
    }

    pub fn namespaced(mut self) -> Self {
        self.0.scope = Scope::Namespaced;
        self
    }

    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.0.short_names = names.iter().map(|n| Str::Borrowed(n)).collect();
        self
    }

    /// In `kubectl get all`.
    pub fn in_all(mut self) -> Self {
        self.0.categories = vec!["all".into()];
        self
    }

    pub fn columns(mut self, columns: Vec<Column>) -> Self {
        self.0.columns = columns;
        self
    }

    pub fn fields(mut self, fields: Vec<SelectableField>) -> Self {
        self.0.selectable_fields = fields;
        self
    }

    pub fn lazy_fields(mut self, fields: &'static [&'static str]) -> Self {
        self.0.durability = Durability::LazyFields(fields);
        self
    }

    pub fn lazy(mut self) -> Self {
        self.0.durability = Durability::Lazy;
        self
    }

    /// Another resource stores the objects, in another shape.
    pub fn storage_as(
        mut self,
        group: &'static str,
        plural: &'static str,
        conversion: Conversion,
    ) -> Self {
        self.0.storage_as = Some((group.into(), plural.into()));
        self.0.conversion = Some(conversion);
        self
    }

    pub fn strategy(mut self, strategy: impl Strategy + 'static) -> Self {
        self.0.strategy = Arc::new(strategy);
        self
    }

    fn sub(
        mut self,
        name: &'static str,
        what: SubresourceKind,
        verbs: Verbs,
        body: Option<[&'static str; 3]>,
    ) -> Self {
        let body = body.map(|[group, version, kind]| (group.into(), version.into(), kind.into()));
        self.0.subresources.push(Subresource {
            name: name.into(),
            what,
            verbs,
            body,
        });
        self
    }

    /// The object itself, of which this path changes some fields only.
    pub fn part(self, name: &'static str) -> Self {
        self.sub(name, SubresourceKind::Part, Verbs::GET_PATCH_UPDATE, None)
    }

    pub fn status(self) -> Self {
        self.part("status")
    }

    /// `scale`, over the usual three fields.
    pub fn scale(self) -> Self {
        let what = SubresourceKind::Scale {
            spec_replicas: "spec.replicas".into(),
            status_replicas: "status.replicas".into(),
            selector: Some("spec.selector".into()),
        };
        self.sub(
            "scale",
            what,
            Verbs::GET_PATCH_UPDATE,
            Some(["autoscaling", "v1", "Scale"]),
        )
    }

    /// A stream or a proxy; `kind` is that of its options.
    pub fn connect(
        self,
        name: &'static str,
        connect: Connect,
        verbs: Verbs,
        kind: &'static str,
    ) -> Self {
        self.sub(
            name,
            SubresourceKind::Connect(connect),
            verbs,
            Some(["", "v1", kind]),
        )
    }

    /// `POST` of another kind.
    pub fn post(self, name: &'static str, what: SubresourceKind, body: [&'static str; 3]) -> Self {
        self.sub(name, what, Verbs::CREATE, Some(body))
    }

    /// `PUT` of the object.
    pub fn put(self, name: &'static str, what: SubresourceKind) -> Self {
        self.sub(name, what, Verbs::UPDATE, None)
    }

    pub fn build(self) -> Descriptor {
        self.0
    }
}

#[cfg(test)]
mod tests;
