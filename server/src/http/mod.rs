//! HTTPS: from bytes to the registry's verbs and back.

pub mod body;
pub mod negotiate;
pub mod query;
mod request_info;
pub mod respond;
pub mod serve;

pub use request_info::RequestInfo;
