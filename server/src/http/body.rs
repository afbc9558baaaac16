//! Response bodies: nothing, one buffer, many already encoded buffers, or a stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Frame, SizeHint};

use super::holding::Held;
use super::patience::body_asked;

/// Small buffers of a list are gathered into frames of about this size, and larger ones are cut: large enough to make TLS
/// records of full size, small enough that a client that does not read holds little.
const FRAME: usize = 32 << 10;

/// A response body. None can fail: what can go wrong is told in the status line, or by ending early.
pub enum Body {
    Empty,
    Full(Bytes),
    /// Buffers in order with their total length, gathered into frames as the connection takes them.
    Chunks(VecDeque<Bytes>, u64),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// Bytes of another server, passed on.
    Proxied(hyper::body::Incoming),
    /// A large one, counted among what clients make us hold until it was taken.
    Counted(Box<Body>, Arc<Held>),
}

impl Body {
    /// Buffers in order.
    pub fn chunks(chunks: impl Into<VecDeque<Bytes>>) -> Body {
        let chunks = chunks.into();
        let length = chunks.iter().map(|c| c.len() as u64).sum();
        Body::Chunks(chunks, length)
    }

    /// The number of bytes, if known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Body::Empty => Some(0),
            Body::Full(bytes) => Some(bytes.len() as u64),
            Body::Chunks(_, length) => Some(*length),
            Body::Stream(_) | Body::Proxied(_) => None,
            Body::Counted(inner, _) => inner.length(),
        }
    }

    /// The bytes of memory that this body holds for its client alone. Pieces of a list are the cache's.
    pub fn holds(&self) -> u64 {
        match self {
            Body::Full(bytes) => bytes.len() as u64,
            Body::Chunks(chunks, _) => (chunks.len() * size_of::<Bytes>()) as u64,
            Body::Empty | Body::Stream(_) | Body::Proxied(_) | Body::Counted(..) => 0,
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::Full(Bytes::from(bytes))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body::Full(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Body::Full(Bytes::from_static(text.as_bytes()))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(bytes)
    }
}

/// A buffer that may travel as it is, or a copy of its beginning, so that what waits in the connection does not hold the
/// whole of it.
pub fn cut(buffer: &mut Bytes) -> Bytes {
    if buffer.len() <= FRAME + FRAME / 2 {
        return std::mem::take(buffer);
    }
    Bytes::copy_from_slice(&buffer.split_to(FRAME))
}

/// Takes buffers from the front: part of a large one, a medium one as it is, or small ones copied together.
fn gather(chunks: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let mut first = chunks.pop_front()?;
    if first.len() >= FRAME / 2 || chunks.is_empty() {
        let frame = cut(&mut first);
        if !first.is_empty() {
            chunks.push_front(first);
        }
        return Some(frame);
    }
    let mut frame = BytesMut::with_capacity(FRAME);
    frame.extend_from_slice(&first);
    while let Some(next) = chunks.front() {
        if frame.len() + next.len() > FRAME {
            break;
        }
        frame.extend_from_slice(next);
        chunks.pop_front();
    }
    Some(frame.freeze())
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let next = match this {
            Body::Empty => None,
            Body::Full(bytes) => {
                let frame = cut(bytes);
                if bytes.is_empty() {
                    *this = Body::Empty;
                }
                (!frame.is_empty()).then_some(frame)
            }
            Body::Chunks(chunks, left) => {
                let frame = gather(chunks);
                *left -= frame.as_ref().map_or(0, |f| f.len() as u64);
                frame
            }
            Body::Stream(stream) => match stream.as_mut().poll_next(cx) {
                Poll::Pending => {
                    body_asked(false);
                    return Poll::Pending;
                }
                Poll::Ready(next) => next,
            },
            Body::Counted(inner, _) => return Pin::new(&mut **inner).poll_frame(cx),
            Body::Proxied(incoming) => {
                return match Pin::new(incoming).poll_frame(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(%error, "a proxied answer ended early");
                        *this = Body::Empty;
                        Poll::Ready(None)
                    }
                    Poll::Ready(None) => Poll::Ready(None),
                };
            }
        };
        body_asked(next.is_some());
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Chunks(chunks, _) => chunks.is_empty(),
            Body::Stream(_) => false,
            Body::Proxied(incoming) => incoming.is_end_stream(),
            Body::Counted(inner, _) => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.length() {
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_travel_together_medium_ones_alone_and_large_ones_in_parts() {
        let small = Bytes::from(vec![b'a'; 1000]);
        let large = Bytes::from(vec![b'b'; FRAME]);
        let huge = Bytes::from(vec![b'c'; FRAME * 2]);
        let mut chunks: VecDeque<Bytes> = [small.clone(), small.clone(), large, huge, small].into();
        let mut sizes = Vec::new();
        while let Some(frame) = gather(&mut chunks) {
            sizes.push(frame.len());
        }
        assert_eq!(sizes, [2000, FRAME, FRAME, FRAME, 1000]);
    }
}
