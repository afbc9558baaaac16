//! The hidden subcommands of our own binary.

use std::ffi::OsString;

/// Runs `args` (as `std::env::args_os`, program name included) if it is one of our hidden subcommands, and returns the exit code; `None` for
/// anything else. Call it first thing in `main`, before any thread or async runtime exists.
///
/// There is one: `keeper`, the parent of all containers.
pub fn run_hidden_command(args: &[OsString]) -> Option<i32> {
    match args {
        [_, command, rest @ ..] if command == "keeper" => Some(crate::keeper::main(rest)),
        _ => None,
    }
}
