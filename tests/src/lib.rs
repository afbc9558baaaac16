//! What whole-system tests are written with: boxes, kubectl, a registry, and waiting for conditions.
//!
//! Architecture invariant: the harness uses none of the project's own crates. It sees the product as a user does: a binary,
//! its command line, its API, its files.

#![allow(clippy::unwrap_used)]

pub mod client;
pub mod counters;
mod dice;
mod edge_box;
pub mod holdings;
mod image;
mod kubectl;
pub mod pod;
mod registry;
mod shared;
mod wait;

pub use dice::{Dice, rounds};
pub use edge_box::{EdgeBox, Lan, binary, peer};
pub use image::{BUSYBOX, Image, Tar, digest};
pub use kubectl::{Kubectl, Ran};
pub use registry::Registry;
pub use shared::{Shared, namespace, shared};
pub use wait::eventually;
