//! The hidden subcommands of our own binary.

use std::ffi::OsString;

/// Runs `args` (as `std::env::args_os`, program name included) if it is one of our hidden subcommands, and returns the exit code; `None` for
/// anything else. Call it first thing in `main`, before any thread or async runtime exists.
pub fn run_hidden_command(args: &[OsString]) -> Option<i32> {
    let _ = args;
    None
}
