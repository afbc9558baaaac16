//! Role-based access control: `rbac.authorization.k8s.io/v1` evaluated over the watch cache.

pub mod aggregation;
pub mod aggregator;
mod index;
mod live;
pub mod rules;

pub use index::{Binding, Index, Rules, everything, reason};
pub use live::{RESOURCES, Rbac};
