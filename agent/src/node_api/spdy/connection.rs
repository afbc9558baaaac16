//! One SPDY connection: a task that reads, a task that writes, and the streams between.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frame::{self, Frame};
use super::headers::{Decoder, Encoder, Headers};
use crate::node_api::mux::{self, LINGER, Out, QUEUE, Writer};

/// Streams that one connection may have open; a port-forward uses two for each forwarded connection.
const MAX_STREAMS: usize = 1000;

/// A stream that the client opened, already accepted.
pub struct Stream {
    /// As the client gave them; names in lower case.
    pub headers: Headers,
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Writer,
}

/// A connection as its handler holds it. It is closed, after everything was sent, when this and all streams' writers are gone.
pub struct Connection {
    streams: mpsc::Receiver<Stream>,
    _open: mpsc::Sender<Out>,
}

impl Connection {
    /// The next stream that the client opens; `None` when the client has closed the connection.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// Serves the protocol on `io`.
pub fn accept(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Connection {
    let (from_client, to_client) = tokio::io::split(io);
    let (out, outgoing) = mpsc::channel(2 * QUEUE);
    let (opened, streams) = mpsc::channel(QUEUE);
    let weak = out.downgrade();
    let reading = tokio::spawn(async move {
        // Why a connection broke helps nobody: the client sees it, and every stream of it ends.
        let _ = read_frames(from_client, weak, opened).await;
    });
    tokio::spawn(async move {
        let _ = write_frames(to_client, outgoing).await;
        // Hanging up on a client that is still talking makes it lose what was said last.
        let mut reading = reading;
        if tokio::time::timeout(LINGER, &mut reading).await.is_err() {
            reading.abort();
        }
    });
    Connection {
        streams,
        _open: out,
    }
}

async fn read_frames(
    mut from: impl AsyncRead + Unpin,
    out: mpsc::WeakSender<Out>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut decoder = Decoder::new();
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some(frame) = frame::read(&mut from, &mut decoder).await? {
        let Some(out) = out.upgrade() else {
            // Nothing can be answered any more: the client is only waited for.
            tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
            break;
        };
        let send = |message| async {
            out.send(message)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        match frame {
            Frame::Open { stream, .. } if inputs.len() >= MAX_STREAMS => {
                send(Out::Reset(stream)).await?
            }
            Frame::Open {
                stream,
                headers,
                end,
            } => {
                let (input, receiver) = mpsc::channel(QUEUE);
                send(Out::Accept(stream)).await?;
                let reader = Box::new(mux::reader(receiver));
                let accepted = Stream {
                    headers,
                    reader,
                    writer: Writer::new(stream, out.clone()),
                };
                if opened.send(accepted).await.is_err() {
                    // The handler takes no more streams; those that are open go on.
                    send(Out::Reset(stream)).await?;
                } else if !end {
                    inputs.insert(stream, input);
                }
            }
            Frame::Data { stream, bytes, end } => {
                if let Some(input) = inputs.get(&stream) {
                    // A handler that does not read any more has dropped its half; the rest of the stream is thrown away.
                    let gone = !bytes.is_empty() && input.send(bytes.into()).await.is_err();
                    if gone || end {
                        inputs.remove(&stream);
                    }
                }
            }
            Frame::Reset { stream } => {
                inputs.remove(&stream);
            }
            // Even identifiers would be answers to our own pings; we send none.
            Frame::Ping { id } if id % 2 == 1 => send(Out::Pong(id)).await?,
            Frame::GoAway => break,
            Frame::Ping { .. } | Frame::Other => {}
        }
    }
    Ok(())
}

async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<Out>,
) -> io::Result<()> {
    let mut encoder = Encoder::new()?;
    let mut buffer = Vec::new();
    while let Some(out) = outgoing.recv().await {
        frame::write(&mut buffer, &out, &mut encoder)?;
        // What waits already goes out with the same write.
        while buffer.len() < 64 * 1024 {
            let Ok(out) = outgoing.try_recv() else { break };
            frame::write(&mut buffer, &out, &mut encoder)?;
        }
        to.write_all(&buffer).await?;
        to.flush().await?;
        buffer.clear();
    }
    to.shutdown().await
}
