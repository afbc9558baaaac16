//! `peer`: what pods of the tests talk to each other with; in the tests' image as `/bin/peer`.
//!
//! Debian's static busybox crashes when it resolves names, and its `nc` knows no UDP.
//!
//! ```text
//! peer get http://HOST[:PORT]/PATH    prints the body
//! peer udp-echo PORT                  answers each datagram with "HOSTNAME: " and what it held
//! peer udp-ask HOST PORT TEXT         prints the answer
//! ```

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["get", url] => get(url),
        ["udp-echo", port] => udp_echo(port.parse()?),
        ["udp-ask", host, port, text] => udp_ask(host, port.parse()?, text),
        _ => bail!("usage: peer get URL | udp-echo PORT | udp-ask HOST PORT TEXT"),
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
