//! Lifecycle hooks: postStart and preStop (<https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/>).

use std::net::IpAddr;
use std::time::Duration;

use amphipod_runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::probe::{Check, exec, http, http_check, port, tcp};

/// Runs a hook to its end. The error is what follows `PostStartHook failed` or `PreStopHook failed`.
pub async fn run(
    handler: &LifecycleHandler,
    container: &Container,
    runtime: &Runtime,
    id: &str,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(e) = &handler.exec {
        let command = e.command.clone().unwrap_or_default();
        let failed = |why: String| {
            format!(
                "Exec lifecycle hook ({command:?}) for Container {:?} failed - error: {why}",
                container.name
            )
        };
        return match exec::run(runtime, id, &command, None).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(failed(format!(
                "command '{}' exited with {code}: {output}, message: {output:?}",
                command.join(" ")
            ))),
            Err(exec::Trouble::NotFound(why) | exec::Trouble::Other(why)) => Err(failed(why)),
            Err(exec::Trouble::Timeout) => Err(failed("timed out".into())),
        };
    }
    let ip = ip.ok_or("failed to find networking container");
    if let Some(h) = &handler.http_get {
        let Check::Http {
            host,
            port,
            path,
            https,
            headers,
        } = http_check(container, h)?
        else {
            return Err("not an HTTP hook".into());
        };
        let failed = |why: String| {
            format!(
                "HTTP lifecycle hook ({path}) for Container {:?} failed - error: {why}",
                container.name
            )
        };
        return match http::get(host.as_deref(), ip?, port, &path, https, &headers).await {
            Ok((status, _)) if status.as_u16() < 400 => Ok(()),
            Ok((status, _)) => Err(failed(format!("unexpected status {}", status.as_u16()))),
            Err(why) => Err(failed(why)),
        };
    }
    if let Some(t) = &handler.tcp_socket {
        let port = port(container, &t.port)?;
        return tcp::connect(t.host.as_deref().filter(|h| !h.is_empty()), ip?, port)
            .await
            .map(drop)
            .map_err(|e| tcp::describe(&e));
    }
    if let Some(s) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(s.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("invalid handler: it names no action".into())
}
