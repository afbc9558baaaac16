//! Clients of a box's API that do as they please: bytes over TLS, HTTP/1.1 or HTTP/2 by hand.
//!
//! kubectl is well-behaved; what a server must bear is not. A connection is opened inside the box's network namespace and
//! shows the administrator's certificate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::EdgeBox;

/// Opens connections to the API of one box.
#[derive(Clone)]
pub struct Dialer {
    /// The network namespace of the box.
    netns: String,
    tls: ClientConfig,
}

/// One connection.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// An HTTP/1.1 answer's head.
#[derive(Debug)]
pub struct Head {
    pub code: u16,
    pub text: String,
}

impl Dialer {
    /// With what the administrator's kubeconfig of the box says.
    #[track_caller]
    pub fn new(edge_box: &EdgeBox) -> Dialer {
        let ran = edge_box
            .kubectl()
            .run(&["config", "view", "--raw", "-o", "json"]);
        let config: Value = serde_json::from_str(&ran.ok()).unwrap();
        let decode = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
        let ca = decode(&config["clusters"][0]["cluster"]["certificate-authority-data"]);
        let user = &config["users"][0]["user"];
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&ca).unwrap())
            .unwrap();
        let chain = CertificateDer::pem_slice_iter(&decode(&user["client-certificate-data"]))
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(&decode(&user["client-key-data"])).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Dialer {
            netns: edge_box.netns(),
            tls,
        }
    }

    /// A TCP connection from inside the box, whose kernel keeps few bytes for who does not read.
    fn tcp(&self) -> io::Result<TcpStream> {
        let netns = self.netns.clone();
        let inside = std::thread::spawn(move || {
            let netns = std::fs::File::open(netns)?;
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            use nix::sys::socket::{
                AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
            };
            let socket = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            setsockopt(&socket, sockopt::RcvBuf, &8192)?;
            connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 6443))?;
            Ok(TcpStream::from(socket))
        });
        inside.join().unwrap()
    }

    /// A connection that speaks `protocol`: `http/1.1` or `h2`.
    #[track_caller]
    pub fn connect(&self, protocol: &str) -> Connection {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tcp = self.tcp().expect("connecting to the API");
        // No test waits longer for one read.
        tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let session = ClientConnection::new(Arc::new(tls), name).unwrap();
        let mut stream = StreamOwned::new(session, tcp);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .expect("the TLS handshake");
        }
        Connection { stream }
    }

    /// A TCP connection that never says anything.
    #[track_caller]
    pub fn silent(&self) -> TcpStream {
        let tcp = self.tcp().expect("connecting to the API");
        tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        tcp
    }
}

impl Connection {
    /// Sends bytes.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Sends an HTTP/1.1 request without a body.
    #[track_caller]
    pub fn get(&mut self, path: &str, headers: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: it\r\n{headers}\r\n");
        self.send(request).expect("sending a request");
    }

    /// Reads some bytes; 0 at the end.
    ///
    /// # Errors
    /// The connection was cut, or nothing came for a minute.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Everything until the connection ends, however it does; and how it did.
    pub fn drain(&mut self) -> (Vec<u8>, io::Result<()>) {
        let mut all = Vec::new();
        let end = self.stream.read_to_end(&mut all).map(drop);
        (all, end)
    }

    /// Reads until `end` has come.
    #[track_caller]
    pub fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 16 << 10];
        let mut looked = 0;
        while !all[looked..].windows(end.len()).any(|it| it == end) {
            looked = all.len().saturating_sub(end.len());
            match self.read(&mut buffer) {
                Ok(n) if n > 0 => all.extend_from_slice(&buffer[..n]),
                other => panic!(
                    "{other:?} after {} bytes, {:?}, before {:?}",
                    all.len(),
                    String::from_utf8_lossy(&all[all.len().saturating_sub(500)..]),
                    String::from_utf8_lossy(end)
                ),
            }
        }
        all
    }

    /// The head of an HTTP/1.1 answer and what of its body came along.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        let text = String::from_utf8_lossy(&self.read_until(b"\r\n\r\n")).into_owned();
        let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
        Head {
            code: code.unwrap_or_else(|| panic!("no status line in {text:?}")),
            text,
        }
    }
}

/// The least of HTTP/2 (RFC 9113) that a client needs which opens streams and then does not read them.
pub mod h2 {
    /// What a client says first, with `window` bytes of flow control for each stream.
    pub fn preface(window: u32) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = vec![0, 4];
        settings.extend_from_slice(&window.to_be_bytes());
        bytes.extend(frame(4, 0, 0, &settings));
        bytes
    }

    /// A frame (section 4.1).
    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A GET on a stream: HEADERS with END_STREAM and END_HEADERS, every field a literal (RFC 7541, section 6.2.2).
    pub fn get(stream: u32, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "it"),
            (":path", path),
        ];
        for (name, value) in fields.iter().chain(headers) {
            assert!(name.len() < 127 && value.len() < 127, "one length byte");
            block.extend([0, name.len() as u8]);
            block.extend(name.as_bytes());
            block.push(value.len() as u8);
            block.extend(value.as_bytes());
        }
        frame(1, 0x5, stream, &block)
    }

    /// Whole frames of a buffer: kind, flags, stream and payload.
    pub fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, &[u8])> {
        let mut found = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else {
                break;
            };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            found.push((head[3], head[4], stream, payload));
            bytes = rest;
        }
        found
    }
}
