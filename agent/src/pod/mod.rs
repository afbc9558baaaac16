//! One pod: its plan, what is known of it, what to do next, and the actor that does it.

pub mod actor;
pub mod admission;
pub mod backoff;
pub mod decide;
pub mod observed;
pub mod ops;
pub mod plan;
pub mod record;
pub mod status;
