//! The revision log: where every object is kept, and in which order everything happened.
//!
//! [`Store`] is what the rest of the server knows. It is shaped so that etcd can stand behind it: flat keys, one global
//! revision, one conditional change per commit, ranged loads, watches from a revision, compaction. A store knows keys and
//! bytes; it never looks into an object.
//!
//! Invariants:
//! - Revisions only grow, survive restarts, and are never given to two changes, also not after a crash.
//! - A commit answers after its record was given to every watcher, in revision order: who has the answer can read the write
//!   from the cache.
//! - [`Durability::Immediate`] commits are on disk when they answer.

mod backup;
mod history;
mod log;
mod pending;
mod salvage;
mod sqlite;
mod writer;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use sqlite::{Opened, Options, SqliteStore};

/// Where an object lives: `resource/namespace/name`, the namespace being empty for cluster-scoped resources.
///
/// `resource` is the storage name of the resource: the plural for the core group (`pods`), else `plural.group`
/// (`deployments.apps`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of an object. None of the parts may contain `/`; names are validated long before.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Key {
        let mut key = String::with_capacity(resource.len() + namespace.len() + name.len() + 2);
        key.push_str(resource);
        key.push('/');
        key.push_str(namespace);
        key.push('/');
        key.push_str(name);
        Key(key.into())
    }

    /// Reads a key as the store keeps it; `None` if it has not the three parts.
    pub fn parse(text: &str) -> Option<Key> {
        (text.bytes().filter(|byte| *byte == b'/').count() == 2).then(|| Key(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn resource(&self) -> &str {
        self.part(0)
    }

    /// Empty for cluster-scoped resources.
    pub fn namespace(&self) -> &str {
        self.part(1)
    }

    pub fn name(&self) -> &str {
        self.part(2)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What must be true of the key for the change to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key's latest change has this revision.
    Revision(u64),
}

/// What happens to the key.
#[derive(Clone, Debug)]
pub enum Change {
    /// The object's JSON, without a resourceVersion: the revision is that.
    Put(Bytes),
    Delete,
}

/// When a change is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Before the commit answers.
    #[default]
    Immediate,
    /// Within seconds for new and deleted keys, within minutes for a key that is rewritten again and again; only the latest
    /// state of a key is written. For heartbeats and events: they are not worth wearing out flash.
    Lazy,
}

/// One conditional change.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Key,
    pub expect: Expect,
    pub change: Change,
    pub durability: Durability,
    /// This write leads to less being stored (a deletion, or a mark that begins one): it may use the space that is kept back
    /// for that when the disk is full.
    pub frees: bool,
}

/// One change that happened.
#[derive(Clone, Debug)]
pub struct Record {
    pub revision: u64,
    pub key: Key,
    /// The bytes that were put; `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// Gets records in revision order, each revision once. Runs where commits are made: it must be quick and must not commit.
pub type Sink = Box<dyn FnMut(&[Record]) + Send>;

/// Where a store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The latest revision that was given out, now or before the last restart.
    pub revision: u64,
    /// The oldest revision from which [`Store::watch`] can tell every later [`Durability::Immediate`] change.
    pub horizon: u64,
    /// The same for [`Durability::Lazy`] changes, whose history does not survive a restart.
    pub lazy_horizon: u64,
}

/// Why a commit or a read did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The expectation did not hold. Carries the key's revision now; `None`: it does not exist.
    #[error("the key is at revision {current:?}")]
    Conflict { current: Option<u64> },
    /// No space on the device. Reads go on, and so will writes when there is space.
    #[error(
        "the disk that holds the server's state is full ({0}): free space there, writes then go on by themselves"
    )]
    Full(String),
    /// The device refuses writes.
    #[error("the disk that holds the server's state refuses writes: {0}")]
    ReadOnly(String),
    /// The history from this revision on is gone.
    #[error("history before revision {horizon} has been compacted")]
    Compacted { horizon: u64 },
    /// The file is damaged.
    #[error("the state database is damaged: {0}")]
    Corrupt(String),
    #[error("the state database failed: {0}")]
    Failed(String),
    #[error("the server is shutting down")]
    Closed,
}

/// Revisioned keys with conditional commits.
pub trait Store: Send + Sync + 'static {
    /// Makes one change, or none. Answers with its revision after all watchers were given the record.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the expectation does not hold; otherwise what the disk said.
    fn commit(&self, write: Write) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Where the store stands.
    fn position(&self) -> Position;

    /// Visits what was live at revision `at` under a prefix (`""`: everything; `pods/`: a resource), in revision order.
    /// A key may be visited several times: the last visit counts, also if it says deleted.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `at` is older than the horizon.
    fn load<'a>(
        &'a self,
        prefix: &'a str,
        at: u64,
        visit: Box<dyn FnMut(Record) + Send>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Gives `sink` every change after revision `after`: first those already made, then each new one as it is made.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `after` is older than the horizon.
    fn watch(&self, after: u64, sink: Sink) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Forgets changes up to `revision` that later ones made obsolete. The horizon moves there.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Writes what is not written yet and lets go of the file. Later commits say [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
