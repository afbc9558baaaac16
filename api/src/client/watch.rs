//! Watch events and the lines they come in.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use super::ClientError;
use crate::meta;
use crate::status::Status;

/// Longest single watch event that is read.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// One event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    Added(Value),
    Modified(Value),
    Deleted(Value),
    /// Only `metadata.resourceVersion` (and annotations) mean something.
    Bookmark(Value),
    /// The watch is over; 410 means list again.
    Error(Status),
}

impl WatchEvent {
    /// Reads one line of a watch stream.
    pub fn parse(line: &[u8]) -> Result<WatchEvent, ClientError> {
        #[derive(serde::Deserialize)]
        struct Raw {
            #[serde(rename = "type")]
            kind: String,
            object: Value,
        }
        let raw: Raw = serde_json::from_slice(line)
            .map_err(|e| ClientError::Decode(format!("watch event: {e}")))?;
        Ok(match raw.kind.as_str() {
            "ADDED" => WatchEvent::Added(raw.object),
            "MODIFIED" => WatchEvent::Modified(raw.object),
            "DELETED" => WatchEvent::Deleted(raw.object),
            "BOOKMARK" => WatchEvent::Bookmark(raw.object),
            "ERROR" => WatchEvent::Error(
                serde_json::from_value(raw.object)
                    .map_err(|e| ClientError::Decode(format!("watch error: {e}")))?,
            ),
            other => {
                return Err(ClientError::Decode(format!(
                    "watch event of unknown type {other:?}"
                )));
            }
        })
    }
}

/// Whether a bookmark says that all initial events were sent.
pub fn is_initial_events_end(bookmark: &Value) -> bool {
    meta::annotation(bookmark, "k8s.io/initial-events-end") == Some("true")
}

/// The non-empty lines of a response body.
pub(super) fn lines(
    response: reqwest::Response,
) -> impl Stream<Item = Result<Bytes, ClientError>> + Send {
    let state = (Box::pin(response.bytes_stream()), BytesMut::new(), 0);
    futures_util::stream::try_unfold(state, |(mut chunks, mut buffer, mut scanned)| async move {
        loop {
            if let Some(at) = buffer[scanned..].iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(scanned + at + 1).freeze();
                scanned = 0;
                if line.len() > 1 {
                    return Ok(Some((line, (chunks, buffer, scanned))));
                }
                continue;
            }
            scanned = buffer.len();
            if scanned > MAX_MESSAGE {
                return Err(ClientError::Decode(format!(
                    "a watch event is larger than {MAX_MESSAGE} bytes"
                )));
            }
            match chunks.next().await {
                Some(chunk) => buffer.extend_from_slice(&chunk.map_err(ClientError::Transport)?),
                // What stands behind the last newline is an event cut off by a broken connection.
                None => return Ok(None),
            }
        }
    })
}
