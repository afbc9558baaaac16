//! What a client sends on an upgraded connection: SPDY frames, WebSocket frames with channels in both encodings, and SPDY in a
//! WebSocket; the first byte chooses. Every stream is read to its end and answered, as exec and port-forward do.
#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use amphipod_agent::node_api::mux::{self, Writer};
use amphipod_agent::node_api::{spdy, websocket};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime"),
    );
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let (mode, bytes) = (*mode, bytes.to_vec());
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async move {
            let (client, server) = tokio::io::duplex(1 << 16);
            let client = tokio::spawn(talk(client, bytes));
            let serving = async {
                match mode % 4 {
                    0 => over_spdy(server).await,
                    1 => over_channels(server, websocket::Encoding::Binary).await,
                    2 => over_channels(server, websocket::Encoding::Base64).await,
                    _ => over_spdy(websocket::tunnel(server).await).await,
                }
            };
            let both = async { tokio::join!(serving, client) };
            let done = tokio::time::timeout(Duration::from_secs(20), both).await;
            assert!(done.is_ok(), "a client that has gone keeps its connection");
        });
    });
});

/// Sends everything, reads what comes, hangs up.
async fn talk(mut io: DuplexStream, bytes: Vec<u8>) {
    let (mut from, mut to) = tokio::io::split(&mut io);
    let sending = async {
        let _ = to.write_all(&bytes).await;
        let _ = to.shutdown().await;
    };
    let reading = async {
        let mut seen = 0;
        let mut buffer = [0; 4096];
        while let Ok(1..) = from.read(&mut buffer).await.inspect(|n| seen += n) {
            assert!(seen < 64 << 20, "more comes back than can be asked for");
        }
    };
    tokio::join!(sending, reading);
}

async fn echo(mut from: impl AsyncRead + Unpin, mut to: Writer) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn over_spdy(io: impl AsyncRead + AsyncWrite + Send + 'static) {
    let mut connection = spdy::accept(io);
    let mut streams = JoinSet::new();
    while let Some(stream) = connection.next().await {
        assert!(
            stream
                .headers
                .keys()
                .all(|name| !name.chars().any(|c| c.is_ascii_uppercase()))
        );
        streams.spawn(echo(stream.reader, stream.writer));
    }
    while streams.join_next().await.is_some() {}
}

async fn over_channels(io: DuplexStream, encoding: websocket::Encoding) {
    let mut channels = websocket::channels(io, encoding, &[0, 4]).await;
    let mut streams = JoinSet::new();
    for (channel, input) in channels.inputs.drain() {
        let writer = Writer::new(u32::from(channel) + 1, channels.out.clone());
        streams.spawn(echo(mux::reader(input), writer));
    }
    drop(channels.out);
    let _ = channels.closed.await;
    while streams.join_next().await.is_some() {}
}
