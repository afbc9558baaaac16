//! Wiring: starts the parts of an agent, and stops them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use amphipod_api::client::{Auth, Client, ClientConfig, Target};
use amphipod_api::files;
use amphipod_api::reflector::{Reflector, ReflectorConfig};
use amphipod_netplug::{
    DnsConfig, DnsServer, IpNet, NetConfig, Network, Overlay, PrivateKey, Upstreams,
};
use amphipod_runtime::image::ImageStore;
use amphipod_runtime::{Runtime, RuntimeConfig};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::config::AgentConfig;
use crate::container::images::Images;
use crate::deps::{Deps, NodeFacts};
use crate::events::Events;
use crate::handle::{AgentHandle, PodView};
use crate::node::keeper::NodeKeeper;
use crate::node::machine::{Machine, own_address};
use crate::node::object;
use crate::node_api::NodeApi;
use crate::pod::record::Record;
use crate::pods::{Pods, Supervisor};
use crate::resources::cgroup;
use crate::server::link::Link;
use crate::server::objects::ObjectCache;
use crate::server::status::StatusManager;
use crate::server::tokens::Tokens;
use crate::services::{Planes, Services};
use crate::store::Store;

/// What the rest of the process may look at.
pub(crate) struct Shared {
    pub(crate) deps: Arc<Deps>,
    pub(crate) pods: Pods,
    pub(crate) client: Client,
}

impl Shared {
    pub(crate) fn pods(&self) -> Vec<PodView> {
        self.pods
            .all()
            .iter()
            .map(|a| (*a.view()).clone())
            .collect()
    }
}

/// A running agent. Dropping it stops its tasks; containers keep running either way.
pub struct Agent {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    _node_api: NodeApi,
}

