//! What a pod's actor does, one file per action. Each runs as its own task and reports once; none touches the actor's state.

mod end;
mod sandbox;
mod start;
mod stop;
mod volumes;

pub use end::{forget, tear_down};
pub use sandbox::{SandboxInfo, create_sandbox};
pub use start::{StartFailure, StartRequest, Started, start, termination_log};
pub use stop::{StopRequest, stop};
pub use volumes::{VolumePaths, VolumesInfo, prepare_volumes};

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| e.to_string())
}

/// An error with its sources.
pub fn describe(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let more = s.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = s.source();
    }
    text
}
