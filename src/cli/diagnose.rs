//! `wice status`, `wice why` and `wice ping`: what the daemon knows.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::daemon::connect;
use super::{Control, Usage, block_on, print, print_json};
use crate::daemon::control::{MAX_PINGS, Reply, Request};
use crate::report::{Health, PingEvent, SCHEMA, Status, Style, Why};

/// Pings without another count: a direct path, where there is one, is found in the first two.
const DEFAULT_PINGS: u32 = 10;
/// The daemon tells of a lost ping after some seconds; longer silence means that it hangs.
const PING_PATIENCE: Duration = Duration::from_secs(15);

/// Show this node and its peers: paths, round trips, and why a path is not direct.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice status
  wice status lab-b              one peer, by name, key, start of a key, or overlay address
  wice status --json | jq '.peers[] | {name, kind: .path.kind, reason}'

Exit codes: 0 signaling is connected and every peer that is on has a path, direct or relayed; 1 something is missing; 2 nothing
works: no peer that is on has a path, this node has no network or was revoked, or signaling is away and there is no path.")]
pub(super) struct StatusArgs {
    /// Only this peer.
    peer: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Control,
}

/// Explain a peer's path: one reason, one remedy, and every pair with what failed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice why lab-d
  wice why lab-d --json | jq -r .peer.reason

Exit codes: 0 the peer has a path, direct or relayed; 1 one is being looked for, or does not answer; 2 there is none.
Reasons: native, direct-host, direct-srflx, direct-prflx, direct-mapped, relay-only, both-nats-endpoint-dependent, nat-pair-unreachable,
udp-blocked-here, udp-blocked-there, firewalled, stun-unreachable, no-hairpin, no-common-family, direct-failed-silent, wireguard-unanswered, checking,
no-advert, peer-away, no-relay, relay-unavailable, no-network, nothing-answers; of `wice attach` also not-a-peer-there, revoked.")]
pub(super) struct WhyArgs {
    /// The peer: name, key, start of a key, or overlay address; not needed where there is one alone.
    peer: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Control,
}

/// Ping a peer through the overlay, say which path each reply came by, and stop once it is direct.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice ping lab-b
  wice ping lab-b -c 60          wait up to a minute for a direct path

Exit codes: 0 every ping was answered, 1 some were, 2 none was.")]
pub(super) struct PingArgs {
    /// The peer: name, key, start of a key, or overlay address; not needed where there is one alone.
    peer: Option<String>,
    /// Pings at most, one a second.
    #[arg(short, long, value_name = "N", default_value_t = DEFAULT_PINGS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PINGS)))]
    count: u32,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Control,
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<Health> {
    let status = block_on(ask_status(&args.control))?;
    let style = Style::of_stdout();
    let Some(wanted) = &args.peer else {
        match args.json {
            true => print_json(&status)?,
            false => print(&status.text(style))?,
        }
        return Ok(status.health());
    };
    let peer = status.find(wanted).map_err(anyhow::Error::msg)?;
    match args.json {
        true => {
            let mut json = serde_json::to_value(peer)?;
            json["schema"] = SCHEMA.into();
            print_json(&json)?;
        }
        false => print(&status.peer_text(peer, style))?,
    }
    Ok(peer.health())
}

pub(super) fn why(args: &WhyArgs) -> anyhow::Result<Health> {
    let why: Box<Why> = block_on(async {
        let peer = wanted(&args.control, args.peer.as_ref()).await?;
        let mut client = connect(&args.control).await?;
        let Reply::Why(why) = client.call(&Request::Why { peer }).await? else {
            return unexpected();
        };
        Ok(why)
    })?;
    match args.json {
        true => print_json(&why)?,
        false => print(&why.text(Style::of_stdout()))?,
    }
    Ok(why.peer.health())
}

pub(super) fn ping(args: &PingArgs) -> anyhow::Result<Health> {
    block_on(async {
        let peer = wanted(&args.control, args.peer.as_ref()).await?;
        let mut client = connect(&args.control).await?;
        let request = Request::Ping {
            peer,
            count: args.count,
        };
        client.send(&request).await?;
        let (mut answered, mut lost) = (0u32, 0u32);
        loop {
            let reply = client.next(PING_PATIENCE).await?;
            if reply == Reply::Done {
                break;
            }
            let Reply::Ping(event) = reply else {
                return unexpected();
            };
            match &event {
                PingEvent::Pong { .. } => answered += 1,
                PingEvent::Lost { .. } => lost += 1,
                PingEvent::Direct { .. } | PingEvent::NotDirect { .. } => {}
            }
            if args.json {
                print(&format!("{}\n", serde_json::to_string(&event)?))?;
            } else if let Some(line) = event.line() {
                print(&format!("{line}\n"))?;
            }
        }
        Ok(match (answered, lost) {
            (0, _) => Health::Broken,
            (_, 0) => Health::Well,
            (_, _) => Health::Degraded,
        })
    })
}

/// The peer that was typed, or the only one that there is.
async fn wanted(control: &Control, typed: Option<&String>) -> anyhow::Result<String> {
    match typed {
        Some(peer) => Ok(peer.clone()),
        None => {
            let status = ask_status(control).await?;
            let only = status.only().map_err(Usage)?;
            Ok(only.key.clone())
        }
    }
}

/// The daemon's status.
pub(super) async fn ask_status(control: &Control) -> anyhow::Result<Box<Status>> {
    let mut client = connect(control).await?;
    let Reply::Status(status) = client.call(&Request::Status).await? else {
        return unexpected();
    };
    Ok(status)
}

/// A daemon of another version.
fn unexpected<T>() -> anyhow::Result<T> {
    bail!(
        "the daemon answered something else than was asked\n  is it of another version? restart it after an upgrade"
    )
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::core::reason::Code;

    #[test]
    fn the_help_of_why_has_every_reason() {
        let command = WhyArgs::augment_args(clap::Command::new("why"));
        let help = command.get_after_help().unwrap().to_string();
        let words: Vec<&str> = help.split([' ', ',', '.', ';', '\n']).collect();
        for code in Code::ALL {
            assert!(words.contains(&code.as_str()), "{code}");
        }
    }
}
