//! `wice attach`.

use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::daemon_args::DaemonArgs;
use super::up::{read_token, resolve, run_daemon};
use super::{log, print};
use crate::config::{Mode, Overrides};
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
    /// This node's name [default: the host's].
    #[arg(long, value_name = "NAME", env = "WICE_NAME")]
    name: Option<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(super) fn attach(args: AttachArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    let (file, print_config) = (args.daemon.config.clone(), args.daemon.print_config);
    let config = resolve(args.overrides()?, file, matches)?;
    if print_config {
        print(&config.to_toml(Mode::Attached))?;
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
            private_key_file: self.private_key_file,
            direct: self.direct,
            ..self.daemon.overrides()
        })
    }
}
