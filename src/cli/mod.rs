//! The command line: one file a subcommand. It parses, calls and prints; it decides nothing.

mod attach;
mod daemon;
mod detach;
mod diagnose;
pub mod lab;
mod netcheck;
mod network;
mod pin;
mod random;
mod revoke;
mod signal;
mod store;
mod up;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, LogConfig, LogFormat};
use crate::report::Health;

/// Wrong usage (sysexits.h, EX_USAGE).
const USAGE: u8 = 64;

/// What others' code logs of single packets is in our own events where it matters: a peer that does not answer handshakes is a
/// path that is not up, not a warning every 5 s.
const QUIET: &str = "boringtun=off,stun_types=off,stun_proto=off";

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

Exit codes: 0 well, 1 works but degraded, 2 does not work, 64 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(Box<up::UpArgs>),
    Attach(Box<attach::AttachArgs>),
    Detach(detach::DetachArgs),
    Down(daemon::DownArgs),
    Status(diagnose::StatusArgs),
    Why(diagnose::WhyArgs),
    Ping(diagnose::PingArgs),
    Netcheck(netcheck::NetcheckArgs),
    Network(network::NetworkArgs),
    Invite(network::InviteArgs),
    Revoke(revoke::RevokeArgs),
    Signal(signal::SignalArgs),
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to the parser, and no wrong usage.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Lab(args) => return lab::run_lab(&args),
        Command::Up(args) => up::up(*args),
        Command::Attach(args) => attach::attach(*args),
        Command::Detach(args) => detach::detach(&args),
        Command::Down(args) => daemon::down(&args),
        Command::Status(args) => diagnose::status(&args),
        Command::Why(args) => diagnose::why(&args),
        Command::Ping(args) => diagnose::ping(&args),
        Command::Netcheck(args) => netcheck::netcheck(&args),
        Command::Network(args) => network::network(&args),
        Command::Invite(args) => network::invite(&args),
        Command::Revoke(args) => revoke::revoke(&args),
        Command::Signal(args) => signal::signal(&args),
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
            let _ = writeln!(std::io::stderr(), "wice: {error:#}");
            let wrong = error.is::<ConfigError>() || error.is::<Usage>();
            ExitCode::from(if wrong {
                USAGE
            } else {
                Health::Broken.exit_code()
            })
        }
    }
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

/// Logs to standard error, one line a transition.
fn start_log(log: &LogConfig) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let level = format!("{},{QUIET}", log.level);
    let words = ["error", "warn", "info", "debug", "trace", "off"];
    if !words.contains(&log.level.as_str()) && !log.level.contains('=') {
        let text = format!(
            "log_level cannot be {:?}\n  it is error, warn, info, debug or trace",
            log.level
        );
        return Err(Usage(text).into());
    }
    let filter = tracing_subscriber::EnvFilter::try_new(level).map_err(|error| {
        let all = "it is error, warn, info, debug or trace";
        Usage(format!(
            "log_level cannot be {:?}: {error}\n  {all}",
            log.level
        ))
    })?;
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colour);
    // A second start in one process (tests) keeps the first.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
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
