//! The same tests over the second packet filter. Needs root and the programs of iptables.

// Each of them has the common part for itself, as where it is a program of its own.
#![allow(clippy::duplicate_mod)]

#[path = "dual_stack.rs"]
mod dual_stack;
#[path = "peers.rs"]
mod peers;
#[path = "pods.rs"]
mod pods;
#[path = "policies.rs"]
mod policies;
#[path = "services.rs"]
mod services;
