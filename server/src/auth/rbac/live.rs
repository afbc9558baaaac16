//! The index over the watch cache. It is brought up to date when a question is asked, so that a role that was just
//! written holds for the next request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use tracing::warn;

use super::index::{Binding, Index, Rules};
use crate::cache::{Cache, EventType, Object, Table, Watch};

/// The storage names of the four RBAC resources.
pub const RESOURCES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

type Name = (String, String);

/// Roles and bindings as they are now.
pub struct Rbac {
    state: Mutex<State>,
}

struct State {
    cache: Arc<Cache>,
    /// In the order of [`RESOURCES`]; empty until the tables exist.
    watches: Vec<Watch>,
    roles: HashMap<Name, Rules>,
    bindings: HashMap<Name, Arc<Binding>>,
    index: Arc<Index>,
}

impl Rbac {
    /// Reads the RBAC tables of `cache`, now and whenever they have changed.
    pub fn new(cache: Arc<Cache>) -> Rbac {
        let state = State {
            cache,
            watches: Vec::new(),
            roles: HashMap::new(),
            bindings: HashMap::new(),
            index: Arc::default(),
        };
        Rbac {
            state: Mutex::new(state),
        }
    }

    /// The index as of now.
    pub fn index(&self) -> Arc<Index> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refresh();
        state.index.clone()
    }
}

impl State {
    fn refresh(&mut self) {
        if self.watches.is_empty() {
            self.reload();
            return;
        }
        let mut events = Vec::new();
        for (at, watch) in self.watches.iter_mut().enumerate() {
            loop {
                match watch.try_next() {
                    Ok(batch) if batch.is_empty() => break,
                    Ok(batch) => events.extend(batch.into_iter().map(|event| (at, event))),
                    Err(_) => {
                        self.reload();
                        return;
                    }
                }
            }
        }
        if events.is_empty() {
            return;
        }
        for (at, event) in events {
            match event.kind {
                EventType::Deleted => self.remove(at, &event.object),
                _ => self.insert(at, &event.object),
            }
        }
        self.rebuild();
    }

    fn reload(&mut self) {
        let tables: Vec<Arc<Table>> = RESOURCES
            .iter()
            .filter_map(|r| self.cache.table(r))
            .collect();
        if tables.len() < RESOURCES.len() {
            return;
        }
        self.watches.clear();
        self.roles.clear();
        self.bindings.clear();
        for (at, table) in tables.iter().enumerate() {
            let (snapshot, watch) = table.list_and_watch(None);
            self.watches.push(watch);
            for object in &snapshot.items {
                self.insert(at, object);
            }
        }
        self.rebuild();
    }

    fn rebuild(&mut self) {
        let roles = self
            .roles
            .iter()
            .map(|((ns, name), rules)| (ns.clone(), name.clone(), rules.clone()));
        self.index = Arc::new(Index::build(roles, self.bindings.values().cloned()));
    }

    fn insert(&mut self, at: usize, object: &Object) {
        let name = (
            object.meta.namespace.to_string(),
            object.meta.name.to_string(),
        );
        let read = match at {
            0 => object
                .typed::<ClusterRole>()
                .map(|r| self.put_role(name, r.rules)),
            1 => object.typed::<Role>().map(|r| self.put_role(name, r.rules)),
            2 => object
                .typed::<ClusterRoleBinding>()
                .map(|b| self.put_binding(name, b.role_ref, b.subjects)),
            _ => object
                .typed::<RoleBinding>()
                .map(|b| self.put_binding(name, b.role_ref, b.subjects)),
        };
        if let Err(error) = read {
            warn!(?object, %error, "a stored RBAC object is not readable and grants nothing");
            self.remove(at, object);
        }
    }

    fn put_role(&mut self, name: Name, rules: Option<Vec<k8s_openapi::api::rbac::v1::PolicyRule>>) {
        self.roles.insert(name, Arc::new(rules.unwrap_or_default()));
    }

    fn put_binding(
        &mut self,
        name: Name,
        role: k8s_openapi::api::rbac::v1::RoleRef,
        subjects: Option<Vec<k8s_openapi::api::rbac::v1::Subject>>,
    ) {
        let binding = Binding {
            namespace: name.0.clone(),
            name: name.1.clone(),
            role,
            subjects: subjects.unwrap_or_default(),
        };
        self.bindings.insert(name, Arc::new(binding));
    }

    fn remove(&mut self, at: usize, object: &Object) {
        let name = (
            object.meta.namespace.to_string(),
            object.meta.name.to_string(),
        );
        if at < 2 {
            self.roles.remove(&name);
        } else {
            self.bindings.remove(&name);
        }
    }
}
