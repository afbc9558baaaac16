//! A reflector keeps its consumer's picture of a collection equal to the server's: list, watch, resume, list again.
//!
//! ```text
//!           ┌──────────► Listing ──(objects: Restarted)──► Watching ──(events: Applied, Deleted)──┐
//!           │               ▲  └─(error: back-off)─┐          ▲ └─(watch ends: resume from last)──┤
//!           └─(error)───────┴──────────────────────┘          └───────────────────────────────────┤
//!           ▲                                                                                      │
//!           └───────────────────────────(410: revision is gone)──────────────────────────────────┘
//! ```
//!
//! Each change is told once, in order; what was missed while revisions were lost comes as one `Restarted`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::client::{
    Client, ClientError, ListParams, Target, WatchEvent, WatchParams, is_initial_events_end,
};
use crate::meta;

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is new or changed.
    Applied(Arc<Value>),
    /// An object is gone; its last state.
    Deleted(Arc<Value>),
    /// The whole collection: everything not in it is gone. Comes first, and whenever history was lost.
    Restarted(Vec<Arc<Value>>),
}

/// Whether the server is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing was heard from the server yet.
    Connecting,
    Connected,
    /// Not reached; why. The reflector keeps trying.
    Disconnected(String),
}

/// What to reflect.
#[derive(Clone, Debug, Default)]
pub struct ReflectorConfig {
    pub label_selector: String,
    pub field_selector: String,
    pub backoff: Backoff,
}

/// Waiting times between attempts: doubled each time up to `max`, jittered by up to a half, so that a fleet does not
/// come back in step.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            min: Duration::from_millis(500),
            max: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// How long to wait after so many failures in a row (0 is the first).
    pub fn delay(&self, failures: u32) -> Duration {
        let base = self
            .min
            .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX))
            .min(self.max);
        base / 2 + base.mul_f64(random_fraction() / 2.0)
    }
}

/// Uniform in [0, 1).
fn random_fraction() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

/// Changes waiting for the consumer; then the reflector waits, and at last the server does.
const QUEUE: usize = 64;

/// A running reflector. Dropping it ends its task.
pub struct Reflector {
    events: mpsc::Receiver<Event>,
    connection: watch::Receiver<Connection>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reflector {
    /// Starts reflecting a collection, or a single object if the target has a name.
    pub fn spawn(client: Client, target: Target, config: ReflectorConfig) -> Reflector {
        let (sender, events) = mpsc::channel(QUEUE);
        let (state, connection) = watch::channel(Connection::Connecting);
        let run = Run::new(client, target, config, sender, state);
        Reflector {
            events,
            connection,
            task: tokio::spawn(run.run()),
        }
    }

    /// The next change. Cancel-safe. `None` never comes while the reflector lives, unless its task died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The state of the connection, and notice of its changes.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }
}

/// Why the consumer need not be served any longer.
struct ConsumerGone;

/// How a watch ended.
enum End {
    /// Resume from the last revision.
    Closed,
    /// The revision is gone.
    Expired,
    Failed(ClientError),
}

struct Run {
    client: Client,
    target: Target,
    params: ListParams,
    backoff: Backoff,
    events: mpsc::Sender<Event>,
    connection: watch::Sender<Connection>,
    /// The last revision whose changes were all told; empty: list first.
    revision: String,
    /// Whether the server streams lists; found out by trying.
    streams_lists: bool,
    failures: u32,
}

impl Run {
    fn new(
        client: Client,
        mut target: Target,
        config: ReflectorConfig,
        events: mpsc::Sender<Event>,
        connection: watch::Sender<Connection>,
    ) -> Run {
        let mut field_selector = config.field_selector;
        // A single object is watched as a collection of one.
        if let Some(name) = target.name.take() {
            let one = crate::FieldSelector::equals("metadata.name", &name).to_string();
            field_selector = if field_selector.is_empty() {
                one
            } else {
                format!("{field_selector},{one}")
            };
        }
        let params = ListParams {
            label_selector: config.label_selector,
            field_selector,
            ..ListParams::default()
        };
        Run {
            client,
            target,
            params,
            backoff: config.backoff,
            events,
            connection,
            revision: String::new(),
            streams_lists: true,
            failures: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let step = if self.revision.is_empty() && !self.streams_lists {
                self.list().await
            } else {
                self.watch().await
            };
            match step {
                Err(ConsumerGone) => return,
                Ok(End::Closed) => {}
                Ok(End::Expired) => self.revision.clear(),
                Ok(End::Failed(error)) => self.wait_after(error).await,
            }
            if self.events.is_closed() {
                return;
            }
        }
    }

