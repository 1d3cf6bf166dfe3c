//! `wice turn check`: a TURN server tried from outside, step by step, over every transport that is asked for.

mod peer;
mod session;
mod steps;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use wice_signaling::protocol::{RelayTransport, ServerAddress, ServerKind};

use super::netcheck::proxy;
use super::netcheck::relay::{RelayTools, name_of};
use super::turn::{secrets, user};
use super::{Usage, block_on, print, print_json};
use crate::core::turn::Credentials;
use crate::core::turn::url::{Host, RelayUrl, Service};
use crate::report::{Health, SCHEMA, Style, TurnCheck, TurnWay};

/// How long minted credentials are good for: many times what a check takes, and clocks differ.
const MINTED_LIFETIME: Duration = Duration::from_secs(600);
/// Whom they are minted for.
const MINTED_USER: &str = "wice-turn-check";
/// One way, whole: a dozen round trips, two peers and their lost packets.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Try a TURN server from outside: allocate, permission, channel, echo, over each transport, with times.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice turn check turn:turn.example turns:turn.example:443 --secret-file /etc/wice/turn.secret
  wice turn check 'turn:turn.example?transport=tcp' --user alice:wonderland

turn: without a transport is tried over UDP and TCP. It needs no privileges, and works with any TURN server.
The echo goes to a socket of this machine (peer: outside) and so through the server's relay ports. Where that cannot be, because
the server may not reach this machine's address, it goes to a second allocation (peer: relay).
Exit codes: 0 every way works, 1 some do, or not as they should, 2 none, 64 wrong usage.")]
pub(super) struct TurnCheckArgs {
    /// turn:HOST[:PORT][?transport=udp|tcp] or turns:HOST[:PORT].
    #[arg(value_name = "URL", required = true)]
    urls: Vec<String>,
    /// As whom; others on this machine can see it here.
    #[arg(
        long,
        value_name = "NAME:PASSWORD",
        required_unless_present = "secret_file",
        conflicts_with = "secret_file"
    )]
    user: Option<String>,
    /// The server's file of secrets: credentials are made with the first.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Authorities to trust for TLS, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// HTTP proxy for TCP and TLS, like http://proxy.example:3128 [default: $HTTPS_PROXY].
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
}

/// One server over one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    address: ServerAddress,
    transport: RelayTransport,
}

pub(super) fn turn_check(args: &TurnCheckArgs) -> anyhow::Result<Health> {
    let mut targets = Vec::new();
    for url in &args.urls {
        targets.extend(targets_of(url)?);
    }
    let credentials = credentials(args)?;
    let proxy = proxy(args.proxy.as_ref())?;
    let tools = RelayTools::new(args.ca_file.as_deref(), proxy.as_deref()).map_err(Usage)?;
    let check = block_on(run(&targets, &credentials, &tools))?;
    match args.json {
        true => print_json(&check)?,
        false => print(&check.text(Style::of_stdout()))?,
    }
    Ok(check.health())
}

/// One after the other, so that the times are of the way and not of its neighbours.
async fn run(
    targets: &[Target],
    credentials: &Credentials,
    tools: &RelayTools,
) -> anyhow::Result<TurnCheck> {
    let mut ways = Vec::new();
    for target in targets {
        let mut way = TurnWay {
            url: url_of(&target.address),
            transport: name_of(target.transport).to_owned(),
            ..TurnWay::default()
        };
        let trial = steps::Trial {
            target,
            credentials,
            tools,
        };
        let done = tokio::time::timeout(CHECK_TIMEOUT, trial.run(&mut way)).await;
        let done = done.unwrap_or_else(|_| {
            Err(format!(
                "no answer within {} s; a firewall may drop it",
                CHECK_TIMEOUT.as_secs()
            ))
        });
        if let Err(failure) = done {
            way.failed = Some(first_missing(&way).to_owned());
            way.failure = Some(failure);
        }
        ways.push(way);
    }
    Ok(TurnCheck {
        schema: SCHEMA,
        ways,
    })
}

/// Steps are done in order, so the one without a time is the one that failed.
fn first_missing(way: &TurnWay) -> &'static str {
    let steps = [
        ("connect", way.connect_ms),
        ("allocate", way.allocate_ms),
        ("permission", way.permission_ms),
        ("echo", way.echo_ms),
        ("channel", way.channel_ms),
    ];
    let missing = steps.iter().find(|(_, ms)| ms.is_none());
    missing.map_or("channel-echo", |(name, _)| name)
}

fn targets_of(url: &str) -> Result<Vec<Target>, Usage> {
    let parsed: RelayUrl = url.parse().map_err(|error| Usage(format!("{error}")))?;
    let transports = match parsed.service {
        Service::Turn(Some(transport)) => vec![transport],
        Service::Turn(None) => vec![RelayTransport::Udp, RelayTransport::Tcp],
        Service::Stun => {
            return Err(Usage(format!(
                "{url} is no TURN server\n  write turn: or turns:; wice netcheck --stun asks STUN servers"
            )));
        }
    };
    let host = match &parsed.host {
        Host::Name(name) => name.clone(),
        Host::Address(address) => address.to_string(),
    };
    let target = |transport| Target {
        address: ServerAddress {
            kind: ServerKind::Turn(transport),
            host: host.clone(),
            port: parsed.port,
        },
        transport,
    };
    Ok(transports.into_iter().map(target).collect())
}

/// Without the transport, which has a column of its own.
fn url_of(address: &ServerAddress) -> String {
    let url = address.to_string();
    url.split_once('?')
        .map_or(url.clone(), |(url, _)| url.to_owned())
}

fn credentials(args: &TurnCheckArgs) -> anyhow::Result<Credentials> {
    let (name, password) = match (&args.user, &args.secret_file) {
        (Some(text), _) => user(text)?,
        (None, Some(path)) => {
            let unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let secrets = secrets(path)?;
            let secret = secrets.first().map_or("", String::as_str);
            let expiry = unix + MINTED_LIFETIME.as_secs();
            let (name, password) = wice_turn::server::mint(secret, MINTED_USER, expiry);
            (name, password.to_string())
        }
        (None, None) => return Err(Usage("give --user or --secret-file".to_owned()).into()),
    };
    Ok(Credentials::new(&name, &password).map_err(|error| Usage(error.to_string()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_transport_is_tried_over_udp_and_tcp() {
        let transports = |url: &str| {
            let targets = targets_of(url).unwrap();
            let texts = targets
                .iter()
                .map(|t| format!("{} {}", url_of(&t.address), name_of(t.transport)));
            texts.collect::<Vec<_>>()
        };
        assert_eq!(
            transports("turn:relay.example"),
            ["turn:relay.example:3478 udp", "turn:relay.example:3478 tcp"]
        );
        assert_eq!(
            transports("turn:[2001:db8::1]:99?transport=tcp"),
            ["turn:[2001:db8::1]:99 tcp"]
        );
        assert_eq!(
            transports("turns:relay.example"),
            ["turns:relay.example:5349 tls"]
        );
        assert!(targets_of("stun:relay.example").is_err());
        assert!(targets_of("relay.example").is_err());
    }

    #[test]
    fn what_failed_is_the_first_step_without_a_time() {
        let mut way = TurnWay::default();
        assert_eq!(first_missing(&way), "connect");
        way.connect_ms = Some(1.0);
        way.allocate_ms = Some(1.0);
        assert_eq!(first_missing(&way), "permission");
        way.permission_ms = Some(1.0);
        way.echo_ms = Some(1.0);
        way.channel_ms = Some(1.0);
        assert_eq!(first_missing(&way), "channel-echo");
    }
}
