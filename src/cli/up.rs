//! `wice up`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::{log, print, usage};
use crate::config::{DEFAULT_FILE, DaemonConfig, FileConfig, Overrides, Surroundings};
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
    /// Read this configuration instead of /etc/wice/wice.toml.
    #[arg(long, value_name = "FILE", env = "WICE_CONFIG")]
    config: Option<PathBuf>,
    /// The interface to make [default: wice0].
    #[arg(long, value_name = "NAME", env = "WICE_INTERFACE")]
    interface: Option<String>,
    /// This node's name; once given it is remembered [default: the host's].
    #[arg(long, value_name = "NAME", env = "WICE_NAME")]
    name: Option<String>,
    /// Where state is kept [default: /var/lib/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Where the control socket is [default: /run/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// UDP port for checks, STUN and WireGuard; 0 takes any [default: 51821].
    #[arg(long, value_name = "PORT", env = "WICE_LISTEN_PORT")]
    listen_port: Option<u16>,
    /// Bytes of the largest inner packet [default: 1392].
    #[arg(long, value_name = "BYTES", env = "WICE_MTU")]
    mtu: Option<u32>,
    /// STUN servers beside those of the network, like stun:stun.example:3478.
    #[arg(long, value_name = "URL", env = "WICE_STUN", value_delimiter = ',')]
    stun: Vec<String>,
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
    /// HTTP proxy for signaling and relays, like http://proxy.example:3128 [default: $HTTPS_PROXY]; '' is none.
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// Authorities to trust for signaling and relays over TLS, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// auto asks the router, where there is a NAT, to forward the UDP port to this node (PCP, NAT-PMP, UPnP; the mapping ends two
    /// hours after the node does); off sends it nothing [default: auto].
    #[arg(long, value_name = "MODE", env = "WICE_PORT_MAPPING")]
    port_mapping: Option<String>,
    /// Whose WireGuard: kernel (needs CAP_NET_RAW; direct paths outlive the daemon), in-process, or auto: the kernel's where it is there
    /// and its port can be shared, else in-process [default: auto].
    #[arg(long, value_name = "KIND", env = "WICE_WIREGUARD")]
    wireguard: Option<String>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long, value_name = "LEVEL", env = "WICE_LOG_LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text].
    #[arg(long, value_name = "FORMAT", env = "WICE_LOG_FORMAT")]
    log_format: Option<String>,
    /// Serve Prometheus metrics here, like 127.0.0.1:9586 [default: nowhere].
    #[arg(long, value_name = "ADDRESS", env = "WICE_METRICS")]
    metrics: Option<String>,
    /// Print the configuration that flags, variables and file make, without secrets, and end.
    #[arg(long)]
    print_config: bool,
}

pub(super) fn up(args: UpArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    let (file, print_config) = (args.config.clone(), args.print_config);
    let config = resolve(args.overrides()?, file, matches)?;
    if print_config {
        print(&config.to_toml())?;
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
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            listen_port: self.listen_port,
            mtu: self.mtu,
            stun: self.stun,
            accept_routes: self.accept_routes,
            advertise_routes: self.advertise_routes,
            proxy: self.proxy,
            ca_file: self.ca_file,
            port_mapping: self.port_mapping,
            wireguard: self.wireguard,
            log_level: self.log_level,
            log_format: self.log_format,
            metrics: self.metrics,
            ..Overrides::default()
        })
    }
}
