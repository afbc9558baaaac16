//! The objects of one resource, now and a little back in time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;
use tracing::error;

use super::fields::FieldSet;
use super::object::{EventType, Object};
use super::watch::Watch;
use crate::resources::SelectableField;
use crate::store::Record;

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub kind: EventType,
    pub revision: u64,
    /// The object after the change; for [`EventType::Deleted`] its last state, with the deletion's resourceVersion.
    pub object: Arc<Object>,
    /// The object before the change.
    pub prev: Option<Arc<Object>>,
}

impl Event {
    fn size(&self) -> usize {
        self.object.size()
    }
}

/// What is asked of history that is no longer there: list again and watch from that. HTTP: 410 Gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {requested} ({oldest})")]
pub struct Gone {
    pub requested: u64,
    /// The oldest revision that a watch may start from now.
    pub oldest: u64,
}

/// What a table is told about its resource.
#[derive(Clone, Debug, Default)]
pub struct TableSpec {
    /// The storage name: `pods`, `deployments.apps`.
    pub resource: String,
    /// Fields for selectors, extracted once per object.
    pub fields: Vec<SelectableField>,
    /// Fields of the above with an index, so that [`Table::by_field`] does not scan: `spec.nodeName` of pods.
    pub indexed: Vec<String>,
    /// A label with an index, so that [`Table::by_label`] does not scan: `kubernetes.io/service-name` of EndpointSlices.
    pub label: Option<&'static str>,
    /// Changes are stored lazily: their history does not survive a restart.
    pub lazy: bool,
}

/// A consistent list.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// In the order of namespace and name.
    pub items: Vec<Arc<Object>>,
    /// The list is the truth as of this revision: watch from here.
    pub revision: u64,
}

/// Bounds of the ring: beside these, twice the bytes of the table itself, so that a burst over all objects fits.
const RING_EVENTS: usize = 4096;
const RING_BYTES: usize = 512 * 1024;

/// All objects of a resource, and the ring of their latest changes.
///
/// Only [`Cache`](super::Cache) changes it, in revision order. Readers hold the lock to clone `Arc`s, never longer.
pub struct Table {
    spec: TableSpec,
    fields: FieldSet,
    inner: RwLock<Inner>,
    /// The revision up to which the whole cache has applied everything; shared by all tables.
    applied: Arc<AtomicU64>,
    /// Bumped after the ring got events: wakes watches.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// namespace → name → object.
    objects: BTreeMap<Box<str>, BTreeMap<Box<str>, Arc<Object>>>,
    count: usize,
    bytes: usize,
    by_owner: Index,
    /// One index for each of `spec.indexed`, with the field's position.
    by_field: Vec<(usize, Index)>,
    /// The index of `spec.label`.
    by_label: Option<(&'static str, Index)>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// The sequence number of the ring's first event; grows by one for each event that leaves.
    first: u64,
    /// Watches may start from here: nothing later has left the ring.
    horizon: u64,
    /// The latest change of this table.
    revision: u64,
}

type ObjectName = (Box<str>, Box<str>);
/// Value → the objects that have it.
type Index = HashMap<Box<str>, HashSet<ObjectName>>;

impl Table {
    /// An empty table. `horizon`: the revision from which on it will be told all changes.
    pub(super) fn new(spec: TableSpec, applied: Arc<AtomicU64>, horizon: u64) -> Table {
        let fields = FieldSet::new(&spec.fields);
        let by_field = spec
            .indexed
            .iter()
            .filter_map(|name| fields.position(name))
            .map(|at| (at, HashMap::new()))
            .collect();
        let inner = Inner {
            horizon,
            by_field,
            by_label: spec.label.map(|label| (label, Index::new())),
            ..Inner::default()
        };
        Table {
            spec,
            fields,
            inner: RwLock::new(inner),
            applied,
            changed: watch::Sender::new(0),
        }
    }

    /// The storage name: `pods`, `deployments.apps`.
    pub fn resource(&self) -> &str {
        &self.spec.resource
    }

