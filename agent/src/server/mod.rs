//! The server as the agent sees it: a source of updates, and a sink for status and events. Nothing here is needed for pods
//! to go on running.

pub mod link;
pub mod objects;
pub mod status;
pub mod tokens;
