//! What every kind of daemon takes: one set of flags, variables and keys of the file.

use std::path::PathBuf;

use clap::Args;

use crate::config::Overrides;

/// Flags of `wice up`, `wice attach` and `wice agent` alike.
#[derive(Args, Debug)]
pub(super) struct DaemonArgs {
    /// Read this configuration instead of /etc/wice/wice.toml.
    #[arg(long, value_name = "FILE", env = "WICE_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Where state is kept; that of an attached interface in attached/INTERFACE below it [default: /var/lib/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Where the control socket is [default: /run/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_RUN_DIR")]
    pub(super) run_dir: Option<PathBuf>,
    /// UDP port for checks, STUN and the packets that wice carries, not that of somebody else's WireGuard; 0 takes any [default:
    /// 51821].
    #[arg(long, value_name = "PORT", env = "WICE_LISTEN_PORT")]
    listen_port: Option<u16>,
    /// STUN servers beside those that signaling tells, like stun:stun.example:3478; two tell how a NAT maps.
    #[arg(long, value_name = "URL", env = "WICE_STUN", value_delimiter = ',')]
    stun: Vec<String>,
    /// HTTP proxy for signaling and relays, like http://proxy.example:3128 [default: $HTTPS_PROXY]; '' is none.
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// Authorities to trust for signaling and relays over TLS, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// auto asks the router, where there is a NAT, to forward wice's UDP port to this node (PCP, NAT-PMP, UPnP; the mapping ends two
    /// hours after the node does), which is of no use to paths from another program's WireGuard port; off sends it nothing
    /// [default: auto].
    #[arg(long, value_name = "MODE", env = "WICE_PORT_MAPPING")]
    port_mapping: Option<String>,
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
    pub(super) print_config: bool,
}

impl DaemonArgs {
    /// What they say, and nothing of the rest.
    pub(super) fn overrides(self) -> Overrides {
        Overrides {
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            listen_port: self.listen_port,
            stun: self.stun,
            proxy: self.proxy,
            ca_file: self.ca_file,
            port_mapping: self.port_mapping,
            log_level: self.log_level,
            log_format: self.log_format,
            metrics: self.metrics,
            ..Overrides::default()
        }
    }
}
