//! The command line of Amphipod: parses, then calls the crates. No logic of its own.
//!
//! Before anything else, and before any thread exists, the runtime's hidden commands are served: the keeper and the
//! helpers that create containers are this same program, re-executed.

mod cli;
#[cfg(feature = "server")]
mod fleet;
#[cfg(feature = "agent")]
mod hello;
mod run;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    #[cfg(feature = "agent")]
    if let Some(code) = amphipod_agent::run_hidden_command(&std::env::args_os().collect::<Vec<_>>())
    {
        return ExitCode::from(code.clamp(0, 255) as u8);
    }
    run::give_memory_back();
    let cli = cli::Cli::parse();
    run::log_to_stderr();
    match run::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place where an error that ends the program is printed, whole.
            eprintln!("amphipod: {error:#}");
            if let Some(advice) = run::advice(&error) {
                eprintln!("amphipod: {advice}");
            }
            ExitCode::FAILURE
        }
    }
}
