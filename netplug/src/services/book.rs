//! Who wants which frontend, what the kernel has, and what has to change: the diff between the two.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Frontend, Key};

/// Who asks for frontends. The order decides who wins when two ask for the same one: services before pods, then by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    Service(String),
    Pod(String),
}

/// One step for the kernel: what was there, what is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub old: Option<Arc<Frontend>>,
    pub new: Option<Arc<Frontend>>,
}

/// The desired and the installed frontends.
#[derive(Debug, Default)]
pub struct Book {
    /// The frontends each owner asked for.
    owners: BTreeMap<Owner, Vec<Key>>,
    /// All that ask for a frontend; the first owner gets it.
    claims: HashMap<Key, BTreeMap<Owner, Arc<Frontend>>>,
    /// What the kernel has, as far as we know. Written by [`Book::installed`] and [`Book::done`] only.
    installed: HashMap<Key, Arc<Frontend>>,
}

impl Book {
    /// What the kernel was found to have.
    pub fn installed(&mut self, found: HashMap<Key, Arc<Frontend>>) {
        self.installed = found;
    }

    /// Replaces the wishes of one owner; an empty list ends them. Returns the frontends that may have to change, for [`Book::changes`].
    pub fn set(&mut self, owner: Owner, wishes: Vec<(Key, Frontend)>) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        for key in self.owners.remove(&owner).unwrap_or_default() {
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.remove(&owner);
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
            touched.insert(key);
        }
        let mut keys = Vec::with_capacity(wishes.len());
        for (key, frontend) in wishes {
            let claims = self.claims.entry(key).or_default();
            if let Some(other) = claims.keys().find(|o| **o != owner) {
                tracing::warn!(
                    "{owner:?} and {other:?} both want {} port {} ({:?}): the first by name gets it",
                    key.ip,
                    key.port,
                    key.protocol
                );
            }
            if claims.insert(owner.clone(), Arc::new(frontend)).is_none() {
                keys.push(key);
            }
            touched.insert(key);
        }
        if !keys.is_empty() {
            keys.shrink_to_fit();
            self.owners.insert(owner, keys);
        }
        touched
    }

    /// The services that are known.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.owners.keys().filter_map(|o| match o {
            Owner::Service(key) => Some(key.as_str()),
            Owner::Pod(_) => None,
        })
    }

    fn wanted(&self, key: &Key) -> Option<&Arc<Frontend>> {
        self.claims.get(key).and_then(|c| c.values().next())
    }

    /// How the kernel has to change for these frontends. Endpoints that stay keep their place, so that little moves.
    pub fn changes<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Vec<Change> {
        keys.into_iter()
            .filter_map(|key| {
                let old = self.installed.get(key);
                let new = self.wanted(key);
                match (old, new) {
                    (None, None) => None,
                    (Some(a), Some(b)) if Arc::ptr_eq(a, b) || a.same(b) => None,
                    _ => Some(Change {
                        key: *key,
                        old: old.cloned(),
                        new: new.map(|n| keep_places(old.map(Arc::as_ref), n)),
                    }),
                }
            })
            .collect()
    }

    /// All frontends that are wanted or installed, in order.
    pub fn keys(&self) -> BTreeSet<Key> {
        self.claims
            .keys()
            .chain(self.installed.keys())
            .copied()
            .collect()
    }

    /// All frontends that are wanted.
    pub fn claimed(&self) -> BTreeSet<Key> {
        self.claims.keys().copied().collect()
    }

    /// The kernel took these changes.
    pub fn done(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change.new {
                Some(new) => self.installed.insert(change.key, new),
                None => self.installed.remove(&change.key),
            };
        }
    }

    /// Everything that is installed.
    pub fn current(&self) -> &HashMap<Key, Arc<Frontend>> {
        &self.installed
    }
}

