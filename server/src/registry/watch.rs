//! watch: what happened to the objects that a client selects, after a revision or from now on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use amphipod_api::Status;
use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::read::{check_fields, check_options, gone_status, matches, parse_revision};
use super::{Context, ListOptions, Registry, shown};
use crate::cache::{Event, EventType, Object, Watch};
use crate::resources::Descriptor;

/// Bookmarks are sent about this often: a client that resumes then misses little.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a timeout ends after this, and up to twice that, so that not all come back at once.
const TIMEOUT_LEAST: Duration = Duration::from_secs(1800);
/// What it takes to tell one watcher something and to have it read, roughly: a TLS record, system calls and wake-ups at both
/// ends.
const TELLING: Duration = Duration::from_micros(50);
/// A pause shorter than the timer's grain is none.
const PAUSE_LEAST: Duration = Duration::from_millis(1);
const PAUSE_MOST: Duration = Duration::from_millis(10);

/// How long a watcher that was just told something is left alone, so that what follows closely is told in one go: about as
/// long as it takes to tell everybody. With few watchers nothing waits, and what comes after a quiet moment never does.
fn pause(audience: usize) -> Duration {
    let round = TELLING.saturating_mul(u32::try_from(audience).unwrap_or(u32::MAX));
    if round < PAUSE_LEAST {
        Duration::ZERO
    } else {
        round.min(PAUSE_MOST)
    }
}

/// One thing told to a watcher.
#[derive(Clone, Debug)]
pub enum WatchItem {
    Change {
        kind: EventType,
        object: Arc<Object>,
    },
    /// All changes up to here were told.
    Bookmark {
        revision: u64,
        /// The bookmark that ends the initial events.
        initial: bool,
    },
    /// The watch ends with this.
    Error(Status),
}

impl WatchItem {
    /// The line on the wire, newline included. Changes share their object's encoded bytes.
    pub fn line(&self, descriptor: &Descriptor) -> Bytes {
        match self {
            WatchItem::Change { kind, object } => object.event_line(*kind),
            WatchItem::Bookmark { revision, initial } => {
                let mut metadata =
                    json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
                if *initial {
                    metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                }
                let object = json!({"kind": descriptor.kind, "apiVersion": descriptor.api_version(), "metadata": metadata});
                Bytes::from(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n"))
            }
            WatchItem::Error(status) => {
                let mut line = br#"{"type":"ERROR","object":"#.to_vec();
                line.extend_from_slice(&status.to_json());
                line.extend_from_slice(b"}\n");
                Bytes::from(line)
            }
        }
    }
}

/// The stream of one watcher: a position in the resource's ring, no queue of its own.
pub struct WatchStream {
    watch: Watch,
    descriptor: Arc<Descriptor>,
    namespace: String,
    options: ListOptions,
    /// Events up to this revision are not for this watcher.
    after: u64,
    /// The first answer: the initial events.
    initial: Vec<WatchItem>,
    deadline: Instant,
    next_bookmark: Instant,
    /// Nothing is told before: see [`pause`].
    paused_until: Instant,
    /// Kept from one wait to the next: to set it up anew costs more than the wait.
    timer: Pin<Box<Sleep>>,
    /// The revision of the last bookmark or event.
    told: u64,
    ended: bool,
}

impl Registry {
    /// Watches. The stream begins with the objects there are, if the options ask for them.
    ///
    /// # Errors
    /// 410 if the revision is of the past; 400 and 422 for options that do not fit together; 504 for the future.
    pub async fn watch(&self, cx: &Context, options: ListOptions) -> Result<WatchStream, Status> {
        check_options(&options, true)?;
        check_fields(&cx.descriptor, &options.field_selector)?;
        let revision = parse_revision(&options.resource_version)?;
        let table = self.table(&cx.descriptor);
        let namespace = Some(cx.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let from_now = revision.is_none_or(|revision| revision == 0);
        let with_state = options.send_initial_events.unwrap_or(from_now);
        if options.send_initial_events.is_some() {
            self.reach(revision).await?;
        }
        let mut initial = Vec::new();
        let (watch, after) = match revision {
            Some(revision) if !from_now && !with_state => (
                table
                    .subscribe(revision)
                    .map_err(|gone| gone_status(&gone))?,
                revision,
            ),
            _ => {
                let (snapshot, watch) = table.list_and_watch(namespace);
                if with_state {
                    let selected = snapshot
                        .items
                        .into_iter()
                        .filter(|object| matches(object, &table, &options));
                    initial.extend(selected.map(|object| WatchItem::Change {
                        kind: EventType::Added,
                        object,
                    }));
                }
                if options.send_initial_events == Some(true) && options.allow_watch_bookmarks {
                    initial.push(WatchItem::Bookmark {
                        revision: snapshot.revision,
                        initial: true,
                    });
                }
                (watch, snapshot.revision)
            }
        };
        let now = Instant::now();
        let timeout = options
            .timeout
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or_else(|| {
                TIMEOUT_LEAST
                    + Duration::from_secs(u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 7)
            });
        Ok(WatchStream {
            watch,
            descriptor: cx.descriptor.clone(),
            namespace: cx.namespace.clone(),
            options,
            after,
            initial,
            deadline: now + timeout,
            next_bookmark: now + BOOKMARK_EVERY,
            paused_until: now,
            timer: Box::pin(tokio::time::sleep_until(now + timeout)),
            told: after,
            ended: false,
        })
    }
}

impl WatchStream {
    /// Waits for what is next: one or more items, or `None` when the watch is over. Cancel-safe.
    ///
    /// A watcher that is too slow gets an error of 410 as its last item; it lists again.
    pub async fn next(&mut self) -> Option<Vec<WatchItem>> {
        let mut items = self.next_stored().await?;
        if self.descriptor.conversion.is_some() {
            for item in &mut items {
                if let WatchItem::Change { object, .. } = item {
                    *object = shown(&self.descriptor, object.clone());
                }
            }
        }
        Some(items)
    }

