//! Wiring: starts the parts of an agent, and stops them.

use std::sync::Arc;

use crate::config::AgentConfig;
use crate::handle::{AgentHandle, PodView};

/// State that every part of the agent shares.
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
}

impl Shared {
    pub(crate) fn pods(&self) -> Vec<PodView> {
        Vec::new()
    }
}

/// A running agent. Dropping it stops its tasks; containers keep running either way.
pub struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    /// Starts the agent on the current tokio runtime: brings back from disk what should run, then connects to the server.
    /// Succeeds with the server unreachable. Fails when the box itself is unfit: directories, database, runtime, network.
    pub async fn start(config: AgentConfig) -> anyhow::Result<Agent> {
        let shared = Arc::new(Shared { config });
        tracing::info!(node = %shared.config.node_name, "agent started");
        Ok(Agent { shared })
    }

    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            shared: self.shared.clone(),
        }
    }

    /// Stops all tasks and closes the database. Containers, their network and services stay.
    pub async fn shutdown(self) {}
}
