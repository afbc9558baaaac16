//! Commands in containers: exec checks and lifecycle hooks.

use std::time::Duration;

use amphipod_runtime::{ExecSpec, Runtime};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Outcome;

/// Most output of a check that is kept.
const OUTPUT_LIMIT: u64 = 10 * 1024;

pub async fn probe(runtime: &Runtime, id: &str, command: &[String], timeout: Duration) -> Outcome {
    match run(runtime, id, command, Some(timeout)).await {
        Ok((0, _)) => Outcome::Success,
        Ok((_, output)) => Outcome::Failure(output),
        Err(Trouble::Timeout) => {
            let limit = amphipod_api::time::format_duration(timeout);
            Outcome::Failure(format!(
                "command timed out: {:?} timed out after {limit}",
                command.join(" ")
            ))
        }
        Err(Trouble::NotFound(why)) => Outcome::Failure(why),
        Err(Trouble::Other(why)) => Outcome::Error(why),
    }
}

pub enum Trouble {
    Timeout,
    /// The program could not be run.
    NotFound(String),
    Other(String),
}

/// Runs a command to its end: exit code and output.
pub async fn run(
    runtime: &Runtime,
    id: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<(i32, String), Trouble> {
    let spec = ExecSpec {
        args: command.to_vec(),
        timeout,
        ..Default::default()
    };
    let mut session = runtime.exec(id, &spec).await.map_err(|e| match e {
        amphipod_runtime::Error::Exec(why) => Trouble::NotFound(why),
        e => Trouble::Other(e.to_string()),
    })?;
    drop(session.stdin.take());
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let mut out = Vec::new();
    let mut err = Vec::new();
    let outcome = {
        let read = async {
            tokio::join!(read(stdout, &mut out), read(stderr, &mut err));
            std::future::pending::<()>().await
        };
        tokio::pin!(read);
        tokio::select! {
            outcome = session.wait() => {
                // Output stays in the pipe; a grandchild may hold the pipe open, so do not wait for its end.
                let _ = tokio::time::timeout(Duration::from_millis(50), &mut read).await;
                outcome
            }
            () = &mut read => unreachable_wait().await,
        }
    };
    let outcome = outcome.map_err(|e| Trouble::Other(e.to_string()))?;
    if outcome.timed_out {
        return Err(Trouble::Timeout);
    }
    out.extend_from_slice(&err);
    Ok((outcome.code, String::from_utf8_lossy(&out).into_owned()))
}

/// Never completes: reading never decides the race.
async fn unreachable_wait() -> amphipod_runtime::Result<amphipod_runtime::ExecOutcome> {
    std::future::pending().await
}

async fn read(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let _ = (&mut stream).take(OUTPUT_LIMIT).read_to_end(into).await;
    // Keep emptying the pipe, so that a chatty command is not stopped by it.
    let mut sink = [0u8; 4096];
    while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {}
}
