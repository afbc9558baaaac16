//! The scheduler's rules, in the order in which they are asked. The first that refuses a node is the one whose reason is told.

mod image_locality;
mod inter_pod_affinity;
mod node;
mod node_ports;
mod resources;
mod taints;
mod topology_spread;
pub mod volumes;

use super::framework::Plugin;

pub static PLUGINS: &[&dyn Plugin] = &[
    &node::NodeUnschedulable,
    &node::NodeName,
    &taints::TaintToleration,
    &node::NodeAffinity,
    &node_ports::NodePorts,
    &resources::NodeResourcesFit,
    &volumes::VolumeRestrictions,
    &volumes::VolumeBinding,
    &topology_spread::PodTopologySpread,
    &inter_pod_affinity::InterPodAffinity,
    &resources::NodeResourcesBalancedAllocation,
    &image_locality::ImageLocality,
];

#[cfg(test)]
mod tests;
