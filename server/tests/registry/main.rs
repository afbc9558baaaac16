//! Promises of the verbs.

#![allow(clippy::unwrap_used)]

mod bench;
mod deletes;
mod reads;
mod writes;
