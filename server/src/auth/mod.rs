//! Who may do what: authentication, RBAC, the Node authorizer, tokens and the review APIs.

mod attributes;
mod node;
pub mod rbac;
mod user;

pub use attributes::Attributes;
pub use node::{NodeAuthorizer, NodeDecision};
pub use user::{ANONYMOUS, AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED, UserInfo};
