//! `wice attach`.

use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::up::{read_token, resolve, run_daemon};
use super::{log, print};
use crate::config::Overrides;
use crate::report::Health;

/// Give the peers of a WireGuard interface that is there already paths through NATs, and run until told to stop.
#[derive(Args, Debug)]
#[command(after_help = "\
The interface stays its owner's (wg-quick, a mesh agent, you): wice changes nothing but endpoints of peers, and only of those that
WireGuard cannot reach by itself. Peers are what the interface has; wice runs on both sides, in one network (wice network new).
Ending it leaves endpoints as they are; `wice detach` puts back what they were.

Examples:
  wice attach wg0 wice1AbC…               join, and run
  wice invite | ssh root@box wice attach wg0 -
  wice attach wg0                         again, after the first time

Flags are also keys in /etc/wice/wice.toml and WICE_* variables, as for `wice up`.")]
pub(super) struct AttachArgs {
    /// The WireGuard interface: kernel, or userspace with a socket in /var/run/wireguard.
    #[arg(value_name = "INTERFACE", env = "WICE_INTERFACE")]
    interface: String,
    /// What `wice invite` printed; - reads it from standard input.
    #[arg(value_name = "TOKEN", env = "WICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token.
    #[arg(long, value_name = "FILE", env = "WICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The interface's private key, where WireGuard does not tell it (boringtun).
    #[arg(long, value_name = "FILE", env = "WICE_PRIVATE_KEY_FILE")]
    private_key_file: Option<PathBuf>,
    /// How direct paths are bound: proxy passes every packet on over loopback, shared-port lets WireGuard send itself (CAP_NET_RAW);
    /// auto is shared-port where that works, else proxy [default: auto].
    #[arg(long, value_name = "HOW", env = "WICE_DIRECT")]
    direct: Option<String>,
    /// Read this configuration instead of /etc/wice/wice.toml.
    #[arg(long, value_name = "FILE", env = "WICE_CONFIG")]
    config: Option<PathBuf>,
    /// This node's name [default: the host's].
    #[arg(long, value_name = "NAME", env = "WICE_NAME")]
    name: Option<String>,
    /// Where state is kept, in attached/INTERFACE [default: /var/lib/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Where the control socket is [default: /run/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// UDP port for checks, STUN and WireGuard's packets, not WireGuard's own; 0 takes any [default: 51821].
    #[arg(long, value_name = "PORT", env = "WICE_LISTEN_PORT")]
    listen_port: Option<u16>,
    /// STUN servers beside those of the network, like stun:stun.example:3478.
    #[arg(long, value_name = "URL", env = "WICE_STUN", value_delimiter = ',')]
    stun: Vec<String>,
    /// HTTP proxy for signaling and relays, like http://proxy.example:3128 [default: $HTTPS_PROXY]; '' is none.
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// Authorities to trust for signaling and relays over TLS, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
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

pub(super) fn attach(args: AttachArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    let (file, print_config) = (args.config.clone(), args.print_config);
    let config = resolve(args.overrides()?, file, matches)?;
    if print_config {
        print(&config.to_toml())?;
        return Ok(Health::Well);
    }
    log::start(&config.log)?;
    run_daemon(crate::daemon::attach(config.settings))
}

impl AttachArgs {
    fn overrides(self) -> anyhow::Result<Overrides> {
        Ok(Overrides {
            token: read_token(self.token)?,
            token_file: self.token_file,
            interface: Some(self.interface),
            name: self.name,
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            listen_port: self.listen_port,
            stun: self.stun,
            proxy: self.proxy,
            ca_file: self.ca_file,
            log_level: self.log_level,
            log_format: self.log_format,
            metrics: self.metrics,
            private_key_file: self.private_key_file,
            direct: self.direct,
            ..Overrides::default()
        })
    }
}
