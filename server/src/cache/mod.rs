//! The watch cache: every resource as one in-memory [`Table`] of immutable objects and one ring of events.
//!
//! Lists and watches are served from here, to HTTP clients and in process alike. The cache is a sink of the store: it
//! applies records in revision order, before the commit that made them answers, so whoever wrote can read.
//!
//! **Invariant:** nothing here writes to the store, and nothing here holds a lock across an await.

mod fields;
mod object;
mod table;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tracing::error;

use crate::store::{Record, Store, StoreError};

pub use fields::{FieldSet, FieldValues};
pub use object::{EventType, Meta, Object, Owner, detached, encode};
pub use table::{Event, Gone, Snapshot, Table, TableSpec};
pub use watch::Watch;

/// All tables.
pub struct Cache {
    tables: RwLock<HashMap<Box<str>, Arc<Table>>>,
    /// Everything up to this revision is in the tables.
    applied: Arc<AtomicU64>,
    advanced: tokio::sync::watch::Sender<u64>,
    /// The revision that history starts from, for immediate and for lazy resources.
    horizons: (u64, u64),
}

impl Cache {
    /// An empty cache that no store feeds; for tests of what reads it.
    pub fn empty() -> Arc<Cache> {
        Cache::at((0, 0))
    }

    fn at(horizons: (u64, u64)) -> Arc<Cache> {
        Arc::new(Cache {
            tables: RwLock::default(),
            applied: Arc::new(AtomicU64::new(0)),
            advanced: tokio::sync::watch::Sender::new(0),
            horizons,
        })
    }

    /// Fills a cache from a store and follows it from then on. Resources that are not in `specs` get a table without
    /// selectable fields when they first appear; [`Cache::define`] can add fields later.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn start(store: &dyn Store, specs: Vec<TableSpec>) -> Result<Arc<Cache>, StoreError> {
        let position = store.position();
        let cache = Cache::at((position.horizon, position.lazy_horizon));
        for spec in specs {
            cache.define(spec);
        }
        let seeded = cache.clone();
        let visit = Box::new(move |record: Record| {
            if let Err(error) = seeded.table_or_new(record.key.resource()).seed(&record) {
                error!(key = %record.key, %error, "a stored object does not decode and is left out");
            }
        });
        store.load("", position.horizon, visit).await?;
        cache.advance(position.horizon);
        let fed = cache.clone();
        store
            .watch(
                position.horizon,
                Box::new(move |records| fed.apply(records)),
            )
            .await?;
        cache.advance(position.revision);
        Ok(cache)
    }

    /// The table of a resource by its storage name (`pods`, `deployments.apps`).
    pub fn table(&self, resource: &str) -> Option<Arc<Table>> {
        self.tables
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(resource)
            .cloned()
    }

    /// Makes the table of a resource, or gives the one there is. If there is one with other fields, as for a
    /// CustomResourceDefinition that changed, it is replaced by one with the same objects whose history starts now.
    ///
    /// Must not run while commits to that resource do.
    pub fn define(&self, spec: TableSpec) -> Arc<Table> {
        let mut tables = self
            .tables
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = tables.get(&*spec.resource).cloned();
        if let Some(old) = &old
            && old.same_fields(&spec)
        {
            return old.clone();
        }
        let horizon = match &old {
            Some(_) => self.revision(),
            None if spec.lazy => self.horizons.1,
            None => self.horizons.0,
        };
        let table = Arc::new(Table::new(spec, self.applied.clone(), horizon));
        if let Some(old) = old {
            old.for_each(None, |object| table.adopt(object));
        }
        tables.insert(table.resource().into(), table.clone());
        table
    }

    /// Everything up to this revision is in the tables.
    pub fn revision(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until the cache has reached a revision, at most `patience`. False: it has not.
    pub async fn reach(&self, revision: u64, patience: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut advanced = self.advanced.subscribe();
        let reached = advanced.wait_for(|have| *have >= revision);
        matches!(tokio::time::timeout(patience, reached).await, Ok(Ok(_)))
    }

    /// Applies records, which must come in revision order and each once.
    pub fn apply(&self, records: &[Record]) {
        let mut touched: Vec<Arc<Table>> = Vec::new();
        for record in records {
            let resource = record.key.resource();
            let table = match touched.iter().find(|table| table.resource() == resource) {
                Some(table) => table.clone(),
                None => {
                    let table = self.table_or_new(resource);
                    touched.push(table.clone());
                    table
                }
            };
            if let Err(error) = table.apply(record) {
                error!(key = %record.key, %error, "a stored object does not decode and is left out");
            }
        }
        if let Some(last) = records.last() {
            self.advance(last.revision);
        }
        for table in touched {
            table.notify();
        }
    }

    fn advance(&self, revision: u64) {
        self.applied.fetch_max(revision, Ordering::AcqRel);
        self.advanced.send_if_modified(|have| {
            let grown = revision > *have;
            *have = (*have).max(revision);
            grown
        });
    }

    fn table_or_new(&self, resource: &str) -> Arc<Table> {
        match self.table(resource) {
            Some(table) => table,
            None => self.define(TableSpec {
                resource: resource.to_owned(),
                ..TableSpec::default()
            }),
        }
    }
}
