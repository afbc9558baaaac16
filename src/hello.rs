//! The built-in web server: the demo of the quickstart, and the smoke test of a box that is cut off from every registry.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

/// Serves `/` (a page that names this host, so that load balancing can be seen) and `/healthz`, until SIGTERM or SIGINT.
pub async fn serve(port: u16, message: String) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let host = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    println!("serving on {address}");
    let stop = crate::run::stop_signal()?;
    tokio::pin!(stop);
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // The peer is already gone, or descriptors are short: the next connection may do better.
                Err(error) => {
                    eprintln!("accepting a connection: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => return Ok(()),
        };
        let page = format!("{message}, served by {host}\n");
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &page);
                async move { Ok::<_, Infallible>(answer) }
            });
            // An error here is the client's broken connection; there is nobody to tell.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, page: &str) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => (StatusCode::OK, page.to_owned()),
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

/// Fetches an `http://` URL once and returns the body.
///
/// # Errors
/// Anything but an answer of 200, saying which step failed.
pub async fn get(url: &str) -> Result<String> {
    let uri: hyper::Uri = url
        .parse()
        .with_context(|| format!("reading the URL {url:?}"))?;
    ensure!(
        uri.scheme_str() == Some("http"),
        "the URL must begin with http://, not be {url:?}"
    );
    let host = uri.host().context("the URL names no host")?;
    let address = (host, uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connecting to {host}:{}", address.1))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header("host", host)
        .body(Full::<Bytes>::default())?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("asking {host}"))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading the answer")?
        .to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    ensure!(status == StatusCode::OK, "{url} answered {status}: {body}");
    Ok(body)
}
