//! `wice signal`: the signaling service.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal as os_signal};
use wice_signaling::protocol::{NetworkId, ServerAddress, ServerKind};
use wice_signaling::server::{Config, Networks, Server, Transport, TurnSecrets};

use super::log::ServiceLog;
use super::{StateDir, Usage, store};
use crate::report::Health;

/// Run the signaling service: it carries sealed adverts between proven members, answers STUN, and hands out relays.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice signal --listen 0.0.0.0:8443
  wice signal --listen 0.0.0.0:443 --cert fullchain.pem --key privkey.pem
  wice signal --turn turn:turn.example:3478 --turn turns:turn.example:443 --turn-secret-file /etc/wice/turn.secret --network ID

Networks made on this machine (wice network new, same --state-dir) are served, and those named by --network. Without any, every
network is served, but gets no credentials for relays: anyone can make a network.")]
pub(super) struct SignalArgs {
    /// Where it listens: TCP for nodes, UDP for STUN.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "WICE_SIGNAL_LISTEN",
        default_value = "0.0.0.0:8443"
    )]
    listen: SocketAddr,
    /// Certificate chain in PEM; without, one is made at the first start and pinned by tokens.
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "plain")]
    cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// No TLS: behind a proxy that has it.
    #[arg(long)]
    plain: bool,
    /// A network to serve, by its id; give it once for each.
    #[arg(long, value_name = "ID")]
    network: Vec<String>,
    /// A TURN or STUN server to tell nodes of, like turn:turn.example:3478, turns:turn.example:443 or stun:stun.example.
    #[arg(
        long,
        value_name = "URL",
        env = "WICE_SIGNAL_TURN",
        value_delimiter = ','
    )]
    turn: Vec<ServerAddress>,
    /// The secret shared with the TURN servers (static-auth-secret in coturn); others on this machine can see it here.
    #[arg(
        long,
        value_name = "SECRET",
        env = "WICE_TURN_SECRET",
        hide_env_values = true
    )]
    turn_secret: Option<String>,
    /// A file with that secret; with several, one a line, the first mints credentials. Read again on SIGHUP.
    #[arg(
        long,
        value_name = "FILE",
        env = "WICE_TURN_SECRET_FILE",
        conflicts_with = "turn_secret"
    )]
    turn_secret_file: Option<PathBuf>,
    /// Do not answer STUN.
    #[arg(long)]
    no_stun: bool,
    /// Answer /metrics to everyone, not to this machine alone.
    #[arg(long)]
    metrics_public: bool,
    #[command(flatten)]
    log: ServiceLog,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn signal(args: &SignalArgs) -> anyhow::Result<Health> {
    args.log.start()?;
    let named: BTreeSet<NetworkId> = args
        .network
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                Usage(format!(
                    "{text} is no network's id\n  one has 64 hexadecimal digits: wice network show"
                ))
            })
        })
        .collect::<Result<_, Usage>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(args, named))?;
    Ok(Health::Well)
}

async fn run(args: &SignalArgs, named: BTreeSet<NetworkId>) -> anyhow::Result<()> {
    let mut terminate = os_signal(SignalKind::terminate())?;
    let mut interrupt = os_signal(SignalKind::interrupt())?;
    let folder = args.state.state_dir.clone();
    // One that is made on this machine while the service runs is served at once.
    let networks = Networks::looked_up(move || {
        let local = store::ids(&folder);
        named.union(&local).copied().collect()
    });
    let count = networks.count();
    let config = config(args, networks)?;
    let secrets = config.turn_secrets.clone();
    let relay = |server: &&ServerAddress| matches!(server.kind, ServerKind::Turn(_));
    if let Some(relay) = args.turn.iter().find(relay)
        && secrets.is_empty()
    {
        return Err(Usage(format!(
            "nodes get no credentials for {relay}: the secret that it shares with this service is missing\n  give --turn-secret-file FILE, the same that `wice turn` has as --secret-file"
        ))
        .into());
    }
    let server = Server::bind(config).await?;
    let mut hangup = os_signal(SignalKind::hangup())?;
    let pin = server.pin().map(|pin| pin.to_string());
    tracing::info!(
        event = "serving",
        listen = %server.local_addr(),
        pin = pin.as_deref().unwrap_or("none"),
        networks = count,
        hint = (count == 0).then(|| {
            let port = server.local_addr().port();
            format!("make a network: wice network new NAME --signal wss://THIS-HOST:{port}")
        }),
    );
    let reload = async {
        while hangup.recv().await.is_some() {
            match turn_secrets(args) {
                Ok(fresh) => {
                    tracing::info!(event = "turn-secrets", count = fresh.len());
                    secrets.replace(fresh);
                }
                // What works goes on to work.
                Err(error) => {
                    tracing::error!(event = "turn-secrets-unreadable", error = %format!("{error:#}"))
                }
            }
        }
        std::future::pending().await
    };
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = reload => {}
        }
    };
    server.serve(end).await;
    Ok(())
}

fn config(args: &SignalArgs, networks: Networks) -> anyhow::Result<Config> {
    let mut config = Config::new(args.listen, &args.state.state_dir);
    config.transport = match (&args.cert, &args.key, args.plain) {
        (_, _, true) => Transport::Plain,
        (Some(certificate), Some(key), false) => Transport::Certificate {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        (_, _, false) => Transport::SelfSigned,
    };
    config.networks = networks;
    config.revocations = store::revocations(&args.state.state_dir);
    config.servers.clone_from(&args.turn);
    config.turn_secrets = TurnSecrets::new(turn_secrets(args)?);
    config.stun = !args.no_stun;
    config.metrics_public = args.metrics_public;
    Ok(config)
}

fn turn_secrets(args: &SignalArgs) -> anyhow::Result<Vec<String>> {
    let Some(path) = &args.turn_secret_file else {
        return Ok(args.turn_secret.iter().cloned().collect());
    };
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "the TURN secret {} cannot be read (let this user read it)",
            path.display()
        )
    })?;
    let secrets = TurnSecrets::parse(&text);
    anyhow::ensure!(
        !secrets.is_empty(),
        "there is no TURN secret in {}\n  write one a line; the first mints credentials",
        path.display()
    );
    Ok(secrets)
}
