//! The Kubernetes API on SQLite, the scheduler and the controllers.
//!
//! [`Server::start`] is the whole interface: it opens the data directory, makes what a first start needs (keys, system
//! namespaces, default roles), serves HTTPS, and returns when `/readyz` would say ok.

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod cache;
pub mod controllers;
pub mod events;
pub mod fields;
pub mod http;
pub mod openapi;
pub mod registry;
pub mod resources;
pub mod scheduler;
pub mod store;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amphipod_api::files;
use amphipod_api::join::ClusterFacts;
use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use crate::admission::DefaultTolerations;
use crate::auth::Authorizer;
use crate::auth::authn::{CertificateUser, TokenAuthenticator};
use crate::auth::removed::RemovedNodes;
use crate::bootstrap::pki::{self, Pki};
use crate::bootstrap::{addresses, moves, objects};
use crate::cache::Cache;
use crate::http::app::{App, PLACES};
use crate::http::connect::Direct;
use crate::http::health::Health;
use crate::http::holding::Budget;
use crate::http::metrics::Metrics;
use crate::http::tunnel::{ByTunnel, Tunnels};
use crate::registry::Registry;
use crate::resources::{Catalog, ClusterConfig};
use crate::store::{SqliteStore, Store};

/// What a server needs to know. `Default` is the all-in-one box of the README.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Everything the server keeps: `state.db`, `pki/`, `admin.kubeconfig`. Made with mode 0700 if missing.
    pub data_dir: PathBuf,
    /// Where HTTPS listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that agents and pods use to reach this server. `None`: the host's first
    /// global address when `listen` is unspecified, else the address of `listen`.
    pub advertise_address: Option<IpAddr>,
    /// Pod addresses; each node gets a /24 (IPv4) of it. First family is the primary one.
    pub cluster_cidrs: Vec<String>,
    /// Service addresses; the first of each is the `kubernetes` service's, the tenth is DNS.
    pub service_cidrs: Vec<String>,
    /// Ports given to NodePort services, inclusive.
    pub node_port_range: (u16, u16),
    /// The DNS suffix of services, without dots at its ends.
    pub cluster_domain: String,
    /// Host names and addresses that the serving certificate also carries.
    pub extra_sans: Vec<String>,
    /// Where the administrator's kubeconfig is written, at the start and when its certificate is renewed, beside
    /// `DATA_DIR/admin.kubeconfig`.
    pub admin_kubeconfigs: Vec<PathBuf>,
    /// The name of this box, put into the serving certificate. `None`: the kernel's host name.
    pub node_name: Option<String>,
    /// How long a node may be silent before its conditions are Unknown (kube-controller-manager's `--node-monitor-grace-period`).
    /// Agents renew their Lease four times in 40 s if not told otherwise.
    pub node_monitor_grace: Duration,
    /// How long pods that do not say so themselves stay on a node that is not well.
    pub default_tolerations: DefaultTolerations,
    /// How long a client may keep the server waiting: for a request's head and body, between requests, and for what it is
    /// given to be taken.
    pub request_timeout: Duration,
    /// Start the scheduler and the controllers. Off for tests of the API alone.
    pub run_controllers: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            data_dir: PathBuf::from("/var/lib/amphipod/server"),
            listen: SocketAddr::from(([0, 0, 0, 0], 6443)),
            advertise_address: None,
            cluster_cidrs: vec!["10.42.0.0/16".to_owned()],
            service_cidrs: vec!["10.43.0.0/16".to_owned()],
            node_port_range: (30000, 32767),
            cluster_domain: "cluster.local".to_owned(),
            extra_sans: Vec::new(),
            admin_kubeconfigs: Vec::new(),
            node_name: None,
            node_monitor_grace: Duration::from_secs(40),
            default_tolerations: DefaultTolerations::default(),
            request_timeout: Duration::from_secs(60),
            run_controllers: true,
        }
    }
}

/// A running server. Dropping it stops accepting; [`Server::shutdown`] stops in order.
pub struct Server {
    addr: SocketAddr,
    advertise: SocketAddr,
    pki: Arc<Pki>,
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    control: Option<(scheduler::Scheduler, controllers::Controllers)>,
}

/// How often certificates are looked at.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(12 * 3600);

