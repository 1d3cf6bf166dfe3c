//! `wice agent`.

use std::path::Path;

use clap::{ArgMatches, Args, ValueEnum};

use super::cluster::{AnnotationArgs, ApiArgs};
use super::daemon_args::DaemonArgs;
use super::up::{resolve, run_daemon};
use super::{block_on, log, print};
use crate::config::{DEFAULT_RUN_DIR, Mode, Overrides};
use crate::daemon::control::{self, Probe};
use crate::daemon::is_detached;
use crate::report::Health;
use crate::signaling::kubernetes::KubernetesConfig;
use crate::signaling::kubernetes::state::{MeshAgent, Names};

/// The interface that Kilo makes.
const KILO_INTERFACE: &str = "kilo0";
/// The interface that kubernetes-wireguard-overlay makes.
const WNS_INTERFACE: &str = "wg0";
/// What WireGuard recommends behind NATs, in seconds.
const KEEPALIVE: u16 = 25;

/// Give the nodes of a Kubernetes cluster paths through NATs, beside Kilo or another mesh agent, and run until told to stop.
#[derive(Args, Debug)]
#[command(after_help = "\
One pod a node, as manifests/ has it. The interface stays the mesh agent's: wice changes nothing but endpoints of peers, and only of
those that WireGuard cannot reach by itself. It needs no token and no signaling service: each node's advert is an annotation of its
own Node (wice.riasc.eu/advert), signed with its WireGuard key. STUN and TURN servers are this cluster's to name: --stun, and
[[turn]] in the file.

Examples:
  wice agent --node-name $(hostname) --stun stun:stun.example:3478
  wice agent --mesh wns                   beside kubernetes-wireguard-overlay
  wice agent --api-server https://127.0.0.1:6443

Flags are also WICE_* variables, and those that `wice up` has keys in /etc/wice/wice.toml; the interface is not taken from there.")]
pub(super) struct AgentArgs {
    /// The mesh agent beside which it runs: it says what interface and annotations are called.
    #[arg(long, value_name = "AGENT", env = "WICE_MESH", default_value = "kilo")]
    mesh: Mesh,
    /// The WireGuard interface [default: kilo0; with --mesh wns wg0].
    #[arg(long, value_name = "INTERFACE", env = "WICE_INTERFACE")]
    interface: Option<String>,
    /// This Node's name, by fieldRef spec.nodeName.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    #[command(flatten)]
    annotations: AnnotationArgs,
    /// Seconds that the own Node's kilo.squat.ai/persistent-keepalive is set to where it has none; 0 leaves it.
    #[arg(long, value_name = "SECONDS", env = "WICE_SET_KEEPALIVE", default_value_t = KEEPALIVE)]
    set_keepalive: u16,
    /// Ask the agent that runs with these flags, and end: live, whether its own threads answer; ready, whether the API has answered
    /// it as well and its advert has been written there, once since it began. While it waits for the interface it is both.
    #[arg(long, value_name = "WHAT")]
    probe: Option<Asked>,
    /// Before an uninstall: give all peers of the interface the endpoints back that they had, take the routing rules away, and do nothing
    /// more until told to stop. Ready is then that it is done.
    #[arg(long, env = "WICE_DETACH")]
    detach: bool,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// What an orchestrator asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Asked {
    /// Whether its own threads answer.
    Live,
    /// Whether the API has answered it, too.
    Ready,
}

/// Mesh agents whose annotations are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mesh {
    /// Kilo's kg.
    Kilo,
    /// kubernetes-wireguard-overlay.
    Wns,
}

pub(super) fn agent(args: AgentArgs, matches: &ArgMatches) -> anyhow::Result<Health> {
    if let Some(asked) = args.probe {
        return args.probe(asked);
    }
    let detach = args.detach;
    let (file, print_config) = (args.daemon.config.clone(), args.daemon.print_config);
    let cluster = args.cluster()?;
    let config = resolve(args.overrides(), file, matches)?;
    if print_config {
        print(&config.to_toml(Mode::Attached))?;
        return Ok(Health::Well);
    }
    log::start(&config.log)?;
    if detach {
        return run_daemon(crate::daemon::stay_detached(&config.settings));
    }
    run_daemon(crate::daemon::agent(config.settings, cluster))
}

