//! Passing bytes both ways between two connections, as proxies and tunnels do.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};

/// Copies bytes both ways until both directions have ended. However one direction ends, at the end of its input or by a broken
/// connection, its output is shut down and the other direction goes on to its own end.
///
/// `tokio::io::copy_bidirectional` gives up both directions at the first error: a client that says goodbye to a side that has just
/// hung up would then lose what that side had said last.
pub async fn relay(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
) {
    let (from_one, to_one) = split(one);
    let (from_other, to_other) = split(other);
    tokio::join!(pass(from_one, to_other), pass(from_other, to_one));
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    // What broke is seen by its own side; nobody else is there to be told.
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt, ReadBuf};

    use super::*;

    /// A side that has said its last words and takes nothing any more.
    struct HungUp(&'static [u8]);

    impl AsyncRead for HungUp {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buffer.put_slice(std::mem::take(&mut self.0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for HungUp {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
    }

    #[tokio::test]
    async fn the_last_words_of_a_side_that_hung_up_arrive() {
        let (mut client, near) = tokio::io::duplex(64);
        client.write_all(b"goodbye").await.unwrap();
        let relaying = tokio::spawn(relay(near, HungUp(b"the error is this")));
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "the error is this");
        drop(client);
        relaying.await.unwrap();
    }
}