    async fn next_stored(&mut self) -> Option<Vec<WatchItem>> {
        if !self.initial.is_empty() {
            return Some(std::mem::take(&mut self.initial));
        }
        if self.ended {
            return None;
        }
        loop {
            // Looked at first: a stream of events that never dries up must not put off the end.
            let now = Instant::now();
            if now >= self.deadline {
                self.ended = true;
                return self.bookmark();
            }
            if now >= self.next_bookmark {
                self.next_bookmark = now + BOOKMARK_EVERY;
                if let Some(bookmark) = self.bookmark() {
                    return Some(bookmark);
                }
            }
            let bookmarks = self.options.allow_watch_bookmarks;
            let wake = if bookmarks {
                self.deadline.min(self.next_bookmark)
            } else {
                self.deadline
            };
            self.set_timer(wake);
            tokio::select! {
                biased;
                () = self.watch.ready() => {}
                () = self.timer.as_mut() => continue,
            }
            if Instant::now() < self.paused_until {
                self.set_timer(self.paused_until);
                self.timer.as_mut().await;
            }
            match self.watch.try_next() {
                Ok(events) => {
                    let items = self.select(&events);
                    if !items.is_empty() {
                        self.paused_until = Instant::now() + pause(self.watch.audience());
                        return Some(items);
                    }
                }
                Err(gone) => {
                    self.ended = true;
                    return Some(vec![WatchItem::Error(gone_status(&gone))]);
                }
            }
        }
    }

    fn set_timer(&mut self, at: Instant) {
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
    }

    /// A bookmark, if one is wanted and says something new.
    fn bookmark(&mut self) -> Option<Vec<WatchItem>> {
        // Events that came in this instant must be told before: leave the bookmark to the next time.
        let revision = match self.watch.idle_revision() {
            Some(revision) if self.options.allow_watch_bookmarks && revision > self.told => {
                revision
            }
            _ => return None,
        };
        self.told = revision;
        Some(vec![WatchItem::Bookmark {
            revision,
            initial: false,
        }])
    }

    fn select(&mut self, events: &[Arc<Event>]) -> Vec<WatchItem> {
        let mut items = Vec::new();
        for event in events.iter().filter(|event| event.revision > self.after) {
            if !self.namespace.is_empty() && *event.object.meta.namespace != *self.namespace {
                continue;
            }
            let before = event
                .prev
                .as_deref()
                .is_some_and(|prev| matches(prev, self.watch.table(), &self.options));
            let after = event.kind != EventType::Deleted
                && matches(&event.object, self.watch.table(), &self.options);
            let item = match (before, after, event.kind) {
                (false, false, _) => continue,
                (false, true, _) => WatchItem::Change {
                    kind: EventType::Added,
                    object: event.object.clone(),
                },
                (true, true, _) => WatchItem::Change {
                    kind: EventType::Modified,
                    object: event.object.clone(),
                },
                (true, false, EventType::Deleted) => WatchItem::Change {
                    kind: EventType::Deleted,
                    object: event.object.clone(),
                },
                (true, false, _) => {
                    // It no longer matches: the client sees its last matching state go.
                    let Some(prev) = &event.prev else { continue };
                    let object = Arc::new(prev.restamped(event.revision, EventType::Deleted));
                    WatchItem::Change {
                        kind: EventType::Deleted,
                        object,
                    }
                }
            };
            self.told = event.revision;
            items.push(item);
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_of_watchers_is_made_to_pause() {
        assert_eq!(pause(1), Duration::ZERO);
        assert_eq!(pause(10), Duration::ZERO);
        assert_eq!(pause(100), Duration::from_millis(5));
        assert_eq!(pause(1_000_000), PAUSE_MOST);
    }
}
