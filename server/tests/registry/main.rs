//! Promises of the verbs.

#![allow(clippy::unwrap_used)]

mod applies;
mod bench;
mod deletes;
mod reads;
mod writes;
