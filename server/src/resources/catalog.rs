//! All resources the API serves, by path and by kind.

use std::sync::{Arc, RwLock};

use super::Descriptor;

/// The set of descriptors. Reading takes a snapshot; CustomResourceDefinitions replace it.
#[derive(Default)]
pub struct Catalog {
    all: RwLock<Arc<Vec<Arc<Descriptor>>>>,
}

impl Catalog {
    /// The built-in resources.
    pub fn builtin() -> Self {
        let all = super::kinds::all().into_iter().map(Arc::new).collect();
        Catalog {
            all: RwLock::new(Arc::new(all)),
        }
    }

    /// All descriptors as they are now.
    pub fn snapshot(&self) -> Arc<Vec<Arc<Descriptor>>> {
        match self.all.read() {
            Ok(all) => all.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    /// The resource served at `/apis/GROUP/VERSION/PLURAL` (`/api/v1/...` for the empty group).
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Descriptor>> {
        self.find(|d| d.plural == plural && d.group == group && d.version == version)
    }

    /// The resource of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Descriptor>> {
        self.find(|d| d.kind == kind && d.group == group && d.version == version)
    }

    /// The resource in its preferred version, by `pods` or `deployments.apps`.
    pub fn by_resource(&self, resource: &str) -> Option<Arc<Descriptor>> {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.find(|d| d.plural == plural && d.group == group)
    }

    /// Adds a resource, or replaces the one of the same group, version and plural.
    pub fn add(&self, descriptor: Arc<Descriptor>) {
        self.edit(|all| {
            all.retain(|d| {
                !same(
                    d,
                    &descriptor.group,
                    &descriptor.version,
                    &descriptor.plural,
                )
            });
            all.push(descriptor);
        });
    }

    /// Takes a resource away.
    pub fn remove(&self, group: &str, version: &str, plural: &str) {
        self.edit(|all| all.retain(|d| !same(d, group, version, plural)));
    }

    fn find(&self, wanted: impl Fn(&Descriptor) -> bool) -> Option<Arc<Descriptor>> {
        self.snapshot().iter().find(|d| wanted(d)).cloned()
    }

    fn edit(&self, change: impl FnOnce(&mut Vec<Arc<Descriptor>>)) {
        let mut guard = match self.all.write() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        let mut all = guard.as_ref().clone();
        change(&mut all);
        *guard = Arc::new(all);
    }
}

fn same(d: &Descriptor, group: &str, version: &str, plural: &str) -> bool {
    d.group == group && d.version == version && d.plural == plural
}
