//! `wice turn`: the TURN server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wice_turn::io::{External, Listen, Service, Settings, StartError};
use wice_turn::server::{Prefix, Quotas};

use super::Usage;
use super::log::ServiceLog;
use super::turn_addresses::check_addresses;
use super::turn_check::{TurnCheckArgs, turn_check};
use crate::report::Health;

/// How long allocations may go on after SIGTERM: nodes of a mesh move to another relay within seconds.
const DRAIN: u64 = 10;
/// How often a drain looks whether it is over, and for a second signal.
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// Group and others may not read a secret.
const OTHERS: u32 = 0o077;

/// Run the TURN and STUN server: the relay of a mesh, and of anyone's WebRTC or SIP clients.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  wice turn --secret-file /etc/wice/turn.secret
  wice turn --listen udp://0.0.0.0:3478 --listen tls://0.0.0.0:443 --cert fullchain.pem --key privkey.pem --secret-file F
  wice turn --user alice:wonderland --realm example.org --external-ip 203.0.113.5/10.0.0.5

Peers in private, shared, loopback, link-local and other special ranges are denied unless --allow-peer opens them.
SIGHUP reads users, secrets, lists and certificate again. SIGTERM lets allocations end, a second one ends at once.
/metrics, /healthz and /readyz are served at --metrics.")]
pub(super) struct TurnArgs {
    #[command(subcommand)]
    command: Option<TurnCommand>,
    /// Where clients are served: udp://ADDR:PORT, tcp://…, tls://…; give it once for each [default: UDP and TCP 3478].
    #[arg(long, value_name = "URL")]
    listen: Vec<String>,
    /// An address of this machine that relays, one a family [default: those of the default routes].
    #[arg(long, value_name = "IP")]
    relay_ip: Vec<String>,
    /// What the world sees instead of it, behind a 1:1 NAT.
    #[arg(long, value_name = "PUBLIC[/PRIVATE]")]
    external_ip: Vec<String>,
    /// Relay ports [default: 49152-65535].
    #[arg(long, value_name = "MIN-MAX")]
    ports: Option<String>,
    /// The realm that clients are told [default: wice].
    #[arg(long, value_name = "REALM")]
    realm: Option<String>,
    /// A user; others on this machine can see it here, a config file they cannot.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Vec<String>,
    /// A file with the secrets of time-limited credentials, one a line; the first makes nonces.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Peers that may be reached although they are special.
    #[arg(long, value_name = "CIDR")]
    allow_peer: Vec<String>,
    /// Peers that may not be reached.
    #[arg(long, value_name = "CIDR")]
    deny_peer: Vec<String>,
    /// Threads [default: one a core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Certificate chain in PEM.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Make a certificate for these names and the server's addresses, that clients are given to trust: with --cert and --key it
    /// is written there once, else it is a new one at each start.
    #[arg(long, value_name = "NAME", num_args = 0..)]
    self_signed: Option<Vec<String>>,
    /// Serve /metrics, /healthz and /readyz here.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// Allocations of a user, 0 for no limit [default: 256].
    #[arg(long, value_name = "N")]
    user_quota: Option<u32>,
    /// Allocations of a source address (IPv6: /64), 0 for no limit [default: 1024].
    #[arg(long, value_name = "N")]
    source_quota: Option<u32>,
    /// Allocations in all [default: as ports and open files allow].
    #[arg(long, value_name = "N")]
    total_quota: Option<u32>,
    /// Bytes a second of a user, both ways together [default: no limit].
    #[arg(long, value_name = "BYTES")]
    user_rate: Option<u64>,
    /// 401 and 438 responses a second to one source, 0 for no limit [default: 100].
    #[arg(long, value_name = "N")]
    challenge_rate: Option<u32>,
    /// Offer TCP allocations (RFC 6062) to clients on TCP and TLS: users then reach TCP ports of peers, mail servers' as well.
    #[arg(long)]
    tcp_relay: bool,
    /// A load balancer whose TCP and TLS connections begin with a PROXY protocol header, version 2; others' must not.
    #[arg(long, value_name = "CIDR")]
    proxy_protocol_from: Vec<String>,
    /// For clients older than RFC 8656: channel numbers up to 0x7FFE, and the draft's number of ADDITIONAL-ADDRESS-FAMILY.
    #[arg(long)]
    old_clients: bool,
    /// Seconds that allocations may go on after SIGTERM [default: 10].
    #[arg(long, value_name = "SECONDS")]
    drain: Option<u64>,
    /// A TOML file with the same keys (with _ for -); flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    log: ServiceLog,
}

#[derive(Subcommand, Debug)]
enum TurnCommand {
    Check(TurnCheckArgs),
}

