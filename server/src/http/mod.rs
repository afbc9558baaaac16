//! HTTPS: from bytes to the registry's verbs and back.
//!
//! **Invariant:** nothing here decides what an object may be; it reads requests, asks who may, calls the registry and
//! writes answers.

pub mod app;
pub mod body;
mod compress;
pub mod connect;
mod documents;
pub mod health;
pub mod holding;
pub mod metrics;
pub mod negotiate;
pub mod options;
mod paths;
mod patience;
mod protobuf;
pub mod query;
pub mod request_body;
mod request_info;
mod resource;
pub mod respond;
pub mod serve;
pub mod tunnel;
mod view;
mod watch;
mod websocket;

pub use request_info::RequestInfo;