    /// The selectable fields of the resource.
    pub fn fields(&self) -> &FieldSet {
        &self.fields
    }

    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// One object; `namespace` is empty for cluster-scoped resources.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.read().objects.get(namespace)?.get(name).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().count
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All objects of a namespace, or of all for `None`.
    pub fn list(&self, namespace: Option<&str>) -> Snapshot {
        let inner = self.read();
        let items = match namespace {
            None => {
                let mut items = Vec::with_capacity(inner.count);
                items.extend(inner.objects.values().flat_map(BTreeMap::values).cloned());
                items
            }
            Some(namespace) => inner
                .objects
                .get(namespace)
                .map(|names| names.values().cloned().collect())
                .unwrap_or_default(),
        };
        Snapshot {
            items,
            revision: self.revision_of(&inner),
        }
    }

    /// All objects as they were at `revision`, which the ring must still reach back to.
    ///
    /// # Errors
    /// [`Gone`] if it does not.
    pub fn list_at(&self, namespace: Option<&str>, revision: u64) -> Result<Snapshot, Gone> {
        let inner = self.read();
        if revision < inner.horizon {
            return Err(Gone {
                requested: revision,
                oldest: inner.horizon,
            });
        }
        let mut objects: BTreeMap<(&str, &str), Option<&Arc<Object>>> = BTreeMap::new();
        // Walk back: what an object was before the earliest change after `revision` is what it was then.
        for event in inner
            .ring
            .iter()
            .rev()
            .take_while(|event| event.revision > revision)
        {
            let meta = &event.object.meta;
            if namespace.is_none_or(|namespace| *meta.namespace == *namespace) {
                objects.insert((&meta.namespace, &meta.name), event.prev.as_ref());
            }
        }
        let current = inner
            .objects
            .iter()
            .filter(|(have, _)| namespace.is_none_or(|namespace| ***have == *namespace))
            .flat_map(|(namespace, names)| {
                names
                    .iter()
                    .map(move |(name, object)| ((&**namespace, &**name), object))
            });
        for (name, object) in current {
            objects.entry(name).or_insert(Some(object));
        }
        Ok(Snapshot {
            items: objects.into_values().flatten().cloned().collect(),
            revision,
        })
    }

    /// Objects that name `uid` as an owner.
    pub fn by_owner(&self, uid: &str) -> Vec<Arc<Object>> {
        let inner = self.read();
        inner
            .by_owner
            .get(uid)
            .map(|names| inner.collect(names))
            .unwrap_or_default()
    }

    /// Objects whose field has this value, by the index if the field has one.
    pub fn by_field(&self, field: &str, value: &str) -> Vec<Arc<Object>> {
        let Some(at) = self.fields.position(field) else {
            return Vec::new();
        };
        let inner = self.read();
        if let Some((_, index)) = inner.by_field.iter().find(|(have, _)| *have == at) {
            return index
                .get(value)
                .map(|names| inner.collect(names))
                .unwrap_or_default();
        }
        inner
            .iter()
            .filter(|object| object.field_at(at) == value)
            .cloned()
            .collect()
    }

    /// Objects of a namespace whose label `spec.label` has this value.
    pub fn by_label(&self, namespace: &str, value: &str) -> Vec<Arc<Object>> {
        let inner = self.read();
        let names = inner
            .by_label
            .as_ref()
            .and_then(|(_, index)| index.get(value));
        let mut objects = names.map(|names| inner.collect(names)).unwrap_or_default();
        objects.retain(|object| *object.meta.namespace == *namespace);
        objects
    }

    /// Visits every object without cloning. The visitor must be quick and must not touch this table.
    pub fn for_each(&self, namespace: Option<&str>, mut visit: impl FnMut(&Arc<Object>)) {
        let inner = self.read();
        match namespace {
            None => inner.iter().for_each(visit),
            Some(namespace) => {
                if let Some(names) = inner.objects.get(namespace) {
                    names.values().for_each(&mut visit);
                }
            }
        }
    }

    /// The revision that this table has reached: a list made now is the truth as of it.
    pub fn revision(&self) -> u64 {
        self.revision_of(&self.read())
    }

