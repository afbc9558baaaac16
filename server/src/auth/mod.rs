//! Who may do what: authentication, RBAC, the Node authorizer, tokens and the review APIs.

mod attributes;
pub mod authn;
mod authorizer;
mod node;
pub mod rbac;
pub mod reviews;
pub mod token_request;
mod user;

pub use attributes::Attributes;
pub use authorizer::Authorizer;
pub use node::{NodeAuthorizer, NodeDecision};
pub use user::{ANONYMOUS, AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED, UserInfo};
