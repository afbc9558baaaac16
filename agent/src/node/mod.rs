//! Our Node object: what this machine is and has, that it is alive, and whether it is under pressure.

pub mod keeper;
mod lease;
pub mod machine;
pub mod object;
pub mod pressure;
