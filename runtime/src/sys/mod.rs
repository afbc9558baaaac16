//! Thin, safe wrappers of the system calls that we use.

pub(crate) mod caps;
pub(crate) mod fd;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod socket;
