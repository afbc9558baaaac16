//! Runs only the agent, for trying it beside a server of another build:
//! `agent NODE SERVER_URL PKI_DIR CGROUP_ROOT`, with `server-ca.crt`, `client.crt` and `client.key` in PKI_DIR.

use amphipod_agent::{Agent, AgentConfig, ServerCredentials};
use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = amphipod_agent::run_hidden_command(&args) {
        std::process::exit(code);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, url, pki, cgroup] = &args[..] else {
        anyhow::bail!("usage: agent NODE SERVER_URL PKI_DIR CGROUP_ROOT");
    };
    let pki = std::path::PathBuf::from(pki);
    let credentials = ServerCredentials {
        ca: pki.join("server-ca.crt"),
        cert: pki.join("client.crt"),
        key: pki.join("client.key"),
    };
    let mut config = AgentConfig::new(node, url, credentials);
    config.cgroup_root = cgroup.into();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let begin = std::time::Instant::now();
        let agent = Agent::start(config).await.context("starting the agent")?;
        eprintln!("started in {:?}", begin.elapsed());
        tokio::signal::ctrl_c().await?;
        agent.shutdown().await;
        anyhow::Ok(())
    })
}
