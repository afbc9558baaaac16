//! Pods that wait to be scheduled: now, after a pause, or after a change that gives them hope.
//!
//! ```text
//!            add              pop                       refused
//!   (waiting) ──► active ──────────► being scheduled ───────────► hopeless
//!                   ▲                       │ failed to bind          │ a change it hoped for
//!                   └── time passed ── backing off ◄─────────────────┘
//! ```
//!
//! Invariant: a pod stands in one of the three at most. Pure: the clock is an argument.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::framework::Hopes;
use super::pod::PodInfo;

/// The first pause after a failure, and the longest; it doubles in between. Upstream begins with a second, which the first pod
/// of a box that is just starting would wait for nothing: its node becomes ready some milliseconds later.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Highest priority first, then oldest, then by UID, so that the order is total.
type Rank = (Reverse<i32>, String, String);

fn rank(pod: &PodInfo) -> Rank {
    (Reverse(pod.priority), pod.created.clone(), pod.uid.clone())
}

struct Waiting {
    pod: Arc<PodInfo>,
    failures: u32,
    failed_at: Instant,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    /// Until this time.
    Pausing(Instant),
    Hopeless(Hopes),
    /// Handed out by [`Queue::pop`]. What happened since is remembered: it may be what the pod will turn out to need.
    Taken(Hopes),
}

#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<Rank>,
    /// (when, UID)
    pausing: BTreeSet<(Instant, String)>,
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(8))
        .min(LONGEST_PAUSE)
}

impl Queue {
    /// A pod waits, or has changed while it waited; a change of its own always gives hope.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let (failures, failed_at) = self
            .pods
            .get(&uid)
            .map_or((0, now), |waiting| (waiting.failures, waiting.failed_at));
        self.remove(&uid);
        self.pods.insert(
            uid.clone(),
            Waiting {
                pod,
                failures,
                failed_at,
                place: Place::Hopeless(Hopes::default()),
            },
        );
        self.release(&uid, now);
    }

    /// The pod's newest state without giving it hope: only what this scheduler itself wrote has changed.
    pub fn refresh(&mut self, pod: Arc<PodInfo>, now: Instant) {
        match self.pods.get_mut(&pod.uid) {
            Some(waiting) if rank(&waiting.pod) == rank(&pod) => waiting.pod = pod,
            _ => self.add(pod, now),
        }
    }

    /// What is known of a waiting pod.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|waiting| &waiting.pod)
    }

    /// A pod does not wait any more: bound, deleted, or for another scheduler.
    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.remove(uid) {
            self.unplace(&waiting);
        }
    }

    fn unplace(&mut self, waiting: &Waiting) {
        match waiting.place {
            Place::Active => drop(self.active.remove(&rank(&waiting.pod))),
            Place::Pausing(until) => drop(self.pausing.remove(&(until, waiting.pod.uid.clone()))),
            Place::Hopeless(_) | Place::Taken(_) => {}
        }
    }

    /// The next pod to schedule, taken out until [`Queue::refused`], [`Queue::failed`] or [`Queue::remove`] is called for it.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((until, uid)) = self
            .pausing
            .first()
            .cloned()
            .filter(|(until, _)| *until <= now)
        {
            self.pausing.remove(&(until, uid.clone()));
            if let Some(waiting) = self.pods.get_mut(&uid) {
                waiting.place = Place::Active;
                self.active.insert(rank(&waiting.pod));
            }
        }
        let (_, _, uid) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&uid)?;
        waiting.place = Place::Taken(Hopes::default());
        Some(waiting.pod.clone())
    }

    /// When the next pause ends.
    pub fn next_pause_ends(&self) -> Option<Instant> {
        self.pausing.first().map(|(until, _)| *until)
    }

    /// No node takes the pod: it waits for one of `hopes`.
    pub fn refused(&mut self, uid: &str, hopes: Hopes, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let Place::Taken(happened) = waiting.place else {
            return;
        };
        waiting.failures += 1;
        waiting.failed_at = now;
        waiting.place = Place::Hopeless(hopes);
        if hopes.meet(happened) {
            self.release(uid, now);
        }
    }

    /// Something went wrong that has nothing to do with the nodes: try again after a pause.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        if !matches!(waiting.place, Place::Taken(_)) {
            return;
        }
        waiting.failures += 1;
        waiting.failed_at = now;
        waiting.place = Place::Hopeless(Hopes::default());
        self.release(uid, now);
    }

    /// The cluster changed: whoever hoped for it tries again.
    pub fn happened(&mut self, what: Hopes, now: Instant) {
        let mut released = Vec::new();
        for (uid, waiting) in &mut self.pods {
            match &mut waiting.place {
                Place::Hopeless(hopes) if hopes.meet(what) => released.push(uid.clone()),
                Place::Taken(happened) => *happened = happened.or(what),
                _ => {}
            }
        }
        for uid in released {
            self.release(&uid, now);
        }
    }

    /// Into the active queue, or into a pause if it failed just now.
    fn release(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let until = waiting.failed_at + pause(waiting.failures);
        if waiting.failures == 0 || until <= now {
            waiting.place = Place::Active;
            self.active.insert(rank(&waiting.pod));
        } else {
            waiting.place = Place::Pausing(until);
            self.pausing.insert((until, uid.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NODE: Hopes = Hopes {
        node: true,
        pod_gone: false,
        pod_came: false,
        volume: false,
    };
    const GONE: Hopes = Hopes {
        node: false,
        pod_gone: true,
        pod_came: false,
        volume: false,
    };

    fn pod(uid: &str, priority: i32, created: &str) -> Arc<PodInfo> {
        Arc::new(PodInfo {
            uid: uid.into(),
            priority,
            created: created.into(),
            ..Default::default()
        })
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.uid.clone())
    }

    #[test]
    fn the_important_come_first_and_then_the_old() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for pod in [
            pod("young", 0, "2"),
            pod("old", 0, "1"),
            pod("important", 9, "3"),
        ] {
            queue.add(pod, now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["important", "old", "young"]);
    }

    #[test]
    fn a_refused_pod_waits_for_what_may_help_and_then_pauses() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("p", 0, "1"), now);
        assert_eq!(popped(&mut queue, now).as_deref(), Some("p"));
        queue.refused("p", GONE, now);
        queue.happened(NODE, now);
        assert_eq!(
            (popped(&mut queue, now), queue.next_pause_ends()),
            (None, None)
        );
        queue.happened(GONE, now);
        assert_eq!(popped(&mut queue, now), None);
        let ends = queue.next_pause_ends().unwrap();
        assert_eq!(ends, now + FIRST_PAUSE);
        assert_eq!(popped(&mut queue, ends).as_deref(), Some("p"));
    }

    #[test]
    fn what_happens_while_a_pod_is_being_scheduled_is_not_missed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("p", 0, "1"), now);
        queue.pop(now);
        queue.happened(NODE, now);
        queue.refused("p", NODE, now);
        assert!(queue.next_pause_ends().is_some());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis: Vec<u128> = [1, 2, 3, 8, 9, 40]
            .map(|failures| pause(failures).as_millis())
            .to_vec();
        assert_eq!(millis, [50, 100, 200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn own_writes_give_no_hope_but_a_users_change_does() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("p", 0, "1"), now);
        queue.pop(now);
        queue.refused("p", GONE, now);
        queue.refresh(pod("p", 0, "1"), now);
        assert_eq!(queue.next_pause_ends(), None);
        queue.add(pod("p", 0, "1"), now);
        assert!(queue.next_pause_ends().is_some());
        queue.remove("p");
        assert_eq!(queue.next_pause_ends(), None);
    }
}
