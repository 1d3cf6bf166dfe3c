//! The command line: one file a subcommand. It parses, calls and prints; it decides nothing.

use std::process::ExitCode;

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
