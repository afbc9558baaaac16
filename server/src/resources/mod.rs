//! The resources as data: what a kind is called, how it looks, what its defaults are, what it refuses and how it prints.
//!
//! A [`Descriptor`] is everything the generic engine needs to serve one resource. Built-in kinds are one file and one
//! row of the table in [`kinds`]; CustomResourceDefinitions add descriptors at run time through [`Catalog::add`].
//!
//! **Invariant:** nothing here knows how objects are stored or served; all of it is functions over JSON values.

pub mod amounts;
mod catalog;
mod common;
mod descriptor;
pub mod kinds;
pub mod schedule;
pub mod schema;
mod strategy;
pub mod table;
pub mod usage;
pub mod validate;
pub mod volumes;

pub use catalog::Catalog;
pub use descriptor::{
    Column, Connect, Conversion, Descriptor, Durability, SchemaSource, Scope, SelectableField, Str,
    Subresource, SubresourceKind, Verb, Verbs,
};
pub use schema::{DecodeError, Decoded, Schema};
pub use strategy::{ClusterConfig, Lookup, Privileges, Strategy, StrategyContext};
