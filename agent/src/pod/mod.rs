//! One pod: its plan, what is known of it, what to do next, and the actor that does it.

pub mod backoff;
pub mod decide;
pub mod observed;
pub mod plan;
pub mod status;
