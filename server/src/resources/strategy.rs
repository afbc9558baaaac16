//! The hooks by which one kind differs from the generic engine.

use std::sync::Mutex;

use amphipod_api::{FieldError, Status};
use jiff::Timestamp;
use serde_json::Value;

use crate::auth::UserInfo;

/// Facts about the cluster that defaults and allocation need.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Services get their cluster IPs from here, `A.B.C.D/N`; the first is the primary family.
    pub service_cidrs: Vec<String>,
    /// First and last NodePort.
    pub node_ports: (u16, u16),
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            service_cidrs: vec!["10.43.0.0/16".into()],
            node_ports: (30000, 32767),
        }
    }
}

/// Read access to other objects, answered from the watch cache. Resources are named as in
/// [`Descriptor::storage_resource`](super::Descriptor::storage_resource): `pods`, `deployments.apps`.
pub trait Lookup: Send + Sync {
    /// One object; `namespace` is empty for cluster-scoped kinds.
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a namespace, or of all when `None`.
    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Value>;
    /// Calls `visit(namespace, name, value)` for each object with the value of a selectable field (also hidden ones).
    fn scan_field(&self, resource: &str, field: &str, visit: &mut dyn FnMut(&str, &str, &str));
}

/// What the caller may do, answered by the authorizer. Roles and bindings ask, so that nobody grants more than they have.
pub trait Privileges: Send + Sync {
    /// Whether `user` may do `verb` on a resource (`group`, `plural`) with this name.
    fn may(
        &self,
        user: &UserInfo,
        verb: &str,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> bool;
    /// Whether `user` already holds all of `rules` (`PolicyRule` values) in `namespace` (empty: cluster-wide).
    /// Err names what is missing, as upstream prints it.
    fn covers(&self, user: &UserInfo, namespace: &str, rules: &[Value]) -> Result<(), String>;
}

/// What hooks know about the request.
pub struct StrategyContext<'a> {
    pub user: &'a UserInfo,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub now: Timestamp,
    pub dry_run: bool,
    pub lookup: &'a dyn Lookup,
    pub privileges: &'a dyn Privileges,
    pub config: &'a ClusterConfig,
    /// `Warning` headers to answer with.
    pub warnings: &'a Mutex<Vec<String>>,
}

impl StrategyContext<'_> {
    /// Adds a warning that kubectl shows to the user.
    pub fn warn(&self, text: impl Into<String>) {
        if let Ok(mut warnings) = self.warnings.lock() {
            warnings.push(text.into());
        }
    }
}

/// One kind's own behaviour. Every hook has a default that does nothing.
///
/// Order in a create: [`default`](Self::default), mutating admission, [`prepare_for_create`](Self::prepare_for_create),
/// [`validate_create`](Self::validate_create), validating admission. Updates are alike. `sub` is the subresource's name.
#[allow(unused_variables)]
pub trait Strategy: Send + Sync {
    /// Fills in what the user left out, as v1.36 does. Must be idempotent; also applied to objects read from old stores.
    fn default(&self, obj: &mut Value) {}

    /// Drops what a client may not set (status), allocates (cluster IPs), sets `metadata.generation`.
    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Carries over what this path may not change (status, or spec), and raises the generation when the spec changed.
    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Everything wrong with a new object beside its metadata, which the engine checks for all kinds with [`Self::name_rule`].
    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Everything wrong with a changed object.
    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is allowed as `metadata.name`; the message if it is not.
    fn name_rule(&self) -> fn(&str) -> Vec<String> {
        amphipod_api::names::dns1123_subdomain
    }

    /// Things worth telling the user that are no errors (deprecated annotations, odd selectors).
    fn warnings(&self, obj: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Seconds of grace a delete gives; None: the object goes at once.
    fn delete_grace(
        &self,
        cx: &StrategyContext,
        obj: &Value,
        requested: Option<i64>,
    ) -> Option<i64> {
        None
    }

    /// Whether a delete that does not say what becomes of the dependents leaves them: then the warning that tells so.
    fn orphans_by_default(&self) -> Option<&'static str> {
        None
    }

    /// Whether an update without resourceVersion overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Whether PUT creates an absent object.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// The cells of the object's row, one for each column of the descriptor.
    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        super::table::default_row(obj, now)
    }
}

/// The strategy of kinds with nothing of their own.
pub struct Plain;

impl Strategy for Plain {}