/// The new frontend with its endpoints ordered so that those which stay keep their index.
fn keep_places(old: Option<&Frontend>, new: &Arc<Frontend>) -> Arc<Frontend> {
    let (
        Some(Frontend::Forward {
            endpoints: before, ..
        }),
        Frontend::Forward {
            endpoints: after,
            masquerade,
            affinity,
            sources,
        },
    ) = (old, new.as_ref())
    else {
        return new.clone();
    };
    let stays: BTreeSet<&SocketAddr> = before.iter().filter(|e| after.contains(e)).collect();
    let mut fresh = after.iter().filter(|e| !stays.contains(e));
    let mut endpoints: Vec<Option<SocketAddr>> = before
        .iter()
        .take(after.len())
        .map(|e| stays.contains(e).then_some(*e))
        .collect();
    endpoints.resize(after.len(), None);
    // Those whose index is beyond the new end move into holes, then come the new ones.
    let mut moved = before
        .iter()
        .skip(after.len())
        .filter(|e| stays.contains(e));
    let endpoints = endpoints
        .into_iter()
        .filter_map(|e| e.or_else(|| moved.next().or_else(|| fresh.next()).copied()))
        .collect();
    Arc::new(Frontend::Forward {
        endpoints,
        masquerade: *masquerade,
        affinity: *affinity,
        sources: sources.clone(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::service::Protocol;
    use crate::services::Scope;

    fn key(port: u16) -> Key {
        Key {
            scope: Scope::Everyone,
            ip: "10.43.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
        }
    }

    fn to(endpoints: &[&str]) -> Frontend {
        Frontend::Forward {
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            masquerade: false,
            affinity: 0,
            sources: vec![],
        }
    }

    fn service(name: &str) -> Owner {
        Owner::Service(name.into())
    }

    fn apply(book: &mut Book, keys: BTreeSet<Key>) -> Vec<Change> {
        let changes = book.changes(&keys);
        book.done(changes.clone());
        changes
    }

    #[test]
    fn only_what_differs_is_sent() {
        let mut book = Book::default();
        let keys = book.set(
            service("a"),
            vec![
                (key(1), to(&["1.1.1.1:1", "2.2.2.2:2"])),
                (key(2), Frontend::Reject),
            ],
        );
        assert_eq!(apply(&mut book, keys).len(), 2);
        let keys = book.set(
            service("a"),
            vec![
                (key(1), to(&["2.2.2.2:2", "1.1.1.1:1"])),
                (key(2), Frontend::Drop),
            ],
        );
        let changes = apply(&mut book, keys);
        assert_eq!(changes.iter().map(|c| c.key).collect::<Vec<_>>(), [key(2)]);
        let keys = book.set(service("a"), vec![]);
        assert_eq!(apply(&mut book, keys).len(), 2);
        assert!(book.current().is_empty());
    }

    #[test]
    fn endpoints_that_stay_keep_their_place() {
        let mut book = Book::default();
        let keys = book.set(
            service("a"),
            vec![(
                key(1),
                to(&["1.1.1.1:1", "2.2.2.2:2", "3.3.3.3:3", "4.4.4.4:4"]),
            )],
        );
        apply(&mut book, keys);
        let keys = book.set(
            service("a"),
            vec![(key(1), to(&["1.1.1.1:1", "3.3.3.3:3", "4.4.4.4:4"]))],
        );
        let new = apply(&mut book, keys).remove(0).new.unwrap();
        assert_eq!(*new, to(&["1.1.1.1:1", "4.4.4.4:4", "3.3.3.3:3"]));
        let keys = book.set(
            service("a"),
            vec![(
                key(1),
                to(&["0.0.0.9:9", "1.1.1.1:1", "3.3.3.3:3", "5.5.5.5:5"]),
            )],
        );
        let new = apply(&mut book, keys).remove(0).new.unwrap();
        assert_eq!(
            *new,
            to(&["1.1.1.1:1", "0.0.0.9:9", "3.3.3.3:3", "5.5.5.5:5"])
        );
    }

    #[test]
    fn the_first_owner_wins_and_the_second_inherits() {
        let mut book = Book::default();
        let keys = book.set(service("b"), vec![(key(1), to(&["1.1.1.1:1"]))]);
        apply(&mut book, keys);
        let keys = book.set(service("a"), vec![(key(1), to(&["2.2.2.2:2"]))]);
        assert_eq!(
            *apply(&mut book, keys)[0].new.clone().unwrap(),
            to(&["2.2.2.2:2"])
        );
        let keys = book.set(Owner::Pod("0".into()), vec![(key(1), to(&["3.3.3.3:3"]))]);
        assert!(apply(&mut book, keys).is_empty());
        let keys = book.set(service("a"), vec![]);
        assert_eq!(
            *apply(&mut book, keys)[0].new.clone().unwrap(),
            to(&["1.1.1.1:1"])
        );
    }

    #[test]
    fn what_an_earlier_run_left_is_adopted_or_removed() {
        let mut book = Book::default();
        book.installed(
            [
                (key(1), Arc::new(to(&["1.1.1.1:1"]))),
                (key(2), Arc::new(Frontend::Reject)),
            ]
            .into(),
        );
        book.set(service("a"), vec![(key(1), to(&["1.1.1.1:1"]))]);
        let keys = book.keys();
        let changes = book.changes(&keys);
        assert_eq!(
            changes,
            [Change {
                key: key(2),
                old: Some(Arc::new(Frontend::Reject)),
                new: None
            }]
        );
    }
}
