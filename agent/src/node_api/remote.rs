//! The streams of one `exec` or `attach`, whichever way the client speaks, and the pumps between them and a process.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use amphipod_api::status::{Reason, Status, StatusCause, StatusDetails};
use amphipod_runtime::{ExecSpec, FdStream, Resizer, Runtime};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;

use super::mux::{self, Writer};
use super::spdy::{self, Stream};
use super::websocket::Channels;

/// How long a client may take to open the streams that it announced.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// After a process has ended, its output is over when nothing more comes for this long: a child that it left behind may hold the pipe
/// open for ever.
const QUIET: Duration = Duration::from_millis(500);

/// Which streams a request wants: `PodExecOptions` and `PodAttachOptions` of the core/v1 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

type BoxedRead = Box<dyn AsyncRead + Send + Unpin>;

/// The client's side of a session.
pub(super) struct Remote {
    stdin: Option<BoxedRead>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    /// Lines of JSON: `{"Width":80,"Height":24}`.
    resize: Option<BoxedRead>,
    error: Option<Writer>,
    /// Protocol version 4 and later report the end as a `Status`; earlier ones only errors, as text.
    structured: bool,
    /// Completes when the client is gone; holds the connection open until then.
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Remote {
    /// Waits for the client's SPDY streams; `version` is that of the negotiated `vN.channel.k8s.io`.
    pub(super) async fn over_spdy(
        mut connection: spdy::Connection,
        wanted: Wanted,
        version: u8,
    ) -> io::Result<Remote> {
        let resizes = wanted.tty && version >= 3;
        let expected = 1 + [
            wanted.stdin,
            wanted.stdout,
            wanted.stderr && !wanted.tty,
            resizes,
        ]
        .iter()
        .filter(|b| **b)
        .count();
        let (mut stdin, mut stdout, mut stderr, mut resize, mut error) =
            (None, None, None, None, None);
        let open = async {
            for _ in 0..expected {
                let Some(Stream {
                    headers,
                    reader,
                    writer,
                }) = connection.next().await
                else {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                };
                match headers.get("streamtype").map(String::as_str) {
                    Some("error") => error = Some(writer),
                    Some("stdin") => stdin = Some(reader),
                    Some("stdout") => stdout = Some(writer),
                    Some("stderr") => stderr = Some(writer),
                    Some("resize") => resize = Some(reader),
                    other => {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("unknown stream type {other:?}"),
                        ));
                    }
                }
            }
            Ok(())
        };
        tokio::time::timeout(OPEN_WITHIN, open)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        let gone = Box::pin(async move { while connection.next().await.is_some() {} });
        Ok(Remote {
            stdin,
            stdout,
            stderr,
            resize,
            error,
            structured: version >= 4,
            gone,
        })
    }

    /// Uses the channels of a WebSocket: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize.
    pub(super) fn over_websocket(
        mut channels: Channels,
        wanted: Wanted,
        structured: bool,
    ) -> Remote {
        let mut input = |channel: u8| {
            channels
                .inputs
                .remove(&channel)
                .map(|r| Box::new(mux::reader(r)) as BoxedRead)
        };
        let stdin = if wanted.stdin { input(0) } else { None };
        let resize = if wanted.tty { input(4) } else { None };
        let writer =
            |channel, wanted: bool| wanted.then(|| Writer::new(channel, channels.out.clone()));
        Remote {
            stdin,
            stdout: writer(1, wanted.stdout),
            stderr: writer(2, wanted.stderr && !wanted.tty),
            resize,
            error: writer(3, true),
            structured,
            gone: Box::pin(async move {
                let _ = channels.closed.await;
            }),
        }
    }

    /// Tells the client how it ended, and that nothing more comes.
    async fn finish(error: Option<Writer>, structured: bool, outcome: Result<i32, String>) {
        let Some(mut error) = error else { return };
        let text = match (&outcome, structured) {
            (Ok(_), true) | (Err(_), true) => end_status(&outcome).to_json(),
            (Ok(0), false) => Vec::new(),
            (Ok(code), false) => {
                format!("command terminated with non-zero exit code: exit status {code}")
                    .into_bytes()
            }
            (Err(message), false) => message.clone().into_bytes(),
        };
        // The client may be gone already; there is nobody else to tell.
        if !text.is_empty() {
            let _ = error.write_all(&text).await;
        }
        let _ = error.shutdown().await;
    }
}

