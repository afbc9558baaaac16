//! `peer`: what pods of the tests talk to each other with; in the tests' image as `/bin/peer`.
//!
//! Debian's static busybox crashes when it resolves names, and its `nc` knows no UDP.
//!
//! ```text
//! peer get http://HOST[:PORT]/PATH    prints the body
//! peer udp-echo PORT                  answers each datagram with "HOSTNAME: " and what it held
//! peer udp-ask HOST PORT TEXT         prints the answer
//! peer grpc-health PORT SERVICE       says by the gRPC health protocol that the service serves
//! peer serve PORT...                  by TCP and UDP tells each client the host's name and the address that it saw
//! peer send HOST:PORT BYTES           sends so much to `serve` by TCP and wants to have it back
//! peer send-udp HOST:PORT BYTES       the same in one datagram
//! peer send-hex HOST:PORT HEX         sends one datagram and waits for nothing
//! peer reach [udp:]HOST:PORT...       asks all at once; prints a line for each: what it said, or "-" without an answer
//! ```

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

const PATIENCE: Duration = Duration::from_secs(2);
/// For what may well be forbidden. Lost first packets are sent again after a second.
const IMPATIENCE: Duration = Duration::from_millis(1200);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["get", url] => get(url),
        ["udp-echo", port] => udp_echo(port.parse()?),
        ["udp-ask", host, port, text] => udp_ask(host, port.parse()?, text),
        ["grpc-health", port, service] => grpc_health(port.parse()?, service),
        ["serve", ref ports @ ..] if !ports.is_empty() => serve(ports),
        ["send", to, bytes] => send(to, bytes.parse()?),
        ["send-udp", to, bytes] => send_udp(to, bytes.parse()?),
        ["send-hex", to, hex] => send_hex(to, hex),
        ["reach", ref targets @ ..] => {
            reach(targets);
            Ok(())
        }
        _ => bail!(
            "usage: peer get URL | udp-echo PORT | udp-ask HOST PORT TEXT | grpc-health PORT SERVICE | serve PORT... | send HOST:PORT BYTES | send-udp HOST:PORT BYTES | send-hex HOST:PORT HEX | reach [udp:]HOST:PORT..."
        ),
    }
}

fn get(url: &str) -> Result<()> {
    let rest = url
        .strip_prefix("http://")
        .context("the URL must begin with http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
    let address = (name, port.parse()?)
        .to_socket_addrs()
        .with_context(|| format!("resolving {name}"))?
        .next();
    let address = address.with_context(|| format!("{name} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no head")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("answered {}", head.lines().next().unwrap_or_default());
    }
    print!("{body}");
    Ok(())
}

fn serve(ports: &[&str]) -> Result<()> {
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let mut last = None;
    for port in ports {
        let port: u16 = port.parse()?;
        let tcp =
            TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("binding port {port}"))?;
        let udp =
            UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("binding port {port}"))?;
        let name = host.clone();
        std::thread::spawn(move || serve_udp(&udp, &name));
        let name = host.clone();
        last = Some(std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let name = name.clone();
                std::thread::spawn(move || serve_tcp(stream, &name));
            }
        }));
    }
    let _ = last.map(std::thread::JoinHandle::join);
    Ok(())
}

/// `HOST CLIENT`, then whatever the client sends.
fn serve_tcp(mut stream: TcpStream, host: &str) -> Result<()> {
    let client = stream.peer_addr()?.ip();
    writeln!(stream, "{host} {client}")?;
    let mut from = stream.try_clone()?;
    std::io::copy(&mut from, &mut stream)?;
    Ok(())
}

/// The same for one datagram; what was sent follows the first line.
fn serve_udp(socket: &UdpSocket, host: &str) -> Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let answer = [
            format!("{host} {}\n", from.ip()).as_bytes(),
            &buffer[..length],
        ]
        .concat();
        // Larger than what was sent by a few bytes; a limit of size is the client's trouble.
        let _ = socket.send_to(&answer, from);
    }
}

