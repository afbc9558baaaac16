//! `httpGet` checks, in HTTP/1.1 straight to the pod. Certificates are not verified, as Kubernetes has it.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Outcome, tcp};

const USER_AGENT: &str = "kube-probe/1.36";
/// Most of a body that is looked at.
const BODY_LIMIT: usize = 10 * 1024;
const REDIRECTS: usize = 10;

pub async fn probe(
    host: Option<&str>,
    ip: IpAddr,
    port: u16,
    path: &str,
    https: bool,
    headers: &[HTTPHeader],
    timeout: Duration,
) -> Outcome {
    let url = format!(
        "{}://{}{}",
        if https { "https" } else { "http" },
        tcp::address(host, ip, port),
        slash(path)
    );
    match tokio::time::timeout(timeout, get(host, ip, port, path, https, headers)).await {
        Ok(Ok((status, _))) if (200..400).contains(&status.as_u16()) => Outcome::Success,
        Ok(Ok((status, _))) => Outcome::Failure(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        )),
        Ok(Err(why)) => Outcome::Failure(format!("Get \"{url}\": {why}")),
        Err(_) => Outcome::Failure(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn slash(path: &str) -> String {
    if path.starts_with('/') {
        path.to_string()
    } else {
        format!("/{path}")
    }
}

/// GETs and follows redirects on the same host. Status and the beginning of the body, or why not.
pub async fn get(
    host: Option<&str>,
    ip: IpAddr,
    port: u16,
    path: &str,
    https: bool,
    headers: &[HTTPHeader],
) -> Result<(StatusCode, String), String> {
    let mut path = slash(path);
    for _ in 0..REDIRECTS {
        let tcp_stream = tcp::connect(host, ip, port).await.map_err(|e| {
            format!(
                "dial tcp {}: {}",
                tcp::address(host, ip, port),
                tcp::describe(&e)
            )
        })?;
        let _ = tcp_stream.set_nodelay(true);
        let (status, location, body) = if https {
            let name = match host {
                Some(h) => ServerName::try_from(h.to_string()).map_err(|e| e.to_string())?,
                None => ServerName::IpAddress(ip.into()),
            };
            let connector = tokio_rustls::TlsConnector::from(TLS.clone().ok_or("no TLS")?);
            let tls = connector
                .connect(name, tcp_stream)
                .await
                .map_err(|e| e.to_string())?;
            request(tls, host, ip, port, &path, headers).await?
        } else {
            request(tcp_stream, host, ip, port, &path, headers).await?
        };
        match location.filter(|_| status.is_redirection()) {
            // Another host is somebody else's health: what answered was alive.
            Some(to) if to.starts_with('/') && !to.starts_with("//") => path = to,
            _ => return Ok((status, body)),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

async fn request<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    host: Option<&str>,
    ip: IpAddr,
    port: u16,
    path: &str,
    headers: &[HTTPHeader],
) -> Result<(StatusCode, Option<String>, String), String> {
    let describe = |e: hyper::Error| match std::error::Error::source(&e)
        .and_then(|s| s.downcast_ref::<std::io::Error>())
    {
        Some(io) => tcp::describe(io),
        None if e.is_incomplete_message() => "EOF".into(),
        None => e.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(describe)?;
    let task = tokio::spawn(connection);
    let mut request = Request::get(path);
    let named = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header(header::HOST, tcp::address(host, ip, port));
    }
    if !named("user-agent") {
        request = request.header(header::USER_AGENT, USER_AGENT);
    }
    if !named("accept") {
        request = request.header(header::ACCEPT, "*/*");
    }
    request = request.header(header::CONNECTION, "close");
    for h in headers
        .iter()
        .filter(|h| !h.value.is_empty() || !h.name.eq_ignore_ascii_case("user-agent"))
    {
        request = request.header(&h.name, &h.value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let result = async {
        let mut response = sender.send_request(request).await.map_err(describe)?;
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|l| l.to_str().ok())
            .map(str::to_string);
        let mut body = Vec::new();
        while body.len() < BODY_LIMIT
            && let Some(frame) = response.frame().await
        {
            match frame {
                Ok(f) => body.extend_from_slice(f.data_ref().map_or(&[], |d| &d[..])),
                Err(_) => break,
            }
        }
        Ok((
            response.status(),
            location,
            String::from_utf8_lossy(&body).into_owned(),
        ))
    }
    .await;
    task.abort();
    result
}

/// The kubelet probes HTTPS without looking at certificates.
static TLS: LazyLock<Option<Arc<rustls::ClientConfig>>> = LazyLock::new(|| {
    amphipod_api::tls::unverified_client_config()
        .ok()
        .map(Arc::new)
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn server(answers: Vec<&'static str>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut s, _) = listener.accept().await.unwrap();
                let mut buf = [0u8; 4096];
                let _ = s.read(&mut buf).await.unwrap();
                s.write_all(answer.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await
        });
        port
    }

    async fn ask(port: u16) -> Outcome {
        probe(
            None,
            IpAddr::from([127, 0, 0, 1]),
            port,
            "/x",
            false,
            &[],
            Duration::from_secs(5),
        )
        .await
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_success() {
        let ok = "HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(ask(server(vec![ok]).await).await, Outcome::Success);
        let bad = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(
            ask(server(vec![bad]).await).await,
            Outcome::Failure("HTTP probe failed with statuscode: 500".into())
        );
        let here = "HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(
            ask(server(vec![here, bad]).await).await,
            Outcome::Failure(_)
        ));
        let away =
            "HTTP/1.1 302 Found\r\nLocation: http://example.invalid/\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(ask(server(vec![away]).await).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_closed_port_is_told_as_users_know_it() {
        let port = {
            let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            l.local_addr().unwrap().port()
        };
        let want = format!(
            "Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(ask(port).await, Outcome::Failure(want));
    }
}