impl Agent {
    /// Starts the agent on the current tokio runtime: brings back from disk what should run, then connects to the server.
    /// Succeeds with the server unreachable. Fails when the box itself is unfit: directories, database, runtime.
    pub async fn start(config: AgentConfig) -> Result<Agent> {
        let begin = Instant::now();
        config.overlay.check()?;
        config.firewall.check()?;
        for dir in [&config.data_dir, &config.run_dir, &config.log_dir] {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        memory_for_secrets(&config)?;
        let store = Store::open(&config.data_dir)?;
        let client = client(&config)?;
        let runtime_config = RuntimeConfig {
            state_dir: config.data_dir.join("runtime"),
            run_dir: config.run_dir.join("runtime"),
            cgroup_root: config.cgroup_root.to_string_lossy().into_owned(),
            helper: config.helper_exe.clone(),
        };
        protect_from_oom();
        let images_dir = config.data_dir.join("images");
        let open_images = tokio::task::spawn_blocking(move || ImageStore::open(images_dir));
        let (runtime, images) = tokio::join!(Runtime::open(runtime_config), open_images);
        let runtime = runtime.context("opening the container runtime")?;
        // After an upgrade, or a way back, the keeper is still the old program.
        if runtime.keeper_is_outdated() {
            match runtime.upgrade_keeper(&config.helper_exe).await {
                Ok(()) => tracing::info!("the keeper of the containers is now this program, too"),
                Err(error) => {
                    tracing::warn!(%error, "the keeper of the containers stays the program that it is")
                }
            }
        }
        let image_store = images
            .context("opening the image store")?
            .context("opening the image store")?;
        let machine = Machine::look(&config.data_dir);
        for (group, resources) in cgroup::groups(&object::capacity(&machine, &config), &config) {
            runtime
                .ensure_cgroup(group, &resources)
                .await
                .with_context(|| format!("making the cgroup for {group:?} pods"))?;
        }
        let remembered = store.fact("address").await?.and_then(|a| a.parse().ok());
        let address = config.node_ip.or_else(own_address).or(remembered);
        let address = address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        if remembered != Some(address) {
            store.put_fact("address", address.to_string()).await?;
        }
        let host_ips = vec![address];
        let facts = NodeFacts {
            host_ips,
            allocatable: object::allocatable(&object::capacity(&machine, &config), &config),
            memory_capacity: machine.memory_bytes,
        };

        let target = Target::core("pods");
        let mine = ReflectorConfig {
            field_selector: format!("spec.nodeName={}", config.node_name),
            ..Default::default()
        };
        let reflector = Reflector::spawn(client.clone(), target, mine);
        let link = Link::new(reflector.connection());
        let (changed, changes) = mpsc::unbounded_channel();
        let (network, network_seen) = watch::channel(None);
        let services = Services::default();
        services.load(&store).await?;
        let deps = Arc::new(Deps {
            runtime: runtime.clone(),
            images: Images {
                store: image_store.clone(),
                registries: crate::registries::read(config.registries.as_deref())?,
                own_binary: config.helper_exe.clone(),
                link: link.clone(),
            },
            network: network_seen,
            objects: ObjectCache::new(client.clone(), store.clone(), link.clone(), changed),
            tokens: Tokens::new(client.clone(), store.clone()),
            status: StatusManager::new(client.clone(), link.clone()),
            events: Events::start(
                config.node_name.clone(),
                client.clone(),
                store.clone(),
                link.clone(),
            ),
            services: services.clone(),
            policies: crate::policies::load(&store).await?,
            node: RwLock::new(facts),
            readdressed: Notify::new(),
            begin,
            clock: watch::Sender::new(()),
            owners: Mutex::new(HashMap::new()),
            store: store.clone(),
            config: config.clone(),
        });

        let mut tasks = JoinSet::new();
        // The network comes first: pods that are brought back from disk want it at once.
        let known = store
            .fact("podCIDRs")
            .await?
            .or_else(|| config.fallback_pod_cidr.clone());
        let first: Vec<String> = known
            .iter()
            .flat_map(|k| k.split(','))
            .filter(|c| !c.is_empty())
            .map(str::to_string)
            .collect();
        let (pod_cidrs, cidrs) = watch::channel(first);
        let (planes, planes_seen) = watch::channel(None);
        let (trouble, network_trouble) = watch::channel(Some(
            "no pod range (node.spec.podCIDR) is assigned yet".to_string(),
        ));
        tasks.spawn(bring_up_network(
            config.clone(),
            Some(address).filter(|ip| !ip.is_loopback()),
            store.clone(),
            cidrs,
            known_addresses(&store).await,
            NetworkHeard {
                network,
                planes,
                trouble,
            },
        ));
        tasks.spawn(services.run(
            client.clone(),
            store.clone(),
            config.node_name.clone(),
            planes_seen,
        ));

        let labels = match store.fact("nodeLabels").await? {
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => Default::default(),
        };
        let labels = Arc::new(RwLock::new(labels));
        let pods = Pods::default();
        let mut supervisor = Supervisor::new(deps.clone(), pods.clone(), labels.clone());
        supervisor
            .restore()
            .await
            .context("bringing back pods from disk")?;
        tasks.spawn(supervisor.run(reflector, changes));
        let (pressure, pressures) = mpsc::channel(1);
        let dirty = Arc::new(Notify::new());
        let keeper = NodeKeeper {
            machine,
            deps: deps.clone(),
            client: client.clone(),
            store,
            images: image_store,
            pod_cidrs,
            network_trouble,
            labels,
            pressure,
            dirty: dirty.clone(),
            config,
        };
        tasks.spawn(keeper.run());
        tasks.spawn(crate::policies::run(deps.clone(), client.clone()));
        tasks.spawn(crate::local_volumes::run(
            deps.clone(),
            client.clone(),
            link.clone(),
        ));
        tasks.spawn(crate::peers::run(deps.clone(), client.clone()));
        tasks.spawn(crate::storage::run(deps.clone(), pods.clone()));
        tasks.spawn(crate::gc::run(deps.clone(), pods.clone(), pressures, dirty));
        tracing::info!(node = %deps.config.node_name, %address, "agent started");
        let shared = Arc::new(Shared { deps, pods, client });
        let handle = AgentHandle {
            shared: shared.clone(),
        };
        let config = &shared.deps.config;
        let shown = Arc::new(crate::serving::current(config)?);
        let node_api = NodeApi::start(config, shown.clone(), handle.clone())
            .await
            .context("starting the node API")?;
        let (renewed, renewals) = watch::channel(());
        tasks.spawn(crate::join::keep_valid(
            config.clone(),
            shared.client.clone(),
            renewed,
            shared.deps.clock.subscribe(),
        ));
        tasks.spawn(crate::serving::keep_valid(
            shared.deps.clone(),
            shared.client.clone(),
            shown,
        ));
        tasks.spawn(crate::tunnel::run(config.clone(), handle, renewals));
        Ok(Agent {
            shared,
            tasks,
            _node_api: node_api,
        })
    }

    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            shared: self.shared.clone(),
        }
    }

    /// Stops all tasks and closes the database. Containers, their network and services stay.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The agent goes last when memory runs out. Not allowed everywhere; then it takes its chances like others.
