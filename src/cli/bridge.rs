//! `wice bridge`.

use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::cluster::{AnnotationArgs, ApiArgs};
use super::log;
use super::up::{read_token, resolve, run_daemon};
use crate::config::Overrides;
use crate::daemon::BridgeConfig;
use crate::report::Health;
use crate::signaling::kubernetes::state::{MeshAgent, Names};

/// Let machines outside of a Kubernetes cluster, which are Kilo Peers there, meet its nodes: carry adverts between a signaling
/// service and the cluster, and run until told to stop.
#[derive(Args, Debug)]
#[command(after_help = "\
One pod a cluster, as manifests/kubernetes/overlays/bridge has it. Machines outside run `wice attach` with a token of the network, nodes
inside `wice agent`; the bridge is a member of the network without an interface. The advert of a machine whose key is the
spec.publicKey of a Peer object becomes that object's annotation wice.riasc.eu/advert; adverts of Nodes are carried to the service. All
are signed by their own machines: the bridge can alter none.

Examples:
  wice invite --label bridge > token && kubectl -n wice create secret generic wice-bridge --from-file=token
  wice bridge --token-file token --kubeconfig ~/.kube/config

Flags are also WICE_* variables.")]
pub(super) struct BridgeArgs {
    /// What `wice invite` printed; - reads it from standard input. Needed once, while the state folder is kept.
    #[arg(value_name = "TOKEN", env = "WICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token.
    #[arg(long, value_name = "FILE", env = "WICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The bridge's own key, as `wg genkey` prints it [default: made at the first start, and kept in the state folder].
    #[arg(long, value_name = "FILE", env = "WICE_PRIVATE_KEY_FILE")]
    private_key_file: Option<PathBuf>,
    /// Where state is kept, in bridge/ below it [default: /var/lib/wice].
    #[arg(long, value_name = "FOLDER", env = "WICE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    annotations: AnnotationArgs,
    #[command(flatten)]
    api: ApiArgs,
    /// HTTP proxy for signaling, like http://proxy.example:3128 [default: $HTTPS_PROXY]; '' is none.
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// Authorities to trust for signaling, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Read this configuration instead of /etc/wice/wice.toml.
    #[arg(long, value_name = "FILE", env = "WICE_CONFIG")]
    config: Option<PathBuf>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long, value_name = "LEVEL", env = "WICE_LOG_LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text].
    #[arg(long, value_name = "FORMAT", env = "WICE_LOG_FORMAT")]
    log_format: Option<String>,
    /// Serve Prometheus metrics and /healthz here, like 127.0.0.1:9588 [default: nowhere].
    #[arg(long, value_name = "ADDRESS", env = "WICE_METRICS")]
    metrics: Option<String>,
}

pub(super) fn bridge(args: BridgeArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    let cluster = BridgeConfig {
        access: args.api.access(None),
        names: args.annotations.names(Names::of(MeshAgent::Kilo))?,
    };
    let overrides = Overrides {
        token: read_token(args.token)?,
        token_file: args.token_file,
        private_key_file: args.private_key_file,
        state_dir: args.state_dir,
        proxy: args.proxy,
        ca_file: args.ca_file,
        log_level: args.log_level,
        log_format: args.log_format,
        metrics: args.metrics,
        ..Overrides::default()
    };
    let config = resolve(overrides, args.config, matches)?;
    log::start(&config.log)?;
    run_daemon(crate::daemon::bridge(config.settings, cluster))
}