impl AgentArgs {
    /// The file is not read: whoever spoils it while the agent runs need not be the agent's end.
    fn probe(&self, asked: Asked) -> anyhow::Result<Health> {
        let folder = self.daemon.run_dir.as_deref();
        let folder = folder.unwrap_or(Path::new(DEFAULT_RUN_DIR));
        if self.detach {
            if asked == Asked::Ready && !is_detached(folder, self.interface()) {
                anyhow::bail!("not ready: {} is not detached yet", self.interface());
            }
        } else {
            let probe = match asked {
                Asked::Live => Probe::Live,
                Asked::Ready => Probe::Ready,
            };
            let socket = control::socket(folder, self.interface());
            block_on(async { Ok(control::probe(&socket, probe).await?) })?;
        }
        print("ok\n")?;
        Ok(Health::Well)
    }

    fn interface(&self) -> &str {
        let default = match self.mesh {
            Mesh::Kilo => KILO_INTERFACE,
            Mesh::Wns => WNS_INTERFACE,
        };
        self.interface.as_deref().unwrap_or(default)
    }

    fn cluster(&self) -> anyhow::Result<KubernetesConfig> {
        let defaults = Names::of(match self.mesh {
            Mesh::Kilo => MeshAgent::Kilo,
            Mesh::Wns => MeshAgent::Wns,
        });
        Ok(KubernetesConfig {
            access: self.api.access(Some(self.interface().to_owned())),
            node: self.node_name.clone(),
            names: self.annotations.names(defaults)?,
            set_keepalive: (self.set_keepalive > 0).then_some(self.set_keepalive),
        })
    }

    fn overrides(self) -> Overrides {
        Overrides {
            // The file's is managed mode's.
            interface: Some(self.interface().to_owned()),
            // Adverts take no longer names; a Node's may have 253 characters.
            name: Some(shortened(self.node_name)),
            ..self.daemon.overrides()
        }
    }
}

/// The first label of a name that is too long for an advert.
fn shortened(name: String) -> String {
    if wice_signaling::protocol::Advert::takes_name(&name) {
        return name;
    }
    let label = name.split('.').next().unwrap_or_default();
    label.to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Usage;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn args(line: &[&str]) -> AgentArgs {
        let line = ["agent", "--node-name", "n1"].iter().chain(line);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn the_mesh_agent_says_what_things_are_called() {
        let kilo = args(&[]);
        let cluster = kilo.cluster().unwrap();
        assert_eq!(cluster.names, Names::of(MeshAgent::Kilo));
        assert_eq!(
            (cluster.node.as_str(), cluster.set_keepalive),
            ("n1", Some(25))
        );
        let overrides = kilo.overrides();
        assert_eq!(overrides.interface.as_deref(), Some("kilo0"));
        let wns = args(&["--mesh", "wns", "--set-keepalive", "0"]);
        assert_eq!(wns.cluster().unwrap().names, Names::of(MeshAgent::Wns));
        assert_eq!(wns.cluster().unwrap().set_keepalive, None);
        let overrides = wns.overrides();
        assert_eq!(overrides.interface.as_deref(), Some("wg0"));
        let overrides = args(&["--interface", "wg8"]).overrides();
        assert_eq!(overrides.interface.as_deref(), Some("wg8"));
    }

    #[test]
    fn an_annotation_that_cannot_be_is_wrong_usage() {
        let wrong = args(&["--annotation-prefix", "Not A Domain"]);
        let error = wrong.cluster().unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("DNS"));
    }

    #[test]
    fn a_long_node_name_fits_into_an_advert() {
        let long = format!("worker-1.{}.example", "x".repeat(60));
        assert_eq!(shortened(long), "worker-1");
        assert_eq!(shortened("n1.example".into()), "n1.example");
    }
}