fn protect_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-999") {
        tracing::debug!(%error, "the agent's OOM score could not be lowered");
    }
}

fn client(config: &AgentConfig) -> Result<Client> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    let c = &config.credentials;
    let auth = Auth::Certificate {
        cert_pem: read(&c.cert)?,
        key_pem: read(&c.key)?,
    };
    let mut config = ClientConfig::new(&config.server_url, read(&c.ca)?, auth);
    config.user_agent = "kubelet/v1.36.0+amphipod".into();
    Ok(Client::new(config)?)
}

/// Who hears of the pod network.
struct NetworkHeard {
    network: watch::Sender<Option<Arc<Network>>>,
    planes: watch::Sender<Option<Planes>>,
    trouble: watch::Sender<Option<String>>,
}

/// Opens the pod network as soon as the pod range is known, then DNS. Tries again when it fails. `known`: addresses that pods had.
async fn bring_up_network(
    config: AgentConfig,
    address: Option<IpAddr>,
    store: Store,
    mut cidrs: watch::Receiver<Vec<String>>,
    known: Vec<(String, Vec<IpAddr>)>,
    heard: NetworkHeard,
) {
    let NetworkHeard {
        network,
        planes,
        trouble,
    } = heard;
    let mut failures = 0;
    loop {
        let now = cidrs.borrow_and_update().clone();
        if now.is_empty() {
            if cidrs.changed().await.is_err() {
                return;
            }
            continue;
        }
        match open_network(&config, address, &now).await {
            Ok(opened) => {
                let opened = Arc::new(opened);
                recall_pods(&store, &opened, &known).await;
                let dns = start_dns(&config, &opened).await;
                network.send_replace(Some(opened.clone()));
                trouble.send_replace(None);
                // Services keep the sender alive through their receiver; ours must outlive this function.
                planes.send_replace(Some(Planes {
                    network: opened,
                    dns,
                    own: config.cluster_dns.clone(),
                }));
                break;
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "cannot bring up the pod network; trying again"
                );
                trouble.send_replace(Some(format!("{error:#}")));
                failures += 1;
                tokio::time::sleep(amphipod_api::reflector::Backoff::default().delay(failures))
                    .await;
            }
        }
    }
    // The range of a node never changes while it lives; a new one would need a restart, and says so.
    while cidrs.changed().await.is_ok() {
        tracing::warn!(
            "the server assigned another pod range to this node; restart the agent to use it"
        );
    }
    drop((network, planes, trouble));
}

/// The addresses that pods had when the agent ended. To be read before the pods begin: what they then tell of themselves is that they have none.
async fn known_addresses(store: &Store) -> Vec<(String, Vec<IpAddr>)> {
    let pods = store.pods().await.unwrap_or_default();
    let known = pods.into_iter().map(|pod| {
        let ips = pod.record.as_deref().map_or(Vec::new(), Record::addresses);
        (pod.uid, ips)
    });
    known.collect()
}

/// Takes the network from pods that went while no agent ran, and keeps for the others the addresses that they had: nobody may be there to tell
/// services and policies of new ones. Nothing is attached yet that the database does not know.
async fn recall_pods(store: &Store, network: &Arc<Network>, known: &[(String, Vec<IpAddr>)]) {
    let Ok(pods) = store.pods().await else { return };
    let (network, known) = (network.clone(), known.to_vec());
    let work = move || {
        let ids: Vec<&str> = pods.iter().map(|p| p.uid.as_str()).collect();
        let retained = network.retain(&ids);
        let there = known.iter().filter(|(id, _)| ids.contains(&id.as_str()));
        network.reserve(there.map(|(id, ips)| (id.as_str(), ips.as_slice())));
        retained
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "links of pods that are gone could not be removed")
        }
        Err(error) => tracing::warn!(%error, "removing links of pods that are gone failed"),
    }
}

/// Secrets and tokens must never reach a disk: `run_dir` has to be in memory. Where it is not, a tmpfs is put below it.
fn memory_for_secrets(config: &AgentConfig) -> Result<()> {
    use nix::mount::MsFlags;
    let dir = config.run_dir.join("pods");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let found =
        nix::sys::statfs::statfs(&dir).with_context(|| format!("looking at {}", dir.display()))?;
    if found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some("mode=750"))
        .with_context(|| format!("mounting a tmpfs on {}", dir.display()))
}

