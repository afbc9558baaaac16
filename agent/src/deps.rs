//! What every pod's actor works with: handles, all cheap to clone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use amphipod_netplug::Network;
use amphipod_runtime::Runtime;
use tokio::sync::{Notify, watch};

use crate::config::AgentConfig;
use crate::container::images::Images;
use crate::env::downward::Facts;
use crate::events::Events;
use crate::pod::backoff::Mono;
use crate::policies::Policies;
use crate::resources::requests::Amounts;
use crate::server::objects::ObjectCache;
use crate::server::status::StatusManager;
use crate::server::tokens::Tokens;
use crate::services::Services;
use crate::store::Store;
use crate::volumes::PodDirs;

/// What the node itself says to pods.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub host_ips: Vec<IpAddr>,
    pub allocatable: Amounts,
    /// Bytes.
    pub memory_capacity: i64,
}

pub struct Deps {
    pub config: AgentConfig,
    pub runtime: Runtime,
    pub images: Images,
    /// `None` until the node's pod range is known.
    pub network: watch::Receiver<Option<Arc<Network>>>,
    pub objects: ObjectCache,
    pub tokens: Tokens,
    pub store: Store,
    pub status: StatusManager,
    pub events: Events,
    pub services: Services,
    pub policies: Policies,
    pub node: RwLock<NodeFacts>,
    /// The addresses in `node` have changed.
    pub readdressed: Notify,
    pub begin: Instant,
    /// Tells that the wall clock was set.
    pub clock: watch::Sender<()>,
    /// Which pod (UID) a runtime container belongs to; for containers whose end is still to come.
    pub owners: Mutex<HashMap<String, String>>,
}

impl Deps {
    pub fn now(&self) -> Mono {
        self.begin.elapsed()
    }

    pub fn node(&self) -> NodeFacts {
        self.node.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn pod_dirs(&self, uid: &str) -> PodDirs {
        PodDirs {
            disk: self.config.data_dir.join("pods").join(uid),
            memory: self.config.run_dir.join("pods").join(uid),
        }
    }

    /// `/var/log/pods/NAMESPACE_NAME_UID`.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config
            .log_dir
            .join("pods")
            .join(format!("{namespace}_{name}_{uid}"))
    }

    pub fn facts(&self, pod_ips: &[IpAddr]) -> Facts {
        let node = self.node();
        Facts {
            pod_ips: pod_ips.iter().map(IpAddr::to_string).collect(),
            host_ips: node.host_ips.iter().map(IpAddr::to_string).collect(),
            node_name: self.config.node_name.clone(),
            allocatable: node.allocatable,
        }
    }

    /// The pod network, once there is one.
    pub async fn network(&self) -> Result<Arc<Network>, String> {
        let mut slot = self.network.clone();
        let found =
            tokio::time::timeout(Duration::from_secs(30), slot.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(network)) => network.clone().ok_or_else(|| "no network".to_string()),
            _ => Err("network is not ready: the server has not yet assigned a pod range (node.spec.podCIDR) to this node".into()),
        }
    }
}
