//! `wice up`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::daemon_args::DaemonArgs;
use super::{log, print, usage};
use crate::config::{DEFAULT_FILE, DaemonConfig, FileConfig, Mode, Overrides, Surroundings};
use crate::report::Health;

/// A token from standard input is at most this long, with room for line breaks.
const MAX_TOKEN: u64 = 8192;

/// Join the network of a token and run until told to stop; without a token, go on with the network joined before.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice up wice1AbC…                       join, and run
  wice invite | ssh root@box wice up -    the token from standard input
  wice up                                 again, after the first time
  wice up --advertise-routes 10.1.0.0/16 --name gate

Every flag is also a key in /etc/wice/wice.toml (--listen-port is listen_port) and a variable (WICE_LISTEN_PORT): the flag goes
before the variable, the variable before the file. `wice up --print-config` shows what comes of it.")]
pub(super) struct UpArgs {
    /// What `wice invite` printed; - reads it from standard input.
    #[arg(value_name = "TOKEN", env = "WICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token.
    #[arg(long, value_name = "FILE", env = "WICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The interface to make [default: wice0].
    #[arg(long, value_name = "NAME", env = "WICE_INTERFACE")]
    interface: Option<String>,
    /// This node's name; once given it is remembered [default: the host's].
    #[arg(long, value_name = "NAME", env = "WICE_NAME")]
    name: Option<String>,
    /// Bytes of the largest inner packet [default: 1392].
    #[arg(long, value_name = "BYTES", env = "WICE_MTU")]
    mtu: Option<u32>,
    /// Take these routes from peers without the admin's grant; 0.0.0.0/0 takes all.
    #[arg(
        long,
        value_name = "CIDR",
        env = "WICE_ACCEPT_ROUTES",
        value_delimiter = ','
    )]
    accept_routes: Vec<String>,
    /// Let peers reach these networks through this node.
    #[arg(
        long,
        value_name = "CIDR",
        env = "WICE_ADVERTISE_ROUTES",
        value_delimiter = ','
    )]
    advertise_routes: Vec<String>,
    /// Whose WireGuard: kernel (needs CAP_NET_RAW; direct paths outlive the daemon), in-process, or auto: the kernel's where it is there
    /// and its port can be shared, else in-process [default: auto].
    #[arg(long, value_name = "KIND", env = "WICE_WIREGUARD")]
    wireguard: Option<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn up(args: UpArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    let (file, print_config) = (args.daemon.config.clone(), args.daemon.print_config);
    let config = resolve(args.overrides()?, file, matches)?;
    if print_config {
        print(&config.to_toml(Mode::Managed))?;
        return Ok(Health::Well);
    }
    log::start(&config.log)?;
    run_daemon(crate::daemon::run(config.settings))
}

/// What flags, variables and the file make together.
pub(super) fn resolve(
    overrides: Overrides,
    file: Option<PathBuf>,
    matches: &ArgMatches,
) -> anyhow::Result<DaemonConfig> {
    let is_default = file.is_none();
    let path = file.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let file = FileConfig::read(&path, is_default)?;
    let resolved = DaemonConfig::resolve(overrides, file, Surroundings::here());
    Ok(resolved.map_err(|error| usage::located(error, matches, &path))?)
}

/// Runs a daemon to its end.
pub(super) fn run_daemon(
    daemon: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Health> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(daemon)?;
    Ok(Health::Well)
}

/// The token, from standard input if it is `-`.
pub(super) fn read_token(given: Option<String>) -> anyhow::Result<Option<String>> {
    if given.as_deref() != Some("-") {
        return Ok(given);
    }
    let mut text = String::new();
    std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text)?;
    Ok(Some(text))
}

impl UpArgs {
    fn overrides(self) -> anyhow::Result<Overrides> {
        Ok(Overrides {
            token: read_token(self.token)?,
            token_file: self.token_file,
            interface: self.interface,
            name: self.name,
            mtu: self.mtu,
            accept_routes: self.accept_routes,
            advertise_routes: self.advertise_routes,
            wireguard: self.wireguard,
            ..self.daemon.overrides()
        })
    }
}
