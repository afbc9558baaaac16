//! What a first start makes, and every start checks.

mod policy;

pub use policy::{DefaultObject, objects as default_policy};
