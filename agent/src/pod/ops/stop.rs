//! Ends a container: preStop, signal, patience, SIGKILL.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::{Notify, watch};

use crate::container::hooks;
use crate::deps::Deps;
use crate::events::{PodEvents, Severity};
use crate::pod::backoff::Mono;

/// What a stop needs.
pub struct StopRequest {
    pub container: Option<Container>,
    pub name: String,
    pub id: String,
    pub ip: Option<IpAddr>,
    pub message: String,
    /// SIGKILL after this; may come nearer while we wait.
    pub deadline: Mono,
    pub pod_deadline: watch::Receiver<Option<Mono>>,
    /// Fires when the container has ended.
    pub ended: Arc<Notify>,
    pub events: PodEvents,
}

/// preStop, signal, wait, kill. Returns when the container has ended.
pub async fn stop(deps: Arc<Deps>, mut r: StopRequest) {
    r.events.tell(
        Severity::Normal,
        "Killing",
        Some(&r.name),
        r.message.clone(),
    );
    let ended = r.ended.clone();
    let ended = ended.notified();
    tokio::pin!(ended);
    ended.as_mut().enable();
    if let Some(container) = &r.container
        && let Some(hook) = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.as_ref())
        && deps.now() < limit(&r)
    {
        let run = hooks::run(hook, container, &deps.runtime, &r.id, r.ip);
        tokio::pin!(run);
        loop {
            let at = limit(&r);
            tokio::select! {
                () = &mut ended => return,
                done = &mut run => {
                    if let Err(why) = done {
                        tracing::debug!(container = r.name, why, "preStop hook failed");
                        r.events.tell(Severity::Warning, "FailedPreStopHook", Some(&r.name), "PreStopHook failed".into());
                    }
                    break;
                }
                () = tokio::time::sleep(at.saturating_sub(deps.now())) => break,
                Ok(()) = r.pod_deadline.changed() => {}
            }
        }
        // Whatever preStop took, the process gets two seconds to end by itself.
        if r.deadline > deps.now() {
            r.deadline = r.deadline.max(deps.now() + Duration::from_secs(2));
        }
    }
    let signal = deps
        .runtime
        .stop_signal(&r.id)
        .await
        .unwrap_or(nix::libc::SIGTERM);
    if let Err(error) = deps.runtime.kill(&r.id, signal).await {
        tracing::debug!(container = r.name, %error, "could not send the stop signal");
    }
    loop {
        let at = limit(&r);
        tokio::select! {
            () = &mut ended => return,
            () = tokio::time::sleep(at.saturating_sub(deps.now())) => break,
            Ok(()) = r.pod_deadline.changed() => {}
        }
    }
    loop {
        if let Err(error) = deps.runtime.kill(&r.id, nix::libc::SIGKILL).await {
            tracing::warn!(container = r.name, %error, "could not kill a container; trying again");
        }
        if tokio::time::timeout(Duration::from_secs(10), &mut ended)
            .await
            .is_ok()
        {
            return;
        }
        // The end may have been missed, or the process hangs in the kernel.
        match deps.runtime.container(&r.id).await {
            Ok(c) if !matches!(c.state, amphipod_runtime::ContainerState::Exited { .. }) => {}
            _ => return,
        }
    }
}

fn limit(r: &StopRequest) -> Mono {
    r.pod_deadline
        .borrow()
        .map_or(r.deadline, |p| p.min(r.deadline))
}