    /// The events after a revision, those already in the ring and all to come.
    ///
    /// # Errors
    /// [`Gone`] if some of them have left the ring.
    pub fn subscribe(self: &Arc<Self>, after: u64) -> Result<Watch, Gone> {
        let inner = self.read();
        if after < inner.horizon {
            return Err(Gone {
                requested: after,
                oldest: inner.horizon,
            });
        }
        let skipped = inner.ring.partition_point(|event| event.revision <= after);
        Ok(Watch::new(
            self.clone(),
            inner.first + skipped as u64,
            after,
            self.changed.subscribe(),
        ))
    }

    /// A list, and the events after it.
    pub fn list_and_watch(self: &Arc<Self>, namespace: Option<&str>) -> (Snapshot, Watch) {
        // A fresh list is never older than the ring, unless a burst empties it in between: then list again.
        loop {
            let snapshot = self.list(namespace);
            if let Ok(watch) = self.subscribe(snapshot.revision) {
                return (snapshot, watch);
            }
        }
    }

    /// Events from sequence number `from` on, at most `limit` and no more than about `bytes` of them; and the revision up to
    /// which there are no others.
    pub(super) fn events(
        &self,
        from: u64,
        limit: usize,
        bytes: usize,
    ) -> Result<(Vec<Arc<Event>>, u64), Gone> {
        let inner = self.read();
        let Some(skip) = from.checked_sub(inner.first) else {
            return Err(Gone {
                requested: 0,
                oldest: inner.horizon,
            });
        };
        let start = (skip as usize).min(inner.ring.len());
        let mut taken = 0;
        let events: Vec<_> = inner
            .ring
            .range((Bound::Included(start), Bound::Unbounded))
            .take(limit)
            .take_while(|event| {
                let more = taken < bytes;
                taken += event.size();
                more
            })
            .cloned()
            .collect();
        let reached = match events.last() {
            Some(last) if start + events.len() < inner.ring.len() => last.revision,
            _ => self.revision_of(&inner),
        };
        Ok((events, reached))
    }

    /// Whether there are events from sequence number `from` on, or were.
    pub(super) fn has_events(&self, from: u64) -> bool {
        let inner = self.read();
        from < inner.first + inner.ring.len() as u64
    }

    /// How many watches there are.
    pub(super) fn audience(&self) -> usize {
        self.changed.receiver_count()
    }

    fn revision_of(&self, inner: &Inner) -> u64 {
        // Read under the lock: whatever was applied up to here is in the table, as the lock was free since.
        self.applied.load(Ordering::Acquire).max(inner.revision)
    }

    /// Applies one change. `Err` is what is wrong with the stored bytes.
    pub(super) fn apply(&self, record: &Record) -> Result<(), serde_json::Error> {
        let key = &record.key;
        let prev = self.get(key.namespace(), key.name());
        let (kind, object) = match (&record.value, &prev) {
            (Some(value), None) => (
                EventType::Added,
                Object::decode(value, record.revision, EventType::Added, &self.fields)?,
            ),
            (Some(value), Some(_)) => (
                EventType::Modified,
                Object::decode(value, record.revision, EventType::Modified, &self.fields)?,
            ),
            (None, Some(prev)) => (
                EventType::Deleted,
                prev.restamped(record.revision, EventType::Deleted),
            ),
            (None, None) => return Ok(()),
        };
        let object = Arc::new(object);
        let event = Arc::new(Event {
            kind,
            revision: record.revision,
            object: object.clone(),
            prev: prev.clone(),
        });
        let mut inner = self.write();
        if let Some(prev) = &prev {
            inner.unindex(prev);
        }
        if kind == EventType::Deleted {
            inner.remove(&object);
        } else {
            inner.insert(object);
        }
        inner.push(event);
        Ok(())
    }

