//! Who may do what: authentication, RBAC, the Node authorizer, tokens and the review APIs.

mod attributes;
pub mod authn;
mod authorizer;
pub mod bootstrap_token;
mod node;
mod pod_refs;
pub mod rbac;
pub mod removed;
pub mod reviews;
pub mod token_request;
mod user;

pub use attributes::Attributes;
pub use authorizer::Authorizer;
pub use node::{NodeAuthorizer, NodeDecision};
pub use user::{
    ANONYMOUS, AUTHENTICATED, BOOTSTRAPPERS, MASTERS, NODES, UNAUTHENTICATED, UserInfo,
};
