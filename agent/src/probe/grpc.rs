//! `grpc` checks: grpc.health.v1.Health/Check over cleartext HTTP/2 (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//! One small message each way, so it is encoded by hand.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Outcome, tcp};

/// An answer is a few bytes; a container may send any number.
const LARGEST: usize = 4096;

pub async fn probe(ip: IpAddr, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = tcp::address(None, ip, port);
    let limit = amphipod_api::time::format_duration(timeout);
    match tokio::time::timeout(timeout, check(ip, port, service)).await {
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(status)) => {
            let name = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(Trouble::Connect)) | Err(_) => Outcome::Failure(format!(
            "timeout: failed to connect service {address:?} within {limit}: context deadline exceeded"
        )),
        Ok(Err(Trouble::Unimplemented)) => Outcome::Failure(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .into(),
        ),
        Ok(Err(Trouble::Other(why))) => {
            Outcome::Failure(format!("error: health rpc probe failed: {why}"))
        }
    }
}

enum Trouble {
    Connect,
    Unimplemented,
    Other(String),
}

/// Protobuf `HealthCheckRequest { string service = 1; }` in a gRPC frame.
fn encode(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// `HealthCheckResponse { ServingStatus status = 1; }` from a gRPC frame; absent is 0, UNKNOWN.
fn decode(frame: &[u8]) -> Option<u64> {
    let message = frame.get(5..)?;
    let mut rest = message;
    let take = |rest: &mut &[u8]| -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, tail) = rest.split_first()?;
            *rest = tail;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    while !rest.is_empty() {
        let tag = take(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => return take(&mut rest),
            (_, 0) => drop(take(&mut rest)?),
            (_, 2) => {
                let n = usize::try_from(take(&mut rest)?).ok()?;
                rest = rest.get(n..)?;
            }
            _ => return None,
        }
    }
    Some(0)
}

async fn check(ip: IpAddr, port: u16, service: &str) -> Result<u64, Trouble> {
    let other = |e: &dyn std::fmt::Display| Trouble::Other(e.to_string());
    let stream = tcp::connect(None, ip, port)
        .await
        .map_err(|_| Trouble::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| other(&e))?;
    let task = tokio::spawn(connection);
    let request = Request::post(format!(
        "http://{}/grpc.health.v1.Health/Check",
        tcp::address(None, ip, port)
    ))
    .header(header::CONTENT_TYPE, "application/grpc")
    .header(header::TE, "trailers")
    .header(header::USER_AGENT, "kube-probe/1.36")
    .body(Full::new(Bytes::from(encode(service))))
    .map_err(|e| other(&e))?;
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| other(&e))?;
        let early = response.headers().get("grpc-status").cloned();
        let body = Limited::new(response.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|e| other(&e))?;
        let status = body
            .trailers()
            .and_then(|t| t.get("grpc-status").cloned())
            .or(early);
        match status.as_ref().and_then(|s| s.to_str().ok()).unwrap_or("0") {
            "0" => {
                decode(&body.to_bytes()).ok_or_else(|| Trouble::Other("malformed answer".into()))
            }
            "12" => Err(Trouble::Unimplemented),
            // NOT_FOUND: the service is not known.
            "5" => Ok(3),
            code => Err(Trouble::Other(format!("rpc error: code = {code}"))),
        }
    }
    .await;
    task.abort();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_and_decoded() {
        assert_eq!(encode(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(decode(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(decode(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(decode(&[0, 0, 0, 0, 2, 8]), None);
        assert_eq!(decode(&[]), None);
    }
}
