//! The command line: one file a subcommand. It parses, calls and prints; it decides nothing.

pub mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A working path between every two nodes of a WireGuard mesh.
#[derive(Parser, Debug)]
#[command(name = "wice", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Lab(lab::LabArgs),
}

/// Wrong usage (sysexits.h, EX_USAGE).
const USAGE: u8 = 64;

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to the parser, and no wrong usage.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Command::Lab(args) => lab::run_lab(&args),
    }
}
