//! From parsed arguments to running parts.

use std::future::Future;
use std::io::ErrorKind;
#[cfg(feature = "server")]
use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::{Command, NodeArgs};

/// Logs to standard error; `AMPHIPOD_LOG` chooses what (like `info,amphipod_agent=debug`).
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("AMPHIPOD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// Gives memory back when it is free: after a burst of large requests, glibc's allocator would otherwise raise its own thresholds
/// (mallopt(3), "dynamic mmap threshold") and keep what it once needed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_memory_back() {
    // SAFETY: no other thread exists yet; the values are in the ranges that mallopt(3) names.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 10);
    }
}

/// Other C libraries return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_memory_back() {}

/// Ends at SIGTERM or SIGINT.
pub fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Runs a command to its end.
///
/// # Errors
/// Whatever kept the command from its work; `main` prints it.
pub fn run(command: Command) -> Result<()> {
    let mut runtime = match &command {
        // Two workers: the boxes this is made for have few cores, and each worker costs memory.
        #[cfg(feature = "server")]
        Command::Server(_) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    // Blocking work (file systems, SQLite) runs on threads that end soon after.
    runtime
        .enable_all()
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(2));
    runtime
        .build()
        .context("starting the async runtime")?
        .block_on(async {
            match command {
                #[cfg(feature = "server")]
                Command::Server(args) => server(args).await,
                #[cfg(feature = "agent")]
                Command::Agent(args) => agent(args).await,
                #[cfg(feature = "server")]
                Command::Token(command) => crate::fleet::token(command).await,
                #[cfg(feature = "server")]
                Command::Node(command) => crate::fleet::node(command).await,
                #[cfg(feature = "agent")]
                Command::Reset(args) => reset(args).await,
                #[cfg(feature = "agent")]
                Command::Hello(args) => match args.get {
                    Some(url) => {
                        print!("{}", crate::hello::get(&url).await?);
                        Ok(())
                    }
                    None => crate::hello::serve(args.port, args.message).await,
                },
            }
        })
}

/// What to do about an error that ended the program, where the operator has to do something before the next start can go well.
pub fn advice(error: &anyhow::Error) -> Option<&'static str> {
    let disk = error.chain().any(|cause| {
        let kind = cause
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        matches!(
            kind,
            Some(ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem)
        ) || of_the_servers_disk(cause)
    });
    disk.then_some(
        "the disk takes no writes: free space on it, or repair it and mount it writable, and start again. Nothing is lost, and containers that \
         run go on meanwhile, though nobody looks after them",
    )
}

