//! What SPDY connections and WebSocket connections have in common: many byte streams over one connection.
//!
//! Each connection has one task that reads and one that writes. Handlers see plain [`AsyncRead`] and [`AsyncWrite`] halves. Both
//! directions are bounded, so that a peer that does not read, or a handler that does not, holds a few hundred KiB at most.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;

/// Messages that may wait in one direction of one stream.
pub const QUEUE: usize = 8;

/// How long a client may take to hang up after everything was said.
pub(super) const LINGER: std::time::Duration = std::time::Duration::from_secs(5);

/// The most that one data message carries.
const CHUNK: usize = 32 * 1024;

/// What a writing task is asked to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// Bytes of a stream; `end` is the end of that direction of the stream. May be empty.
    Data {
        channel: u32,
        bytes: Bytes,
        end: bool,
    },
    /// SPDY: the stream is accepted.
    Accept(u32),
    /// SPDY: the answer to a PING.
    Pong(u32),
    /// SPDY: the stream is refused or broken off.
    Reset(u32),
}

/// The reading half of a stream: what the reading task put into `receiver`, until it drops the sender.
pub fn reader(receiver: mpsc::Receiver<Bytes>) -> impl AsyncRead + Send + Unpin {
    let mut receiver = receiver;
    StreamReader::new(futures_util::stream::poll_fn(move |cx| {
        receiver
            .poll_recv(cx)
            .map(|bytes| bytes.map(Ok::<_, io::Error>))
    }))
}

/// The writing half of a stream. Shutting it down ends the stream in that direction; dropping it does not.
#[derive(Debug)]
pub struct Writer {
    channel: u32,
    sender: PollSender<Out>,
    ended: bool,
}

impl Writer {
    pub fn new(channel: u32, sender: mpsc::Sender<Out>) -> Writer {
        Writer {
            channel,
            sender: PollSender::new(sender),
            ended: false,
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8], end: bool) -> Poll<io::Result<()>> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(cx)).map_err(|_| closed())?;
        let out = Out::Data {
            channel: self.channel,
            bytes: Bytes::copy_from_slice(bytes),
            end,
        };
        Poll::Ready(self.sender.send_item(out).map_err(|_| closed()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let chunk = &buf[..buf.len().min(CHUNK)];
        ready!(self.poll_send(cx, chunk, false))?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            ready!(self.poll_send(cx, &[], true))?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_writer_cuts_large_writes_and_ends_once() {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let mut writer = Writer::new(7, sender);
        writer.write_all(&vec![1; CHUNK + 1]).await.unwrap();
        writer.shutdown().await.unwrap();
        writer.shutdown().await.unwrap();
        drop(writer);
        let mut seen = Vec::new();
        while let Some(Out::Data {
            channel: 7,
            bytes,
            end,
        }) = receiver.recv().await
        {
            seen.push((bytes.len(), end));
        }
        assert_eq!(seen, [(CHUNK, false), (1, false), (0, true)]);
    }

    #[tokio::test]
    async fn a_reader_ends_with_its_sender() {
        let (sender, receiver) = mpsc::channel(QUEUE);
        sender.send(Bytes::from_static(b"ab")).await.unwrap();
        sender.send(Bytes::from_static(b"c")).await.unwrap();
        drop(sender);
        let mut text = String::new();
        reader(receiver).read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
    }
}