impl Server {
    /// Starts the server and returns when `/readyz` would say ok.
    ///
    /// # Errors
    /// An unusable data directory, a port in use, or a database that fails its check, each saying which and why.
    pub async fn start(config: ServerConfig) -> anyhow::Result<Server> {
        amphipod_api::tls::install_provider();
        pki::data_dir(&config.data_dir)?;
        let advertised = addresses::advertised(&config);
        let service_cidr = config
            .service_cidrs
            .first()
            .context("a service range is needed")?;
        let service_ip = addresses::nth(service_cidr, 1)?;
        let names = addresses::serving_names(&config, advertised)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("listening on {}", config.listen))?;
        let addr = listener
            .local_addr()
            .context("reading the address listened on")?;
        let advertise = SocketAddr::new(advertised, addr.port());

        let catalog = Arc::new(Catalog::builtin());
        let lazy_resources = Registry::tables(&catalog)
            .into_iter()
            .filter(|table| table.lazy)
            .map(|table| table.resource.to_string())
            .collect();
        // Keys and the database do not need each other.
        let (keys_dir, state) = (config.data_dir.clone(), config.data_dir.join("state.db"));
        let backup = config.data_dir.join("state.backup.db");
        let keys = tokio::task::spawn_blocking(move || Pki::open(&keys_dir, names));
        let opened = tokio::task::spawn_blocking(move || {
            SqliteStore::open_or_quarantine(
                &state,
                store::Options {
                    backup: Some(backup),
                    lazy_resources,
                    ..store::Options::default()
                },
            )
            .with_context(|| format!("opening {}", state.display()))
        });
        let (keys, opened) = tokio::try_join!(keys, opened)?;
        let pki = Arc::new(keys?);
        let store: Arc<dyn Store> = Arc::new(opened?.store);

        let cache = Cache::start(&*store, Registry::tables(&catalog))
            .await
            .context("loading the state")?;
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        let authorizer = Arc::new(Authorizer::new(cache.clone(), bootstrap::node_rules()));
        let cluster = ClusterConfig {
            service_cidrs: config.service_cidrs.clone(),
            node_ports: config.node_port_range,
        };
        let registry = Arc::new(Registry::new(
            store.clone(),
            cache.clone(),
            catalog,
            Arc::new(admission::Chain::standard(config.default_tolerations)),
            authorizer.clone(),
            cluster,
        ));
        let facts = objects::Facts {
            service_ip,
            endpoint: advertise,
            ca_pem: pki.ca_pem().to_owned(),
        };
        if let Err(status) = objects::ensure(&registry, &facts).await {
            // A box whose disk is full must still serve what it has.
            let first_start = cache
                .table("namespaces")
                .is_none_or(|table| table.get("", "default").is_none());
            if first_start {
                return Err(status).context("making the objects that are always there");
            }
            tracing::error!(%status, "the objects that are always there were not brought up to date");
        }

        let stop = CancellationToken::new();
        let tunnels = Arc::new(Tunnels::default());
        let removed = Arc::new(RemovedNodes::new(cache.clone(), stop.clone()));
        let app = Arc::new(App {
            registry: registry.clone(),
            authorizer: authorizer.clone(),
            tokens: Arc::new(TokenAuthenticator::new(
                pki.token_keys.clone(),
                cache.clone(),
                issuer,
            )),
            dialer: Arc::new(ByTunnel::new(
                tunnels.clone(),
                Direct::new(cache, pki.clone()),
            )),
            tunnels,
            removed: removed.clone(),
            cluster: cluster_facts(&config)?,
            own_node: config.node_name.clone().unwrap_or_default(),
            health: health(&pki),
            metrics: Metrics::default(),
            places: Semaphore::new(PLACES),
            bodies: Budget::default(),
            answers: Budget::default(),
            writing: Semaphore::new(1),
            request_timeout: config.request_timeout,
            stop: stop.clone(),
        });
        let tls = amphipod_api::tls::server_config_with(pki.clone(), Some(pki.ca_pem().as_bytes()))
            .context("setting up TLS")?;
        let make = move |peer: http::serve::Peer| {
            let app = app.clone();
            let user = peer
                .certificate
                .and_then(|der| CertificateUser::read(&der))
                .map(Arc::new);
            move |request| app.clone().handle(user.clone(), request)
        };
        let serving = tokio::spawn(http::serve::run(
            listener,
            tls.into(),
            config.request_timeout,
            stop.clone(),
            make,
        ));
        tokio::spawn(auth::rbac::aggregator::run(registry.clone(), stop.clone()));
        tokio::spawn(registry::expire::events(registry.clone(), stop.clone()));
        tokio::spawn(renew(pki.clone(), stop.clone()));
        if config.listen.ip().is_unspecified() {
            tokio::spawn(moves::follow(
                config.clone(),
                pki.clone(),
                registry.clone(),
                facts,
                stop.clone(),
            ));
        }