#[cfg(feature = "server")]
fn of_the_servers_disk(cause: &(dyn std::error::Error + 'static)) -> bool {
    use amphipod_server::store::StoreError;
    matches!(
        cause.downcast_ref(),
        Some(StoreError::Full(_) | StoreError::ReadOnly(_))
    )
}

#[cfg(not(feature = "server"))]
fn of_the_servers_disk(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

/// The name of this box's Node: as given, or the host name in lower case.
fn node_name(node: &NodeArgs) -> Result<String> {
    match &node.node_name {
        Some(name) => Ok(name.clone()),
        None => {
            let name = nix::unistd::gethostname().context("reading the host name")?;
            Ok(name.to_string_lossy().to_ascii_lowercase())
        }
    }
}

#[cfg(feature = "server")]
async fn server(args: crate::cli::ServerArgs) -> Result<()> {
    let stop = stop_signal()?;
    let node_name = node_name(&args.node)?;
    let server = amphipod_server::Server::start(amphipod_server::ServerConfig {
        data_dir: args.node.data_dir.join("server"),
        listen: args.listen,
        advertise_address: args.advertise_address.or(args.node.node_ip),
        cluster_cidrs: vec![args.cluster_cidr.clone()],
        service_cidrs: vec![args.service_cidr.clone()],
        cluster_domain: args.cluster_domain.clone(),
        extra_sans: args.tls_sans.clone(),
        admin_kubeconfigs: vec![args.write_kubeconfig.clone()],
        node_name: Some(node_name.clone()),
        node_monitor_grace: args.node_monitor_grace_period,
        default_tolerations: amphipod_server::DefaultTolerations {
            not_ready: args.default_not_ready_toleration_seconds,
            unreachable: args.default_unreachable_toleration_seconds,
        },
        request_timeout: args.request_timeout,
        ..Default::default()
    })
    .await
    .context("starting the server")?;

    #[cfg(feature = "agent")]
    let agent = if args.disable_agent {
        None
    } else {
        Some(own_agent(&args, &server, node_name).await?)
    };

    stop.await;
    tracing::info!("stopping; containers go on");
    #[cfg(feature = "agent")]
    if let Some(agent) = agent {
        agent.shutdown().await;
    }
    server.shutdown().await;
    Ok(())
}

/// The agent of an all-in-one box: like any other, only that its credentials need no network to get.
#[cfg(all(feature = "server", feature = "agent"))]
async fn own_agent(
    args: &crate::cli::ServerArgs,
    server: &amphipod_server::Server,
    node_name: String,
) -> Result<amphipod_agent::Agent> {
    let pki = args.node.data_dir.join("agent/pki");
    let (cert, key) = server.node_credentials(&node_name)?;
    let credentials = amphipod_agent::ServerCredentials {
        ca: pki.join("server-ca.crt"),
        cert: pki.join("client.pem"),
        key: pki.join("client.pem"),
    };
    write_private(&credentials.ca, server.ca_pem())?;
    write_private(&credentials.cert, &format!("{cert}{key}"))?;
    let url = format!("https://127.0.0.1:{}", server.local_addr().port());
    let mut config = agent_config(&args.node, node_name, url, credentials)?;
    config.cluster_cidr = args.cluster_cidr.clone();
    config.service_cidr = args.service_cidr.clone();
    config.cluster_domain = args.cluster_domain.clone();
    amphipod_agent::Agent::start(config)
        .await
        .context("starting the agent")
}

#[cfg(feature = "agent")]
async fn agent(args: crate::cli::AgentOnlyArgs) -> Result<()> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let node_name = node_name(&args.node)?;
    let wanted = amphipod_agent::JoinConfig {
        server: args.server,
        token: args.token.clone(),
        node_name: node_name.clone(),
        data_dir: args.node.data_dir.join("agent"),
    };
    let joined = tokio::select! {
        joined = amphipod_agent::join(&wanted) => joined.context("joining the cluster")?,
        () = &mut stop => return Ok(()),
    };
    let mut config = agent_config(&args.node, node_name, joined.server_url, joined.credentials)?;
    config.join_token = args.token;
    config.cluster_cidr = joined.cluster.cluster_cidr;
    config.service_cidr = joined.cluster.service_cidr;
    config.cluster_domain = joined.cluster.cluster_domain;
    config.node_port_range = joined.cluster.node_port_range;
    let dns = joined.cluster.cluster_dns;
    config.cluster_dns = vec![
        dns.parse()
            .with_context(|| format!("reading the address of DNS, {dns:?}"))?,
    ];
    let agent = amphipod_agent::Agent::start(config)
        .await
        .context("starting the agent")?;
    stop.await;
    tracing::info!("stopping; containers go on");
    agent.shutdown().await;
    Ok(())
}

#[cfg(feature = "agent")]
async fn reset(args: crate::cli::ResetArgs) -> Result<()> {
    let nowhere = std::path::PathBuf::new();
    let credentials = amphipod_agent::ServerCredentials {
        ca: nowhere.clone(),
        cert: nowhere.clone(),
        key: nowhere,
    };
    let config = agent_config(
        &args.node,
        node_name(&args.node)?,
        String::new(),
        credentials,
    )?;
    for line in amphipod_agent::reset(&config, args.yes, args.keep_volumes)
        .await
        .context("removing what amphipod made")?
    {
        println!("{line}");
    }
    if !args.yes {
        println!("nothing was removed; say `amphipod reset --yes` to do it");
    }
    Ok(())
}

#[cfg(feature = "agent")]
fn agent_config(
    node: &NodeArgs,
    node_name: String,
    server_url: String,
    credentials: amphipod_agent::ServerCredentials,
) -> Result<amphipod_agent::AgentConfig> {
    let mut config = amphipod_agent::AgentConfig::new(node_name, server_url, credentials);
    config.data_dir = node.data_dir.join("agent");
    config.storage_dir = node.data_dir.join("storage");
    config.node_ip = node.node_ip;
    config.node_lease_seconds = node.node_lease_duration_seconds;
    // By its path, which is also its name in the image `amphipod.local/hello`. After an upgrade in place the path is the new binary.
    config.helper_exe = std::env::current_exe().context("finding the path of this program")?;
    config.overlay = node.overlay;
    config.eviction = node.eviction_hard.clone();
    config.firewall = node.firewall;
    config.cgroup_root = node.cgroup_root.clone();
    config.registries = node.registries.exists().then(|| node.registries.clone());
    for label in &node.node_labels {
        let (key, value) = label
            .split_once('=')
            .with_context(|| format!("--node-label {label:?} is not KEY=VALUE"))?;
        config.node_labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(config)
}

/// Writes a file that only root may read, whole or not at all. An equal file is left alone, so that starts do not wear flash.
#[cfg(feature = "server")]
fn write_private(path: &Path, text: &str) -> Result<()> {
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| {
            amphipod_api::files::write_if_changed(
                path,
                text.as_bytes(),
                amphipod_api::files::PRIVATE,
            )
        });
    written
        .map(drop)
        .with_context(|| format!("writing {}", path.display()))
}
