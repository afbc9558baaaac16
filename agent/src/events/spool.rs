//! Events that wait to be told, in order of when they happened last. Pure.
//!
//! What happens again while it waits is counted, not added: an hour of a pod that crashes is a handful of events. Of different
//! events there may be [`LIMIT`]; beyond that those go whose last occurrence is the longest ago.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// So many different events wait at most.
pub const LIMIT: usize = 1000;

/// One event to tell.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Raw {
    pub object: Value,
    pub severity: String,
    pub reason: String,
    pub message: String,
    /// When it happened first, RFC 3339.
    pub time: String,
    /// When it happened last.
    #[serde(default)]
    pub last: String,
    #[serde(default = "once")]
    pub count: i64,
    /// The end of its name; told twice, it is the same event.
    #[serde(default)]
    pub stamp: String,
}

fn once() -> i64 {
    1
}

/// As client-go names them: events of one second are then listed in the order in which they happened.
fn stamp() -> String {
    format!("{:x}", jiff::Timestamp::now().as_nanosecond())
}

impl Raw {
    pub fn new(
        object: Value,
        severity: String,
        reason: String,
        message: String,
        time: String,
    ) -> Raw {
        Raw {
            object,
            severity,
            reason,
            message,
            last: time.clone(),
            time,
            count: 1,
            stamp: stamp(),
        }
    }

    /// What makes two events the same.
    pub fn key(&self) -> String {
        format!(
            "{}/{}/{}/{}",
            self.object, self.severity, self.reason, self.message
        )
    }
}

struct Waiting {
    /// Its row on disk.
    id: i64,
    saved: bool,
    raw: Raw,
}

#[derive(Default)]
pub struct Spool {
    waiting: VecDeque<Waiting>,
    next: i64,
    /// Rows whose events are gone.
    gone: Vec<i64>,
    dropped: usize,
}

impl Spool {
    /// What an earlier process left: rows and their events, in order. Those that cannot be read are forgotten.
    pub fn restore(stored: Vec<(i64, String)>) -> Spool {
        let mut spool = Spool::default();
        for (id, body) in stored {
            spool.next = spool.next.max(id + 1);
            match serde_json::from_str::<Raw>(&body) {
                Ok(mut raw) => {
                    if raw.stamp.is_empty() {
                        raw.stamp = stamp();
                        raw.last = raw.time.clone();
                    }
                    spool.waiting.push_back(Waiting {
                        id,
                        saved: true,
                        raw,
                    });
                }
                Err(_) => spool.gone.push(id),
            }
        }
        spool
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether this event waits already.
    pub fn has(&self, raw: &Raw) -> bool {
        self.position(raw).is_some()
    }

    fn position(&self, raw: &Raw) -> Option<usize> {
        self.waiting.iter().position(|w| {
            w.raw.object == raw.object
                && w.raw.reason == raw.reason
                && w.raw.message == raw.message
                && w.raw.severity == raw.severity
        })
    }

    /// The event comes last; if it waits already, it is counted.
    pub fn add(&mut self, mut raw: Raw) {
        if let Some(same) = self
            .position(&raw)
            .and_then(|position| self.waiting.remove(position))
        {
            self.forget(&same);
            raw.count += same.raw.count;
            raw.time = same.raw.time;
        }
        let id = self.next;
        self.next += 1;
        self.waiting.push_back(Waiting {
            id,
            saved: false,
            raw,
        });
        if self.waiting.len() > LIMIT
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.forget(&oldest);
            self.dropped += 1;
        }
    }

    fn forget(&mut self, waiting: &Waiting) {
        if waiting.saved {
            self.gone.push(waiting.id);
        }
    }

    /// The one to tell next.
    pub fn first(&self) -> Option<&Raw> {
        self.waiting.front().map(|waiting| &waiting.raw)
    }

    /// The first was told. Its row, if it is on disk.
    pub fn told(&mut self) -> Option<i64> {
        let told = self.waiting.pop_front()?;
        told.saved.then_some(told.id)
    }

    /// Rows to write, and rows to remove; they count as done.
    pub fn unsaved(&mut self) -> (Vec<(i64, String)>, Vec<i64>) {
        let new = self.waiting.iter_mut().filter(|waiting| !waiting.saved);
        let new = new.filter_map(|waiting| {
            waiting.saved = true;
            Some((waiting.id, serde_json::to_string(&waiting.raw).ok()?))
        });
        (new.collect(), std::mem::take(&mut self.gone))
    }

    /// How many events were dropped since this was asked last.
    pub fn take_dropped(&mut self) -> usize {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn raw(reason: &str, time: &str) -> Raw {
        let text = str::to_owned;
        Raw::new(
            json!({"name": "a"}),
            text("Normal"),
            text(reason),
            text("m"),
            text(time),
        )
    }

    fn reasons(spool: &mut Spool) -> Vec<(String, i64)> {
        let mut all = Vec::new();
        while let Some(raw) = spool.first() {
            all.push((raw.reason.clone(), raw.count));
            spool.told();
        }
        all
    }

    #[test]
    fn what_happens_again_is_counted_and_told_in_order_of_its_last_time() {
        let mut spool = Spool::default();
        for (reason, time) in [("Started", "1"), ("BackOff", "2"), ("Started", "3")] {
            spool.add(raw(reason, time));
        }
        assert!(spool.has(&raw("BackOff", "9")) && !spool.has(&raw("Killing", "9")));
        let all = [("BackOff".to_owned(), 1), ("Started".to_owned(), 2)];
        assert_eq!(reasons(&mut spool), all);
    }

    #[test]
    fn a_restart_finds_what_was_not_told() {
        let mut spool = Spool::default();
        spool.add(raw("a", "1"));
        spool.add(raw("b", "2"));
        let (mut disk, gone) = spool.unsaved();
        assert_eq!((disk.len(), gone.len()), (2, 0));
        assert_eq!(spool.unsaved(), (vec![], vec![]));
        spool.add(raw("a", "3"));
        let (new, gone) = spool.unsaved();
        disk.retain(|(id, _)| !gone.contains(id));
        disk.extend(new);
        disk.push((77, "not an event".to_owned()));
        let mut spool = Spool::restore(disk);
        assert_eq!(spool.first().unwrap().reason, "b");
        assert_eq!(spool.unsaved(), (vec![], vec![77]));
        spool.add(raw("c", "4"));
        let all = ["b", "a", "c"].map(str::to_owned);
        assert_eq!(
            reasons(&mut spool)
                .into_iter()
                .map(|r| r.0)
                .collect::<Vec<_>>(),
            all
        );
    }

    #[test]
    fn too_many_events_push_out_the_oldest() {
        let mut spool = Spool::default();
        for number in 0..LIMIT + 3 {
            spool.add(raw(&number.to_string(), "1"));
        }
        assert_eq!((spool.take_dropped(), spool.take_dropped()), (3, 0));
        assert_eq!(spool.first().unwrap().reason, "3");
    }
}
