//! A view into a running agent, for the node API (`:10250`), metrics and tests.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// Which list of the pod's spec a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// `spec.initContainers` without restart policy `Always`.
    Init,
    /// `spec.initContainers` with restart policy `Always`.
    Sidecar,
    /// `spec.containers`.
    Regular,
    /// `spec.ephemeralContainers`.
    Ephemeral,
}

/// One container of a pod as the node API needs it.
#[derive(Debug, Clone)]
pub struct ContainerView {
    pub name: String,
    pub kind: ContainerKind,
    /// Runtime id of the newest instance (running or exited); `None` before the first start.
    pub id: Option<String>,
    /// Runtime id of the instance before it, while it is kept (`kubectl logs --previous`).
    pub previous_id: Option<String>,
    pub running: bool,
    /// Log of the newest instance, in CRI format: `/var/log/pods/NS_NAME_UID/CONTAINER/N.log`; rotated files stand beside it.
    pub log_path: Option<PathBuf>,
    pub previous_log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    pub restart_count: u32,
    /// Why it waits, when it does: for the error text of `logs`/`exec` on a container that is not there yet.
    pub waiting_reason: Option<String>,
}

/// One pod as the node API needs it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Desired pod with the agent's newest status in `.status`.
    pub pod: Arc<Pod>,
    pub uid: String,
    /// Path of the pinned network namespace; `None` for hostNetwork pods and before the sandbox exists.
    pub netns: Option<PathBuf>,
    pub ip: Option<IpAddr>,
    pub containers: Vec<ContainerView>,
}

/// Cheap to clone; answers from memory. Lives as long as the agent.
#[derive(Clone)]
pub struct AgentHandle {
    pub(crate) shared: Arc<crate::agent::Shared>,
}

impl AgentHandle {
    /// All pods on this node, in no particular order.
    pub fn pods(&self) -> Vec<PodView> {
        self.shared.pods()
    }

    /// The pod `namespace/name`; when an old one is still terminating, the newest.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.shared.pods().into_iter().find(|p| {
            p.pod.metadata.namespace.as_deref() == Some(namespace)
                && p.pod.metadata.name.as_deref() == Some(name)
        })
    }

    pub fn pod_by_uid(&self, uid: &str) -> Option<PodView> {
        self.shared.pods().into_iter().find(|p| p.uid == uid)
    }

    /// The runtime, for exec, attach, logs and figures.
    pub fn runtime(&self) -> amphipod_runtime::Runtime {
        self.shared.deps.runtime.clone()
    }

    /// A client of the API server with the node's identity: token reviews and access reviews of who calls the node API.
    pub fn client(&self) -> amphipod_api::Client {
        self.shared.client.clone()
    }

    pub fn config(&self) -> &crate::AgentConfig {
        &self.shared.deps.config
    }
}
