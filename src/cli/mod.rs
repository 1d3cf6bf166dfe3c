//! The command line: one file a subcommand. It parses, calls and prints; it decides nothing.

#[cfg(feature = "kubernetes")]
mod agent;
mod ask;
mod attach;
#[cfg(feature = "kubernetes")]
mod bridge;
#[cfg(feature = "kubernetes")]
mod cluster;
mod daemon;
mod daemon_args;
mod detach;
mod diagnose;
mod fail;
mod hosts;
pub mod lab;
mod leave;
mod log;
mod netcheck;
mod network;
mod nodes;
mod pin;
mod random;
mod revoke;
mod signal;
mod store;
mod turn;
mod turn_addresses;
mod turn_check;
mod up;
mod usage;
mod visit;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::{ConfigError, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR};
use crate::report::Health;
use fail::Told;

/// Wrong usage (sysexits.h, EX_USAGE).
const USAGE: u8 = 64;

/// A working path between every two nodes of a WireGuard mesh, through NATs and firewalls.
#[derive(Parser, Debug)]
#[command(
    name = "wice",
    version,
    disable_help_subcommand = true,
    after_help = "\
A mesh of two, in four lines:
  server$  wice signal --listen 0.0.0.0:8443
  admin$   wice network new lab --signal wss://SERVER:8443 && wice invite
  node-a#  wice up TOKEN
  node-b#  wice up TOKEN
With WireGuard interfaces that are there already: wice attach wg0 TOKEN

Exit codes: 0 well, 1 works but degraded, 2 does not work, 64 wrong usage. With --json an error is an object, too: error, hint,
exit_code."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(Box<up::UpArgs>),
    Attach(Box<attach::AttachArgs>),
    #[cfg(feature = "kubernetes")]
    Agent(Box<agent::AgentArgs>),
    #[cfg(feature = "kubernetes")]
    Bridge(Box<bridge::BridgeArgs>),
    Detach(detach::DetachArgs),
    Down(daemon::DownArgs),
    Leave(leave::LeaveArgs),
    Status(diagnose::StatusArgs),
    Why(diagnose::WhyArgs),
    Ping(diagnose::PingArgs),
    Hosts(hosts::HostsArgs),
    Netcheck(netcheck::NetcheckArgs),
    Network(network::NetworkArgs),
    Invite(network::InviteArgs),
    Revoke(revoke::RevokeArgs),
    Signal(signal::SignalArgs),
    Turn(Box<turn::TurnArgs>),
    Lab(lab::LabArgs),
    /// Print the version.
    Version,
}

/// How the daemon is found.
#[derive(Args, Clone, Debug)]
struct Control {
    /// The daemon's interface; not needed where only one runs.
    #[arg(long, value_name = "NAME", env = "WICE_INTERFACE")]
    interface: Option<String>,
    /// Where control sockets are.
    #[arg(long, value_name = "FOLDER", env = "WICE_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

/// Where networks and their keys are kept.
#[derive(Args, Clone, Debug)]
struct StateDir {
    /// Where state is kept.
    #[arg(long, value_name = "FOLDER", env = "WICE_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut command = usage::without_empty_variables(Cli::command());
    let parsed = command
        .try_get_matches_from_mut(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let wrong = usage::wrong_variable(&command, &arguments[1..], &error);
            // Help and version are errors to the parser, and no wrong usage.
            let code = if error.use_stderr() { USAGE } else { 0 };
            match wrong {
                Some(text) => Told::of(&Usage(text).into()).print(is_json(&arguments), code),
                None => fail::print_usage(&error, is_json(&arguments), code),
            }
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Lab(args) => return lab::run_lab(&args),
        Command::Up(args) => up::up(*args, inner(&matches)),
        Command::Attach(args) => attach::attach(*args, inner(&matches)),
        #[cfg(feature = "kubernetes")]
        Command::Agent(args) => agent::agent(*args, inner(&matches)),
        #[cfg(feature = "kubernetes")]
        Command::Bridge(args) => bridge::bridge(*args, inner(&matches)),
        Command::Detach(args) => detach::detach(&args),
        Command::Down(args) => daemon::down(&args),
        Command::Leave(args) => leave::leave(&args),
        Command::Status(args) => diagnose::status(&args),
        Command::Why(args) => diagnose::why(&args),
        Command::Ping(args) => diagnose::ping(&args),
        Command::Hosts(args) => hosts::hosts(&args),
        Command::Netcheck(args) => netcheck::netcheck(&args),
        Command::Network(args) => network::network(&args),
        Command::Invite(args) => network::invite(&args),
        Command::Revoke(args) => revoke::revoke(&args),
        Command::Signal(args) => signal::signal(&args),
        Command::Turn(args) => turn::turn(&args),
        Command::Version => {
            print(&format!("wice {}\n", env!("CARGO_PKG_VERSION"))).map(|()| Health::Well)
        }
    };
    match done {
        Ok(health) => ExitCode::from(health.exit_code()),
        Err(error) => {
            // A reader that has seen enough (`| head`) is no error.
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            let wrong = error.is::<ConfigError>() || error.is::<Usage>();
            let code = if wrong {
                USAGE
            } else {
                Health::Broken.exit_code()
            };
            Told::of(&error).print(is_json(&arguments), code);
            ExitCode::from(code)
        }
    }
}

/// Of the subcommand.
fn inner(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| inner)
}

fn is_json(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == "--json")
}

/// What the user typed cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// To standard output, all or an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Runs `future` on this thread: for commands that ask and print.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
