//! Boxes that join a server's cluster, prove who they are, are reached by connections of their own, and leave.

#![allow(clippy::unwrap_used)]

mod certificates;
mod connection;
mod joining;
mod world;
