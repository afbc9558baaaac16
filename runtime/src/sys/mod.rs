//! Thin, safe wrappers of the system calls that we use.

pub(crate) mod fd;