fn resolve(target: &str) -> Result<SocketAddr> {
    let mut found = target
        .to_socket_addrs()
        .with_context(|| format!("resolving {target}"))?;
    found
        .next()
        .with_context(|| format!("{target} has no address"))
}

fn send(to: &str, bytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&resolve(to)?, PATIENCE)
        .with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut writing = stream.try_clone()?;
    let writer = std::thread::spawn(move || -> Result<()> {
        writing.write_all(&vec![b'x'; bytes])?;
        Ok(writing.shutdown(Shutdown::Write)?)
    });
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("reading it back, {} bytes so far", answer.len()))?;
    let _ = writer.join();
    back(&answer, bytes)
}

fn send_udp(to: &str, bytes: usize) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(resolve(to)?)?;
    socket
        .send(&vec![b'x'; bytes])
        .with_context(|| format!("sending {bytes} bytes"))?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer).context("waiting for the answer")?;
    back(&buffer[..length], bytes)
}

fn send_hex(to: &str, hex: &str) -> Result<()> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    let bytes: Vec<u8> = digits.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect();
    UdpSocket::bind("0.0.0.0:0")?.send_to(&bytes, resolve(to)?)?;
    Ok(())
}

/// Whether an answer holds what was sent after its first line; prints that line.
fn back(answer: &[u8], bytes: usize) -> Result<()> {
    let line = answer.iter().position(|b| *b == b'\n').unwrap_or(0);
    let rest = answer.len().saturating_sub(line + 1);
    if rest != bytes {
        bail!("sent {bytes} bytes, {rest} came back");
    }
    println!("{}", String::from_utf8_lossy(&answer[..line]));
    Ok(())
}

fn reach(targets: &[&str]) {
    let ask = |target: &str| match target.strip_prefix("udp:") {
        Some(target) => said_udp(target),
        None => said_tcp(target),
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> = targets
            .iter()
            .map(|target| scope.spawn(move || ask(target)))
            .collect();
        for one in asked {
            let said = one.join().ok().and_then(Result::ok);
            println!("{}", said.as_deref().unwrap_or("-"));
        }
    });
}

fn said_tcp(target: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&resolve(target)?, IMPATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said.trim().to_owned())
}

fn said_udp(target: &str) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(IMPATIENCE))?;
    socket.connect(resolve(target)?)?;
    socket.send(b"")?;
    let mut buffer = [0; 200];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

fn udp_echo(port: u16) -> Result<()> {
    let socket =
        UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("binding port {port}"))?;
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        socket.send_to(format!("{host}: {text}").as_bytes(), from)?;
    }
}

fn udp_ask(host: &str, port: u16, text: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket
        .connect((host, port))
        .with_context(|| format!("resolving {host}"))?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).context("waiting for the answer")?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}

/// Serves `grpc.health.v1.Health/Check`: SERVING for the service, NOT_FOUND for any other.
fn grpc_health(port: u16, service: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
        loop {
            let io = TokioIo::new(listener.accept().await?.0);
            let wanted = service.to_owned();
            let check = service_fn(move |request| check(request, wanted.clone()));
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, check),
            );
        }
    })
}

/// One unary call (PROTOCOL-HTTP2.md of gRPC): five bytes of frame header and a message in the body, the status in the trailers.
async fn check(
    request: Request<Incoming>,
    wanted: String,
) -> hyper::Result<Response<StreamBody<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + use<>>>>
{
    let asked = request.into_body().collect().await?.to_bytes();
    // HealthCheckRequest { string service = 1; }: a tag, a length, the text.
    let service = asked.get(7..).unwrap_or_default();
    let (message, status) = if service == wanted.as_bytes() {
        // HealthCheckResponse { ServingStatus status = 1; }, SERVING.
        (&b"\x00\x00\x00\x00\x02\x08\x01"[..], "0")
    } else {
        (&b""[..], "5")
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let frames = [
        Frame::data(Bytes::from_static(message)),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