        let control = config.run_controllers.then(|| {
            let told = controllers::Config {
                pki: pki.clone(),
                removed,
                authorizer,
                cluster_cidrs: config.cluster_cidrs.clone(),
                own_node: config.node_name.clone(),
                node_monitor_grace: config.node_monitor_grace,
                advertise,
            };
            (
                scheduler::start(registry.clone()),
                controllers::start(registry.clone(), told),
            )
        });

        let mut paths = config.admin_kubeconfigs.clone();
        paths.push(config.data_dir.join("admin.kubeconfig"));
        write_kubeconfigs(&pki, addr, &paths);
        let (renewed, mut renewals) = (pki.clone(), pki.renewals());
        let ending = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ending.cancelled() => return,
                    Ok(()) = renewals.changed() => {}
                }
                write_kubeconfigs(&renewed, addr, &paths);
            }
        });
        tracing::info!(%addr, %advertise, "the Kubernetes API is served");
        Ok(Server {
            addr,
            advertise,
            pki,
            registry,
            store,
            stop,
            serving,
            control,
        })
    }

    /// The address HTTPS listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address that others reach this server by.
    pub fn advertise_addr(&self) -> SocketAddr {
        self.advertise
    }

    /// A kubeconfig with a client certificate of group `system:masters`; also written to `DATA_DIR/admin.kubeconfig`, mode
    /// 0600. Its URL is the loopback address unless the server listens on a certain other one.
    pub fn admin_kubeconfig(&self) -> String {
        self.pki.admin_kubeconfig(&local_url(self.addr))
    }

    /// The cluster's CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.pki.ca_pem()
    }

    /// The identity of the agent `system:node:NAME` (group `system:nodes`): (certificate PEM, key PEM), for the agent that
    /// runs on the same box as the server. The certificate is good for both sides: as a client of the API, and for serving
    /// the node API, where the server looks for the node's name in it. The same one until it is due for renewal.
    ///
    /// # Errors
    /// The CA key cannot be read or does not sign.
    pub fn node_credentials(&self, node_name: &str) -> anyhow::Result<(String, String)> {
        let identity = self.pki.node(node_name)?;
        Ok((identity.cert_pem, identity.key_pem))
    }

    /// The engine, for what runs in this process: controllers, the scheduler, tests.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Stops: no new connections, watches end, requests under way get up to five seconds, the store is closed.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        drop(self.control.take());
        if let Err(error) = (&mut self.serving).await {
            tracing::warn!(%error, "the listener did not end in order");
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(%error, "the last changes of Events and Leases were not written");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Writes the administrator's kubeconfig, for clients on this box. An equal file is left alone.
fn write_kubeconfigs(pki: &Pki, addr: SocketAddr, paths: &[PathBuf]) {
    let text = pki.admin_kubeconfig(&local_url(addr));
    for path in paths {
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| files::write_if_changed(path, text.as_bytes(), files::PRIVATE));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "the administrator's kubeconfig was not written");
        }
    }
}

/// What `/readyz` asks.
fn health(pki: &Arc<Pki>) -> Health {
    let pki = pki.clone();
    Health::default().with("serving-certificate", move || {
        let over = pki.serving_until() <= jiff::Timestamp::now();
        if over {
            Err("the serving certificate is no longer valid".to_owned())
        } else {
            Ok(())
        }
    })
}

/// What boxes that join are told.
fn cluster_facts(config: &ServerConfig) -> anyhow::Result<ClusterFacts> {
    let service_cidr = config
        .service_cidrs
        .first()
        .context("a service range is needed")?;
    Ok(ClusterFacts {
        cluster_cidr: config.cluster_cidrs.join(","),
        service_cidr: config.service_cidrs.join(","),
        cluster_domain: config.cluster_domain.clone(),
        cluster_dns: addresses::nth(service_cidr, 10)?.to_string(),
        node_port_range: config.node_port_range,
    })
}

/// The URL for clients on this host.
fn local_url(addr: SocketAddr) -> String {
    let mut addr = addr;
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("https://{addr}")
}

/// Renews certificates before they end, while the server runs.
async fn renew(pki: Arc<Pki>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_INTERVAL) => {}
        }
        let pki = pki.clone();
        match tokio::task::spawn_blocking(move || pki.renew()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(
                "certificates were not renewed: {error:#}; make the data directory writable"
            ),
            Err(error) => tracing::error!(%error, "certificates were not renewed"),
        }
    }
}
