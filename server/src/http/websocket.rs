//! The little of RFC 6455 that watches need: the handshake, text frames out, and noticing that the client is gone.
//! (Exec, attach and port-forward are passed through to the agent, which speaks WebSocket itself.)

use std::time::Duration;

use amphipod_api::Status;
use base64::Engine as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::body::Body;
use super::respond::Answer;

/// Whether the request asks to become a WebSocket.
pub fn wanted(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|v| v.to_str().ok());
    upgrade.is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// Answers the handshake and sends each item of `lines` as the lines it holds, one text frame each.
///
/// # Errors
/// 400 for a broken handshake.
pub fn serve_lines(
    headers: &HeaderMap,
    extensions: &mut http::Extensions,
    lines: impl Stream<Item = Bytes> + Send + 'static,
    patience: Duration,
) -> Answer {
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key"))?;
    let version = headers
        .get(SEC_WEBSOCKET_VERSION)
        .map(HeaderValue::as_bytes);
    if version != Some(b"13") {
        return Err(Status::bad_request("unsupported WebSocket version"));
    }
    let upgrade = extensions
        .remove::<OnUpgrade>()
        .ok_or_else(|| Status::bad_request("a WebSocket needs HTTP/1.1"))?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept_key(key.as_bytes())) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let binary = chosen_protocol(headers).inspect(|protocol| {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    });
    let binary = binary == Some("binary.k8s.io");
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => send(TokioIo::new(upgraded), lines, binary, patience).await,
            Err(error) => tracing::debug!(%error, "a WebSocket was not upgraded"),
        }
    });
    Ok(response)
}

fn chosen_protocol(headers: &HeaderMap) -> Option<&'static str> {
    let asked = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    asked.split(',').map(str::trim).find_map(|p| match p {
        "binary.k8s.io" => Some("binary.k8s.io"),
        "base64.binary.k8s.io" => None,
        _ => None,
    })
}

async fn send<S>(io: S, lines: impl Stream<Item = Bytes> + Send, binary: bool, patience: Duration)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut read, mut write) = tokio::io::split(io);
    let mut sink = [0u8; 512];
    tokio::pin!(lines);
    loop {
        tokio::select! {
            // A watcher says nothing but goodbye: its frames are thrown away until the connection ends.
            got = read.read(&mut sink) => match got {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    // A close frame (0x88) begins with its opcode; anything else is a ping or noise.
                    if sink[0] & 0x0f == 8 {
                        let _ = write.write_all(&[0x88, 0]).await;
                        let _ = write.shutdown().await;
                        return;
                    }
                }
            },
            item = lines.next() => {
                let Some(bytes) = item else {
                    // 1000, normal closure
                    let _ = write.write_all(&[0x88, 2, 0x03, 0xe8]).await;
                    let _ = write.shutdown().await;
                    return;
                };
                let mut out = BytesMut::with_capacity(bytes.len() + 16);
                for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    frame(&mut out, if binary { 2 } else { 1 }, line);
                }
                let written = async {
                    write.write_all(&out).await?;
                    write.flush().await
                };
                // Too late is too slow: the client watches again.
                let Ok(Ok(())) = tokio::time::timeout(patience, written).await else {
                    return;
                };
            }
        }
    }
}

/// One whole, unmasked frame.
fn frame(out: &mut BytesMut, opcode: u8, payload: &[u8]) {
    out.put_u8(0x80 | opcode);
    match payload.len() {
        n @ 0..=125 => out.put_u8(n as u8),
        n @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(n as u16);
        }
        n => {
            out.put_u8(127);
            out.put_u64(n as u64);
        }
    }
    out.put_slice(payload);
}

fn accept_key(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    base64::engine::general_purpose::STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_answers_as_the_rfc_shows() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn frames_carry_their_length_in_three_sizes() {
        for (length, head) in [(5usize, 2usize), (300, 4), (70_000, 10)] {
            let mut out = BytesMut::new();
            frame(&mut out, 1, &vec![b'x'; length]);
            assert_eq!(out.len(), head + length);
            assert_eq!(out[0], 0x81);
        }
    }
}
