//! From a container in a pod's spec to what the runtime starts.

pub mod hooks;
pub mod images;
pub mod security;
pub mod spec;
pub mod termination;
