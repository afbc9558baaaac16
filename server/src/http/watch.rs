//! Watches as HTTP bodies: lines of JSON in a chunked answer, or text messages of a WebSocket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use amphipod_api::Status;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::app::Call;
use super::body::{self, Body};
use super::negotiate::{Encoding, Form, View};
use super::respond::{self, Answer};
use super::view::{IncludeObject, Viewer};
use super::websocket;
use crate::cache::EventType;
use crate::registry::{Context, WatchItem, WatchStream};
use crate::resources::Descriptor;

/// Answers a watch. `upgrade` is there for WebSocket clients.
///
/// # Errors
/// What the registry refuses, and forms that cannot be streamed.
pub async fn serve(
    call: &Call,
    cx: Context,
    options: crate::registry::ListOptions,
    form: Form,
    extensions: &mut http::Extensions,
) -> Answer {
    if form.encoding == Encoding::Yaml {
        return Err(Status::not_acceptable(&["application/json"]));
    }
    let include = IncludeObject::read(&call.query)?;
    let stream = call.app.registry.watch(&cx, options).await?;
    let lines = Lines {
        watch: stream,
        descriptor: cx.descriptor.clone(),
        view: form.view,
        include,
        columns: true,
        stop: Box::pin(call.stop().cancelled_owned()),
        waiting: VecDeque::new(),
    };
    if websocket::wanted(&call.headers) {
        let patience = call.app.request_timeout;
        return websocket::serve_lines(&call.headers, extensions, lines.into_stream(), patience);
    }
    let open = call.app.metrics.watch_opened();
    let begin = (lines, Bytes::new(), open);
    let body = stream::unfold(begin, |(mut lines, mut rest, open)| async move {
        if rest.is_empty() {
            rest = lines.next().await?;
        }
        Some((body::cut(&mut rest), (lines, rest, open)))
    });
    let mut response = respond::with_body(
        StatusCode::OK,
        "application/json",
        Body::Stream(Box::pin(body)),
    );
    respond::warn(&mut response, &cx.take_warnings());
    Ok(response)
}

/// Whether the client asked for an upgrade of the connection.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(http::header::UPGRADE).is_some()
}

/// A watch as encoded lines.
struct Lines {
    watch: WatchStream,
    descriptor: Arc<Descriptor>,
    view: View,
    include: IncludeObject,
    /// The next table carries its column definitions.
    columns: bool,
    /// Kept from one event to the next: what waits for it is entered in a list that all watches share.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What was taken from the watch and not yet written.
    waiting: VecDeque<WatchItem>,
}

/// Lines are sent together up to this many bytes.
const TOGETHER: usize = 32 << 10;

impl Lines {
    /// The lines of what happens next, together; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while self.waiting.is_empty() {
            let items = tokio::select! {
                biased;
                () = self.stop.as_mut() => return None,
                items = self.watch.next() => items?,
            };
            self.waiting.extend(items);
        }
        let first = self.waiting.pop_front()?;
        let line = self.line(&first);
        if self.waiting.is_empty() || line.len() >= TOGETHER {
            return Some(line);
        }
        let mut lines = BytesMut::from(line);
        while lines.len() < TOGETHER
            && let Some(item) = self.waiting.pop_front()
        {
            lines.extend_from_slice(&self.line(&item));
        }
        Some(lines.freeze())
    }

    fn line(&mut self, item: &WatchItem) -> Bytes {
        if self.view == View::Whole || matches!(item, WatchItem::Error(_)) {
            return item.line(&self.descriptor);
        }
        let viewer = Viewer {
            descriptor: &self.descriptor,
            view: self.view,
            include: self.include,
            now: Timestamp::now(),
        };
        let (kind, object) = match item {
            WatchItem::Change { kind, object } => (
                match kind {
                    EventType::Added => "ADDED",
                    EventType::Modified => "MODIFIED",
                    EventType::Deleted => "DELETED",
                },
                viewer.object_bytes(&object.bytes, self.columns),
            ),
            WatchItem::Bookmark { .. } => ("BOOKMARK", viewer.bookmark(item)),
            WatchItem::Error(_) => return Bytes::new(),
        };
        self.columns = false;
        let mut line = BytesMut::with_capacity(object.len() + 40);
        line.extend_from_slice(b"{\"type\":\"");
        line.extend_from_slice(kind.as_bytes());
        line.extend_from_slice(b"\",\"object\":");
        line.extend_from_slice(&object);
        line.extend_from_slice(b"}\n");
        line.freeze()
    }

    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut lines| async move {
            Some((lines.next().await?, lines))
        })
    }
}