/// The `Status` on the error stream (remotecommand v4): the exit code stands in a cause.
fn end_status(outcome: &Result<i32, String>) -> Status {
    match outcome {
        Ok(0) => Status::success(),
        Ok(code) => {
            let message = format!("command terminated with non-zero exit code: exit status {code}");
            let cause = StatusCause {
                reason: "ExitCode".into(),
                message: code.to_string(),
                ..Default::default()
            };
            let details = StatusDetails {
                causes: vec![cause],
                ..Default::default()
            };
            Status::failure(0, Reason("NonZeroExitCode".into()), message).with_details(details)
        }
        Err(message) => Status::internal_error(message),
    }
}

/// Runs a command in a container for the client.
pub(super) async fn exec(runtime: &Runtime, container: &str, spec: &ExecSpec, remote: Remote) {
    let Remote {
        stdin,
        stdout,
        stderr,
        resize,
        error,
        structured,
        gone,
    } = remote;
    let mut session = match runtime.exec(container, spec).await {
        Ok(session) => session,
        Err(failure) => return Remote::finish(error, structured, Err(failure.to_string())).await,
    };
    let (exit_seen, exited) = watch::channel(false);
    let input = tokio::spawn(feed(stdin, session.stdin.take()));
    let resizing = tokio::spawn(follow_size(resize, session.resizer()));
    let (from_stdout, from_stderr) = (session.stdout.take(), session.stderr.take());
    let output = async {
        tokio::join!(
            pump(from_stdout, stdout, exited.clone()),
            pump(from_stderr, stderr, exited)
        )
    };
    let ended = async {
        let wait = async {
            let outcome = session.wait().await;
            let _ = exit_seen.send(true);
            outcome
        };
        tokio::join!(wait, output).0
    };
    tokio::select! {
        outcome = ended => {
            let outcome = outcome.map(|outcome| outcome.code).map_err(|failure| failure.to_string());
            Remote::finish(error, structured, outcome).await;
        }
        // The process's pipes and terminal close with the session, as when a terminal window is closed.
        () = gone => {}
    }
    input.abort();
    resizing.abort();
}

/// Joins the client to the streams of a container's own process.
pub(super) async fn attach(runtime: &Runtime, container: &str, remote: Remote) {
    let Remote {
        stdin,
        stdout,
        stderr,
        resize,
        error,
        structured,
        gone,
    } = remote;
    let session = match runtime.attach(container).await {
        Ok(session) => session,
        Err(failure) => return Remote::finish(error, structured, Err(failure.to_string())).await,
    };
    let resizing = tokio::spawn(follow_size(resize, session.resizer()));
    let input = tokio::spawn(async move {
        if let (Some(mut from), Some(mut input)) = (stdin, session.stdin)
            && tokio::io::copy(&mut from, &mut input.stream).await.is_ok()
        {
            let _ = input.end().await;
        }
    });
    let (_still_running, exited) = watch::channel(false);
    let output = async {
        tokio::join!(
            pump(Some(session.stdout), stdout, exited.clone()),
            pump(session.stderr, stderr, exited)
        )
    };
    tokio::select! {
        _ = output => Remote::finish(error, structured, Ok(0)).await,
        () = gone => {}
    }
    input.abort();
    resizing.abort();
}

/// The client's input into the process, then its end.
async fn feed(from: Option<BoxedRead>, to: Option<FdStream>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = tokio::io::copy(&mut from, &mut to).await;
    }
}

/// Output to the client, or to nobody. Ends with the stream, with the client, or when it is quiet after the process's end.
async fn pump(from: Option<FdStream>, mut to: Option<Writer>, mut exited: watch::Receiver<bool>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let quiet_after_exit = async {
            // A sender that is gone means that there is no exit to wait for.
            if exited.wait_for(|exited| *exited).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(QUIET).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = quiet_after_exit => 0,
        };
        if read == 0 {
            break;
        }
        if let Some(writer) = &mut to
            && writer.write_all(&buffer[..read]).await.is_err()
        {
            // The process must not stop at a full pipe because its reader has left.
            to = None;
        }
    }
    if let Some(mut writer) = to {
        let _ = writer.shutdown().await;
    }
}

/// `TerminalSize` of client-go's remotecommand.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TerminalSize {
    width: u16,
    height: u16,
}

async fn follow_size(from: Option<BoxedRead>, resizer: Resizer) {
    let Some(from) = from else { return };
    // Clients end each size with a newline.
    let mut lines = BufReader::new(from.take(1 << 20)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(size) = serde_json::from_str::<TerminalSize>(&line) {
            let _ = resizer.resize(size.width, size.height);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_exit_code_stands_in_a_cause() {
        let status = serde_json::to_value(end_status(&Ok(42))).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "42");
        assert_eq!(
            serde_json::to_value(end_status(&Ok(0))).unwrap()["status"],
            "Success"
        );
        assert_eq!(
            serde_json::to_value(end_status(&Err("no".into()))).unwrap()["status"],
            "Failure"
        );
    }
}