/// The file: every flag but those of the log. Unknown keys are refused.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    listen: Vec<String>,
    relay_ip: Vec<String>,
    external_ip: Vec<String>,
    ports: Option<String>,
    realm: Option<String>,
    user: Vec<String>,
    secret_file: Option<PathBuf>,
    allow_peer: Vec<String>,
    deny_peer: Vec<String>,
    threads: Option<usize>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    self_signed: Option<Vec<String>>,
    metrics: Option<String>,
    user_quota: Option<u32>,
    source_quota: Option<u32>,
    total_quota: Option<u32>,
    user_rate: Option<u64>,
    challenge_rate: Option<u32>,
    tcp_relay: bool,
    proxy_protocol_from: Vec<String>,
    old_clients: bool,
    drain: Option<u64>,
}

pub(super) fn turn(args: &TurnArgs) -> anyhow::Result<Health> {
    if let Some(TurnCommand::Check(check)) = &args.command {
        return turn_check(check);
    }
    args.log.start()?;
    let (settings, drain) = settings(args)?;
    check_addresses(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    let service = Service::start(&settings).map_err(usage)?;
    for listen in service.listeners() {
        tracing::info!(event = "turn-serving", transport = ?listen.transport, address = %listen.address, realm = %settings.realm);
    }
    runtime.block_on(wait(args, &settings, &service, &mut signals));
    tracing::info!(
        event = "turn-draining",
        allocations = service.allocations(),
        seconds = drain.as_secs(),
        "no new allocations; a second signal ends the others at once"
    );
    let left = std::thread::scope(|scope| {
        let draining = scope.spawn(|| service.drain(drain));
        let left = runtime.block_on(async {
            loop {
                tokio::select! {
                    () = signals.end() => return None,
                    () = tokio::time::sleep(DRAIN_STEP) => {
                        if draining.is_finished() {
                            return Some(service.allocations());
                        }
                    }
                }
            }
        });
        if left.is_none() {
            let cut_off = service.allocations();
            tracing::info!(event = "turn-stopped", cut_off, reason = "a second signal");
            std::process::exit(0);
        }
        left
    });
    let cut_off = left.unwrap_or(0);
    let reason = match cut_off {
        0 => "all allocations had ended".to_owned(),
        _ => format!("the {} s of --drain were over", drain.as_secs()),
    };
    tracing::info!(event = "turn-stopped", cut_off, reason);
    Ok(Health::Well)
}

/// Settings that cannot be meant are wrong usage; what the machine refuses is not.
fn usage(error: StartError) -> anyhow::Error {
    match error {
        StartError::Settings(text) => Usage(text).into(),
        StartError::Udp(_)
        | StartError::Tcp { .. }
        | StartError::Certificate { .. }
        | StartError::System { .. } => error.into(),
    }
}

/// Signals to the service, caught from before it says that it serves: none may end the program by its default.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for SIGTERM or SIGINT; cancel-safe.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reloads on SIGHUP until SIGTERM or SIGINT.
async fn wait(args: &TurnArgs, begun: &Settings, service: &Service, signals: &mut Signals) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => {
                let reloaded = settings(args).and_then(|(settings, _)| {
                    service.reload(&settings).map_err(usage)?;
                    Ok(settings)
                });
                match reloaded {
                    Ok(settings) => {
                        let needs_restart = changed(begun, &settings);
                        tracing::info!(event = "turn-reloaded", needs_restart);
                    }
                    Err(error) => tracing::error!(event = "turn-not-reloaded", error = %format!("{error:#}")),
                }
            }
        }
    }
}

