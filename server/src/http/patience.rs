//! How long a client may keep the server waiting.
//!
//! A client that takes nothing holds what it was to be given. It is noticed where it blocks: HTTP/1.1 in the socket, which
//! takes no more ([`PatientIo`]); HTTP/2 in its stream, whose flow control lets nothing through, though the socket is free
//! ([`PatientStreams`]). A clock runs only while something is blocked: watchers who have read everything cost no timer.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// A blocked side's clock.
#[derive(Default)]
struct Clock(Option<Pin<Box<Sleep>>>);

impl Clock {
    /// Runs the clock, from its start if it stood. Whether it is over.
    fn over(&mut self, limit: Duration, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep(limit)));
        sleep.as_mut().poll(cx).is_ready()
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

/// A connection whose writes fail when the peer takes nothing for as long as the limit.
pub struct PatientIo<T> {
    io: T,
    limit: Duration,
    /// Set for connections that carry a user's stream (exec, logs): a terminal may be paused for as long as its user likes.
    exempt: Arc<AtomicBool>,
    clock: Clock,
}

impl<T> PatientIo<T> {
    pub fn new(io: T, limit: Duration, exempt: Arc<AtomicBool>) -> PatientIo<T> {
        PatientIo {
            io,
            limit,
            exempt,
            clock: Clock::default(),
        }
    }

    fn watched<R>(
        &mut self,
        polled: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if polled.is_ready() || self.exempt.load(Ordering::Relaxed) {
            self.clock.stop();
        } else if self.clock.over(self.limit, cx) {
            let why = "the client does not read";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        polled
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PatientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PatientIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watched(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.watched(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.watched(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watched(polled, cx)
    }
}

/// What a response body did when it was last asked, within the poll of the stream that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Not,
    /// It gave bytes; until it is asked again, they wait for the client.
    Gave,
    /// It has nothing to give now.
    Waits,
}

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked::Not) };
}

/// Called by bodies of our own each time they are asked for bytes.
pub fn body_asked(gave: bool) {
    ASKED.set(if gave { Asked::Gave } else { Asked::Waits });
}

/// The executor of an HTTP/2 connection: each request is a task, which ends (and resets its stream) when the client takes
/// nothing of its answer for as long as the limit.
#[derive(Clone)]
pub struct PatientStreams {
    limit: Duration,
    in_flight: Arc<InFlight>,
}

/// Requests of a connection that are under way.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    changed: Notify,
}

/// One of them, until dropped.
struct One(Arc<InFlight>);

impl Drop for One {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl PatientStreams {
    pub fn new(limit: Duration) -> PatientStreams {
        PatientStreams {
            limit,
            in_flight: Arc::default(),
        }
    }

    /// Returns when the connection had no request for as long as the limit.
    pub async fn idle(&self) {
        loop {
            let changed = self.in_flight.changed.notified();
            if self.in_flight.count.load(Ordering::Acquire) > 0 {
                changed.await;
            } else if tokio::time::timeout(self.limit, changed).await.is_err()
                && self.in_flight.count.load(Ordering::Acquire) == 0
            {
                return;
            }
        }
    }
}

impl<F> Executor<F> for PatientStreams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        self.in_flight.count.fetch_add(1, Ordering::AcqRel);
        let one = One(self.in_flight.clone());
        let limit = self.limit;
        tokio::spawn(async move {
            let _one = one;
            let mut request = std::pin::pin!(request);
            let mut clock = Clock::default();
            let mut blocked = false;
            std::future::poll_fn(move |cx| {
                ASKED.set(Asked::Not);
                if request.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let asked = ASKED.get();
                if asked != Asked::Not {
                    blocked = asked == Asked::Gave;
                    clock.stop();
                }
                if blocked && clock.over(limit, cx) {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_given_up_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut io = PatientIo::new(near, LIMIT, Arc::default());
        let reader = tokio::spawn(async move {
            for _ in 0..6 {
                sleep(LIMIT / 4).await;
                far.read_exact(&mut [0; 8]).await.unwrap();
            }
            far
        });
        io.write_all(&[0; 48]).await.unwrap();
        let _far = reader.await.unwrap();
        let error = io.write_all(&[0; 48]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_paused_terminal_is_waited_for() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut io = PatientIo::new(near, LIMIT, Arc::new(true.into()));
        let writer = tokio::spawn(async move { io.write_all(&[0; 32]).await });
        sleep(LIMIT * 2).await;
        far.read_exact(&mut [0; 32]).await.unwrap();
        writer.await.unwrap().unwrap();
    }

    /// A request whose body gave bytes that nobody takes, and one whose body has nothing to give.
    #[tokio::test]
    async fn a_stream_ends_when_its_bytes_are_not_taken_but_not_when_it_has_none() {
        let streams = PatientStreams::new(LIMIT);
        for gave in [true, false] {
            let (alive, mut ended) = tokio::sync::oneshot::channel::<()>();
            let mut first = true;
            streams.execute(std::future::poll_fn(move |_| {
                let _ = &alive;
                if std::mem::take(&mut first) {
                    body_asked(gave);
                }
                Poll::Pending
            }));
            let ended = tokio::time::timeout(LIMIT * 3, &mut ended).await;
            assert_eq!(ended.is_ok(), gave);
        }
        // The second is still under way, so the connection is not idle.
        let idle = tokio::time::timeout(LIMIT * 2, streams.idle()).await;
        assert!(idle.is_err());
        let fresh = PatientStreams::new(LIMIT);
        fresh.idle().await;
    }
}
