//! The server's side of SPDY/3.1, as kubectl up to 1.30 and many client libraries speak it for exec, attach and port-forward.
//!
//! Source: the SPDY protocol drafts 3 and 3.1. As Kubernetes' own implementation does, WINDOW_UPDATE and SETTINGS are ignored: flow control
//! is that of the TCP connection below.

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Stream, accept};
pub use headers::Headers;