/// What has changed that a reload leaves as it was: the names of the settings.
fn changed(begun: &Settings, now: &Settings) -> Option<String> {
    let all = [
        ("listen", begun.listen != now.listen),
        ("relay_ip", begun.relay_ips != now.relay_ips),
        ("ports", begun.ports != now.ports),
        ("threads", begun.threads != now.threads),
        ("metrics", begun.metrics != now.metrics),
    ];
    let names: Vec<&str> = all
        .into_iter()
        .filter_map(|(name, changed)| changed.then_some(name))
        .collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Flags over file over defaults, and the time to drain.
fn settings(args: &TurnArgs) -> anyhow::Result<(Settings, Duration)> {
    let file = match &args.config {
        Some(path) => toml::from_str(&read(path, "the config file")?)
            .map_err(|error| Usage(format!("{}: {error}", path.display())))?,
        None => File::default(),
    };
    let defaults = Settings::new();
    let listen = list::<Listen>("listen", &args.listen, &file.listen)?;
    let ports = args.ports.as_ref().or(file.ports.as_ref());
    let users = if args.user.is_empty() {
        &file.user
    } else {
        &args.user
    };
    let secrets = match args.secret_file.as_ref().or(file.secret_file.as_ref()) {
        Some(path) => secrets(path)?,
        None => Vec::new(),
    };
    let cert = args.cert.clone().or(file.cert);
    let key = args.key.clone().or(file.key);
    let certificate = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Usage("--cert and --key belong together".to_owned()).into());
        }
    };
    let metrics = args.metrics.as_ref().or(file.metrics.as_ref());
    let metrics = metrics
        .map(|text| parse::<SocketAddr>("metrics", text))
        .transpose()?;
    let quotas = Quotas {
        user: args
            .user_quota
            .or(file.user_quota)
            .unwrap_or(defaults.quotas.user),
        source: args
            .source_quota
            .or(file.source_quota)
            .unwrap_or(defaults.quotas.source),
        total: args
            .total_quota
            .or(file.total_quota)
            .unwrap_or(defaults.quotas.total),
        user_bytes_per_second: args.user_rate.or(file.user_rate).unwrap_or(0),
    };
    let mut challenges = defaults.challenges;
    if let Some(rate) = args.challenge_rate.or(file.challenge_rate) {
        // The same ten seconds of it at once as by default.
        let seconds = challenges.burst / challenges.per_second;
        challenges.per_second = rate;
        challenges.burst = rate.saturating_mul(seconds);
    }
    let drain = args.drain.or(file.drain).unwrap_or(DRAIN);
    let settings = Settings {
        listen: if listen.is_empty() {
            defaults.listen
        } else {
            listen
        },
        relay_ips: list::<IpAddr>("relay-ip", &args.relay_ip, &file.relay_ip)?,
        external_ips: list::<External>("external-ip", &args.external_ip, &file.external_ip)?,
        ports: match ports {
            Some(text) => port_range(text)?,
            None => defaults.ports,
        },
        realm: args.realm.clone().or(file.realm).unwrap_or(defaults.realm),
        users: users
            .iter()
            .map(|text| user(text))
            .collect::<Result<_, _>>()?,
        secrets,
        allow_peers: list::<Prefix>("allow-peer", &args.allow_peer, &file.allow_peer)?,
        deny_peers: list::<Prefix>("deny-peer", &args.deny_peer, &file.deny_peer)?,
        threads: args.threads.or(file.threads).unwrap_or(defaults.threads),
        certificate,
        self_signed: args.self_signed.clone().or(file.self_signed),
        metrics,
        quotas,
        challenges,
        nonce_lifetime: defaults.nonce_lifetime,
        tcp_relay: args.tcp_relay || file.tcp_relay,
        proxy_protocol_from: list::<Prefix>(
            "proxy-protocol-from",
            &args.proxy_protocol_from,
            &file.proxy_protocol_from,
        )?,
        old_clients: args.old_clients || file.old_clients,
    };
    Ok((settings, Duration::from_secs(drain)))
}

fn parse<T: FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, Usage> {
    text.parse()
        .map_err(|error| Usage(format!("--{name} {text}: {error}")))
}

fn list<T: FromStr<Err: std::fmt::Display>>(
    name: &str,
    flags: &[String],
    file: &[String],
) -> Result<Vec<T>, Usage> {
    let texts = if flags.is_empty() { file } else { flags };
    texts.iter().map(|text| parse(name, text)).collect()
}

fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, Usage> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some(first.trim().parse().ok()?..=last.trim().parse().ok()?));
    range.ok_or_else(|| Usage(format!("--ports {text}: write it like 49152-65535")))
}

pub(super) fn user(text: &str) -> Result<(String, String), Usage> {
    match text.split_once(':') {
        Some((name, password)) if !name.is_empty() && !password.is_empty() => {
            Ok((name.to_owned(), password.to_owned()))
        }
        Some(_) | None => Err(Usage("--user: write it like NAME:PASSWORD".to_owned())),
    }
}

/// One secret a line, in a file of its owner's alone.
pub(super) fn secrets(path: &Path) -> anyhow::Result<Vec<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = read(path, "the secret file")?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & OTHERS != 0 {
        let path = path.display();
        return Err(Usage(format!(
            "others can read the secret file {path}\n  chmod 600 {path}"
        ))
        .into());
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<String> = lines.map(str::to_owned).collect();
    if secrets.is_empty() {
        return Err(Usage(format!("there is no secret in {}", path.display())).into());
    }
    Ok(secrets)
}

fn read(path: &Path, what: &str) -> Result<String, Usage> {
    std::fs::read_to_string(path)
        .map_err(|error| Usage(format!("{what} {} cannot be read: {error}", path.display())))
}