    /// Wakes the watches after changes were applied.
    pub(super) fn notify(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Puts an object in place without telling of it: the state that history starts from.
    pub(super) fn seed(&self, record: &Record) -> Result<(), serde_json::Error> {
        let key = &record.key;
        let mut inner = self.write();
        let prev = inner
            .objects
            .get(key.namespace())
            .and_then(|names| names.get(key.name()))
            .cloned();
        if let Some(prev) = &prev {
            inner.unindex(prev);
            inner.remove(prev);
        }
        if let Some(value) = &record.value {
            inner.insert(Arc::new(Object::decode(
                value,
                record.revision,
                EventType::Added,
                &self.fields,
            )?));
        }
        Ok(())
    }

    pub(super) fn same_fields(&self, spec: &TableSpec) -> bool {
        let same = |(a, b): (&SelectableField, &SelectableField)| {
            a.name == b.name && a.path == b.path && a.default == b.default
        };
        self.spec.fields.len() == spec.fields.len()
            && self.spec.fields.iter().zip(&spec.fields).all(same)
            && self.spec.indexed == spec.indexed
            && self.spec.label == spec.label
    }

    /// Takes over an object of a table with other fields.
    pub(super) fn adopt(&self, object: &Object) {
        match object.with_fields(&self.fields) {
            Ok(object) => self.write().insert(Arc::new(object)),
            Err(error) => error!(?object, %error, "an object does not decode and is left out"),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().flat_map(BTreeMap::values)
    }

    fn collect(&self, names: &HashSet<ObjectName>) -> Vec<Arc<Object>> {
        let mut objects: Vec<_> = names
            .iter()
            .filter_map(|(namespace, name)| self.objects.get(namespace)?.get(name))
            .cloned()
            .collect();
        objects.sort_by(|a, b| {
            (&a.meta.namespace, &a.meta.name).cmp(&(&b.meta.namespace, &b.meta.name))
        });
        objects
    }

    fn insert(&mut self, object: Arc<Object>) {
        let name: ObjectName = (object.meta.namespace.clone(), object.meta.name.clone());
        for owner in &object.meta.owners {
            self.by_owner
                .entry(owner.uid.as_str().into())
                .or_default()
                .insert(name.clone());
        }
        for (at, index) in &mut self.by_field {
            let value = object.field_at(*at);
            match index.get_mut(value) {
                Some(names) => drop(names.insert(name.clone())),
                None => drop(index.insert(value.into(), HashSet::from([name.clone()]))),
            }
        }
        if let Some((label, index)) = &mut self.by_label
            && let Some(value) = object.meta.labels.get(*label)
        {
            let names = index.entry(value.as_str().into()).or_default();
            names.insert(name.clone());
        }
        self.bytes += object.size();
        match self
            .objects
            .entry(name.0)
            .or_default()
            .insert(name.1, object)
        {
            Some(prev) => self.bytes -= prev.size(),
            None => self.count += 1,
        }
    }

    fn remove(&mut self, object: &Object) {
        let Some(names) = self.objects.get_mut(&object.meta.namespace) else {
            return;
        };
        if let Some(prev) = names.remove(&object.meta.name) {
            self.bytes -= prev.size();
            self.count -= 1;
        }
        if names.is_empty() {
            self.objects.remove(&object.meta.namespace);
        }
    }

    fn unindex(&mut self, object: &Object) {
        let name: ObjectName = (object.meta.namespace.clone(), object.meta.name.clone());
        for owner in &object.meta.owners {
            forget(&mut self.by_owner, &owner.uid, &name);
        }
        for (at, index) in &mut self.by_field {
            forget(index, object.field_at(*at), &name);
        }
        if let Some((label, index)) = &mut self.by_label
            && let Some(value) = object.meta.labels.get(*label)
        {
            forget(index, value, &name);
        }
    }

    fn push(&mut self, event: Arc<Event>) {
        self.revision = event.revision;
        self.ring_bytes += event.size();
        self.ring.push_back(event);
        let most_events = RING_EVENTS.max(2 * self.count);
        let most_bytes = RING_BYTES + 2 * self.bytes;
        while self.ring.len() > 1 && (self.ring.len() > most_events || self.ring_bytes > most_bytes)
        {
            if let Some(event) = self.ring.pop_front() {
                self.ring_bytes -= event.size();
                self.first += 1;
                self.horizon = event.revision;
            }
        }
    }
}

fn forget(index: &mut Index, value: &str, name: &ObjectName) {
    if let Some(names) = index.get_mut(value) {
        names.remove(name);
        if names.is_empty() {
            index.remove(value);
        }
    }
}
