//! The node agent: keeps this box's pods running, with or without the server.
//!
//! The agent owns a durable copy of what it should run ([`store`]): pods, the ConfigMaps, Secrets and tokens they need,
//! the services they talk to, and its node's identity. All work is done from that copy. The server is a source of updates
//! and a sink for status; it may be away for a month.
//!
//! Start it with [`Agent::start`]; look into it with [`AgentHandle`].
//!
//! Architecture invariants:
//! - What a pod does next is decided by one pure function ([`pod::decide`]); only the pod's own actor acts on it.
//! - Nothing here polls: every task waits for an event, or sleeps until a time that the decision named.
//! - `runtime` and `netplug` never see an API object; this crate translates.

mod agent;
mod config;
mod container;
mod deps;
mod env;
mod events;
mod gc;
mod handle;
mod join;
mod local_volumes;
mod node;
pub mod node_api;
mod peers;
pub mod pod;
mod pods;
mod policies;
mod probe;
mod registries;
mod reset;
mod resources;
mod server;
mod services;
mod serving;
mod storage;
pub mod store;
mod tunnel;
mod volumes;

pub use agent::Agent;
pub use amphipod_netplug::{FirewallKind, Overlay};
pub use amphipod_runtime::run_hidden_command;
pub use config::{AgentConfig, EvictionThresholds, ServerCredentials};
pub use handle::{AgentHandle, ContainerKind, ContainerView, PodView};
pub use join::{JoinConfig, Membership, join};
pub use reset::reset;
