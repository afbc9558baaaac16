//! SPDY/3 frames (section 2.2): what is read from a client, and what is written to it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::headers::{Decoder, Encoder, Headers};
use crate::node_api::mux::Out;

/// The most that one frame may carry; Kubernetes' clients send data frames of 32 KiB at most.
const MAX_FRAME: usize = 1 << 20;

const FLAG_FIN: u8 = 1;

/// A frame from the client, as far as this side cares.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// SYN_STREAM: the client opens a stream; `end` when it will send nothing on it.
    Open {
        stream: u32,
        headers: Headers,
        end: bool,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
        end: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// SETTINGS, WINDOW_UPDATE, HEADERS, and whatever else has no meaning here.
    Other,
}

/// Reads one frame; `None` at the end of the connection between frames.
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> io::Result<Option<Frame>> {
    let mut head = [0u8; 8];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let flags = head[4];
    let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
    if length > MAX_FRAME {
        return Err(invalid("frame too large"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    if word >> 31 == 0 {
        return Ok(Some(Frame::Data {
            stream: word,
            bytes: body,
            end: flags & FLAG_FIN != 0,
        }));
    }
    // Control frames: 15 bits of version, 16 bits of type.
    let number = |at: usize| -> io::Result<u32> {
        let bytes = body
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| invalid("frame stops short"))?;
        Ok(u32::from_be_bytes(bytes) & 0x7fff_ffff)
    };
    Ok(Some(match word & 0xffff {
        1 => {
            let block = body.get(10..).ok_or_else(|| invalid("frame stops short"))?;
            Frame::Open {
                stream: number(0)?,
                headers: decoder.decode(block)?,
                end: flags & FLAG_FIN != 0,
            }
        }
        3 => Frame::Reset { stream: number(0)? },
        6 => Frame::Ping {
            id: u32::from_be_bytes(
                body.get(..4)
                    .and_then(|b| b.try_into().ok())
                    .ok_or_else(|| invalid("frame stops short"))?,
            ),
        },
        7 => Frame::GoAway,
        // HEADERS on an open stream must pass through the decoder, whose context it belongs to.
        8 => {
            decoder.decode(body.get(4..).ok_or_else(|| invalid("frame stops short"))?)?;
            Frame::Other
        }
        _ => Frame::Other,
    }))
}

/// Appends the frame for `out` to `buffer`.
pub(super) fn write(buffer: &mut Vec<u8>, out: &Out, encoder: &mut Encoder) -> io::Result<()> {
    match out {
        Out::Data {
            channel,
            bytes,
            end,
        } => {
            buffer.extend_from_slice(&(channel & 0x7fff_ffff).to_be_bytes());
            let flags = if *end { FLAG_FIN } else { 0 };
            length_word(buffer, flags, bytes.len());
            buffer.extend_from_slice(bytes);
        }
        Out::Accept(stream) => {
            let block = encoder.encode(&Headers::new())?;
            control(buffer, 2, 4 + block.len());
            buffer.extend_from_slice(&stream.to_be_bytes());
            buffer.extend_from_slice(&block);
        }
        Out::Reset(stream) => {
            control(buffer, 3, 8);
            buffer.extend_from_slice(&stream.to_be_bytes());
            // CANCEL
            buffer.extend_from_slice(&5u32.to_be_bytes());
        }
        Out::Pong(id) => {
            control(buffer, 6, 4);
            buffer.extend_from_slice(&id.to_be_bytes());
        }
    }
    Ok(())
}

fn control(buffer: &mut Vec<u8>, kind: u32, length: usize) {
    const VERSION_3: u32 = 0x8003_0000;
    buffer.extend_from_slice(&(VERSION_3 | kind).to_be_bytes());
    length_word(buffer, 0, length);
}

fn length_word(buffer: &mut Vec<u8>, flags: u8, length: usize) {
    let word = (u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff);
    buffer.extend_from_slice(&word.to_be_bytes());
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_of_a_client_are_read() {
        let mut encoder = Encoder::new().unwrap();
        let headers = Headers::from([("streamtype".to_owned(), "error".to_owned())]);
        let block = encoder.encode(&headers).unwrap();
        let mut wire = Vec::new();
        control(&mut wire, 1, 10 + block.len());
        wire.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        wire.extend_from_slice(&block);
        write(
            &mut wire,
            &Out::Data {
                channel: 1,
                bytes: "hi".into(),
                end: true,
            },
            &mut encoder,
        )
        .unwrap();
        write(&mut wire, &Out::Pong(9), &mut encoder).unwrap();
        let (mut from, mut decoder) = (&wire[..], Decoder::new());
        assert_eq!(
            read(&mut from, &mut decoder).await.unwrap(),
            Some(Frame::Open {
                stream: 1,
                headers,
                end: false
            })
        );
        let data = Frame::Data {
            stream: 1,
            bytes: b"hi".to_vec(),
            end: true,
        };
        assert_eq!(read(&mut from, &mut decoder).await.unwrap(), Some(data));
        assert_eq!(
            read(&mut from, &mut decoder).await.unwrap(),
            Some(Frame::Ping { id: 9 })
        );
        assert_eq!(read(&mut from, &mut decoder).await.unwrap(), None);
    }

    #[tokio::test]
    async fn frames_that_stop_short_or_claim_too_much_are_errors() {
        for wire in [
            &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0][..],
            &[0, 0, 0, 1, 0, 0xff, 0xff, 0xff],
            &[0, 0, 0],
        ] {
            assert!(
                read(&mut &*wire, &mut Decoder::new()).await.is_err(),
                "{wire:?}"
            );
        }
    }
}
