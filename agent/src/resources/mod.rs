//! Requests and limits: QoS classes, cgroup values, what the node can offer.

pub mod cgroup;
pub mod qos;
pub mod requests;
