//! Promises of the controllers, each in a server in this process.
#![allow(clippy::unwrap_used)]

mod bench;
mod deployments;
mod garbage;
mod jobs;
mod namespaces;
mod nodes;
mod replica_sets;
mod services;
