//! `tcpSocket` checks: a connection is enough.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::Outcome;

pub async fn probe(host: Option<&str>, ip: IpAddr, port: u16, timeout: Duration) -> Outcome {
    let address = address(host, ip, port);
    match tokio::time::timeout(timeout, connect(host, ip, port)).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(e)) => Outcome::Failure(format!("dial tcp {address}: {}", describe(&e))),
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `HOST:PORT`, IPv6 in brackets.
pub fn address(host: Option<&str>, ip: IpAddr, port: u16) -> String {
    let host = host.map_or_else(|| ip.to_string(), str::to_string);
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Connects to the pod, or to the host that the probe names instead.
pub async fn connect(host: Option<&str>, ip: IpAddr, port: u16) -> io::Result<TcpStream> {
    match host {
        Some(host) => match host.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, port)).await,
            Err(_) => TcpStream::connect((host, port)).await,
        },
        None => TcpStream::connect((ip, port)).await,
    }
}

/// The kernel's error in Go's words, which users of kubelet events know.
pub fn describe(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".into(),
        io::ErrorKind::TimedOut => "i/o timeout".into(),
        io::ErrorKind::UnexpectedEof => "EOF".into(),
        _ => e.to_string(),
    }
}
