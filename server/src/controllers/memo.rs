//! Things read from objects once: reading JSON again for each of thousands of events would cost more than all else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use amphipod_api::LabelSelector;

use super::{Key, Source, itself};
use crate::cache::{EventType, Meta, Object, Table};

/// Namespace and name.
type Name = (Box<str>, Box<str>);

/// One `T` for each object of a table, made again when the object has changed.
pub struct Memo<T> {
    read: fn(&Object) -> T,
    /// With the revision of the object that it was read from.
    known: Mutex<HashMap<Name, (u64, Arc<T>)>>,
}

impl<T> Memo<T> {
    pub fn new(read: fn(&Object) -> T) -> Memo<T> {
        Memo {
            read,
            known: Mutex::default(),
        }
    }

    /// What was read from this object.
    pub fn get(&self, object: &Object) -> Arc<T> {
        let key = (object.meta.namespace.clone(), object.meta.name.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&key) {
            Some((revision, value)) if *revision == object.meta.revision => value.clone(),
            _ => {
                let value = Arc::new((self.read)(object));
                known.insert(key, (object.meta.revision, value.clone()));
                value
            }
        }
    }

    /// Names of the objects of a namespace for which `wanted` holds.
    pub fn names(
        &self,
        table: &Table,
        namespace: &str,
        wanted: impl Fn(&Object, &T) -> bool,
    ) -> Vec<Box<str>> {
        let mut names = Vec::new();
        table.for_each(Some(namespace), |object| {
            if wanted(object, &self.get(object)) {
                names.push(object.meta.name.clone());
            }
        });
        names
    }

    /// The object is gone.
    pub fn forget(&self, object: &Object) {
        let key = (object.meta.namespace.clone(), object.meta.name.clone());
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
    }
}

impl<T: Send + Sync + 'static> Memo<T> {
    /// Changes of the objects themselves, which are forgotten when they go.
    pub fn own(self: Arc<Self>, resource: &'static str) -> Source {
        Source::new(resource, move |tools, event| {
            if event.kind == EventType::Deleted {
                self.forget(&event.object);
            }
            itself(tools, event)
        })
    }
}

impl Memo<Option<LabelSelector>> {
    /// The objects of `table` whose selectors select what has `meta`.
    pub fn selecting(&self, table: &Table, meta: &Meta) -> Vec<Key> {
        let fits = |_: &Object, selector: &Option<LabelSelector>| {
            selector.as_ref().is_some_and(|s| s.matches(&meta.labels))
        };
        let names = self.names(table, &meta.namespace, fits);
        names
            .iter()
            .map(|name| Key::new(&meta.namespace, name))
            .collect()
    }
}
