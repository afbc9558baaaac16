//! Serves the API on a loopback port with a data directory that goes away, for trying kubectl:
//! `cargo run -p amphipod-server --example serve`, then `KUBECONFIG=... kubectl get ns`.

use std::net::SocketAddr;

use amphipod_server::{Server, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("amphipod-serve-{}", std::process::id()));
    let port = std::env::args()
        .nth(1)
        .and_then(|p| p.parse().ok())
        .unwrap_or(0);
    let mut terminate = signal(SignalKind::terminate())?;
    let started = std::time::Instant::now();
    let server = Server::start(ServerConfig {
        data_dir: dir.clone(),
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        run_controllers: std::env::var_os("NO_CONTROLLERS").is_none(),
        ..ServerConfig::default()
    })
    .await?;
    println!(
        "ready in {:?} at https://{}",
        started.elapsed(),
        server.local_addr()
    );
    println!(
        "export KUBECONFIG={}",
        dir.join("admin.kubeconfig").display()
    );
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    server.shutdown().await;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
