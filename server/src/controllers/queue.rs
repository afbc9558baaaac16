//! The work queue that all controllers share: keys to look at, each once, with pauses after failures.
//!
//! Pure: the clock is an argument. Source of the semantics: client-go's workqueue.
//!
//! Invariant: a key is worked on by one worker at a time; what is added while it is worked on is looked at again afterwards.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Key {
        Key {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// The first pause after a failure, and the longest; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1000);

#[derive(Debug, Default)]
pub struct WorkQueue {
    ready: VecDeque<Key>,
    /// In `ready`, or to be put there when its worker is done.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    /// When a key is due; a key stands here once at most.
    delayed: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl WorkQueue {
    /// The key is to be looked at now.
    pub fn add(&mut self, key: Key) {
        if let Some(when) = self.due.remove(&key) {
            self.delayed.remove(&(when, key.clone()));
        }
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The key is to be looked at then, or sooner if it was to be anyway.
    pub fn add_at(&mut self, key: Key, when: Instant) {
        if self.dirty.contains(&key) {
            return;
        }
        match self.due.get(&key) {
            Some(earlier) if *earlier <= when => return,
            Some(later) => drop(self.delayed.remove(&(*later, key.clone()))),
            None => {}
        }
        self.due.insert(key.clone(), when);
        self.delayed.insert((when, key));
    }

    /// The next key to look at; [`WorkQueue::done`] must follow.
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        while let Some((when, key)) = self
            .delayed
            .first()
            .cloned()
            .filter(|(when, _)| *when <= now)
        {
            self.delayed.remove(&(when, key.clone()));
            self.due.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// When the next delayed key is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(when, _)| *when)
    }

    /// A worker is done with a key.
    pub fn done(&mut self, key: &Key, outcome: Outcome, now: Instant) {
        self.working.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
        match outcome {
            Outcome::Done => drop(self.failures.remove(key)),
            Outcome::After(pause) => {
                self.failures.remove(key);
                self.add_at(key.clone(), now + pause);
            }
            Outcome::Failed => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures += 1;
                let pause = FIRST_PAUSE
                    .saturating_mul(1 << (*failures - 1).min(20))
                    .min(LONGEST_PAUSE);
                self.add_at(key.clone(), now + pause);
            }
        }
    }
}

/// How looking at a key ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Look again when this time has passed, also if nothing changes.
    After(Duration),
    /// Try again after a pause that grows with each failure.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn a_key_is_handed_out_once_and_again_if_added_meanwhile() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.take(now), Some(key("a")));
        queue.add(key("a"));
        assert_eq!(queue.take(now), None, "one worker at a time");
        queue.done(&key("a"), Outcome::Done, now);
        assert_eq!(queue.take(now), Some(key("a")));
        queue.done(&key("a"), Outcome::Done, now);
        assert_eq!(queue.take(now), None);
    }

    #[test]
    fn failures_pause_longer_and_success_forgets_them() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.add(key("a"));
        for pause in [5, 10, 20] {
            let when = queue.next_due().unwrap_or(now);
            queue.take(when);
            queue.done(&key("a"), Outcome::Failed, now);
            assert_eq!(queue.next_due(), Some(now + Duration::from_millis(pause)));
        }
        queue.take(now + LONGEST_PAUSE);
        queue.done(&key("a"), Outcome::Done, now);
        assert_eq!((queue.next_due(), queue.failures.len()), (None, 0));
    }

    #[test]
    fn the_earliest_time_counts_and_an_add_overtakes_it() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        queue.add_at(key("a"), later(9));
        queue.add_at(key("a"), later(5));
        queue.add_at(key("a"), later(7));
        assert_eq!(queue.next_due(), Some(later(5)));
        queue.add(key("a"));
        assert_eq!(queue.next_due(), None);
        assert_eq!(queue.take(now), Some(key("a")));
    }
}