    async fn wait_after(&mut self, error: ClientError) {
        if self.failures == 0 {
            let path = self.target.path();
            tracing::warn!(%path, %error, "cannot watch; going on with what is known and trying again");
        }
        self.connection
            .send_replace(Connection::Disconnected(error.to_string()));
        let asked = error
            .status()
            .and_then(|s| s.details.as_ref())
            .map_or(0, |d| d.retry_after_seconds.max(0));
        let asked = Duration::from_secs(asked as u64).min(self.backoff.max);
        tokio::select! {
            () = tokio::time::sleep(self.backoff.delay(self.failures).max(asked)) => {}
            () = self.client.answers_again(), if asked.is_zero() => {}
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// The server answers. How often it failed is forgotten only once it also delivers.
    fn connected(&self) {
        let before = self.connection.send_replace(Connection::Connected);
        if matches!(before, Connection::Disconnected(_)) {
            tracing::info!(path = %self.target.path(), "watching again");
        }
    }

    async fn tell(&self, event: Event) -> Result<(), ConsumerGone> {
        self.events.send(event).await.map_err(|_| ConsumerGone)
    }

    /// The list of servers that do not stream lists, in pages.
    async fn list(&mut self) -> Result<End, ConsumerGone> {
        let mut params = ListParams {
            limit: 500,
            ..self.params.clone()
        };
        let mut objects = Vec::new();
        loop {
            match self.client.list(&self.target, &params).await {
                Ok(page) => {
                    objects.extend(page.items.into_iter().map(Arc::new));
                    if page.continue_token.is_empty() {
                        self.revision = page.resource_version;
                        self.failures = 0;
                        self.connected();
                        self.tell(Event::Restarted(objects)).await?;
                        return Ok(End::Closed);
                    }
                    params.continue_token = page.continue_token;
                }
                // The token expired: from the start, whole.
                Err(ClientError::Status(s))
                    if s.is_expired() && !params.continue_token.is_empty() =>
                {
                    objects.clear();
                    params = self.params.clone();
                }
                Err(error) => return Ok(End::Failed(error)),
            }
        }
    }

    /// Watches from the last revision, or with all objects first if there is none.
    async fn watch(&mut self) -> Result<End, ConsumerGone> {
        let initial = self.revision.is_empty();
        let params = WatchParams {
            list: ListParams {
                resource_version: self.revision.clone(),
                ..self.params.clone()
            },
            send_initial_events: initial,
            // Between five and ten minutes, so that a fleet's watches do not end in step.
            timeout_seconds: 300 + (random_fraction() * 300.0) as u32,
        };
        let mut stream = match self.client.watch(&self.target, &params).await {
            Ok(stream) => stream,
            Err(ClientError::Status(status)) if status.is_expired() => return Ok(End::Expired),
            // 400 or 422: a server that does not know sendInitialEvents.
            Err(ClientError::Status(status)) if initial && matches!(status.code, 400 | 422) => {
                self.streams_lists = false;
                return Ok(End::Closed);
            }
            Err(error) => return Ok(End::Failed(error)),
        };
        self.connected();
        let opened = tokio::time::Instant::now();
        let mut delivered = false;
        // Objects before the end of the initial events.
        let mut collecting: Option<Vec<Arc<Value>>> = initial.then(Vec::new);
        while let Some(event) = stream.next().await {
            delivered |= event.is_ok();
            let (object, change) = match event {
                Ok(WatchEvent::Added(object)) => (object, Change::Added),
                Ok(WatchEvent::Modified(object)) => (object, Change::Modified),
                Ok(WatchEvent::Deleted(object)) => (object, Change::Deleted),
                Ok(WatchEvent::Bookmark(object)) => {
                    if collecting.is_none() {
                        self.advance(&object);
                    } else if is_initial_events_end(&object) {
                        self.advance(&object);
                        self.failures = 0;
                        self.tell(Event::Restarted(collecting.take().unwrap_or_default()))
                            .await?;
                    }
                    continue;
                }
                Ok(WatchEvent::Error(status)) if status.is_expired() => return Ok(End::Expired),
                Ok(WatchEvent::Error(status)) => return Ok(End::Failed(status.into())),
                Err(error) => return Ok(End::Failed(error)),
            };
            let object = Arc::new(object);
            match &mut collecting {
                Some(objects) => collect(objects, object, change),
                None => {
                    let next = meta::resource_version(&object).to_string();
                    let event = match change {
                        Change::Deleted => Event::Deleted(object),
                        Change::Added | Change::Modified => Event::Applied(object),
                    };
                    self.tell(event).await?;
                    self.revision = next;
                    self.failures = 0;
                }
            }
        }
        // Neither an end before the initial events are through nor one at once is ordinary: wait before trying again.
        let too_short = !delivered && opened.elapsed() < Duration::from_secs(1);
        if collecting.is_some() || too_short {
            return Ok(End::Failed(ClientError::Decode(
                "the watch ended too early".into(),
            )));
        }
        self.failures = 0;
        Ok(End::Closed)
    }

    fn advance(&mut self, bookmark: &Value) {
        let revision = meta::resource_version(bookmark);
        if !revision.is_empty() {
            self.revision = revision.into();
        }
    }
}

/// What a watch event says of its object.
enum Change {
    Added,
    Modified,
    Deleted,
}

/// Takes up an event before the end of the initial ones: changes may come among them.
fn collect(objects: &mut Vec<Arc<Value>>, object: Arc<Value>, change: Change) {
    let same = |old: &Arc<Value>| {
        meta::name(old) == meta::name(&object) && meta::namespace(old) == meta::namespace(&object)
    };
    match change {
        Change::Added => objects.push(object),
        Change::Modified => match objects.iter().rposition(same) {
            Some(at) => objects[at] = object,
            None => objects.push(object),
        },
        Change::Deleted => objects.retain(|old| !same(old)),
    }
}
