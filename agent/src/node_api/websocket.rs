//! WebSocket connections: the channel protocols of `kubectl exec` (v4 and v5, KEP-4006), and a tunnel for SPDY.
//!
//! In the channel protocols the first byte of each binary message is the channel. In the base64 variant messages are text: the
//! channel as a digit, then base64. v5 adds channel 255, on which a client says that it has ended the channel named by the second byte.

use std::collections::HashMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::mux::{LINGER, Out, QUEUE};

/// The channel on which v5 clients end other channels.
const CLOSE: u8 = 255;

/// How messages carry channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

/// Wraps an upgraded connection.
async fn server_side<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    // Messages of 64 KiB at most are what clients send; the limits keep a hostile one from filling memory.
    let config = WebSocketConfig::default()
        .max_message_size(Some(1 << 20))
        .max_frame_size(Some(1 << 20))
        .read_buffer_size(16 << 10);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A byte stream through binary messages, for SPDY tunnelled in a WebSocket (port-forward of kubectl 1.31 and newer).
pub async fn tunnel<T>(io: T) -> impl AsyncRead + AsyncWrite + Send
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, stream) = server_side(io).await.split();
    let bytes = stream
        .take_while(|message| future::ready(!matches!(message, Ok(Message::Close(_)) | Err(_))))
        .filter_map(|message| {
            future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok::<_, io::Error>(bytes)),
                _ => None,
            })
        });
    let messages = sink
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| future::ok::<_, io::Error>(Message::Binary(bytes)));
    tokio::io::join(
        StreamReader::new(bytes),
        SinkWriter::new(CopyToBytes::new(messages)),
    )
}

/// Channels of one connection as their handler holds them. The connection is closed, after everything was sent, when this and all
/// writers made from [`Channels::out`] are gone.
pub struct Channels {
    pub out: mpsc::Sender<Out>,
    /// What the client sends, by channel; made for the channels that [`channels`] was given.
    pub inputs: HashMap<u8, mpsc::Receiver<Bytes>>,
    /// Ends when the client is gone.
    pub closed: tokio::sync::oneshot::Receiver<()>,
}

/// Serves a channel protocol on `io`, listening to the channels `inputs`.
pub async fn channels<T>(io: T, encoding: Encoding, inputs: &[u8]) -> Channels
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut stream) = server_side(io).await.split();
    let (out, mut outgoing) = mpsc::channel(2 * QUEUE);
    let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
    for channel in inputs {
        let (sender, receiver) = mpsc::channel(QUEUE);
        senders.insert(*channel, sender);
        receivers.insert(*channel, receiver);
    }
    let (client_gone, closed) = tokio::sync::oneshot::channel();
    let reading = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let Some((channel, bytes)) = decode(message) else {
                continue;
            };
            if channel == CLOSE {
                senders.remove(&bytes.first().copied().unwrap_or(CLOSE));
            } else if let Some(sender) = senders.get(&channel)
                && sender.send(bytes).await.is_err()
            {
                senders.remove(&channel);
            }
        }
        drop(client_gone);
    });
    tokio::spawn(async move {
        while let Some(out) = outgoing.recv().await {
            // The channel protocols know no end of a single channel in this direction.
            let Out::Data {
                channel,
                bytes,
                end: false,
            } = out
            else {
                continue;
            };
            if sink
                .send(encode(encoding, channel as u8, &bytes))
                .await
                .is_err()
            {
                break;
            }
        }
        let _ = sink.send(goodbye()).await;
        let _ = sink.close().await;
        // Hanging up on a client that is still talking makes it lose what was said last.
        let mut reading = reading;
        if tokio::time::timeout(LINGER, &mut reading).await.is_err() {
            reading.abort();
        }
    });
    Channels {
        out,
        inputs: receivers,
        closed,
    }
}

/// The end that clients take for a good one: a close frame without a code is an error to them, which overtakes what was sent before.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

fn decode(message: Message) -> Option<(u8, Bytes)> {
    match message {
        Message::Binary(bytes) if !bytes.is_empty() => Some((bytes[0], bytes.slice(1..))),
        Message::Text(text) => {
            let channel = text.as_bytes().first()?.checked_sub(b'0')?;
            Some((channel, BASE64.decode(text.get(1..)?).ok()?.into()))
        }
        _ => None,
    }
}

fn encode(encoding: Encoding, channel: u8, bytes: &[u8]) -> Message {
    match encoding {
        Encoding::Binary => {
            let mut message = BytesMut::with_capacity(bytes.len() + 1);
            message.put_u8(channel);
            message.extend_from_slice(bytes);
            Message::Binary(message.freeze())
        }
        Encoding::Base64 => {
            Message::Text(format!("{}{}", char::from(b'0' + channel), BASE64.encode(bytes)).into())
        }
    }
}

/// Sends everything from `from` as binary messages without channels (`binary.k8s.io`), or as base64 text; for logs.
pub async fn copy_out<T>(
    io: T,
    encoding: Encoding,
    mut from: impl AsyncRead + Unpin,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut stream) = server_side(io).await.split();
    let copying = async {
        let mut buffer = BytesMut::with_capacity(32 << 10);
        while tokio::io::AsyncReadExt::read_buf(&mut from, &mut buffer).await? > 0 {
            let bytes = buffer.split().freeze();
            let message = match encoding {
                Encoding::Binary => Message::Binary(bytes),
                Encoding::Base64 => Message::Text(BASE64.encode(&bytes).into()),
            };
            sink.send(message).await.map_err(io::Error::other)?;
            buffer.reserve(32 << 10);
        }
        sink.send(goodbye()).await.map_err(io::Error::other)?;
        sink.close().await.map_err(io::Error::other)
    };
    let client_gone = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::select! {
        copied = copying => copied,
        () = client_gone => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_a_channel_in_both_encodings() {
        for encoding in [Encoding::Binary, Encoding::Base64] {
            let message = encode(encoding, 3, b"some bytes \xff");
            assert_eq!(
                decode(message),
                Some((3, Bytes::from_static(b"some bytes \xff")))
            );
        }
        assert_eq!(decode(Message::Binary(Bytes::new())), None);
        assert_eq!(decode(Message::Text("".into())), None);
        assert_eq!(decode(Message::Text("1not base64!".into())), None);
    }
}
