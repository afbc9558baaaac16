//! The command line of Amphipod.
fn main() {}