async fn open_network(
    config: &AgentConfig,
    node_ip: Option<IpAddr>,
    cidrs: &[String],
) -> Result<Network> {
    let parse = |text: &str, what: &str| {
        text.trim()
            .parse::<IpNet>()
            .with_context(|| format!("reading the {what} range {text:?}"))
    };
    let list = |text: &str, what: &'static str| {
        text.split(',')
            .map(|t| parse(t, what))
            .collect::<Result<Vec<IpNet>>>()
    };
    let pods: Vec<IpNet> = cidrs
        .iter()
        .map(|c| parse(c, "pod"))
        .collect::<Result<_>>()?;
    let first = *pods.first().context("no pod range")?;
    let cluster = list(&config.cluster_cidr, "cluster")?;
    let services = list(&config.service_cidr, "service")?;
    let state = config.run_dir.join("network");
    let (c0, s0) = (
        *cluster.first().context("no cluster range")?,
        *services.first().context("no service range")?,
    );
    let mut net = NetConfig::new(first, c0, s0, state);
    net.pod_cidrs = pods;
    net.cluster_cidrs = cluster;
    net.service_cidrs = services;
    net.overlay = config.overlay;
    if config.overlay == Overlay::Wireguard {
        net.wireguard_key = Some(wireguard_key(&config.data_dir)?);
    }
    net.firewall = config.firewall;
    net.node_ip = node_ip;
    net.local_ips = config.cluster_dns.clone();
    // The network namespace is that of the calling thread: all threads of this process share one.
    tokio::task::spawn_blocking(move || Network::open(net))
        .await?
        .context("opening the pod network")
}

/// This box's private key for WireGuard, as wg(8) writes keys; made when it is first needed.
fn wireguard_key(data_dir: &Path) -> Result<PrivateKey> {
    let path = data_dir.join("wireguard.key");
    let at = || path.display();
    let known = files::read_optional(&path, 64).with_context(|| format!("reading {}", at()))?;
    if let Some(text) = known {
        let bytes = STANDARD.decode(text.trim_ascii()).unwrap_or_default();
        let key = bytes.try_into().ok().with_context(|| {
            format!(
                "{} holds no key: remove it, and the box makes a new one",
                at()
            )
        })?;
        return Ok(PrivateKey(key));
    }
    let mut key = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)
        .context("reading /dev/urandom")?;
    let text = STANDARD.encode(key) + "\n";
    files::write_atomic(&path, text.as_bytes(), files::PRIVATE)
        .with_context(|| format!("writing {}", at()))?;
    Ok(PrivateKey(key))
}

async fn start_dns(config: &AgentConfig, network: &Network) -> Option<Arc<DnsServer>> {
    let mut addresses = config.cluster_dns.clone();
    addresses.extend_from_slice(network.gateways());
    let listen: Vec<SocketAddr> = addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, 53))
        .collect();
    let upstreams = Upstreams::ResolvConf(config.host_resolv_conf.clone());
    let list = |text: &str| {
        text.split(',')
            .filter_map(|t| t.trim().parse::<IpNet>().ok())
            .collect::<Vec<_>>()
    };
    let clients = list(&config.cluster_cidr);
    let reverse = [clients.clone(), list(&config.service_cidr)].concat();
    let dns = DnsConfig {
        listen,
        cluster_domain: config.cluster_domain.clone(),
        upstreams,
        ttl: 5,
        clients,
        reverse,
    };
    match DnsServer::start(dns).await {
        Ok(server) => Some(Arc::new(server)),
        Err(error) => {
            tracing::error!(%error, "cannot answer DNS on this box; pods will not find services by name");
            None
        }
    }
}

/// Removes links, routes and rules of an agent that does not run any more.
pub(crate) async fn tear_down_network(config: &AgentConfig) -> Result<()> {
    let store = config
        .data_dir
        .join("agent.db")
        .exists()
        .then(|| Store::open(&config.data_dir))
        .transpose()?;
    let known = match store {
        Some(store) => store.fact("podCIDRs").await?,
        None => None,
    };
    let cidrs: Vec<String> = known
        .iter()
        .flat_map(|k| k.split(','))
        .map(str::to_string)
        .collect();
    if cidrs.is_empty() {
        return Ok(());
    }
    let network = open_network(config, None, &cidrs).await?;
    tokio::task::spawn_blocking(move || network.teardown())
        .await?
        .context("removing the pod network")
}
