//! Who may do what: authentication, RBAC, the Node authorizer, tokens and the review APIs.

mod user;

pub use user::{ANONYMOUS, AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED, UserInfo};
